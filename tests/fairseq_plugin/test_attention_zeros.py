"""Exact zeros of attention, against sentence-by-sentence arithmetic; and the record of a training's speed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import InputError
from plugin.batches import collated, plan_batches
from plugin.checkpoint import training_speed
from plugin.model import adopt_attention
from plugin.sparsity import sparsities
from plugin.zeros import ZeroCounts, count_cells, count_zeros
from tiny_translation import batch_of, build, prune_flags

SITES = ("enc-self", "dec-self", "enc-dec")
PAD = 1


def count(task, model, max_tokens):
    dataset = task.dataset("test")
    batches = plan_batches(task, dataset, model, max_tokens)
    return count_zeros(model, collated(dataset, batches, torch.device("cpu")), SITES, PAD)


def entmax_of(scores):
    """Entmax 1.5 of a list of scores, its threshold found by halving: p = max(0, z / 2 - threshold) squared."""
    low, high = max(scores) / 2 - 1, max(scores) / 2
    for _ in range(60):
        middle = (low + high) / 2
        total = sum(max(0.0, score / 2 - middle) ** 2 for score in scores)
        low, high = (middle, high) if total > 1 else (low, middle)
    return [max(0.0, score / 2 - high) ** 2 for score in scores]


def softmax_of(scores):
    return [math.exp(score - max(scores)) for score in scores]


def brute_force(task, model, normalize):
    """One unpadded sentence after another, scores computed from the weights by hand, one row after another."""
    counts, handles = {site: ZeroCounts() for site in SITES}, []

    def catch(site):
        def hook(module, arguments, keywords):
            query, key = (keywords[name][:, 0] for name in ("query", "key" if site == "enc-dec" else "query"))
            q, k = (p(x).view(len(x), module.num_heads, -1) for p, x in ((module.q_proj, query), (module.k_proj, key)))
            scores = torch.einsum("thd,shd->hts", q, k) * module.head_dim**-0.5
            for head, rows in enumerate(scores.double().tolist()):
                for step, row in enumerate(rows):
                    add_row(counts[site], module, head, step, row[: step + 1] if site == "dec-self" else row)

        return hook

    def add_row(found, module, head, step, row):
        def pruned(key):
            mask = module.prune_mask
            inside = mask is not None and step < mask.size(1) and key < mask.size(2)
            return inside and bool(mask[head, step, key])

        kept = [key for key in range(len(row)) if not pruned(key)]
        found.allowed += len(row)
        found.kept += len(kept)
        if kept:  # else it attends to all that it sees
            zeros = sum(p == 0 for p in normalize([row[key] for key in kept]))
            found.kept_zeros += zeros
            found.zeros += zeros + len(row) - len(kept)

    for site, modules in adopt_attention(model).items():
        handles += [module.register_forward_pre_hook(catch(site), with_kwargs=True) for module in modules]
    with torch.no_grad():
        for index in range(len(task.dataset("test"))):
            model(**batch_of(task, [index])["net_input"])
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize("sites", [(), ("enc-dec",), SITES], ids=["dense", "enc-dec", "all"])
@pytest.mark.parametrize("entmax", [True, False], ids=["entmax", "softmax"])
def test_counts_equal_brute_force_whatever_the_batches(task, pattern_files, entmax, sites):
    beyond = {"beyond_pattern": "dense"} if sites else {}
    flags = prune_flags(pattern_files, sites, USE_ENTMAX=entmax, **beyond)
    model = build(task, **flags)
    expected = brute_force(task, model, entmax_of if entmax else softmax_of)
    for max_tokens in (20, 1000):
        assert count(task, model, max_tokens) == expected
    for site, found in expected.items():
        assert (found.kept_zeros > 0) == entmax, site
        assert (found.kept < found.allowed) == (site in sites)
        # rows whose kept keys are beyond the sentence attend to pruned ones
        uniform = found.zeros < found.kept_zeros + found.allowed - found.kept
        assert uniform == (site in sites) or site == "dec-self"


def test_what_is_pruned_is_the_evaluated_sparsity(task, pattern_files):
    model = build(task, **prune_flags(pattern_files, SITES, beyond_pattern="dense"))
    pruned = sum(count(task, model, 100).values(), ZeroCounts()).shares()["pruned"]
    evaluated = sparsities(model, model.record, task.dataset("test"))["evaluated_sparsity"]
    assert pruned == pytest.approx(evaluated, abs=1e-12) and pruned > 0.1


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_batch_is_counted_cell_by_cell(data):
    size = st.integers(1, 4)
    batch, heads, queries, keys = (data.draw(size) for _ in range(4))
    causal = data.draw(st.booleans())
    keys = queries if causal else keys
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))

    def coins(*shape):
        return torch.rand(shape, generator=generator) < 0.5

    p, real_query, real_key = coins(batch, heads, queries, keys).float(), coins(batch, queries), coins(batch, keys)
    mask = coins(heads, data.draw(size), data.draw(size)) if data.draw(st.booleans()) else None
    expected = ZeroCounts()
    for b, h, t, s in torch.cartesian_prod(*map(torch.arange, (batch, heads, queries, keys))).view(-1, 4).tolist():
        if real_query[b, t] and real_key[b, s] and (s <= t or not causal):
            covered = mask is not None and t < mask.size(1) and s < mask.size(2)
            kept, zero = not (covered and mask[h, t, s]), p[b, h, t, s] == 0
            expected += ZeroCounts(1, int(kept), int(zero), int(kept and zero))
    assert count_cells(p, real_query, real_key, causal, mask) == expected


def test_shares_are_of_allowed_and_of_kept_cells():
    assert ZeroCounts(10, 8, 6, 4).shares() == {"zeros": 0.6, "pruned": 0.2, "kept_zeros": 0.5}
    assert ZeroCounts(10, 0, 10, 0).shares() == {"zeros": 1.0, "pruned": 1.0, "kept_zeros": 0.0}


def test_the_speed_is_of_the_updates_that_were_timed():
    meters = [(800, "train_wall", "StopwatchMeter", {"sum": 6.0}), (400, "gnorm", "AverageMeter", {"count": 4})]
    assert training_speed({"extra_state": {"metrics": {"default": meters}}}) == (1.5, 4)
    for state in ({}, {"extra_state": {"metrics": {}}}, {"extra_state": {"metrics": {"default": meters[:1]}}}):
        with pytest.raises(InputError, match="expected fairseq's own record of its training time, found none"):
            training_speed(state)

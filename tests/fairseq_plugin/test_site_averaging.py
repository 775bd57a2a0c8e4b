"""Patterns gathered from batches, against sentence-by-sentence arithmetic."""

import pytest
import torch

from attention_pruning import InputError
from plugin.averaging import Lengths, average_attention
from plugin.batches import collated, plan_batches
from plugin.model import adopt_attention
from tiny_translation import HEADS, LAYERS, batch_of, build

SITES = ("enc-self", "dec-self", "enc-dec")
PAD, EOS = 1, 2
CPU = torch.device("cpu")


def gather(task, model, max_tokens, sites=SITES, split="test", **plan):
    dataset = task.dataset(split)
    batches = plan_batches(task, dataset, model, max_tokens, **plan)
    accumulators = average_attention(model, collated(dataset, batches, CPU), sites, Lengths.of(dataset, batches), PAD)
    return {site: accumulators[site].finalize() for site in sites}


def brute_force(task, model, split="test"):
    """One unpadded sentence after another, attention computed from the weights by hand."""
    sums, counts = {}, {}
    dataset = task.dataset(split)
    for index in range(len(dataset)):
        pair = dataset[index]
        source, target = pair["source"][None], pair["target"][None]
        previous = torch.cat([target[:, -1:], target[:, :-1]], 1)
        for (site, layer), p_HTS in attention_by_hand(model, source, previous).items():
            queries, keys = p_HTS.shape[1:]
            total = sums.setdefault(site, torch.zeros(LAYERS, HEADS, 40, 40, dtype=torch.float64))
            total[layer, :, :queries, :keys] += p_HTS
            if layer == 0:
                seen = torch.ones(queries, keys, dtype=torch.int64)
                count = counts.setdefault(site, torch.zeros(40, 40, dtype=torch.int64))
                count[:queries, :keys] += seen.tril() if site == "dec-self" else seen
    return {site: (sums[site] / counts[site].clamp(min=1), counts[site]) for site in sums}


def attention_by_hand(model, source, previous):
    """(site, layer) -> [H, T, S], from the inputs and outputs of each attention, caught by hooks."""
    found, handles = {}, []

    def catch(site, layer):
        def hook(module, arguments, keywords):
            query, key = keywords["query"][:, 0], keywords["key"][:, 0]
            q = module.q_proj(query).view(len(query), HEADS, -1).transpose(0, 1)
            k = module.k_proj(query if site != "enc-dec" else key)
            k = k.view(len(k), HEADS, -1).transpose(0, 1)
            scores = q @ k.transpose(1, 2) / module.head_dim**0.5
            if site == "dec-self":
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            found[site, layer] = scores.softmax(-1).double()

        return hook

    for site, modules in adopt_attention(model).items():
        for layer, module in enumerate(modules):
            handles.append(module.register_forward_pre_hook(catch(site, layer), with_kwargs=True))
    with torch.no_grad():
        model(source, torch.tensor([source.size(1)]), previous)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("arch", ["ap_transformer_tiny", "transformer_tiny"])
@pytest.mark.parametrize("max_tokens", [20, 60, 1000])
def test_patterns_equal_brute_force_whatever_the_batches(task, arch, max_tokens):
    model = build(task, arch=arch, dropout=0.5, attention_dropout=0.5)
    expected = brute_force(task, model)
    found = gather(task, model.train(), max_tokens)
    for site in SITES:
        average, count = expected[site]
        queries, keys = found[site].query_length, found[site].key_length
        assert torch.equal(found[site].count, count[:queries, :keys])
        assert (
            count.sum() == count[:queries, :keys].sum()
            and found[site].count[-1].any()
            and found[site].count[:, -1].any()
        )
        torch.testing.assert_close(found[site].average.double(), average[..., :queries, :keys], atol=1e-6, rtol=0)


def test_all_sites_in_one_pass_equal_one_at_a_time(task):
    model = build(task)
    together = gather(task, model, 60)
    for site in SITES:
        alone = gather(task, model, 60, (site,))[site]
        torch.testing.assert_close(alone.average, together[site].average, atol=1e-6, rtol=0)
        assert torch.equal(alone.count, together[site].count)


def test_observers_leave_no_trace(task):
    model = build(task)
    net_input = batch_of(task, range(6))["net_input"]
    with torch.no_grad():
        before = model(**net_input)[0]
        gather(task, model, 60)
        assert torch.equal(model(**net_input)[0], before)


def test_a_subset_of_batches_is_drawn_with_its_seed(task):
    model, dataset = build(task), task.dataset("train")
    everything = plan_batches(task, dataset, model, 60)
    some = [plan_batches(task, dataset, model, 60, max_batches=3, seed=seed) for seed in (1, 1, 2)]
    as_sets = [{tuple(batch) for batch in batches} for batches in some]
    assert as_sets[0] == as_sets[1] != as_sets[2] and len(as_sets[0]) == 3
    assert sorted(index for batch in everything for index in batch) == list(range(len(dataset)))
    with pytest.raises(InputError, match="expected sentences to read, found none"):
        plan_batches(task, dataset, model, 60, max_batches=0)
    with pytest.raises(InputError, match="--max-tokens: expected at least .*, the longest sentence, found 3"):
        plan_batches(task, dataset, model, 3)


def test_left_padded_batches_are_refused(task):
    model, batch = build(task), batch_of(task, range(6))
    batch["net_input"]["src_tokens"] = batch["net_input"]["src_tokens"].flip(1)
    with pytest.raises(InputError, match="expected padding on the right"):
        average_attention(model, [batch], SITES, Lengths(20, 20), PAD)

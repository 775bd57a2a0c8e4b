"""Collecting by runs of query rows: the same numbers as at once, and never all probabilities of a call."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attention_pruning.huggingface import collect_patterns, forward, prune_model
from test_huggingface_collect import assert_same_patterns, plain_averages
from tiny_models import MODELS, batch_for, make, random_masks

NAMES = list(MODELS)


def rows_at_a_time(monkeypatch, scores):
    monkeypatch.setattr(forward, "SCORES_AT_ONCE", {"cpu": 0})
    monkeypatch.setattr(forward, "SCORES_IN_A_RUN", {"cpu": scores})
    monkeypatch.setattr(forward, "QUERIES_IN_A_RUN", 1)


@pytest.mark.parametrize("scores", [1, 3 * 4 * 7 * 2, 3 * 4 * 9 * 3])
@pytest.mark.parametrize("name", NAMES)
def test_runs_of_rows_are_the_plain_average(monkeypatch, name, scores):
    rows_at_a_time(monkeypatch, scores)
    batches = [batch_for(name), batch_for(name, left=True, seed=5)]
    assert_same_patterns(collect_patterns(make(name), batches), plain_averages(name, batches))


@pytest.mark.parametrize("size", [2, 3, 16])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_by_runs_are_the_mean_over_observations(monkeypatch, name, size):
    batches = [batch_for(name), batch_for(name, left=True, seed=5)]
    cells = collect_patterns(make(name), batches)
    rows_at_a_time(monkeypatch, 3 * 4 * 7 * 2)
    blocks = collect_patterns(make(name), batches, block_size=size)
    for site, pattern in blocks.items():
        count = cells[site].count
        assert torch.equal(pattern.count, count) and torch.equal(pattern.allowed, cells[site].allowed)
        for layer, head, q, k in torch.cartesian_prod(*map(torch.arange, pattern.average.shape)).tolist():
            block = slice(q * size, (q + 1) * size), slice(k * size, (k + 1) * size)
            total = (cells[site].average[layer, head][block].double() * count[block]).sum()
            expected = float(total) / max(int(count[block].sum()), 1)
            assert abs(float(pattern.average[layer, head, q, k]) - expected) < 1e-6


@pytest.mark.parametrize("name", ["BERT", "Llama", "BART", "T5"])
def test_a_pruned_model_is_observed_by_runs_under_its_masks(monkeypatch, name):
    batches = [batch_for(name), batch_for(name, left=True, seed=5)]
    model = prune_model(make(name), random_masks(name, 0.5, extra=1))
    whole = collect_patterns(model, batches)
    rows_at_a_time(monkeypatch, 40)
    assert_same_patterns(collect_patterns(model, batches), whole)


def test_runs_cover_all_queries_once():
    for queries, scores in ((1, 1 << 30), (4096, 4096 * 8), (8192, 8192 * 8), (8192, 8192 * 256), (100, 10)):
        runs = list(forward.runs_of(queries, scores, "cpu"))
        assert [row for run in runs for row in range(run.start, run.stop)] == list(range(queries))
        longest = max(run.stop - run.start for run in runs)
        assert longest * scores <= max(forward.SCORES_AT_ONCE["cpu"], forward.QUERIES_IN_A_RUN * scores)


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest tensor that anything makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [one for one in (out if isinstance(out, tuple | list) else [out]) if isinstance(one, torch.Tensor)]
        owned = (one.untyped_storage().nbytes() // one.element_size() for one in made)
        self.elements = max([self.elements, *owned])
        return out


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("name", ["BERT", "Llama"])
def test_no_tensor_has_a_number_for_every_score(monkeypatch, name, padding):
    length, batch, heads = 32, 4, 4
    rows_at_a_time(monkeypatch, batch * heads * length * 4)
    ids = torch.randint(3, 40, (batch, length), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "use_cache": False}
    if padding:
        inputs["attention_mask"] = torch.arange(length).lt(torch.tensor([[32], [20], [9], [1]])).long()
    with LargestTensor() as seen:
        pattern = collect_patterns(make(name), [inputs], block_size=8)["self"]
    assert pattern.average.shape == (2, 4, 4, 4)
    assert seen.elements < batch * heads * length * length // 2

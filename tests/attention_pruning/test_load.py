"""Many sequences, many layouts, many threads."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch

from attention_pruning import PruneMask, pruned_attention
from attention_pruning.accumulate import PatternAccumulator
from attention_pruning.counts import CellCounts
from attention_pruning.huggingface import prune_model
from attention_pruning.ops.layer_mask import LayerMask
from attention_pruning.ops.layout import BlockLayout
from tiny_models import batch_for, make, padded, random_masks, real_outputs

#: As many as examples of tests/fuzz: 10,000 in `make fuzz`.
LAYOUTS = int(os.environ.get("FUZZ_EXAMPLES", 300))
THREADS, ROUNDS = 8, 2


# A million sequences


def test_averages_and_counts_of_a_million_sequences_do_not_drift():
    """Against exact arithmetic. A running sum in float32 is off by more than a hundred times what is allowed here."""
    batch, batches = 10_000, 100
    accumulator = PatternAccumulator(1, 1, 2, 2, "enc-self")
    rows = torch.rand(batch, 1, 2, 1, generator=torch.Generator().manual_seed(0)) * 0.2
    probabilities = torch.cat([rows, 1 - rows], -1)
    real = torch.ones(batch, 2, dtype=torch.bool)
    real[::4, 1] = False  # in every tenth batch, a quarter of the sequences is one token long
    for number in range(batches):
        known = real if number % 10 == 0 else None
        accumulator.update(0, probabilities, known, known)
    pattern = accumulator.finalize()
    assert pattern.count.tolist() == [[1_000_000, 975_000], [975_000, 975_000]]
    assert pattern.metadata["sequences"] == 1_000_000 and pattern.metadata["tokens"] == 1_975_000
    for query in range(2):
        for key in range(2):
            cells = [Fraction(value) for value in probabilities[:, 0, query, key].tolist()]
            padded_too = sum(cells) if (query, key) == (0, 0) else sum(cells) - sum(cells[::4])
            exact = (90 * sum(cells) + 10 * padded_too) / pattern.count[query, key].item()
            assert abs(Fraction(float(pattern.average[0, 0, query, key])) - exact) <= exact * Fraction(1, 10**6)
    naive = np.tile(probabilities[:, 0, 0, 1].numpy(), batches).cumsum(dtype=np.float32)[-1] / (batch * batches)
    assert abs(naive / probabilities[:, 0, 0, 1].double().mean() - 1) > 1e-4


def test_sums_of_many_merged_parts_are_those_of_one():
    """Sums in float64 of numbers that float32 cannot hold apart."""
    parts, whole = PatternAccumulator(1, 1, 1, 2, "enc-dec"), Fraction(0)
    tiny = torch.tensor([[[[2.0**-30, 1 - 2.0**-24]]]])
    for _ in range(1000):
        one = PatternAccumulator(1, 1, 1, 2, "enc-dec")
        one.update(0, tiny)
        parts.merge(one)
        whole += Fraction(2.0**-30)
    sums, _, facts = parts.state()
    assert Fraction(float(sums[0, 0, 0, 0])) == whole and facts["sequences"] == 1000
    assert Fraction(float(sums[0, 0, 0, 1])) == 1000 * Fraction(1 - 2.0**-24)


def test_counts_go_beyond_32_bits():
    counts = CellCounts(3, 4, causal=True)
    for _ in range(3):
        counts.add(3_000_000_000, None, None, (3, 4))
    dense = counts.dense()
    assert dense.dtype == torch.int64 and dense[2, 3] == 9_000_000_000 and dense[0, 3] == 0
    assert torch.equal(CellCounts.read([3, 4], True, counts.corners, "counts").dense(), dense)
    assert counts.blocks(4).tolist() == [[9_000_000_000 * (2 + 3 + 4)]]


# Layouts


def used_layout(number: int) -> None:
    """Make a mask of its own, and what calls keep with it."""
    kept = torch.rand(2, 48, 48, generator=torch.Generator().manual_seed(number)) < 0.3
    x = torch.ones(1, 2, 48, 8)
    if number % 3 == 0:
        pruned_attention(x, x, x, BlockLayout.from_cells(kept, 16))
    elif number % 3 == 1:
        pruned_attention(x, x, x, LayerMask.from_cells(~kept, causal=True), is_causal=True)
    else:
        mask = PruneMask.from_cells(~kept[None], site="self")
        mask.layer(0).layout(16).cells.any()
        mask.layer(0).first_kept(torch.device("cpu"))


def test_layouts_that_were_made_and_dropped_leave_no_memory():
    for number in range(30):  # what is made once
        used_layout(number)
    gc.collect()
    kinds = (BlockLayout, LayerMask, PruneMask)
    before = sum(isinstance(thing, kinds) for thing in gc.get_objects())
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        for number in range(LAYOUTS):
            used_layout(number)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()
    assert sum(isinstance(thing, kinds) for thing in gc.get_objects()) == before
    assert grown < 200_000  # of which a few bytes a layout would be more


# Threads


def outputs_of_threads(call, arguments) -> list:
    """What a call gives for each argument, all at once from threads of their own, several times."""
    barrier = threading.Barrier(THREADS)

    def several(argument):
        barrier.wait()
        with torch.no_grad():
            return [call(argument) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(several, arguments))


@pytest.mark.parametrize("block_size", [1, 16])
def test_threads_that_share_a_mask_get_what_one_gets(block_size):
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(1, 2, 64 // block_size, 64 // block_size, generator=generator) < 0.5
    cells = blocks.repeat_interleave(block_size, 2).repeat_interleave(block_size, 3)
    inputs = [torch.randn(3, 3, 2, 64, 8, generator=generator) for _ in range(THREADS)]  # q, k and v

    def mask():
        return PruneMask.from_cells(cells, site="self", block_size=block_size).layer(0)

    def call(shared):
        return lambda qkv: pruned_attention(*qkv, shared)

    expected = [call(mask())(x) for x in inputs]
    for _ in range(2):  # every time with nothing made yet
        found = outputs_of_threads(call(mask()), inputs)
        assert all(torch.equal(one, want) for ones, want in zip(found, expected, strict=True) for one in ones)


@pytest.mark.parametrize("name", ["BERT", "GPT-2"])
def test_threads_that_share_a_pruned_model_get_what_one_gets(name):
    batches = [batch_for(name, seed=seed) for seed in range(THREADS)]
    masks = random_masks(name, 0.5)
    alone, model = (prune_model(make(name), masks) for _ in range(2))
    with torch.no_grad():
        expected = [real_outputs(alone, batch) for batch in batches]
    found = outputs_of_threads(lambda batch: real_outputs(model, batch), batches)
    assert all(torch.equal(one, want) for ones, want in zip(found, expected, strict=True) for one in ones)


@pytest.mark.parametrize("name", ["GPT-2", "T5"])
def test_threads_that_generate_get_what_one_gets(name):
    prompts = [padded((5, 3), 5, left=name == "GPT-2", seed=seed) for seed in range(THREADS)]
    masks = random_masks(name, 0.5, extra=6)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    alone, model = (prune_model(make(name), masks) for _ in range(2))
    expected = [alone.generate(**prompt, **options) for prompt in prompts]
    found = outputs_of_threads(lambda prompt: model.generate(**prompt, **options), prompts)
    assert all(torch.equal(one, want) for ones, want in zip(found, expected, strict=True) for one in ones)

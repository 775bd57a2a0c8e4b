"""Laws of counts that are kept as the corners of rectangles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_pruning import AttentionPattern, InputError, PatternAccumulator
from attention_pruning.counts import CellCounts
from attention_pruning.files.load import load_pattern
from attention_pruning.make import from_pattern
from attention_pruning.structure import block_any, block_cells, block_sum, visible_cells
from strategies import law, seeds


def drawn(shape, share, generator):
    return torch.rand(shape, generator=generator) < share


@law
@given(seeds, st.integers(1, 9), st.integers(0, 4), st.booleans(), st.integers(1, 5))
def test_counts_are_those_of_a_loop_over_sequences(seed, queries, memory, causal, rows):
    generator, keys = torch.Generator().manual_seed(seed), queries + memory
    counts, expected = CellCounts(queries, keys, causal), torch.zeros(queries, keys, dtype=torch.int64)
    for _ in range(4):
        q, k = (int(torch.randint(1, length + 1, (), generator=generator)) for length in (queries, keys))
        offsets = tuple(
            int(torch.randint(0, length + 1, (), generator=generator)) for length in (queries - q, keys - k)
        )
        real_query, real_key, window = (
            drawn(shape, 0.6, generator) if drawn((), 0.6, generator) else None for shape in ((3, q), (3, k), (q, k))
        )
        counts.add(3, real_query, real_key, (q, k), offsets, window)
        ones = torch.ones(3, q).long() if real_query is None else real_query.long()
        count = ones.T @ (torch.ones(3, k).long() if real_key is None else real_key.long())
        count = count if window is None else count * window
        expected[offsets[0] : offsets[0] + q, offsets[1] : offsets[1] + k] += count
    if causal:
        expected *= visible_cells(queries, keys, True)
    assert torch.equal(counts.dense(), expected)
    assert torch.equal(torch.cat(list(counts.split(rows))), expected)
    assert torch.equal(counts.blocks(rows), block_sum(expected, rows))
    assert counts.any() == bool(expected.any())
    assert torch.equal(CellCounts.of(expected).dense(), expected)
    again = CellCounts(queries, keys, causal, counts.corners)
    again.merge(counts)
    assert torch.equal(again.dense(), 2 * expected)


def test_a_few_lengths_take_a_few_numbers():
    counts = CellCounts(4096, 4096, causal=True)
    for length in (4096, 1000, 100, 1000):
        real = (torch.arange(4096) < length).expand(8, 4096)
        counts.add(8, real, real, (4096, 4096))
    assert len(counts.corners) <= 3 * 3 + 1
    assert next(counts.split(1))[0, 0] == 32 and not next(counts.split(1))[0, 1:].any()


def test_a_pattern_of_blocks_is_a_small_file(tmp_path):
    accumulator = PatternAccumulator(1, 1, 1024, 1024, "self", causal=True, block_size=64)
    for length in range(64, 1024, 90):
        p = torch.eye(1024)[None, None, :length, :length]
        accumulator.update(0, p)
    pattern = accumulator.finalize()
    pattern.save(tmp_path / "pattern.safetensors")
    assert (tmp_path / "pattern.safetensors").stat().st_size < 4096
    loaded = AttentionPattern.load(tmp_path / "pattern.safetensors")
    assert loaded.fingerprint == pattern.fingerprint and torch.equal(loaded.count, pattern.count)
    assert loaded.count[100, 100] == 10 and loaded.count[100, 101] == 0 and loaded.count[1000, 0] == 0


@law
@given(seeds, st.integers(2, 9), st.integers(2, 4), st.booleans())
def test_files_of_the_format_before_are_the_same_pattern(tmp_path_factory, seed, length, size, causal):
    """A pooled pattern of format 1 holds the count of each cell."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("files")
    generator = torch.Generator().manual_seed(seed)
    accumulator = PatternAccumulator(2, 2, length, length, "self", causal, block_size=size)
    real = drawn((3, length), 0.7, generator)
    real[0] = True
    visible = visible_cells(length, length, causal)
    for layer in range(2):
        p = torch.rand(3, 2, length, length, generator=generator) * visible
        accumulator.update(layer, p / p.sum(-1, keepdim=True), real, real)
    pattern = accumulator.finalize({"seed": 3})
    tensors = {"average": pattern.average, "count": pattern.count}
    header = {"format": "attention-pruning/pattern/1", "site": '"self"', "causal": "true" if causal else "false"}
    save_file(tensors, folder / "old.safetensors", header | {"pool": str(size), "metadata": '{"seed": 3}'})
    pattern.save(folder / "new.safetensors")
    old, new = (load_pattern(folder / f"{name}.safetensors") for name in ("old", "new"))
    assert old.fingerprint == new.fingerprint == pattern.fingerprint
    assert torch.equal(old.count, new.count) and torch.equal(old.allowed, new.allowed)
    assert from_pattern(old, 0.5, block_size=size) == from_pattern(new, 0.5, block_size=size)
    old.save(folder / "again.safetensors")
    assert load_pattern(folder / "again.safetensors").fingerprint == pattern.fingerprint


@pytest.mark.parametrize(
    ("lengths", "causal", "corners"),
    [
        ([4, 4], False, torch.tensor([[0, 4, 1]])),
        ([4, 4], False, torch.tensor([[-1, 0, 1]])),
        ([4, 4], False, torch.zeros(2, 2, dtype=torch.int64)),
        ([4], False, torch.tensor([[0, 0, 1]])),
        ("44", False, torch.tensor([[0, 0, 1]])),
        ([4, 4], "no", torch.tensor([[0, 0, 1]])),
        ([4, 3], True, torch.tensor([[0, 0, 1]])),
    ],
)
def test_corners_that_are_none_are_refused(lengths, causal, corners):
    with pytest.raises(InputError, match="p.safetensors: expected corners of counts") as refusal:
        CellCounts.read(lengths, causal, corners, "p.safetensors")
    assert "\n" not in str(refusal.value)


@law
@given(seeds, st.integers(1, 9), st.integers(1, 600), st.integers(1, 5))
def test_blocks_of_bools_are_counted_by_rows_as_at_once(seed, heads, rows, size):
    cells = drawn((heads, rows, 7), 0.5, torch.Generator().manual_seed(seed))
    assert torch.equal(block_cells(cells, size), block_sum(cells.long(), size))
    assert torch.equal(block_any(cells, size), block_sum(cells.long(), size) > 0)

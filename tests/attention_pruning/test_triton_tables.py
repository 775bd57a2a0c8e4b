"""What the Triton kernels are told, without Triton: lists of blocks that hold what counts, and tiles that fit them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import BlockLayout
from attention_pruning.ops.layout import BLOCK_SIZES
from attention_pruning.ops.triton.block_lists import block_lists
from attention_pruning.ops.triton.configurations import configuration
from attention_pruning.structure import visible_cells

CPU = torch.device("cpu")
law = settings(deadline=None, max_examples=80)


@st.composite
def calls(draw):
    """A layout, and what of it is called: causal, offset, queries, keys."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    causal, block = draw(st.booleans()), draw(st.sampled_from([16, 32]))
    queries, keys = draw(st.integers(1, 100)), draw(st.integers(1, 100))
    if causal:
        queries, keys = min(queries, keys), max(queries, keys)
    cells = torch.rand(2, queries, keys, generator=generator) < draw(st.sampled_from([0.97, 1.0]))
    blocks = torch.rand(2, -(-queries // block), -(-keys // block), generator=generator) < 0.5
    kept = cells & blocks.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :queries, :keys]
    layout = BlockLayout.from_cells(kept, block, causal=causal and draw(st.booleans()))
    offset = draw(st.integers(0, queries - 1))
    length = draw(st.integers(1, queries - offset))
    called_keys = offset + length + keys - queries if causal else draw(st.integers(1, keys))
    return layout, causal, offset, length, called_keys


def listed(found, heads):
    """(head, line, other) -> whether the block is listed as whole, of a list of blocks."""
    blocks = {}
    for head in range(heads):
        for line, (begin, cut, end) in enumerate(found.bounds[head].tolist()):
            assert 0 <= begin <= cut <= end <= len(found.other)
            for whole, part in ((True, slice(begin, cut)), (False, slice(cut, end))):
                numbers = found.other[part].tolist()
                assert numbers == sorted(set(numbers))
                blocks |= {(head, line, other): whole for other in numbers}
    assert len(blocks) == len(found.other) == len(found.part)
    return blocks


@law
@given(calls())
def test_lists_of_blocks_hold_what_counts(call):
    layout, causal, offset, length, keys = call
    lists, size = block_lists(layout, CPU, causal, offset, length, keys), layout.block_size
    by_row = listed(lists.rows, layout.heads)
    by_column = {(head, row, column): x for (head, column, row), x in listed(lists.columns, layout.heads).items()}
    counts = layout.cells & visible_cells(layout.query_length, layout.key_length, causal)
    if not causal:
        counts[:, :, keys:] = False
    called = torch.zeros_like(counts)
    called[:, offset : offset + length] = True
    for head, row, column in torch.cartesian_prod(*map(torch.arange, layout.blocks.shape)).tolist():
        at, block = (
            (head, row, column),
            (head, slice(row * size, row * size + size), slice(column * size, column * size + size)),
        )
        assert at in by_row or not counts[block].any()
        assert not by_row.get(at) or (counts[block].all() and counts[block].shape[1] == size)
        if called[block].any():
            assert by_column.get(at) == by_row.get(at)
    if not lists.may_be_empty:
        assert counts.any(-1)[:, offset : offset + length].all()


def test_rows_that_keep_a_visible_key_are_known_to():
    """So that nothing is compiled for rows left empty."""
    kept = torch.tensor([[[1, 0], [0, 1]]], dtype=torch.bool)
    for causal in (False, True):
        assert not block_lists(BlockLayout.from_blocks(kept, 16), CPU, causal, 0, 32, 32).may_be_empty
    assert block_lists(BlockLayout.from_blocks(kept, 16), CPU, False, 0, 32, 16).may_be_empty
    assert block_lists(BlockLayout.from_blocks(~kept, 16), CPU, True, 0, 32, 32).may_be_empty


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("width", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["forward", "queries", "keys"])
def test_tiles_divide_their_block(kernel, dtype, width, block, relative):
    found = configuration(kernel, dtype, width, block, CPU, relative)
    assert block % found.queries == block % found.keys == 0 and min(found.queries, found.keys) >= 16
    assert not relative or found.queries == found.keys

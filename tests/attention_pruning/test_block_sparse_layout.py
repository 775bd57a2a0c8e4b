"""Laws of BlockLayout: it holds the cells that it was made from, and nothing that leads out of its arrays."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_pruning import AttentionPattern, BlockLayout, InputError, pruned_attention
from attention_pruning.make import from_pattern
from attention_pruning.ops.cpu import native
from attention_pruning.structure import block_any, expand_blocks, visible_cells
from strategies import law


@st.composite
def cell_masks(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    heads, queries, keys = draw(st.integers(1, 3)), draw(st.integers(1, 70)), draw(st.integers(1, 70))
    block = draw(st.sampled_from([16, 32, 64, 128]))
    kept = rng.random((heads, queries, keys)) < draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))
    whole = rng.random((heads, -(-queries // block), -(-keys // block))) < 0.3
    kept |= whole.repeat(block, 1).repeat(block, 2)[:, :queries, :keys]
    return torch.from_numpy(kept), block


@law
@given(cell_masks(), st.booleans())
def test_a_layout_holds_its_cells(mask, causal):
    kept, block = mask
    layout = BlockLayout.from_cells(kept, block, causal)
    visible = visible_cells(*kept.shape[1:], causal)
    assert torch.equal(layout.cells, kept & visible)
    for h, q, k in torch.cartesian_prod(*map(torch.arange, layout.blocks.shape)).tolist():
        rows, columns = slice(q * block, (q + 1) * block), slice(k * block, (k + 1) * block)
        inside, seen = kept[h, rows, columns], visible[rows, columns]
        assert layout.blocks[h, q, k] == (inside & seen).any()
        found = layout.column[layout.row_start[h, q] : layout.row_start[h, q + 1]].tolist()
        if not (inside & seen).any():
            assert k not in found
            continue
        part = int(layout.part[int(layout.row_start[h, q]) + found.index(k)])
        assert (part == -1) == bool(inside[seen].all())  # the diagonal is no reason for bits


@law
@given(cell_masks(), st.booleans())
def test_whole_blocks_make_the_layout_of_their_cells(mask, causal):
    kept, block = mask
    blocks = block_any(kept, block)
    found = BlockLayout.from_blocks(blocks, block, *kept.shape[1:], causal)
    expected = BlockLayout.from_cells(expand_blocks(blocks, block, *kept.shape[1:]), block, causal)
    for field in dataclasses.fields(BlockLayout):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@law
@given(cell_masks())
def test_density_counts_blocks(mask):
    kept, block = mask
    layout = BlockLayout.from_cells(kept, block)
    assert layout.density == pytest.approx(float(layout.blocks.float().mean()))


@pytest.mark.parametrize("site", ["self", "dec-self", "enc-dec"])
def test_the_layout_of_a_mask_computes_what_the_mask_keeps(site):
    count = np.ones((70, 80), dtype=np.int64)
    average = np.random.default_rng(0).random((2, 3, 70, 80)) * visible_cells(70, 80, site == "dec-self").numpy()
    mask = from_pattern(AttentionPattern(average, count, site), 0.6, block_size=16)
    for layer in range(2):
        layout = mask.layout(layer)
        assert layout.causal == mask.causal
        assert torch.equal(layout.cells, ~mask.cells(layer) & mask.visible)
        assert 0 < 1 - layout.density < 1
    both = sum(mask.layout(layer).density for layer in range(2)) / 2
    assert 1 - both == pytest.approx(mask.block_sparsity(16))


@pytest.mark.parametrize("block_size", [1, 8, 48])
def test_other_blocks_have_no_layout(block_size):
    average, count = np.random.default_rng(0).random((1, 2, 50, 50)), np.ones((50, 50), dtype=np.int64)
    pattern = AttentionPattern(average, count, "self")
    mask = from_pattern(pattern, 0.5, block_size=block_size)
    with pytest.raises(InputError, match="block_size of 16, 32, 64, 128"):
        mask.layout(0)


def layout():
    kept = torch.ones(2, 40, 40, dtype=torch.bool)
    kept[0, 3, 5] = False
    return BlockLayout.from_cells(kept, 16)


def changed(name, index, value):
    tensor = getattr(layout(), name).clone()
    tensor[index] = value
    return tensor


OUT_OF_RANGE = [
    ("column", 0, 3),
    ("column", 0, -1),
    ("column", 1, 0),
    ("part", 1, 1),
    ("part", 1, -2),
    ("row_start", (0, 0), 1),
    ("row_start", (1, 3), 19),
    ("row_start", (0, 1), 7),
]


@pytest.mark.parametrize(("name", "index", "value"), OUT_OF_RANGE)
def test_numbers_out_of_range_are_refused(name, index, value):
    with pytest.raises(InputError, match="layout: expected"):
        dataclasses.replace(layout(), **{name: changed(name, index, value)})


@pytest.mark.skipif(not native.runnable_builds(), reason="the kernel is not compiled")
@pytest.mark.parametrize(("name", "index", "value"), OUT_OF_RANGE)
def test_the_kernel_refuses_them_too(name, index, value):
    """Should somebody change a layout after it was made: the kernel looks before it touches any memory."""
    broken = layout()
    getattr(broken, name)[index] = value
    q, k, v = (torch.randn(1, 2, 40, 8) for _ in range(3))
    with pytest.raises(InputError, match="layout: expected"):
        pruned_attention(q, k, v, broken, backend="block_sparse")


@pytest.mark.parametrize(
    "change",
    [
        {"block_size": 8},
        {"block_size": 32},
        {"query_length": 60},
        {"bits": torch.zeros(1, 16, 4, dtype=torch.uint8)},
        {"part": torch.zeros(3, dtype=torch.int32)},
        {"column": torch.zeros(18, dtype=torch.int64)},
    ],
)
def test_tensors_of_another_shape_are_refused(change):
    with pytest.raises(InputError, match="expected"):
        dataclasses.replace(layout(), **change)


def test_what_is_no_mask_is_refused():
    for bad in (torch.zeros(2, 3), torch.zeros(1, 2, 3)):
        with pytest.raises(InputError, match="layout: expected bools"):
            BlockLayout.from_cells(bad, 16)
    with pytest.raises(InputError, match="blocks for 40 x 40"):
        BlockLayout.from_blocks(torch.ones(1, 2, 2, dtype=torch.bool), 16, 40, 40)

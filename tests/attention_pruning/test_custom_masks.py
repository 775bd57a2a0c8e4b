"""Masks of one's own, unions and intersections, and when two masks are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import brute_force
from attention_pruning import InputError, PruneMask
from attention_pruning.make import from_pattern, random_like
from attention_pruning.structure import visible_cells
from strategies import cell_set, choices, law, patterns, seeds, sizes, structures, taus, uniform_mask


def all_cells(mask):
    return torch.stack([mask.cells(layer) for layer in range(mask.layers)])


@law
@given(structures(), st.integers(1, 2), seeds, st.sampled_from([0.0, 0.4, 1.0]))
def test_a_mask_of_ones_own_prunes_the_cells_that_it_was_given(structure, heads, seed, share):
    site, causal, queries, keys = structure
    pruned = torch.rand(2, heads, queries, keys, generator=torch.Generator().manual_seed(seed)) < share
    mask = PruneMask.from_cells(pruned, site=site, causal=causal)
    visible = visible_cells(queries, keys, mask.causal)
    assert torch.equal(all_cells(mask) & visible, pruned & visible)
    assert torch.equal(mask.kept, ~pruned & visible)
    assert torch.equal(mask.allowed, visible)
    assert (mask.kind, mask.seed, mask.rule, mask.scope, mask.block_size) == ("custom", None, None, None, 1)
    cells, allowed = cell_set(pruned & visible), cell_set(visible)
    assert mask.tau == mask.effective_sparsity
    assert mask.tau == pytest.approx(brute_force.effective_sparsity(cells, allowed, 2, heads))
    empty = brute_force.empty_rows(cells, allowed, 2, heads)
    assert mask.empty_rows == empty and mask.row_floor == ("none" if empty else "keep-best")
    # what no query can see does not matter
    assert PruneMask.from_cells(pruned | ~visible, site=site, causal=causal) == mask


@law
@given(patterns(), taus, choices, sizes)
def test_the_cells_of_a_mask_of_blocks_are_a_mask_of_blocks(pattern, tau, chosen, size):
    mask = from_pattern(pattern, tau, block_size=size, **chosen)
    made = PruneMask.from_cells(
        all_cells(mask), site=mask.site, causal=mask.causal, allowed=mask.allowed, block_size=size
    )
    assert torch.equal(made.kept, mask.kept)
    assert made.effective_sparsity == mask.effective_sparsity and made.block_size == size
    assert made.empty_rows == mask.empty_rows


def test_a_custom_mask_is_saved_and_made_like(tmp_path):
    pruned = np.zeros((2, 1, 6, 6), dtype=bool)
    pruned[0, :, :, 3:] = True
    mask = PruneMask.from_cells(pruned, site="enc-self", metadata={"idea": "the first half", "crop": "left"})
    mask.save(tmp_path / "mask.safetensors")
    loaded = PruneMask.load(tmp_path / "mask.safetensors")
    assert loaded == mask and loaded.recipe == mask.recipe and loaded.metadata == mask.metadata
    assert (loaded.kind, loaded.tau) == ("custom", 0.25)
    drawn = random_like(loaded, 3)
    assert drawn.layer_sparsity == mask.layer_sparsity and drawn.kind == "random" and drawn.rule is None
    assert drawn.empty_rows == 0 and drawn.metadata["like_fingerprint"] == mask.fingerprint


@law
@given(patterns(), taus, taus, choices, sizes, seeds)
def test_union_and_intersection(pattern, one, other, chosen, size, seed):
    first = from_pattern(pattern, one, block_size=size, rule="allowed", row_floor="none")
    second = random_like(from_pattern(pattern, other, block_size=size, **chosen | {"row_floor": "none"}), seed)
    union, intersection = first | second, first & second
    assert torch.equal(all_cells(union), all_cells(first) | all_cells(second))
    assert torch.equal(all_cells(intersection), all_cells(first) & all_cells(second))
    for mask, name in ((union, "union_of"), (intersection, "intersection_of")):
        assert mask.metadata == {name: f"{first.fingerprint} {second.fingerprint}"}
        assert (mask.kind, mask.block_size, mask.causal) == ("custom", size, first.causal)
        assert mask.tau == mask.effective_sparsity
    assert union == second | first and intersection == second & first
    assert first | first == first == first & first
    assert first & union == first == first | intersection  # absorption
    assert sum(mask.tau for mask in (union, intersection)) == pytest.approx(
        first.effective_sparsity + second.effective_sparsity
    )


@law
@given(patterns(), taus, seeds)
def test_masks_are_equal_by_what_they_prune(pattern, tau, seed):
    mask = from_pattern(pattern, tau, rule="allowed", row_floor="none")
    same = PruneMask.from_cells(mask.pruned, site=mask.site, causal=mask.causal, allowed=mask.allowed)
    assert mask == same and hash(mask) == hash(same) and len({mask, same}) == 1
    assert mask != "mask" and mask is not same
    assume(not torch.equal(mask.visible, mask.pruned[0, 0] & mask.visible))
    flipped = mask.pruned.clone()
    query, key = mask.visible.nonzero()[seed % int(mask.visible.sum())].tolist()
    flipped[0, 0, query, key] ^= True
    assert mask.with_pruned(flipped) != mask


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pruned_LHQK": torch.ones(1, 1, 4, 4)}, r"pruned_LHQK to be bools .* found torch.float32 of \[1, 1, 4, 4\]"),
        ({"pruned_LHQK": torch.ones(4, 4) > 0}, r"found torch.bool of \[4, 4\]"),
        ({"pruned_LHQK": torch.ones(1, 0, 4, 4) > 0}, r"found torch.bool of \[1, 0, 4, 4\]"),
        ({"pruned_LHQK": "mask.safetensors"}, "mask: pruned_LHQK: expected a tensor, or an array .* found str"),
        ({"block_size": 2}, "pruned whole or not at all, found one pruned in part, at layer 0, head 1, query 2, key 0"),
        ({"block_size": 0}, "block_size: expected a whole number"),
        ({"site": "encoder"}, "site: expected one of"),
        ({"allowed": torch.ones(4, 5) > 0}, "expected 4 x 5 blocks of 1 for 4 queries and 5 keys, found 4 x 4"),
        ({"allowed": torch.zeros(4, 4) > 0}, "mask: expected allowed cells"),
        ({"site": "dec-self", "allowed": torch.ones(4, 4) > 0}, "all of them visible to their query"),
        ({"metadata": {"a": [1]}}, "metadata: expected strings"),
    ],
)
def test_what_is_no_mask_is_refused(arguments, message):
    pruned = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    pruned[0, 1, 3, 0] = True
    with pytest.raises(InputError, match=message) as caught:
        PruneMask.from_cells(**{"pruned_LHQK": pruned, "site": "self"} | arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "enc-self"}, "mask: expected site self, that of mask, found enc-self"),
        ({"causal": True}, "expected causal False, that of mask, found True"),
        ({"pruned_LHQK": torch.zeros(1, 3, 4, 4) > 0}, "expected heads 2, that of mask, found 3"),
        ({"pruned_LHQK": torch.zeros(2, 2, 4, 4) > 0}, "expected layers 1, that of mask, found 2"),
        ({"pruned_LHQK": torch.zeros(1, 2, 4, 5) > 0}, "expected key_length 4, that of mask, found 5"),
        ({"block_size": 2}, "expected block_size 1, that of mask, found 2"),
    ],
)
def test_masks_of_other_attention_do_not_combine(changes, message):
    own = {"pruned_LHQK": torch.zeros(1, 2, 4, 4) > 0, "site": "self"}
    mask, other = PruneMask.from_cells(**own), PruneMask.from_cells(**own | changes)
    for combine in (lambda: mask | other, lambda: mask & other):
        with pytest.raises(InputError, match=message):
            combine()


def test_a_mask_on_a_device_is_itself_with_its_layers_ready():
    mask = PruneMask.from_cells(torch.rand(2, 3, 8, 8) < 0.5, site="self")
    assert mask.to("meta") is mask and all(mask.layer(i).blocks(torch.device("meta")).is_meta for i in range(2))


@law
@given(patterns(), taus, taus, choices, sizes, st.sampled_from([1, 2, 4]))
def test_overlap_is_what_both_prune_of_what_either_prunes(pattern, tau, other_tau, chosen, size, other_size):
    first = from_pattern(pattern, tau, block_size=size, **chosen)
    second = random_like(from_pattern(pattern, other_tau, block_size=other_size, row_floor="none", rule="allowed"), 3)
    overlap = first.overlap(second)
    assert overlap.shape == (first.layers, first.heads) and overlap.dtype == torch.float64
    for layer, head in np.ndindex(first.layers, first.heads):
        own, others = (cell_set(mask.cells(layer)[head] & mask.visible) for mask in (first, second))
        expected = len(own & others) / len(own | others) if own | others else 1.0
        assert float(overlap[layer, head]) == pytest.approx(expected, abs=1e-12)
    assert torch.equal(second.overlap(first), overlap)
    assert torch.equal(first.overlap(first), torch.ones(first.layers, first.heads, dtype=torch.float64))


def test_masks_of_other_attention_have_no_overlap():
    mask = uniform_mask(4, 4, 0.5, "self")
    cases = {
        "site self, that of mask, found enc-self": uniform_mask(4, 4, 0.5, "enc-self"),
        "causal False, that of mask, found True": uniform_mask(4, 4, 0.5, "self", causal=True),
        "heads 1, that of mask, found 2": uniform_mask(4, 4, 0.5, "self", heads=2),
        "query_length 4, that of mask, found 5": uniform_mask(5, 4, 0.5, "self"),
        "key_length 4, that of mask, found 5": uniform_mask(4, 5, 0.5, "self"),
    }
    for message, other in cases.items():
        with pytest.raises(InputError, match=f"mask: expected {message}"):
            mask.overlap(other)
    with pytest.raises(InputError, match="expected a PruneMask, found Tensor"):
        mask.overlap(mask.pruned)

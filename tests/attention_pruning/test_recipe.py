"""MaskRecipe: how a mask is asked for."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_pruning import AttentionPattern, InputError, MaskRecipe, PruneMask
from attention_pruning.files.load import load_mask
from attention_pruning.make import from_pattern, random_like
from strategies import choices, law, patterns, sizes, taus

PATTERN = AttentionPattern(torch.rand(2, 3, 4, 5) * 0.9 + 0.1, torch.ones(4, 5), "enc-dec")


@law
@given(patterns(), taus, choices, sizes)
def test_a_recipe_and_its_fields_ask_for_the_same_mask(pattern, tau, chosen, size):
    recipe = MaskRecipe(tau, block_size=size, **chosen)
    masks = [
        from_pattern(pattern, recipe),
        from_pattern(pattern, tau, block_size=size, **chosen),
        from_pattern(pattern, tau=str(tau), block_size=size, **chosen),
        from_pattern(pattern, MaskRecipe(1 - tau, block_size=7), tau=tau, block_size=size, **chosen),
    ]
    for mask in masks:
        assert mask.recipe == recipe and mask == masks[0] and mask.metadata == masks[0].metadata
    assert random_like(masks[0], 1).recipe == recipe


def test_what_is_left_open_is_closed_by_the_defaults():
    open_ = MaskRecipe("0.5", scope="row")
    assert dataclasses.asdict(open_) == {
        "tau": 0.5,
        "rule": None,
        "scope": "row",
        "block_size": None,
        "row_floor": None,
        "crop": None,
        "unobserved": None,
    }
    closed = open_.closed(block_size=4)
    assert closed == MaskRecipe(0.5, "published", "row", 4, "keep-best", True, "keep")
    assert closed.closed(block_size=9) == closed
    assert from_pattern(PATTERN, open_).recipe == open_.closed()
    with pytest.raises(InputError, match="tau: expected a fraction"):
        MaskRecipe(rule="allowed").closed()
    with pytest.raises(dataclasses.FrozenInstanceError):
        closed.tau = 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tau": 90}, "write 0.9"),
        ({"rule": "lowest"}, "rule: expected one of published, allowed, found 'lowest'"),
        ({"rule": torch.ones(2)}, "rule: expected one of published, allowed, found tensor"),
        ({"scope": "block"}, "scope: expected one of layer, head, row, model, found 'block'"),
        ({"row_floor": True}, "row_floor: expected one of keep-best, none, found True"),
        ({"unobserved": "drop"}, "unobserved: expected one of keep, prune"),
        ({"block_size": 0}, "block_size: expected a whole number of 1 or more, found 0"),
        ({"crop": 1}, "crop: expected true or false, found 1"),
    ],
)
def test_a_recipe_checks_itself(fields, message):
    with pytest.raises(InputError, match=message):
        MaskRecipe(**fields)


@pytest.mark.parametrize("crop", [True, False])
def test_a_mask_of_a_file_has_the_recipe_of_the_mask_that_was_saved(tmp_path, crop):
    recipe = MaskRecipe(0.4, "allowed", "head", 2, "none", crop, "prune")
    mask = from_pattern(PATTERN, recipe)
    mask.save(tmp_path / "mask.safetensors")
    for loaded in (PruneMask.load(tmp_path / "mask.safetensors"), load_mask(tmp_path / "mask.safetensors", recipe)):
        assert loaded.recipe == recipe and loaded == mask
        assert (loaded.tau, loaded.nominal_sparsity, loaded.block_size) == (0.4, 0.4, 2)
        assert (loaded.rule, loaded.scope, loaded.row_floor) == ("allowed", "head", "none")
    for name in ("tau", "rule", "row_floor", "block_size", "scope"):
        with pytest.raises(AttributeError):
            setattr(mask, name, None)


@law
@given(st.sampled_from(["tau", "block_size", "row_floor"]))
def test_a_mask_needs_the_recipe_that_says_what_it_is(name):
    recipe = dataclasses.replace(MaskRecipe(0.5).closed(), **{name: None})
    with pytest.raises(InputError, match=f"mask: expected a recipe that says its {name}, found it left open"):
        PruneMask(PATTERN.average > 0.5, PATTERN.allowed, site="enc-dec", causal=None, recipe=recipe)

"""Old names: each does what its successor does, and says what that is."""

from __future__ import annotations

import pytest
import torch

from attention_pruning import AttentionPattern, PruneMask, make
from attention_pruning.huggingface import model_masks
from tiny_models import make as make_model
from tiny_models import random_masks

AVERAGE = torch.rand(2, 2, 4, 6, generator=torch.Generator().manual_seed(2))
PATTERN = AttentionPattern(AVERAGE, torch.ones(4, 6), "enc-dec")
MASK = make.from_pattern(PATTERN, 0.5, rule="allowed")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (lambda: PruneMask.from_pattern(PATTERN, tau=0.3), make.from_pattern(PATTERN, 0.3)),
        (
            lambda: PruneMask.from_pattern(PATTERN, "0.3", "allowed", "row", 2, "none", "prune", False),
            make.from_pattern(
                PATTERN,
                0.3,
                rule="allowed",
                scope="row",
                block_size=2,
                row_floor="none",
                unobserved="prune",
                crop=False,
            ),
        ),
        (lambda: MASK.random_like(seed=1), make.random_like(MASK, 1)),
        (lambda: PruneMask.random_like(MASK, seed=1), make.random_like(MASK, 1)),
        (lambda: PruneMask.random_like(MASK, 1, use_QK=PATTERN.count), make.random_like(MASK, 1, PATTERN.count)),
        (lambda: MASK.window_like(), make.window_like(MASK)),
        (lambda: PruneMask.window_like(MASK, PATTERN.count), make.window_like(MASK, PATTERN.count)),
        (lambda: MASK.distance_like(PATTERN), make.distance_like(MASK, PATTERN)),
        (lambda: PruneMask.distance_like(MASK, PATTERN), make.distance_like(MASK, PATTERN)),
    ],
)
def test_old_names_make_the_same_mask(old, new):
    with pytest.warns(
        DeprecationWarning, match=r"^PruneMask\.\w+ goes .*; use attention_pruning\.make\.\w+$"
    ) as caught:
        found = old()
    assert caught[0].filename == __file__
    assert found == new and found.recipe == new.recipe and found.metadata == new.metadata


def test_apply_prunes_the_site_of_a_mask_beside_others():
    model = make_model("BART")
    for mask in random_masks("BART", 0.5).values():
        with pytest.warns(DeprecationWarning, match=r"PruneMask\.apply goes .*huggingface.prune_model"):
            assert mask.apply(model) is model
    assert model_masks(model) == random_masks("BART", 0.5)

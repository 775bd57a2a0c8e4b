"""What people give by mistake is named in one line, with what was expected and the way to it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from attention_pruning import AttentionPattern, InputError, PatternAccumulator, PruneMask
from attention_pruning.make import distance_like, from_pattern, random_like, window_like

PATTERN = AttentionPattern(torch.full((1, 2, 3, 3), 0.3), torch.ones(3, 3), "self")
MASK = from_pattern(PATTERN, 0.5)

NO_PATTERN = [
    (
        {"self": PATTERN},
        "pattern: expected an AttentionPattern, found dict; it has one pattern a site, take patterns['self']",
    ),
    ("pattern.safetensors", "found str; AttentionPattern.load reads a file"),
    (PATTERN.average, "found Tensor; AttentionPattern(average, count, site) makes one of arrays"),
    (np.ones(3), "found ndarray; AttentionPattern(average"),
    (MASK, "found PruneMask"),
    (None, "found NoneType"),
    ({}, "found dict"),
]
NO_MASK = [
    ({"self": MASK}, "mask: expected a PruneMask, found dict; it has one mask a site, take masks['self']"),
    ("mask.safetensors", "found str; PruneMask.load reads a file"),
    (MASK.pruned, "found Tensor; PruneMask.from_cells makes one of bools"),
    (np.ones(3), "found ndarray; PruneMask.from_cells"),
    (PATTERN, "found AttentionPattern; make.from_pattern(pattern, tau) makes one of a pattern"),
    (None, "found NoneType"),
]
TAKES_A_PATTERN = [lambda thing: from_pattern(thing, 0.5), lambda thing: distance_like(MASK, thing)]
TAKES_A_MASK = [
    lambda thing: random_like(thing, 1),
    window_like,
    lambda thing: distance_like(thing, PATTERN),
    lambda thing: MASK | thing,
    lambda thing: MASK & thing,
]


@pytest.mark.parametrize("use", TAKES_A_PATTERN)
@pytest.mark.parametrize(("thing", "message"), NO_PATTERN)
def test_what_is_no_pattern(use, thing, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        use(thing)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("use", TAKES_A_MASK)
@pytest.mark.parametrize(("thing", "message"), NO_MASK)
def test_what_is_no_mask(use, thing, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        use(thing)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AttentionPattern("a.npy", torch.ones(3, 3), "self"), "pattern: average: expected a tensor"),
        (
            lambda: AttentionPattern(PATTERN.average, None, "self"),
            "pattern: count: expected a tensor, .* found NoneType",
        ),
        (lambda: AttentionPattern({"self": PATTERN}, 1, "self"), "pattern: average: expected a tensor, .* found dict"),
        (lambda: MASK.with_pruned("cells"), "mask: pruned: expected a tensor, .* found str"),
        (lambda: MASK.with_pruned(PATTERN.average), "mask: expected pruned to be bools"),
        (lambda: MASK.with_pruned(MASK.pruned, recipe=0.5), "mask: expected a MaskRecipe, found float"),
        (lambda: MASK.evaluated_sparsity("count"), "counts: expected a tensor, .* found str"),
        (lambda: MASK.evaluated_sparsity([[1.5]]), "mask: expected whole counts"),
        (lambda: random_like(MASK, 1, PATTERN), "counts: expected a tensor, .* found AttentionPattern"),
        (lambda: MASK.check_model(heads=4), "^mask: expected heads 4, that of the model, found 2"),
    ],
)
def test_arrays_that_are_none(build, message):
    with pytest.raises(InputError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_masks_and_patterns_take_arrays_as_torch_does():
    again = AttentionPattern(PATTERN.average.tolist(), PATTERN.count.numpy(), "self")
    assert again.fingerprint == PATTERN.fingerprint
    made = PruneMask(MASK.pruned.numpy(), MASK.allowed.tolist(), site="self", causal=None, recipe=MASK.recipe)
    assert made == MASK
    assert MASK.evaluated_sparsity([[1, 2]]) == MASK.evaluated_sparsity(torch.tensor([[1, 2]]))


def test_an_accumulator_takes_arrays_as_torch_does():
    p = np.full((2, 1, 2, 3), 1 / 3, dtype=np.float32)
    real, window = np.array([[True, True, False]] * 2), np.ones((2, 3), dtype=bool)
    tensors, arrays, lists = (PatternAccumulator(1, 1, 2, 3, "enc-dec") for _ in range(3))
    tensors.update(0, torch.from_numpy(p), real_key_BK=torch.from_numpy(real), visible_QK=torch.from_numpy(window))
    arrays.update(0, p, np.ones((2, 2), dtype=bool), real, visible_QK=window)
    lists.update(0, p.tolist(), [[True, True]] * 2, real.tolist(), visible_QK=window.tolist())
    prints = {accumulator.finalize().fingerprint for accumulator in (tensors, arrays, lists)}
    assert len(prints) == 1 and tensors.tokens == arrays.tokens == lists.tokens == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probabilities_BHQK": "attention"}, "attention probabilities: expected a tensor, .* found str"),
        ({"probabilities_BHQK": (torch.ones(1, 1, 2, 2),) * 2}, "attention probabilities: expected"),
        ({"probabilities_BHQK": None}, "found NoneType"),
        ({"probabilities_BHQK": np.ones((1, 1, 2, 2), dtype=int)}, "expected floats of shape"),
        ({"real_query_BQ": "all"}, "real_query_BQ: expected a tensor, .* found str"),
        ({"real_key_BK": np.ones((1, 2))}, "real_key_BK: expected bools of shape"),
        ({"layer": "first"}, "layer: expected 0 to 0, found 'first'"),
        ({"layer": torch.ones(2)}, "layer: expected 0 to 0, found tensor"),
    ],
)
def test_what_an_accumulator_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        PatternAccumulator(1, 1, 2, 2, "self").update(
            **{"layer": 0, "probabilities_BHQK": torch.ones(1, 1, 2, 2)} | arguments
        )


@pytest.mark.parametrize("thing", [PATTERN, MASK])
def test_only_safetensors_are_written(tmp_path, thing):
    for name in ("m.npy", "m", "m.SAFETENSORS"):
        with pytest.raises(InputError, match=f"{name}: expected the name of a .safetensors file to write, found"):
            thing.save(tmp_path / name)
    with pytest.raises(InputError, match="path: expected the name of a file, found NoneType"):
        thing.save(None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read", [AttentionPattern.load, PruneMask.load])
@pytest.mark.parametrize(("thing", "found"), [(None, "NoneType"), (MASK, "PruneMask"), (torch.ones(2), "Tensor")])
def test_only_names_of_files_are_read(read, thing, found):
    with pytest.raises(InputError, match=f"path: expected the name of a file, found {found}"):
        read(thing)

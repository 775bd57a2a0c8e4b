"""The calls that people try first on pruned models: they work, or say in one line why not."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch

from attention_pruning import InputError, PruneMask
from attention_pruning.huggingface import collect_patterns, model_masks, prune_model, unprune_model
from tiny_models import MODELS, batch_for, make, random_masks, real_outputs


@pytest.mark.parametrize("name", list(MODELS))
def test_attentions_that_cannot_be_given_are_told(name):
    model, batch = prune_model(make(name), random_masks(name, 0.5)), batch_for(name)
    with pytest.warns(RuntimeWarning, match="output_attentions=True gives no attentions: like SDPA, pruned attention"):
        outputs = model(**batch, output_attentions=True)
    assert not any(value for key, value in outputs.items() if key.endswith("attentions"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**batch, output_attentions=False)


def test_only_a_pruned_model_tells_of_attentions():
    batch, model = batch_for("BART"), make("BART")
    hooks = [len(part._forward_pre_hooks) for part in model.modules()]
    prune_model(prune_model(model, random_masks("BART", 0.5)), random_masks("BART", 0.5, seed=1))
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        unprune_model(again, "eager")
        assert [len(part._forward_pre_hooks) for part in again.modules()] == hooks
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(again(**batch, output_attentions=True).cross_attentions) == 2


@pytest.mark.parametrize("form", [lambda by_site: by_site, lambda by_site: list(by_site.values())])
@pytest.mark.parametrize("name", ["BERT", "BART"])
def test_patterns_prune_a_model(name, form):
    batch, recipe = batch_for(name), {"rule": "allowed", "scope": "head", "block_size": 2, "row_floor": "none"}
    patterns = collect_patterns(make(name), [batch])
    masks = {site: PruneMask.from_pattern(pattern, 0.5, **recipe) for site, pattern in patterns.items()}
    model = prune_model(make(name), form(patterns), tau=0.5, beyond="dense", **recipe)
    assert {site: mask.fingerprint for site, mask in model_masks(model).items()} == {
        site: mask.fingerprint for site, mask in masks.items()
    }
    assert model.config.prune_config["beyond"] == "dense"
    assert torch.equal(real_outputs(model, batch), real_outputs(prune_model(make(name), masks, beyond="dense"), batch))


def test_one_pattern_prunes_its_site_alone():
    batch = batch_for("BART")
    pattern = collect_patterns(make("BART"), [batch], sites="enc-dec")["enc-dec"]
    assert list(model_masks(prune_model(make("BART"), pattern, tau="0.5"))) == ["enc-dec"]


def test_patterns_need_a_tau():
    patterns = collect_patterns(make("BART"), [batch_for("BART")])
    with pytest.raises(InputError, match="^masks: expected tau= with patterns, found none with that of enc-self$"):
        prune_model(make("BART"), patterns)
    with pytest.raises(InputError, match="^tau: expected none with a PruneMask, which has its own, found 0.5$"):
        prune_model(make("BART"), [patterns["enc-self"], random_masks("BART", 0.5)["enc-dec"]], tau=0.5)
    with pytest.raises(InputError, match="tau"):
        prune_model(make("BART"), patterns, tau=50)


def test_a_mask_that_does_not_fit_is_blamed_itself(tmp_path):
    pattern = collect_patterns(make("BERT"), [batch_for("BERT")])["self"]
    mask, file = PruneMask.from_pattern(pattern, 0.5), tmp_path / "mask.safetensors"
    for blamed, given in (("mask", mask), (f"mask of {file}", file)):
        if given is file:
            mask.save(file)
            given = PruneMask.load(file)
        with pytest.raises(InputError) as refusal:
            prune_model(make("ALBERT"), given)
        expected = f"{blamed}: expected layers 1, that of the model, found 2"
        assert str(refusal.value) == expected

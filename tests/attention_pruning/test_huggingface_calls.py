"""The calls that people try first on pruned models: they work, or say in one line why not."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest

from attention_pruning.huggingface import prune_model, unprune_model
from tiny_models import MODELS, batch_for, make, random_masks


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

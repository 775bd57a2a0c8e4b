"""Training under masks: Trainer, gradient checkpointing, torch.compile, copies of a model."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from attention_pruning import InputError
from attention_pruning.huggingface import collect_patterns, model_masks, prune_model
from attention_pruning.make import from_pattern
from test_huggingface_attention import gradients
from tiny_models import LENGTH, batch_for, make, padded, random_masks, real_outputs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["BERT", "Llama", "BART"])
def test_gradient_checkpointing_changes_nothing(name, reentrant):
    batch, masks = batch_for(name), random_masks(name, 0.5)
    plain, saving = prune_model(make(name), masks), prune_model(make(name), masks)
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    saving.enable_input_require_grads()
    plain.enable_input_require_grads()
    for model in (plain, saving):
        model.train()
        for module in model.modules():
            for rate in ("p", "dropout", "activation_dropout", "attention_dropout"):
                if isinstance(getattr(module, rate, None), float):
                    setattr(module, rate, 0.0)
    expected, found = gradients(plain, batch), gradients(saving, batch)
    assert expected.keys() == found.keys()
    for weight, gradient in expected.items():
        torch.testing.assert_close(found[weight], gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["BERT", "BART"])
def test_compiled_equals_eager(name):
    torch.compiler.reset()
    model, batch = prune_model(make(name), random_masks(name, 0.5)), batch_for(name, left=name == "BART")
    expected = real_outputs(model, batch)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(real_outputs(compiled, batch), expected, atol=1e-5, rtol=1e-5)


def test_a_sequence_longer_than_the_mask_is_refused_when_compiled_too():
    torch.compiler.reset()
    compiled = torch.compile(prune_model(make("BERT"), random_masks("BERT", 0.5)), backend="eager")
    with pytest.raises((InputError, RuntimeError), match=f"at most {LENGTH} queries and {LENGTH} keys"):
        compiled(**padded((LENGTH + 2,), LENGTH + 2))


def test_copies_and_pickles_keep_masks_of_their_own():
    batch, masks = batch_for("BART"), random_masks("BART", 0.5)
    model = prune_model(make("BART"), masks)
    expected = real_outputs(model, batch)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(real_outputs(again, batch), expected)
        prune_model(again, random_masks("BART", 0.5, seed=4))
    assert model_masks(model) == masks
    assert torch.equal(real_outputs(model, batch), expected)


def sentences(number, seed):
    """Sentences whose label is said by their second token."""
    batch = padded(tuple(2 + (i * 5) % (LENGTH - 1) for i in range(number)), LENGTH, seed=seed)
    batch["labels"] = torch.arange(number) % 2
    batch["input_ids"][:, 1] = torch.tensor([5, 30])[batch["labels"]]
    return [{name: value[row] for name, value in batch.items()} for row in range(number)]


def test_trainer_gathers_prunes_trains_saves_and_resumes(tmp_path):
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    model = BertForSequenceClassification(BertConfig(**shape, num_attention_heads=2, max_position_embeddings=16))
    arguments = {
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-2,
        "save_steps": 20,
        "max_steps": 30,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    data = sentences(96, seed=0)
    trainer = Trainer(model, TrainingArguments(str(tmp_path / "run"), **arguments), train_dataset=data)
    pattern = collect_patterns(model, trainer.get_train_dataloader())["self"]
    assert pattern.metadata["sequences"] == len(data)
    mask = from_pattern(pattern, 0.5, rule="allowed")
    prune_model(model, mask)
    trainer.train()
    assert trainer.evaluate(data)["eval_loss"] < 0.4  # log 2 = 0.69 knows nothing
    trainer.save_model(str(tmp_path / "best"))
    again = BertForSequenceClassification.from_pretrained(tmp_path / "best")
    assert model_masks(again)["self"].fingerprint == mask.fingerprint

    resumed = BertForSequenceClassification.from_pretrained(tmp_path / "run" / "checkpoint-20")
    assert model_masks(resumed)["self"].fingerprint == mask.fingerprint
    second = Trainer(resumed, TrainingArguments(str(tmp_path / "run"), **arguments), train_dataset=data)
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-20"))
    for name, weight in model.named_parameters():
        torch.testing.assert_close(resumed.get_parameter(name), weight, atol=1e-6, rtol=1e-5)

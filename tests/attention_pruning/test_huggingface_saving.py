"""save_pretrained and from_pretrained keep masks; what does not fit is refused."""

from __future__ import annotations

import json
import os
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DebertaV2Config,
    DebertaV2Model,
)

from attention_pruning import InputError, PruneMask
from attention_pruning.huggingface import find_stacks, model_masks, prune_model, unprune_model
from tiny_models import MODELS, batch_for, make, random_masks, real_outputs
from warm_python import python


def assert_same_masks(found, expected):
    assert found.keys() == expected.keys()
    for site, mask in expected.items():
        assert found[site].fingerprint == mask.fingerprint and found[site].metadata == mask.metadata


@pytest.mark.parametrize("name", list(MODELS))
def test_a_folder_gives_back_masks_and_outputs_bit_for_bit(name, tmp_path):
    model, batch = prune_model(make(name), random_masks(name, 0.5)), batch_for(name)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert_same_masks(model_masks(again), model_masks(model))
    assert torch.equal(real_outputs(again, batch), real_outputs(model, batch))
    again.save_pretrained(tmp_path / "copy")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == {
        file.name: file.read_bytes() for file in (tmp_path / "copy").iterdir()
    }


def test_a_folder_has_one_mask_file_a_site_and_says_so(tmp_path):
    masks = random_masks("BART", 0.5, sites=["enc-self", "enc-dec"])
    prune_model(make("BART"), masks, beyond="dense").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())["prune_config"]
    assert settings["beyond"] == "dense" and set(settings["masks"]) == set(masks)
    for site, mask in masks.items():
        assert settings["masks"][site]["tau"] == 0.5
        assert PruneMask.load(tmp_path / settings["masks"][site]["file"]).fingerprint == mask.fingerprint
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert_same_masks(model_masks(again), masks)
    assert again.model.encoder.layers[0].self_attn.attention_pruning.beyond == "dense"


def test_a_submodel_and_another_head_take_the_masks_along(tmp_path):
    model = prune_model(make("BERT"), random_masks("BERT", 0.5))
    model.save_pretrained(tmp_path / "whole")
    model.bert.save_pretrained(tmp_path / "base")
    batch = batch_for("BERT")
    expected = model.bert(**batch).last_hidden_state
    for folder in ("whole", "base"):
        assert torch.equal(AutoModel.from_pretrained(tmp_path / folder).eval()(**batch).last_hidden_state, expected)


def test_loading_information_and_another_implementation(tmp_path):
    model, batch = prune_model(make("BERT"), random_masks("BERT", 0.5)), batch_for("BERT")
    model.save_pretrained(tmp_path)
    again, information = BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not information["unexpected_keys"] and model_masks(again)
    with pytest.warns(RuntimeWarning, match="has prune masks, but runs dense, as attn_implementation='sdpa' asks"):
        dense = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert torch.equal(real_outputs(dense, batch), real_outputs(make("BERT", implementation="sdpa"), batch))
    dense.set_attn_implementation("attention_pruning")
    assert torch.equal(real_outputs(dense, batch), real_outputs(model, batch))


def test_loading_a_pruned_model_warns_of_nothing(tmp_path):
    prune_model(make("BERT"), random_masks("BERT", 0.5)).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = AutoModelForMaskedLM.from_pretrained(tmp_path)
        again(**batch_for("BERT"))
    assert again.config._attn_implementation == "attention_pruning"


def in_a_new_program(code: str) -> str:
    """Run a program that imports transformers alone; the last line that it prints."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    code = f"import sys\nimport transformers as tf\nassert 'attention_pruning' not in sys.modules\n{code}"
    finished = subprocess.run([python(), "-c", code], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()[-1]


@pytest.mark.slow
def test_without_the_import_a_pruned_folder_is_refused_and_says_why(tmp_path):
    folders = {"AutoModelForMaskedLM": "BERT", "AutoModelForSeq2SeqLM": "BART", "T5EncoderModel": "T5"}
    for class_name, name in folders.items():
        prune_model(make(name), random_masks(name, 0.5)).save_pretrained(tmp_path / class_name)
    said = in_a_new_program(
        f"""
said = []
for name in {list(folders)}:
    try:
        getattr(tf, name).from_pretrained({str(tmp_path)!r} + "/" + name)
    except ValueError as error:
        said.append(str(error).count("import attention_pruning.huggingface before loading it"))
print(said)"""
    )
    assert said == "[1, 1, 1]"


@pytest.mark.slow
def test_a_folder_that_was_loaded_and_saved_without_the_import_says_so(tmp_path):
    pruned, plain = tmp_path / "pruned", tmp_path / "plain"
    model, batch = prune_model(make("BERT"), random_masks("BERT", 0.5)), batch_for("BERT")
    model.save_pretrained(pruned)
    in_a_new_program(
        f"""
model = tf.AutoModelForMaskedLM.from_pretrained({str(pruned)!r}, attn_implementation="sdpa")
model.save_pretrained({str(plain)!r})
print()"""
    )
    with pytest.raises(InputError, match="found no such file: a program that did not import attention_pruning.hugging"):
        BertForMaskedLM.from_pretrained(plain)
    # the first way out
    mask = pruned / "prune_mask.self.safetensors"
    (plain / mask.name).write_bytes(mask.read_bytes())
    assert torch.equal(real_outputs(BertForMaskedLM.from_pretrained(plain), batch), real_outputs(model, batch))
    # the second way out
    config = json.loads((plain / "config.json").read_text())
    del config["prune_config"]
    config.pop("attn_implementation", None)
    (plain / "config.json").write_text(json.dumps(config))
    dense = BertForMaskedLM.from_pretrained(plain)
    assert torch.equal(real_outputs(dense, batch), real_outputs(make("BERT", implementation="sdpa"), batch))


def test_a_folder_of_an_older_version_is_loaded(tmp_path):
    model, batch = prune_model(make("BERT"), random_masks("BERT", 0.5)), batch_for("BERT")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["attn_implementation"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(real_outputs(AutoModelForMaskedLM.from_pretrained(tmp_path), batch), real_outputs(model, batch))


@pytest.mark.slow
def test_the_import_after_loading_is_named_as_the_cause(tmp_path):
    prune_model(make("BERT"), random_masks("BERT", 0.5)).save_pretrained(tmp_path)
    said = in_a_new_program(
        f"""
model = tf.AutoModelForMaskedLM.from_pretrained({str(tmp_path)!r}, attn_implementation="sdpa")
import attention_pruning, attention_pruning.huggingface as ap
try:
    model.save_pretrained({str(tmp_path / "late")!r})
except attention_pruning.InputError as error:
    said = str(error)
ap.unprune_model(model).save_pretrained({str(tmp_path / "dense")!r})
print(said)"""
    )
    assert "was loaded before attention_pruning.huggingface was imported" in said
    assert "load it again after the import, or call unprune_model(model)" in said
    assert not model_masks(BertForMaskedLM.from_pretrained(tmp_path / "dense"))


def test_a_model_built_from_the_configuration_of_a_pruned_one_says_that_it_is_dense(tmp_path):
    prune_model(make("BERT"), random_masks("BERT", 0.5)).save_pretrained(tmp_path)
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(tmp_path)).eval()
    with pytest.warns(RuntimeWarning, match="has no masks and runs dense; give it masks by prune_model"):
        model(**batch_for("BERT"))
    prune_model(model, random_masks("BERT", 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**batch_for("BERT"))


def test_a_dense_model_is_saved_as_ever(tmp_path):
    model = unprune_model(prune_model(make("BERT"), random_masks("BERT", 0.5)))
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("prune_mask*"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert "prune_config" not in config and "attn_implementation" not in config
    assert not hasattr(BertForMaskedLM.from_pretrained(tmp_path).config, "prune_config")


@pytest.mark.parametrize("damage", ["missing", "other", "format"])
def test_a_damaged_folder_is_refused(damage, tmp_path):
    model = prune_model(make("BERT"), random_masks("BERT", 0.5))
    model.save_pretrained(tmp_path)
    file = tmp_path / "prune_mask.self.safetensors"
    if damage == "missing":
        file.unlink()
        message = "expected prune_mask.self.safetensors, named in its config.json, found no such file"
    elif damage == "other":
        random_masks("BERT", 0.5, seed=9)["self"].save(file)
        message = "expected fingerprint .* that of config.json, found .*: the mask and config.json are of two models"
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        config["prune_config"]["format"] = "attention-pruning/model/99"
        (tmp_path / "config.json").write_text(json.dumps(config))
        message = "expected a prune_config of format 'attention-pruning/model/1', found 'attention-pruning/model/99'"
    with pytest.raises(InputError, match=message):
        BertForMaskedLM.from_pretrained(tmp_path)


def test_a_folder_never_promises_masks_that_the_model_lacks(tmp_path):
    prune_model(make("BERT"), random_masks("BERT", 0.5)).save_pretrained(tmp_path)
    dense = AutoModel.from_config(AutoConfig.from_pretrained(tmp_path))
    with pytest.raises(InputError, match=r"expected the masks of its prune_config, \['self'\], found none in the "):
        dense.save_pretrained(tmp_path / "dense")
    swapped = prune_model(make("BERT"), random_masks("BERT", 0.5))
    swapped.config.prune_config["masks"]["self"]["fingerprint"] = "0" * 16
    with pytest.raises(InputError, match=r"found \['self'\] in the model, other ones at self: its configuration"):
        swapped.save_pretrained(tmp_path / "swapped")
    with pytest.raises(InputError, match="call model.push_to_hub"):
        prune_model(dense, random_masks("BERT", 0.5)).save_pretrained(tmp_path / "hub", push_to_hub=True)


def small(**more):
    return BertModel(BertConfig(vocab_size=40, hidden_size=24, num_hidden_layers=2, intermediate_size=8, **more))


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (lambda: small(num_attention_heads=6), "BERT", "expected heads 6, that of the model, found 4"),
        (lambda: make("BERT").bert, "ALBERT", "expected layers 2, that of the model, found 1"),
        (lambda: make("BERT"), "GPT-2", "expected causal False, that of self in BertForMaskedLM, found True"),
        (lambda: make("BERT"), "BART", "expected a site of BertForMaskedLM, self, found enc-self"),
        (lambda: make("BART"), "BERT", "expected a site of BartForCond.*, enc-self or dec-self or enc-dec, found self"),
        (lambda: torch.nn.Linear(1, 1), "BERT", "expected a PreTrainedModel of transformers, found Linear"),
    ],
)
def test_a_mask_for_another_model_is_refused_in_one_line(model, name, message):
    with pytest.raises(InputError, match=message) as refusal:
        prune_model(model(), random_masks(name, 0.5))
    assert "\n" not in str(refusal.value)


def test_a_refused_mask_changes_nothing():
    model, good = make("BART", implementation="sdpa"), random_masks("BART", 0.5)
    with pytest.raises(InputError):
        prune_model(model, [good["enc-self"], random_masks("BERT", 0.5)["self"]])
    assert not model_masks(model) and not hasattr(model.config, "prune_config")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("masks", "options", "message"),
    [
        (lambda good: {}, {}, "expected at least one PruneMask"),
        (lambda good: {"enc-dec": good}, {}, "mask: expected one for enc-dec, under which it was given, found self"),
        (lambda good: [good, good], {}, "expected one for each site"),
        (
            lambda good: {"self": good.pruned},
            {},
            "a PruneMask or an AttentionPattern .*, found Tensor of shape .* among",
        ),
        (lambda good: good.pruned, {}, r"found Tensor of shape \[2, 4, 7, 7\]; AttentionPattern makes one a pattern"),
        (lambda good: good.pruned.numpy(), {}, "found ndarray of shape"),
        (lambda good: "mask.safetensors", {}, "found str 'mask.safetensors'; PruneMask.load reads a file"),
        (lambda good: [Path("mask.safetensors")], {}, "found PosixPath 'mask.safetensors'; PruneMask.load .* among"),
        (lambda good: None, {}, "found NoneType"),
        (lambda good: {"self": {"self": good}}, {}, "found dict among several"),
        (lambda good: good, {"tau": 0.5}, "tau: expected none with a PruneMask, which has its own, found 0.5"),
        (lambda good: good, {"block_size": 16}, "block_size: expected patterns and tau= with it, found no tau"),
        (lambda good: good, {"backend": "magic"}, "backend: expected one of auto, .*reference, found 'magic'"),
        (lambda good: good, {"beyond": "crop"}, "beyond: expected one of error, dense, found 'crop'"),
    ],
)
def test_bad_arguments_are_refused(masks, options, message):
    with pytest.raises(InputError, match=message):
        prune_model(make("BERT"), masks(random_masks("BERT", 0.5)["self"]), **options)


def tiny_clip():
    part = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, vision = part | {"vocab_size": 40}, part | {"image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def tiny_deberta():
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return DebertaV2Model(DebertaV2Config(vocab_size=40, **shape))


def test_models_that_cannot_be_supported_are_refused_with_the_reason():
    with pytest.raises(InputError, match="DebertaV2Model: expected attention that goes through .*AttentionInterface"):
        find_stacks(tiny_deberta())
    clip = tiny_clip()
    with pytest.raises(InputError, match="CLIPModel: expected one stack of self attention, found text_model.*vision"):
        find_stacks(clip)
    assert find_stacks(clip.vision_model)["self"].heads == 2


def test_what_a_mask_cannot_be_combined_with_is_refused():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma2Config(vocab_size=40, **shape, num_key_value_heads=2, head_dim=4, layer_types=["full_attention"] * 2)
    model = prune_model(Gemma2ForCausalLM(config), random_masks("GPT-2", 0.5))
    with pytest.raises(InputError, match="expected plain attention, found softcap"):
        model(input_ids=torch.ones(1, 5, dtype=torch.long))

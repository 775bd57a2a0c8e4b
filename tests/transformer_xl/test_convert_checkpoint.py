"""Checkpoints of others, converted and back: the golden fixture is the same to the bit, and no code in them runs."""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import convert_checkpoint
import eval as evaluate_script  # the script's name is that of a builtin
from foreign_checkpoints import read_checkpoint, write_checkpoint
from model_file import load_model
from reproduction.data.language.corpus import Corpus
from test_golden import CASES, LENGTHS, SHARED, TENSORS
from test_golden import build as golden_model
from tiny_xl import flags, law, read_json, read_tensors, tiny_model
from weight_layouts import LAYOUTS, from_layout, to_layout

every_case = pytest.mark.parametrize("case", CASES)


def oracle_weights(case):
    prefix = f"{case}/weights/"
    return {name.removeprefix(prefix): tensor for name, tensor in TENSORS.items() if name.startswith(prefix)}


def oracle_config(case):
    """config.json as transformers writes it: the vocabulary's size at the end of the borders."""
    values = {name: value for name, value in CASES[case].items() if name in SHARED + LENGTHS}
    values["vocab_size"] = values.pop("n_token")
    values["cutoffs"] = [*values["cutoffs"], values["vocab_size"]]
    return {**values, "dropout": 0.0, "dropatt": 0.0, "untie_r": False, "attn_type": 0, "layer_norm_epsilon": 1e-05}


def write_oracle(folder, case, weights=None, **changes):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**oracle_config(case), **changes}))
    torch.save(oracle_weights(case) if weights is None else weights, folder / "pytorch_model.bin")


# -- the map -----------------------------------------------------------------------------------------------------------


@every_case
def test_the_golden_weights_come_and_go_to_the_bit(case, tmp_path):
    write_oracle(tmp_path / "theirs", case)
    config, weights = read_checkpoint(tmp_path / "theirs", "transformers", tgt_len=6)
    write_checkpoint(tmp_path / "again", config, weights, "transformers")
    written = torch.load(tmp_path / "again" / "pytorch_model.bin", weights_only=True)
    for name, tensor in oracle_weights(case).items():
        assert torch.equal(written[name], tensor), name
    wrote, values = read_json(tmp_path / "again" / "config.json"), oracle_config(case)
    assert wrote | {"cutoffs": values["cutoffs"]} == wrote | values
    expected = golden_model(case).state_dict()
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)


@every_case
def test_upstream_reads_the_rows_of_clusters_from_the_end(case):
    """tests/golden/README.md: with these rows reversed their code gives the same loss, in all cases."""
    model, theirs = golden_model(case), oracle_weights(case)
    upstream = to_layout(model.state_dict(), model.config, "upstream")
    for name, tensor in theirs.items():
        expected = tensor.flip(0) if name.startswith("crit.cluster_") else tensor
        assert torch.equal(upstream[name.removeprefix("transformer.")], expected), name
    assert len({id(tensor) for tensor in upstream.values()}) == len(theirs)


@law
@given(
    st.sampled_from(LAYOUTS),
    st.sampled_from([[], [7], [5, 9, 14]]),
    st.sampled_from([1, 2]),
    st.sampled_from([16, 8]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_there_and_back_is_nothing(layout, cutoffs, div_val, d_embed, tied, untie_r, data):
    ties = data.draw(st.lists(st.booleans(), min_size=len(cutoffs) + 1, max_size=len(cutoffs) + 1))
    shape = {"cutoffs": cutoffs, "div_val": div_val, "d_embed": d_embed, "tied": tied, "tie_projs": ties}
    model = tiny_model(**shape, untie_r=untie_r)
    weights = model.state_dict()
    there = to_layout(weights, model.config, layout)
    again = from_layout(there, model.config, layout)
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)


def test_biases_untied_by_layer_stand_in_their_layers():
    """The layout of transfo-xl-wt103."""
    model = tiny_model(untie_r=True, cutoffs=[5, 9], div_val=2)
    there = to_layout(model.state_dict(), model.config, "transformers")
    for layer in range(2):
        for name in ("r_w_bias", "r_r_bias"):
            assert torch.equal(there[f"transformer.layers.{layer}.dec_attn.{name}"], getattr(model, name)[layer])
    assert "transformer.r_w_bias" not in there and there["crit.out_layers.1.bias"].numel() == 4


# -- files -------------------------------------------------------------------------------------------------------------


def pickled_upstream(path, ours, monkeypatch, **attributes):
    """Their ``torch.save(model)``: modules of classes that only their code has."""
    monkeypatch.setitem(sys.modules, "mem_transformer", theirs := ModuleType("mem_transformer"))

    def module(name, **attributes):
        kind = type(name, (nn.Module,), {"__module__": "mem_transformer", "__qualname__": name})
        setattr(theirs, name, getattr(theirs, name, kind))
        made = getattr(theirs, name)()
        for key, value in attributes.items():
            setattr(made, key, value)
        return made

    config = ours.config
    weights = {n: nn.Parameter(t) for n, t in to_layout(ours.state_dict(), config, "upstream").items()}
    for index in range(len(ours.word_emb.tables) if config.tied else 0):
        weights[f"crit.out_layers.{index}.weight"] = weights[f"word_emb.emb_layers.{index}.weight"]
    for index, tie in enumerate(config.tie_projs):
        if tie and f"crit.out_projs.{index}" in weights:
            weights[f"crit.out_projs.{index}"] = weights[f"word_emb.emb_projs.{index if config.div_val > 1 else 0}"]
    shape = {name: getattr(config, name) for name in ("n_layer", "n_head", "d_head", "d_model", "d_embed", "n_token")}
    lengths = {name: getattr(config, name) for name in ("tgt_len", "mem_len", "same_length", "clamp_len")}
    model = module("MemTransformerLM", **shape, **lengths, attn_type=0)
    for name, parameter in weights.items():
        *parents, last = name.split(".")
        here = model
        for parent in parents:
            if parent not in here._modules:
                setattr(here, parent, module(f"Part_{parent}" if not parent.isdigit() else "Item"))
            here = here._modules[parent]
        here.register_parameter(last, parameter)
    for holder in ("word_emb.emb_projs", "crit.out_projs"):
        parent, name = holder.split(".")
        if name not in model._modules[parent]._modules:
            setattr(model._modules[parent], name, nn.ParameterList())
    model.word_emb.cutoffs, model.word_emb.div_val = [*config.cutoffs, config.n_token], config.div_val
    for layer in model.layers._modules.values():
        layer.dec_attn.dropatt, layer.dec_attn.pre_lnorm = nn.Dropout(config.dropatt), config.pre_lnorm
        layer.pos_ff.d_inner = config.d_inner
    model.drop = nn.Dropout(config.dropout)
    for name, value in attributes.items():
        setattr(model, name, value)
    torch.save(model, path)
    return model


@pytest.mark.parametrize(
    "shape",
    [
        {"cutoffs": [5, 9], "dropout": 0.1, "clamp_len": 3},
        {"cutoffs": [5, 9, 14], "div_val": 2, "tie_projs": [False] * 4, "pre_lnorm": True},
        {"cutoffs": [7], "d_embed": 8, "tied": False},
        {"same_length": True},
    ],
    ids=str,
)
def test_the_authors_pickled_model_is_read_without_their_code(shape, tmp_path, monkeypatch):
    ours = tiny_model(**shape)
    with monkeypatch.context() as patch:
        pickled_upstream(tmp_path / "model.pt", ours, patch)
    config, weights = read_checkpoint(tmp_path, "upstream")
    assert config == ours.config
    assert all(torch.equal(weights[name], tensor) for name, tensor in ours.state_dict().items())


class Command:
    """What would be run by reading it."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_would_run_code_is_refused(layout, words, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(2), "evil": Command()}, tmp_path / "model.pt")
    given = {"layout": layout, "checkpoint": tmp_path / "model.pt", "data": words, "out": tmp_path / "m.safetensors"}
    assert "mkdir in it, which is not safe to read" in refused(convert_checkpoint.main, flags(**given))
    torch.save(Command(), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert "torch.save(model.state_dict()" in refused(convert_checkpoint.main, flags(**given))
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "drop", "message"),
    [
        ({"attn_type": 2}, None, "attn_type 0, found 2"),
        ({"layer_norm_epsilon": 1e-6}, None, "layer_norm_epsilon 1e-05, found 1e-06"),
        ({"n_layer": 1}, None, "found transformer.layers.1"),
        ({"d_inner": 25}, None, "CoreNet.0.weight of shape (25, 16), found (24, 16)"),
        ({}, "crit.cluster_bias", "found no crit.cluster_bias"),
    ],
)
def test_a_model_that_ours_is_not_is_refused(changes, drop, message, words, tmp_path, refused):
    write_oracle(tmp_path / "a", "plain", {n: t for n, t in oracle_weights("plain").items() if n != drop}, **changes)
    given = {"layout": "transformers", "checkpoint": tmp_path / "a", "data": words, "out": tmp_path / "m.safetensors"}
    assert message in refused(convert_checkpoint.main, flags(**given))


def test_a_copy_that_is_none_is_refused(tmp_path, words, refused):
    table = oracle_weights("plain")["transformer.word_emb.emb_layers.0.weight"]
    write_oracle(tmp_path / "a", "plain", oracle_weights("plain") | {"crit.out_layers.0.weight": table + 1})
    given = {"layout": "transformers", "checkpoint": tmp_path / "a", "data": words, "out": tmp_path / "m.safetensors"}
    assert "crit.out_layers.0.weight to be what it is tied to" in refused(convert_checkpoint.main, flags(**given))


def losses(model, data, out):
    evaluate_script.main(flags(checkpoint=model, data=data, batch_size=2, device="cpu", out=out))
    return [found["nll"] for found in read_json(out)["metrics"].values()]


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_trained_model_goes_and_comes_back(layout, trained, words, tmp_path):
    """What returns evaluates as what went, word for word."""
    source, back = trained["dense"] / "model.safetensors", tmp_path / "back.safetensors"
    convert_checkpoint.main(flags(layout=layout, checkpoint=source, out=tmp_path / "theirs"))
    convert_checkpoint.main(flags(layout=layout, checkpoint=tmp_path / "theirs", data=words, out=back))
    assert read_tensors(source).keys() == read_tensors(back).keys()
    for name, tensor in read_tensors(source).items():
        assert torch.equal(tensor, read_tensors(back)[name]), name
    assert losses(source, words, tmp_path / "a.json") == losses(back, words, tmp_path / "b.json")


def test_a_checkpoint_with_other_ids_brings_its_order(trained, words, tmp_path, refused):
    """The corpus is written with the ids of the checkpoint: the loss stays what it was."""
    corpus = Corpus.load(words)
    order = list(reversed(range(len(corpus.vocabulary))))
    model = load_model(trained["dense"] / "model.safetensors").model
    weights = dict(model.state_dict())
    weights |= {"word_emb.tables.0": weights["word_emb.tables.0"][order], "crit.bias": weights["crit.bias"][order]}
    write_checkpoint(tmp_path / "theirs", model.config, weights, "upstream")
    (tmp_path / "vocab.txt").write_text("".join(f"{corpus.vocabulary[i]}\n" for i in order))
    convert_checkpoint.main(
        flags(
            layout="upstream",
            checkpoint=tmp_path / "theirs",
            data=words,
            vocabulary=tmp_path / "vocab.txt",
            data_out=tmp_path / "data",
            out=tmp_path / "m.safetensors",
        )
    )
    before = losses(trained["dense"] / "model.safetensors", words, tmp_path / "a.json")
    assert losses(tmp_path / "m.safetensors", tmp_path / "data", tmp_path / "b.json") == pytest.approx(before, rel=1e-6)
    assert "another vocabulary" in refused(
        evaluate_script.main, flags(checkpoint=tmp_path / "m.safetensors", data=words, device="cpu")
    )


def test_a_pruned_model_is_not_taken_out(trained, tmp_path, refused):
    source = trained["pruned"] / "model.safetensors"
    message = refused(convert_checkpoint.main, flags(layout="upstream", checkpoint=source, out=tmp_path / "theirs"))
    assert message.endswith("expected a dense model, as upstream has no masks, found a pruned one")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "--data: expected the corpus"),
        ({"data_out": "there"}, "--vocabulary: expected --data_out"),
        ({"vocabulary": "strange.txt", "data_out": "there"}, "strange.txt: expected the"),
        ({"out": "model.bin"}, "--out: expected the name of a .safetensors file"),
        ({"checkpoint": "nowhere"}, "nowhere: expected a folder with pytorch_model.bin"),
    ],
)
def test_flags_that_make_no_sense(change, message, words, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange.txt").write_text("one\ntwo\n")
    write_oracle(tmp_path / "a", "plain")
    given = {"layout": "transformers", "checkpoint": "a", "data": words, "out": "m.safetensors", **change}
    assert refused(convert_checkpoint.main, flags(**given)).startswith(message)
    assert not (tmp_path / "m.safetensors").exists() and not (tmp_path / "there").exists()

"""Damaged models, training states and foreign checkpoints of Transformer-XL."""

from __future__ import annotations

import functools
import importlib
import io
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save

from attention_pruning.files.tensors import fingerprint
from foreign_checkpoints import FILES, read_checkpoint, write_checkpoint
from mem_transformer import MemTransformerLM, ModelConfig
from model_file import CONTENT, load_model, save_model
from mutations import STRANGE, answer, as_json, damaged, damaged_json, fuzzed, strange, written
from reproduction.runs.checkpoint import load_checkpoint, random_state, save_checkpoint

sys.path.append(str(Path(__file__).parents[1] / "transformer_xl"))
pickled_upstream = importlib.import_module("test_convert_checkpoint").pickled_upstream

SHAPE = {"n_layer": 2, "n_head": 2, "d_head": 6, "d_model": 8, "d_inner": 8, "tgt_len": 4, "mem_len": 4}


def a_model(pruned: bool = False, **changes) -> MemTransformerLM:
    torch.manual_seed(0)
    model = MemTransformerLM(ModelConfig(n_token=11, **SHAPE, **changes))
    model.initialize()
    if pruned:
        model.set_pruned(torch.rand(2, 2, 4, 8) < 0.4)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, bytes]:
    path, found = tmp_path_factory.mktemp("models") / "model.safetensors", {}
    for name in ("dense", "pruned"):
        save_model(path, a_model(name == "pruned"), vocabulary="ab", corpus="cd", step=3, mask={"any_length": False})
        found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize("name", ["dense", "pruned"])
@fuzzed(0.5)
@given(st.data())
def test_models_of_damaged_bytes(name, folder, models, data):
    found = answer(load_model, written(folder / "model.safetensors", data.draw(damaged(models[name]))))
    if found is not None:
        assert found.fingerprint == answer(load_model, written(folder / "whole.safetensors", models[name])).fingerprint


@fuzzed()
@given(st.data())
def test_models_of_strange_values_whose_fingerprint_is_right(folder, models, data):
    name = data.draw(st.sampled_from(["dense", "pruned"]))
    path = written(folder / "model.safetensors", models[name])
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    del metadata[CONTENT]
    tensors = load(models[name])
    kind = data.draw(st.sampled_from(["config", "config", "info", "tensors"]))
    if kind == "tensors":
        key = data.draw(st.sampled_from(sorted(tensors)))
        changes = [tensors[key][None], tensors[key].flatten()[:1].clone(), tensors[key].to(torch.int32)]
        tensors[key] = data.draw(st.sampled_from(changes))
    else:
        metadata[kind] = as_json(data.draw(strange(json.loads(metadata[kind])))).decode()
    metadata[CONTENT] = fingerprint(tensors, **metadata)
    found = answer(load_model, written(path, save(tensors, metadata)))
    if found is not None:
        assert all(torch.isfinite(tensor).all() for tensor in found.model.parameters())


# Training states


def a_state() -> dict:
    model = a_model()
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    own = {"random": random_state(), "memories": [None], "losses": [1.5]}
    state = {"step": 3, "segment": 2, "best_loss": 1.0, "seconds": 2.0, "scaler": None, "processes": [own]}
    return {**state, "model": model.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("state") / "checkpoint.pt"
    save_checkpoint(path, a_state())
    return path.read_bytes()


def test_a_whole_state_is_read(folder, state):
    found = load_checkpoint(written(folder / "checkpoint.pt", state))
    assert found["step"] == 3 and torch.equal(found["model"]["r_w_bias"], a_state()["model"]["r_w_bias"])


@fuzzed()
@given(st.data())
def test_training_states(folder, state, data):
    found = answer(load_checkpoint, written(folder / "checkpoint.pt", data.draw(damaged(state))))
    if found is not None:  # no byte that counts was another
        expected = a_state()
        assert {name: found[name] for name in ("step", "segment", "best_loss", "seconds")} == {
            name: expected[name] for name in ("step", "segment", "best_loss", "seconds")
        }
        assert all(torch.equal(found["model"][name], tensor) for name, tensor in expected["model"].items())


class Command:
    """What would be run by reading it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self):
        return os.mkdir, (self.name,)


@st.composite
def pickles(draw: st.DrawFn, trap: str) -> bytes:
    """Pickles that would run something, in archives, in torch's old format and bare."""
    kind = draw(st.sampled_from(["archive", "old", *range(6)]))
    content = pickled(trap, kind, draw(st.booleans()))
    return draw(damaged(content, edits=1)) if draw(st.booleans()) else content


@functools.cache
def pickled(trap: str, kind: str | int, bare: bool) -> bytes:
    """A pickle of some protocol, or in a file of torch; the trap alone, or in a state. Made once."""
    thing = Command(trap) if bare else {"format": "reproduction/checkpoint/1", "model": {}, "args": Command(trap)}
    buffer = io.BytesIO()
    if isinstance(kind, int):
        pickle.dump(thing, buffer, protocol=kind)
    else:
        torch.save(thing, buffer, _use_new_zipfile_serialization=kind == "archive")
    return buffer.getvalue()


@fuzzed(0.5)
@given(st.data())
def test_nothing_in_a_pickle_is_run(folder, data):
    trap = folder / "pwned"
    content = data.draw(pickles(str(trap)))
    assert answer(load_checkpoint, written(folder / "checkpoint.pt", content)) is None
    assert answer(read_checkpoint, written(folder / "model.pt", content), "upstream") is None
    assert not trap.exists()


# Others' checkpoints


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> dict[str, Path]:
    folders = {layout: tmp_path_factory.mktemp(layout) for layout in FILES}
    for layout, folder in folders.items():
        model = a_model(cutoffs=[5], untie_r=layout == "transformers")
        write_checkpoint(folder, model.config, model.state_dict(), layout)
    return folders


@pytest.mark.parametrize("layout", sorted(FILES))
@fuzzed(0.5)
@given(st.data())
def test_others_checkpoints(layout, theirs, folder, data):
    files = {name.name: name.read_bytes() for name in theirs[layout].iterdir()}
    weights = FILES[layout][0]
    if data.draw(st.booleans()):
        files["config.json"] = data.draw(damaged_json(json.loads(files["config.json"])))
    else:
        files[weights] = data.draw(damaged(files[weights]))
    for name, content in files.items():
        written(folder / name, content)
    found = answer(read_checkpoint, folder / weights, layout)
    if found is not None:
        config, tensors = found
        MemTransformerLM(config).load_state_dict(tensors)
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


#: What the authors' model says of itself.
ATTRIBUTES = ("n_layer", "n_head", "d_head", "d_model", "d_embed", "n_token", "tgt_len", "mem_len", "same_length")


@fuzzed(0.5)
@given(st.sampled_from((*ATTRIBUTES, "clamp_len", "attn_type")), STRANGE)
def test_the_authors_pickled_model_that_says_strange_things(folder, name, value):
    path = folder / "model.pt"
    with pytest.MonkeyPatch.context() as patch:
        pickled_upstream(path, a_model(cutoffs=[5]), patch, **{name: value})
    found = answer(read_checkpoint, path, "upstream")
    if found is not None:
        MemTransformerLM(found[0]).load_state_dict(found[1])


@fuzzed(0.5)
@given(st.data())
def test_the_authors_pickled_model_of_damaged_bytes(folder, pickled_model, data):
    found = answer(read_checkpoint, written(folder / "model.pt", data.draw(damaged(pickled_model))), "upstream")
    if found is not None:
        assert all(torch.equal(tensor, a_model(cutoffs=[5]).state_dict()[name]) for name, tensor in found[1].items())


@pytest.fixture(scope="module")
def pickled_model(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("theirs") / "model.pt"
    with pytest.MonkeyPatch.context() as patch:
        pickled_upstream(path, a_model(cutoffs=[5]), patch)
    return path.read_bytes()

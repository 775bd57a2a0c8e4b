"""Damaged checkpoints of fairseq, in today's format and in that of 2018, through our reader and fairseq's own."""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mutations import STRANGE, answer, damaged, fuzzed, strange, written

sys.path.append(str(Path(__file__).parents[1] / "fairseq_plugin"))
# In this order: the first makes fairseq importable.
shims = importlib.import_module("tiny_translation").shims
checkpoint_utils = importlib.import_module("fairseq.checkpoint_utils")
read_checkpoint = importlib.import_module("plugin.checkpoint").read_checkpoint
model_arguments = importlib.import_module("plugin.checkpoint").model_arguments
training_speed = importlib.import_module("plugin.checkpoint").training_speed


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.serialization.add_safe_globals(shims.SAFE_IN_CHECKPOINTS)
    return tmp_path_factory.mktemp("damaged")


def a_state(old: bool) -> dict[str, Any]:
    weights = {"encoder.embed_tokens.weight": torch.arange(12.0).view(3, 4), "encoder.version": torch.tensor([3.0])}
    arguments = argparse.Namespace(arch="transformer", task="translation", encoder_layers=1)
    meter = {"count": 3, "sum": 1.5, "round": 2}
    extra = {"epoch": 1, "metrics": {"default": [(0, "gnorm", "AverageMeter", meter), (0, "train_wall", "x", meter)]}}
    history = [{"criterion_name": "x", "optimizer_name": "y", "lr_scheduler_state": {}, "num_updates": 3}]
    state = {"model": weights, "extra_state": extra, "optimizer_history": history, "last_optimizer_state": {}}
    configuration = {"model": arguments, "task": {"_name": "translation"}, "common": {"seed": 1}}
    return {**state, "args": arguments if old else None, "cfg": None if old else configuration}


def saved(state: Any, old: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


@functools.cache
def whole(old: bool) -> bytes:
    """Made once: the old format names tensors after where they are in memory."""
    return saved(a_state(old), old)


@pytest.mark.parametrize("old", [False, True])
def test_whole_ones_are_read(folder, old):
    path = written(folder / "model.pt", saved(a_state(old), old))
    for read in (read_checkpoint, checkpoint_utils.load_checkpoint_to_cpu):
        assert torch.equal(read(str(path))["model"]["encoder.embed_tokens.weight"], torch.arange(12.0).view(3, 4))
    assert training_speed(read_checkpoint(path)) == (0.5, 3)


@pytest.mark.parametrize("old", [False, True])
@fuzzed(0.5)
@given(st.data())
def test_damaged_bytes(folder, old, data):
    path = written(folder / "model.pt", data.draw(damaged(whole(old))))
    found = answer(read_checkpoint, path)
    if found is None:
        assert answer(checkpoint_utils.load_checkpoint_to_cpu, str(path)) is None
    elif not old:  # an archive has checksums: what is read is what was written
        for name, tensor in a_state(old)["model"].items():
            assert torch.equal(found["model"][name], tensor)


@fuzzed()
@given(st.data(), st.booleans())
def test_strange_values(folder, data, old):
    state = a_state(old)
    key = data.draw(st.sampled_from(sorted(state)))
    state[key] = data.draw(strange(state[key]) if isinstance(state[key], dict | list) else STRANGE)
    found = answer(read_checkpoint, written(folder / "model.pt", saved(state, old)))
    if found is not None:
        model_arguments(found)
        answer(training_speed, found)


class Command:
    """What would be run by reading it."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("old", [False, True])
def test_nothing_in_it_is_run(folder, old, monkeypatch):
    monkeypatch.chdir(folder)
    for key in a_state(old):
        path = written(folder / "model.pt", saved(a_state(old) | {key: Command()}, old))
        for read in (read_checkpoint, checkpoint_utils.load_checkpoint_to_cpu):
            assert answer(read, str(path)) is None
        assert not (folder / "pwned").exists()

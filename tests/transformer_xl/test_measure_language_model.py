"""Timing a language model under masks: what is measured, what is recorded, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import measure_language_model as measuring
import train
from attention_pruning import InputError
from attention_pruning.make import from_pattern
from attention_pruning.ops.layer_mask import LayerMask
from reproduction.runs.taking_turns import REMOVED, STEPS, Setting, measure_memory
from tiny_xl import flags, random_pattern, training_flags

LENGTHS = {"tgt_len": 16, "mem_len": 16}


@pytest.fixture
def folder(words: Path, tmp_path: Path) -> Path:
    """A dense model and two masks for it."""
    train.main(training_flags(words, tmp_path / "dense", max_step=2, eval_interval=2, **LENGTHS))
    for name, block in (("cells", 1), ("blocks", 16)):
        from_pattern(random_pattern(**LENGTHS), 0.5, rule="allowed", block_size=block).save(
            tmp_path / f"{name}.safetensors"
        )
    return tmp_path


def command(corpus: Path, folder: Path, **changes: object) -> list[str]:
    masks = [folder / "cells.safetensors", folder / "blocks.safetensors"]
    options = {"checkpoint": folder / "dense" / "model.safetensors", "data": corpus, "masks": masks}
    options |= {"batch_size": 2, "rounds": 2, "contexts": [8, 16], "device": "cpu", "out": folder / "efficiency.json"}
    return flags(**options | changes)


def test_a_file_has_every_setting_in_both_steps(words, folder, monkeypatch):
    def here(script, argv, setting):
        bench, _, _ = measuring.prepare(measuring.build_parser().parse_args(argv))
        return measure_memory(bench, setting)

    monkeypatch.setattr(measuring, "memory_in_a_process", here)
    measuring.main(command(words, folder))
    found = json.loads((folder / "efficiency.json").read_text())
    assert [each["name"] for each in found["settings"]] == ["dense", "cells, tau 0.5", "blocks of 16, tau 0.5", REMOVED]
    assert [each["block_size"] for each in found["settings"]] == [None, 1, 16, None]
    assert (found["tgt_len"], found["mem_len"], found["batch_size"]) == (16, 16, 2)
    for context, batch in zip(found["contexts"], (4, 2), strict=True):
        assert context["batch_size"] == batch  # as many tokens
        assert [each["name"] for each in context["settings"]] == ["dense", "blocks of 16", "blocks of 32", REMOVED]
    for each in [*found["settings"], *(each for context in found["contexts"] for each in context["settings"])]:
        for step in STEPS:
            assert len(each[step]["seconds_by_round"]) == 2 and each[step]["seconds"] > 0
    assert all(each["training"]["peak_memory_bytes"] > 0 for each in found["settings"])


def test_a_setting_is_what_it_says(words, folder):
    """Masks change what is predicted, removed attention too, and dense is dense again after all others."""
    args = measuring.build_parser().parse_args(command(words, folder))
    bench, _, settings = measuring.prepare(args)
    found = {}
    for setting in [*settings, settings[0]]:
        bench.use(setting)
        assert bench.memory["inference"].length == bench.memory["training"].length == 16
        data_BT, target_BT = bench.segments[-1]
        with torch.no_grad():
            nll, _ = bench.model.eval()(data_BT, target_BT, bench.memory["inference"])
        if setting.name in found:
            assert torch.equal(nll, found[setting.name])
        found[setting.name] = nll
    assert all(name == "dense" or not torch.allclose(nll, found["dense"]) for name, nll in found.items())


def test_what_is_made_once_is_made_before_the_clock_runs(words, folder, monkeypatch):
    args = measuring.build_parser().parse_args(command(words, folder))
    bench, _, settings = measuring.prepare(args)
    for setting in settings:
        bench.use(setting)
        with monkeypatch.context() as patch:
            patch.setattr(LayerMask, "from_cells", lambda *_, **__: pytest.fail("a layout was made"))
            patch.setattr(LayerMask, "_make_layout", lambda *_: pytest.fail("a layout was made"))
            for step in STEPS:
                bench.run(step)


def test_without_attention_every_weight_has_its_gradient(words, folder):
    args = measuring.build_parser().parse_args(command(words, folder))
    bench, _, _ = measuring.prepare(args)
    bench.use(Setting(REMOVED))
    before = [parameter.detach().clone() for parameter in bench.model.parameters()]
    bench.work("training")
    assert all(parameter.grad is not None for parameter in bench.model.parameters())
    assert not all(map(torch.equal, before, bench.model.parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "--rounds: expected at least 1, found 0"),
        ({"contexts": [16, 0]}, "--contexts: expected lengths of at least 1, found 0"),
        ({"masks": ["cells", "cells"]}, "--masks: expected masks that differ in tau or blocks, found cells, tau 0.5"),
    ],
)
def test_what_makes_no_sense_is_refused(words, folder, changes, message):
    if "masks" in changes:
        changes = {"masks": [folder / f"{name}.safetensors" for name in changes["masks"]]}
    with pytest.raises(InputError, match=message):
        measuring.main(command(words, folder, **changes))

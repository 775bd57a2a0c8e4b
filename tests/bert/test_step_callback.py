"""What is logged is in steps.csv too, every step once, and reaches whatever --report_to names."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest

from attention_pruning import PruneMask

pytestmark = pytest.mark.slow

STEPS = {"do_train": True, "do_eval": True, "max_steps": 6, "logging_steps": 2, "eval_strategy": "steps"}
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 2}


def read(folder):
    with (folder / "steps.csv").open(newline="") as file:
        return {(int(row["step"]), row["split"], row["name"]): float(row["value"]) for row in csv.DictReader(file)}


def test_what_a_training_logs(run, tmp_path, pattern_file):
    pruning = {"prune": True, "attn_path": pattern_file, "tau": 0.5}
    folder = run("glue", "out", logging_dir=tmp_path / "log", **STEPS, **pruning)
    found, state = read(tmp_path / "log"), json.loads((folder / "trainer_state.json").read_text())
    losses = {entry["step"]: entry for entry in state["log_history"] if "loss" in entry}
    assert set(losses) == {2, 4, 6}
    for step, entry in losses.items():
        assert found[step, "train", "loss"] == entry["loss"]
        assert found[step, "train", "learning_rate"] == entry["learning_rate"]
        assert found[step, "train", "samples_per_second"] > 0
        sparsity = PruneMask.load(folder / "prune_mask.self.safetensors").effective_sparsity
        assert found[step, "train", "sparsity"] == sparsity > 0
        assert (step, "eval", "accuracy") in found
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]["validation"]
    assert found[6, "eval", "accuracy"] == metrics["accuracy"]
    assert json.loads((folder / "run.json").read_text())["flags"]["logging_dir"] == str(tmp_path / "log")


def test_a_continued_training_tells_every_step_once(run, tmp_path):
    run("glue", "out", logging_dir=tmp_path / "log", **STEPS, **CHECKPOINTS)
    whole = read(tmp_path / "log")
    (tmp_path / "out" / "checkpoint-6" / "trainer_state.json").unlink()
    run("glue", "out", logging_dir=tmp_path / "log", **STEPS, **CHECKPOINTS)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["continued_from"].endswith("checkpoint-4")
    exact = ("loss", "learning_rate", "sparsity", "accuracy")
    again = read(tmp_path / "log")
    assert {key: value for key, value in again.items() if key[2] in exact} == {
        key: value for key, value in whole.items() if key[2] in exact
    }
    lines = [line.rsplit(",", 1)[0] for line in (tmp_path / "log" / "steps.csv").read_text().splitlines()]
    twice = {line for line, count in Counter(lines).items() if count > 1}
    assert all(line.startswith("6,eval,") for line in twice), (
        twice
    )  # the evaluation after the last step, and --do_eval's

    # a finished training, and an evaluation alone, leave the table as it is
    before = (tmp_path / "log" / "steps.csv").read_bytes()
    run("glue", "out", logging_dir=tmp_path / "log", **STEPS, **CHECKPOINTS)
    run("glue", "alone", do_eval=True, logging_dir=tmp_path / "log")
    assert (tmp_path / "log" / "steps.csv").read_bytes() == before


def test_without_a_folder_there_is_no_table(run, tmp_path):
    run("squad", "out", do_train=True, logging_steps=2)
    assert not list(tmp_path.rglob("steps.csv"))


def test_tensorboard_gets_the_same_in_the_same_folder(run, tmp_path, board):
    run("squad", "out", do_train=True, logging_steps=2, logging_dir=tmp_path / "log", report_to="tensorboard")
    shown = board(tmp_path / "log")
    assert {"train/loss", "train/learning_rate", "train/samples_per_second", "train/sparsity"} <= shown.keys()
    with (tmp_path / "log" / "steps.csv").open() as file:
        losses = {int(row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["name"] == "loss"}
    assert len(losses) == 3
    assert shown["train/loss"] == pytest.approx(losses, rel=1e-6)  # a board holds float32


def test_a_missing_tensorboard_is_one_line(refused, monkeypatch):
    monkeypatch.setattr("run_flags.is_tensorboard_available", lambda: False)
    assert refused("glue", do_eval=True, report_to="tensorboard").startswith(
        "--report_to: expected the package tensorb"
    )


@pytest.mark.parametrize("script", ["glue", "squad"])
def test_a_folder_that_cannot_be_written_to_is_named(refused, data_dir, script):
    file = data_dir / "glue" / "MRPC" / "dev.tsv"
    flags = {"do_eval": True, "logging_dir": file}
    assert refused(script, **flags).startswith(f"{file}: expected a folder that can be written to")

"""A training that was interrupted, by whatever, ends as the one that was not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from checkpoints import FREE_FLAGS, last_checkpoint
from reproduction.runs.folder import make_recipe, recipe_fingerprint
from run_flags import build_parser
from run_glue import DataArguments
from run_squad import DataArguments as SquadArguments
from tiny_bert import read_metrics

ROOT = Path(__file__).parents[2]
STEPS = {"do_train": True, "do_eval": True, "save_strategy": "steps", "save_steps": 2, "max_steps": 8}


def assert_same_outcome(first: Path, second: Path) -> None:
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert read_metrics(first) == read_metrics(second)
    masks = [(folder / "prune_mask.self.safetensors").read_bytes() for folder in (first, second)]
    assert masks[0] == masks[1]


@pytest.fixture
def pruning(pattern_file):
    return {"prune": True, "attn_path": pattern_file, "tau": 0.5}


def interrupted(folder: Path) -> None:
    """Leave what a run leaves that is killed while it writes its third checkpoint."""
    for path in folder.glob("*"):
        if not path.name.startswith("checkpoint-") and path.name != "recipe.json":
            path.unlink()
    for step in (6, 8):
        (folder / f"checkpoint-{step}" / "trainer_state.json").unlink()
    (folder / "checkpoint-6" / "model.safetensors").write_bytes(b"half")


def test_a_resumed_run_equals_an_uninterrupted_one(run, pruning):
    whole = run("glue", "whole", **STEPS, **pruning)
    folder = run("glue", "resumed", **STEPS, **pruning)
    interrupted(folder)
    assert last_checkpoint(folder) == folder / "checkpoint-4"
    run("glue", "resumed", **STEPS, **pruning)
    assert json.loads((folder / "run.json").read_text())["continued_from"] == str(folder / "checkpoint-4")
    assert_same_outcome(whole, folder)


@pytest.mark.parametrize("checkpoint", [3, 6, 9, 12])
def test_from_every_checkpoint_a_run_ends_with_the_same_files(run, pruning, tmp_path, checkpoint):
    """The last step is in the middle of an epoch, and losses are logged between checkpoints."""
    steps = {"do_train": True, "do_eval": True, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
    steps |= {"max_steps": 12, "per_device_train_batch_size": 8}

    def trained(name):
        return run("glue", name, **steps, **pruning, logging_dir=tmp_path / name / "log")

    def numbers(folder):
        rows = [line.split(",") for line in (folder / "log" / "steps.csv").read_text().splitlines()]
        return [row for row in rows if not re.search("runtime|per_second", row[2])]

    whole, folder = trained("whole"), trained("resumed")
    for later in range(checkpoint + 3, 13, 3):
        shutil.rmtree(folder / f"checkpoint-{later}")
    for path in folder.iterdir():
        if path.is_file() and path.name != "recipe.json":
            path.unlink()
    table = folder / "log" / "steps.csv"
    logged = table.read_text().splitlines(keepends=True)
    if checkpoint == 12:  # killed once it was saved
        table.write_text("".join(line for line in logged if not re.match("12,(eval|train,train_loss)", line)))
    trained("resumed")
    assert_same_outcome(whole, folder)
    assert numbers(folder) == numbers(whole)
    assert [row[0] for row in numbers(whole) if row[1:3] == ["train", "loss"]] == ["2", "4", "6", "8", "10", "12"]
    assert [row for row in numbers(whole) if row[:3] == ["12", "eval", "accuracy"]]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert (folder / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()
    ends = [json.loads((path / "train_results.json").read_text())["train_loss"] for path in (folder, whole)]
    assert ends[0] == ends[1] > 0


@pytest.mark.parametrize("last", [6, 8])
def test_a_checkpoint_that_was_being_removed_is_gone(run, pruning, last):
    """transformers takes the time of a folder for its age, and removing a file makes it the youngest."""
    limited = STEPS | {"save_total_limit": 2}
    folder = run("glue", "limited", **limited, **pruning)
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-8"}
    (folder / "run.json").unlink()
    for step in (2, 4):
        shutil.copytree(folder / "checkpoint-6", folder / f"checkpoint-{step}")
    (folder / "checkpoint-2" / "optimizer.pt").unlink()
    if last == 6:
        shutil.rmtree(folder / "checkpoint-8")
    run("glue", "limited", **limited, **pruning)
    assert json.loads((folder / "run.json").read_text())["continued_from"] == str(folder / f"checkpoint-{last}")
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-8"}


def test_a_checkpoint_may_be_named(run, pruning):
    whole = run("glue", "whole", **STEPS, **pruning)
    other = run("glue", "other", resume_from_checkpoint=whole / "checkpoint-4", **STEPS, **pruning)
    assert json.loads((other / "run.json").read_text())["continued_from"] == str(whole / "checkpoint-4")
    assert_same_outcome(whole, other)


def test_a_finished_run_is_not_trained_again(run, pruning):
    folder = run("glue", "twice", **STEPS, **pruning)
    before = read_metrics(folder)
    run("glue", "twice", **STEPS, **pruning)
    assert json.loads((folder / "run.json").read_text())["continued_from"] == str(folder / "checkpoint-8")
    assert read_metrics(folder) == before


def test_a_named_checkpoint_of_another_training_is_refused(run, refused, pruning):
    whole = run("glue", "whole", **STEPS, **pruning)
    message = refused("glue", resume_from_checkpoint=whole / "checkpoint-4", **STEPS, **pruning | {"tau": 0.6})
    assert message.startswith(f"{whole}: expected a run of this recipe, found ")


def test_true_names_the_last_checkpoint(run, refused, pruning):
    assert "expected a checkpoint in " in refused("glue", resume_from_checkpoint="true", **STEPS, **pruning)
    run("glue", "again", **STEPS, **pruning)
    folder = run("glue", "again", resume_from_checkpoint="true", **STEPS, **pruning)
    assert json.loads((folder / "run.json").read_text())["continued_from"] == str(folder / "checkpoint-8")


@pytest.mark.parametrize(
    "change",
    [
        {"tau": 0.6},
        {"prune": False, "attn_path": None, "tau": None},
        {"label_smoothing_factor": 0.1},
        {"adam_beta2": 0.99},
        {"lr_scheduler_kwargs": '{"num_cycles": 2}'},
        {"neftune_noise_alpha": 5.0},
        {"train_sampling_strategy": "group_by_length"},
        {"max_train_samples": 8},
        {"attention_backend": "reference"},
        {"seed": 2},
    ],
    ids=str,
)
def test_another_training_in_the_same_folder_is_refused(change, run, refused, pruning):
    folder = run("glue", "refused", **STEPS, **pruning)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    message = refused("glue", **{**STEPS, **pruning, **change})
    assert f"{folder}: expected a folder without a run, or one of this recipe, found " in message
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.slow
def test_another_training_is_set_aside_or_overwritten(run, pruning):
    other = pruning | {"tau": 0.6}
    whole = run("glue", "whole", **STEPS, **other)
    for flag in ("set_aside", "overwrite_output_dir"):
        folder = run("glue", flag, **STEPS, **pruning)
        run("glue", flag, **STEPS, **other, **{flag: True})
        assert json.loads((folder / "run.json").read_text())["continued_from"] is None
        assert_same_outcome(whole, folder)
        assert folder.with_name(f"{flag}.old1").exists() == (flag == "set_aside")


def test_every_argument_of_a_trainer_but_those_that_are_free_makes_another_training():
    """Those, too, that a later transformers adds."""
    arguments = TrainingArguments(output_dir="x", report_to="none").to_dict()
    assert {name for name in FREE_FLAGS if name in arguments} >= {"logging_steps", "save_steps", "use_cpu"}
    expected = recipe_fingerprint(make_recipe("s", arguments, free=FREE_FLAGS))
    for name in arguments:
        found = recipe_fingerprint(make_recipe("s", arguments | {name: "something else"}, free=FREE_FLAGS))
        assert (found == expected) == (name in FREE_FLAGS), name


def test_a_free_flag_is_a_flag():
    names = {action.dest for action in build_parser("", DataArguments)._actions} | {
        action.dest for action in build_parser("", SquadArguments)._actions
    }
    assert FREE_FLAGS - names <= {"local_rank"}


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_as_if_it_had_not_been(run, command, tmp_path):
    steps = STEPS | {"max_steps": 300, "save_steps": 20, "per_device_train_batch_size": 4}
    line = [sys.executable, str(ROOT / "bert" / "src" / "run_glue.py"), *command("glue", "killed", **steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folder = tmp_path / "killed"
    with subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while last_checkpoint(folder) is None and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "metrics.json").exists()
    torch.set_num_threads(1)
    run("glue", "killed", **steps)
    assert json.loads((folder / "run.json").read_text())["continued_from"] is not None
    whole = run("glue", "whole", **steps)
    one, two = (load_file(place / "model.safetensors") for place in (folder, whole))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert read_metrics(folder) == read_metrics(whole)

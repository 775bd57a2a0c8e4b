"""Killed and restarted training ends with the weights and the loss of an uninterrupted run, bit for bit."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import train
from attention_pruning import PruneMask
from model_file import load_model
from reproduction.data.language.corpus import Corpus, write_corpus
from reproduction.runs.checkpoint import load_checkpoint
from tiny_xl import assert_same_model, random_pattern, read_json, training_flags, word_lines
from trainer import Trainer
from warm_python import python

pytestmark = pytest.mark.slow

DROPOUT = {"dropout": 0.3, "dropatt": 0.2}
VARIANTS = {
    "dense": {},
    "dropout": DROPOUT,
    "pruned": {**DROPOUT, "fn": "pattern", "th": 0.7},
    "parts": {**DROPOUT, "batch_chunk": 2, "optim": "sgd", "mom": 0.9, "adaptive": True, "cutoffs": [9], "div_val": 2},
}
STEPS = 42  # the text has 36 segments: the streams begin again before the end
SCRIPT = Path(__file__).with_name("signalled_training.py")


class Death(BaseException):
    """Nothing catches it: what is on disk at that moment is what SIGKILL would leave."""


@pytest.fixture(scope="module")
def argv(words, pattern_file):
    """Flags of a variant in a folder."""

    def build(variant, folder, data=words, **more):
        changes = {**VARIANTS[variant], "max_step": STEPS, "threads": 1, **more}
        if changes.get("fn") == "pattern":
            changes["fn"] = pattern_file
        return training_flags(data, folder, **changes)

    return build


@pytest.fixture(scope="module")
def uninterrupted(argv, tmp_path_factory):
    """The folder of an uninterrupted run of a variant."""
    folders = {}

    def run(variant):
        if variant not in folders:
            AcceleratorState._reset_state(True)
            folders[variant] = tmp_path_factory.mktemp("uninterrupted") / variant
            assert train.main(argv(variant, folders[variant])) is None
            AcceleratorState._reset_state(True)
        return folders[variant]

    return run


@pytest.fixture
def at_step(monkeypatch):
    """Do something, once, in the update that follows so many finished ones."""

    def plan(step, action):
        update, planned = Trainer._update, [action]

        def update_after_action(self):
            if self.step == step and planned:
                planned.pop()()
            return update(self)

        monkeypatch.setattr(Trainer, "_update", update_after_action)

    return plan


def die():
    raise Death


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def steps_in(log):
    """What the log says of losses, without its times."""
    return [re.sub(r" *\d+ tokens/s", "", line) for line in log.splitlines() if re.match(r"\| (step|valid)", line)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("step", [3, 6, 11, 37], ids="after_{}".format)
def test_killed_and_restarted(variant, step, argv, uninterrupted, at_step, tmp_path, capsys):
    """Before the first checkpoint, right after one, after a validation that no checkpoint knows, in the second pass."""
    folder = tmp_path / "run"
    at_step(step, die)
    with pytest.raises(Death):
        train.main(argv(variant, folder))
    if step >= 6:
        assert load_checkpoint(folder / "checkpoint.pt")["step"] == step // 6 * 6
    capsys.readouterr()
    assert train.main(argv(variant, folder, restart=True)) is None
    assert ("restart from" in capsys.readouterr().out) == (step >= 6)
    assert_same_model(folder, uninterrupted(variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_terminated_twice_and_restarted(variant, argv, uninterrupted, at_step, tmp_path, capsys):
    """SIGTERM lets the step end and leaves a checkpoint; the logs together are that of one run."""
    folder, log, expected = tmp_path / "run", "", uninterrupted(variant)
    capsys.readouterr()
    for step in (4, 37):
        at_step(step, terminate)
        assert train.main(argv(variant, folder, restart=True)) == 128 + signal.SIGTERM
        assert load_checkpoint(folder / "checkpoint.pt")["step"] == step + 1
        assert not (folder / "run.json").exists()
        log += capsys.readouterr().out
    seconds = load_checkpoint(folder / "checkpoint.pt")["seconds"]
    assert train.main(argv(variant, folder, restart=True)) is None
    assert_same_model(folder, expected)
    log += capsys.readouterr().out
    assert train.main(argv(variant, tmp_path / "whole")) is None
    assert steps_in(log) == steps_in(capsys.readouterr().out)
    assert read_json(folder / "run.json")["seconds"] > seconds


def test_the_log_of_an_interrupted_run_is_that_of_a_whole_one(argv, at_step, tmp_path):
    """Rows of steps that were done twice are there once; sparsity is the mask's."""
    variant, logs = "pruned", []
    for name, death in (("whole", None), ("parts", 11)):
        given = [*argv(variant, tmp_path / name), "--logging_dir", str(tmp_path / name / "log"), "--report_to", "csv"]
        if death:
            at_step(death, die)
            with pytest.raises(Death):
                train.main(given)
            AcceleratorState._reset_state(True)
        assert train.main(given) is None
        AcceleratorState._reset_state(True)
        with (tmp_path / name / "log" / "steps.csv").open(newline="") as file:
            logs.append([row for row in csv.reader(file) if row[2] != "tokens_per_second"])
    assert logs[0] == logs[1]
    steps, names = [int(row[0]) for row in logs[0][1:]], {tuple(row[1:3]) for row in logs[0][1:]}
    assert steps == sorted(steps)
    assert names == {
        *(("train", name) for name in ("loss", "learning_rate", "effective_sparsity")),
        *(("valid", name) for name in ("loss", "perplexity")),
    }
    mask = read_json(tmp_path / "whole" / "run.json")["mask"]
    assert {float(row[3]) for row in logs[0] if row[2] == "effective_sparsity"} == {mask["effective_sparsity"]}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_really_killed(number, argv, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    command = [python(), SCRIPT, number, 16, 0, *argv("pruned", folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143}[number], killed.stderr
    assert load_checkpoint(folder / "checkpoint.pt")["step"] == {signal.SIGKILL: 12, signal.SIGTERM: 17}[number]
    assert train.main(argv("pruned", folder, restart=True)) is None
    assert_same_model(folder, uninterrupted("pruned"))


@pytest.mark.parametrize("variant", ["dropout", "pruned"])
def test_killed_while_writing_a_checkpoint(variant, argv, uninterrupted, tmp_path, monkeypatch):
    """The checkpoint before is still whole."""
    folder, write, written = tmp_path / "run", torch.save, []

    def save_half(state, path):
        write(state, path)
        written.append(path)
        if len(written) == 3:
            path.write_bytes(path.read_bytes()[:2000])
            raise Death

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(Death):
        train.main(argv(variant, folder))
    assert load_checkpoint(folder / "checkpoint.pt")["step"] == 12
    assert train.main(argv(variant, folder, restart=True)) is None
    assert_same_model(folder, uninterrupted(variant))


# -- what a restart is not ---------------------------------------------------------------------------------------------


def contents(folder):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


def test_a_finished_run_restarted_does_nothing(argv, uninterrupted, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted("pruned"), folder)
    model, record = (folder / "model.safetensors").stat(), read_json(folder / "run.json")
    assert train.main(argv("pruned", folder, restart=True)) is None
    assert not steps_in(capsys.readouterr().out)
    after = (folder / "model.safetensors").stat()
    assert (after.st_mtime_ns, after.st_ino) == (model.st_mtime_ns, model.st_ino)
    again = read_json(folder / "run.json")
    assert {name: again[name] for name in ("valid_nll", "steps", "mask", "corpus")} == {
        name: record[name] for name in ("valid_nll", "steps", "mask", "corpus")
    }


def test_a_moved_text_and_mask_are_no_other_run(argv, uninterrupted, at_step, words, pattern_file, tmp_path):
    folder, moved, fn = tmp_path / "run", tmp_path / "moved", tmp_path / "moved.safetensors"
    at_step(8, terminate)
    train.main(argv("pruned", folder))
    shutil.copytree(words, moved)
    shutil.copy(pattern_file, fn)
    shutil.move(folder, tmp_path / "elsewhere")
    assert train.main(argv("pruned", tmp_path / "elsewhere", restart=True, data=moved, fn=fn, log_interval=2)) is None
    assert_same_model(tmp_path / "elsewhere", uninterrupted("pruned"))


@pytest.fixture(scope="module")
def interrupted(argv, tmp_path_factory):
    """The folder of a pruned run with a checkpoint at step 9."""
    folder, update = tmp_path_factory.mktemp("interrupted") / "run", Trainer._update

    def update_or_stop(self):
        if self.step == 8:
            terminate()
        return update(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_update", update_or_stop)
        AcceleratorState._reset_state(True)
        train.main(argv("pruned", folder))
        AcceleratorState._reset_state(True)
    return folder


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    "change, name, before",
    [
        ({"lr": 0.02}, "lr", 0.01),
        ({"dropout": 0.1}, "dropout", 0.3),
        ({"seed": 2}, "seed", 1111),
        ({"batch_size": 6}, "batch_size", 4),
        ({"max_step": 41}, "max_step", STEPS),
        ({"n_layer": 3}, None, None),  # refused by the mask before the folder is looked at
        ({"pre_lnorm": True}, "pre_lnorm", False),
        ({"th": 0.5}, "mask", None),
        ({"scope": "row"}, "mask", None),
        ({"random_prune": True}, "mask", None),
        ({"eval_interval": 7}, "eval_interval", 10),
        ({"init_std": 0.03}, "init_std", 0.02),
    ],
    ids=str,
)
def test_other_flags_are_refused(change, name, before, restart, argv, interrupted, refused):
    left = contents(interrupted)
    message = refused(train.main, argv("pruned", interrupted, restart=restart, **change))
    if name is not None:
        assert message.startswith(
            f"{interrupted}: expected a folder without a run, or one of this recipe, found {name} "
        )
        assert before is None or f"found {name} {before!r} there and {next(iter(change.values()))!r} here" in message
        assert "--overwrite replaces that run, --set_aside keeps it" in message
    assert contents(interrupted) == left


def test_another_text_or_mask_is_refused(argv, interrupted, words, tmp_path, refused):
    """Under the same flags: the files changed."""
    left = contents(interrupted)
    other = tmp_path / "other.safetensors"
    random_pattern(seed=8).save(other)
    before = PruneMask.load(interrupted / "mask.safetensors").fingerprint
    message = refused(train.main, argv("pruned", interrupted, fn=other))
    assert f"found mask {before!r} there and " in message
    text = tmp_path / "text"
    write_corpus(text, "words", {split: word_lines(60, seed) for seed, split in enumerate(("train", "valid", "test"))})
    message = refused(train.main, argv("pruned", interrupted, data=text))
    found = f"found text {Corpus.load(words).fingerprint!r} there and {Corpus.load(text).fingerprint!r} here"
    assert found in message
    assert contents(interrupted) == left


def test_other_processes_are_refused(argv, interrupted, tmp_path, refused):
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["recipe"]["processes"] = 2
    (folder / "recipe.json").write_text(json.dumps(recipe))
    assert "found processes 2 there and 1 here" in refused(train.main, argv("pruned", folder))


def test_without_a_flag_the_same_run_continues(argv, uninterrupted, at_step, tmp_path, capsys):
    at_step(8, terminate)
    train.main(argv("pruned", tmp_path / "run"))
    assert train.main(argv("pruned", tmp_path / "run")) is None
    assert "restart from" in capsys.readouterr().out
    assert_same_model(tmp_path / "run", uninterrupted("pruned"))


def test_a_run_of_another_recipe_is_set_aside_or_overwritten_and_nothing_of_it_is_used(
    argv, interrupted, uninterrupted, tmp_path, capsys
):
    for flag in ("set_aside", "overwrite"):
        folder = tmp_path / flag
        shutil.copytree(interrupted, folder)
        assert train.main(argv("dropout", folder, **{flag: True})) is None
        assert "restart from" not in capsys.readouterr().out
        assert_same_model(folder, uninterrupted("dropout"))
        assert not (folder / "mask.safetensors").exists()
        assert (tmp_path / f"{flag}.old1" / "mask.safetensors").exists() == (flag == "set_aside")


def test_a_model_without_its_recipe_is_not_trained_over(argv, uninterrupted, tmp_path, refused):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted("pruned"), folder)
    (folder / "recipe.json").unlink()
    left = contents(folder)
    assert "files of a run and no recipe.json" in refused(train.main, argv("pruned", folder))
    assert contents(folder) == left


@pytest.mark.parametrize("step", [0, 1, 10])
def test_a_mask_never_stands_beside_the_model_of_another(step, argv, uninterrupted, at_step, tmp_path):
    """Whenever the run that overwrites another one is killed."""
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted("pruned"), folder)
    at_step(step, die)
    with pytest.raises(Death):
        train.main(argv("pruned", folder, th=0.3, overwrite=True))
    mask = PruneMask.load(folder / "mask.safetensors")
    assert mask.tau == 0.3
    model = folder / "model.safetensors"
    assert model.exists() == (step == 10)
    assert not model.exists() or load_model(model).info["mask"]["fingerprint"] == mask.fingerprint


def test_steps_may_grow_by_hand_and_the_record_says_so(argv, uninterrupted, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted("dense"), folder)
    assert train.main(argv("dense", folder, max_step=STEPS + 5)) is None
    assert f"restart from {folder / 'checkpoint.pt'} at step {STEPS}" in capsys.readouterr().out
    record = read_json(folder / "run.json")
    assert record["steps"] == STEPS + 5 and record["grown_from"] == [{"max_step": STEPS}]
    # The workflow's runs are each of one recipe.
    assert train.main(argv("dense", folder, max_step=STEPS + 6, set_aside=True)) is None
    assert "grown_from" not in read_json(folder / "run.json")


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_validation_that_is_not_finite_ends_the_run(loss, argv, tmp_path, monkeypatch, refused):
    found = {"nll": loss, "perplexity": loss, "tokens": 3}
    monkeypatch.setattr("trainer.evaluate", lambda *_: found)
    message = refused(train.main, argv("dense", tmp_path / "run"))
    assert message == f"validation diverged: loss {loss} at step 10; try a smaller --lr, now 0.01"
    assert not (tmp_path / "run" / "run.json").exists() and not (tmp_path / "run" / "model.safetensors").exists()


def test_restart_without_a_checkpoint_begins(argv, uninterrupted, tmp_path):
    assert train.main(argv("dense", tmp_path / "run", restart=True)) is None
    assert_same_model(tmp_path / "run", uninterrupted("dense"))

"""The workflow, interrupted and called again, and one whose job fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from smoke_runs import EXPERIMENT, MT, RUNS, SMOKE, command, runs, snakemake

pytestmark = pytest.mark.slow


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, "the workflow ended before it could be interrupted"
        time.sleep(0.02)


def interrupted(
    folder: Path, target: Path, checkpoint: str, experiment: str, first: dict[str, int], then: dict[str, int]
) -> str:
    """Control-C once a training has written a checkpoint, and the log of the same command called again.

    ``first`` and ``then`` change the training of the first call and of the second.
    """
    changed = folder / "smoke.yaml"

    def configure(training: dict[str, int]) -> None:
        config = yaml.safe_load(SMOKE.read_text())
        config[experiment]["training"] |= training
        changed.write_text(yaml.safe_dump(config))

    configure(first)
    work = folder / target.parent / "training"
    # Control-C reaches the whole foreground group, so the workflow gets a group of its own here.
    process = subprocess.Popen(
        command(folder, str(target), config=changed),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # Whoever runs the tests in the background of a shell has Control-C switched off, and so would the workflow.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        text=True,
    )
    wait_for(work / checkpoint, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() != 0
    assert not (folder / target).exists() and (work / checkpoint).exists()

    configure(then)
    found = snakemake(folder, str(target), config=changed)
    assert found.returncode == 0, found.stdout
    assert (folder / target).exists() and not work.exists()
    return (folder / target.parent / "train.log").read_text()


def test_an_interrupted_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    target = RUNS["dense", 0, 1] / "model.safetensors"
    steps = {"max_step": 600, "checkpoint_interval": 20, "eval_interval": 20}
    assert "restart from" in interrupted(tmp_path, target, "checkpoint.pt", "language_modelling", steps, steps)
    assert json.loads((tmp_path / target).with_name("run.json").read_text())["steps"] == 600


def translation_steps(number: int) -> dict[str, int]:
    return {"max_update": number, "total_num_update": number, "save_interval_updates": 20}


def test_an_interrupted_translation_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    target = runs("translation", MT)["dense", 0, 1] / "checkpoint.pt"
    # Long enough that a busy machine cannot end it before it is interrupted.
    steps = translation_steps(400)
    log = interrupted(tmp_path, target, "checkpoint_last.pt", "translation", steps, steps)
    assert "Loaded checkpoint" in log and "Stopping training due to num_updates: 400" in log
    assert not list((tmp_path / target.parent).glob("training.old*"))


def test_a_translation_training_of_another_recipe_is_set_aside_and_never_mixed(tmp_path: Path) -> None:
    target = runs("translation", MT)["dense", 0, 1] / "checkpoint.pt"
    first, then = translation_steps(10_000), translation_steps(60)
    log = interrupted(tmp_path, target, "checkpoint_last.pt", "translation", first, then)
    assert "held a run of another recipe" in log and "Loaded checkpoint" not in log
    assert (tmp_path / target.parent / "training.old1" / "checkpoint_last.pt").exists()


def test_a_failed_job_shows_its_log_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    config = yaml.safe_load(SMOKE.read_text())
    config["language_modelling"]["model"]["cutoffs"] = [100, 1_000_000]
    changed = tmp_path / "smoke.yaml"
    changed.write_text(yaml.safe_dump(config))
    run = tmp_path / EXPERIMENT / "dense" / "tau0" / "seed1"
    found = snakemake(tmp_path, str(run.relative_to(tmp_path) / "model.safetensors"), config=changed)
    assert found.returncode != 0
    assert "cutoffs: expected" in found.stdout
    assert not (run / "model.safetensors").exists()
    assert not (run / "run.json").exists()

"""A training folder is of one recipe: the same resumes, another is refused, set aside or overwritten."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention_pruning import InputError
from reproduction.runs.folder import (
    RECIPE_FILE,
    add_folder_flags,
    claim_folder,
    make_recipe,
    recipe_fingerprint,
    require_recipe,
    way,
)

ROOT = str(Path(__file__).parents[3])
TRACES = ("checkpoint*", "model.safetensors")


def recipe(**changes):
    arguments = {"lr": 0.1, "max_step": 10, "work_dir": "here", "threads": 1} | changes
    return make_recipe("train.py", arguments, free={"work_dir", "threads"}, data="d1", mask={"self": "m1"})


def claim(folder, found=None, **settings):
    return claim_folder(folder, found or recipe(), traces=TRACES, **settings)


def trained(folder, found=None):
    run = claim(folder, found)
    (folder / "checkpoint.pt").write_text("weights")
    return run


def test_a_new_folder_is_this_runs_and_says_so(tmp_path):
    run = claim(tmp_path / "run")
    assert not run.resumes
    written = json.loads((tmp_path / "run" / RECIPE_FILE).read_text())
    assert written["recipe"] == recipe()
    assert (
        written["fingerprint"] == run.fingerprint == recipe_fingerprint(recipe()) == run.facts()["recipe_fingerprint"]
    )


def test_files_that_no_training_leaves_do_not_occupy_a_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert not claim(tmp_path, other="overwrite").resumes
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("other", ["refuse", "set_aside"])
def test_the_same_recipe_resumes_whatever_its_free_arguments(tmp_path, other):
    trained(tmp_path)
    assert claim(tmp_path, recipe(work_dir="there", threads=8), other=other).resumes
    assert (tmp_path / "checkpoint.pt").exists()


@given(
    st.dictionaries(st.text(min_size=1), st.integers() | st.text() | st.none() | st.booleans(), max_size=4), st.data()
)
def test_any_argument_that_is_not_free_makes_another_recipe(arguments, data):
    free = data.draw(st.sets(st.sampled_from(sorted(arguments)))) if arguments else set()
    base = make_recipe("x", arguments, free=free)
    for name, value in arguments.items():
        other = make_recipe("x", arguments | {name: [value]}, free=free)
        assert (recipe_fingerprint(other) == recipe_fingerprint(base)) == (name in free)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (recipe(lr=0.2), "found lr 0.1 there and 0.2 here; --overwrite"),
        (recipe(clip=1.0), "found clip None there and 1.0 here"),
        (recipe() | {"data": "d2"}, "found data 'd1' there and 'd2' here"),
        (recipe() | {"mask": {"self": "m2"}}, "found mask.self 'm1' there and 'm2' here"),
        (recipe() | {"mask": None}, "mask"),
    ],
)
def test_another_recipe_is_refused_in_one_line_and_nothing_changes(tmp_path, other, message):
    trained(tmp_path)
    before = (tmp_path / RECIPE_FILE).read_text()
    with pytest.raises(InputError, match=message) as refusal:
        claim(tmp_path, other)
    assert "\n" not in str(refusal.value)
    assert (tmp_path / RECIPE_FILE).read_text() == before
    assert (tmp_path / "checkpoint.pt").read_text() == "weights"


def test_a_run_of_no_known_recipe_is_another(tmp_path):
    (tmp_path / "model.safetensors").write_text("weights")
    with pytest.raises(InputError, match=f"no {RECIPE_FILE} that says which"):
        claim(tmp_path)
    trained(tmp_path / "b")
    (tmp_path / "b" / RECIPE_FILE).write_text("{")
    with pytest.raises(InputError, match=f"no {RECIPE_FILE} that says which"):
        claim(tmp_path / "b")


def test_a_recipe_of_which_nothing_was_trained_is_replaced(tmp_path):
    claim(tmp_path)
    assert not claim(tmp_path, recipe(lr=0.2)).resumes


def test_a_checkpoint_to_continue_from_has_to_be_of_the_recipe(tmp_path):
    trained(tmp_path)
    require_recipe(tmp_path, recipe(threads=4))
    with pytest.raises(InputError, match="expected a run of this recipe, found lr 0.1 there and 0.2 here"):
        require_recipe(tmp_path, recipe(lr=0.2))
    with pytest.raises(InputError, match="expected a run of this recipe, found files of a run and no recipe.json"):
        require_recipe(tmp_path / "nowhere", recipe())


def test_another_recipe_is_set_aside_whole_and_said(tmp_path, capsys):
    folder = tmp_path / "training"
    for number, rate in enumerate((0.1, 0.2, 0.3)):
        run = claim(folder, recipe(lr=rate), other="set_aside")
        assert not run.resumes
        (folder / "checkpoint.pt").write_text(str(rate))
        if number:
            assert run.set_aside == tmp_path / f"training.old{number}"
            assert f"now in {run.set_aside}; starting anew" in capsys.readouterr().out
    assert (tmp_path / "training.old1" / "checkpoint.pt").read_text() == "0.1"
    assert (tmp_path / "training.old2" / "checkpoint.pt").read_text() == "0.2"


def test_overwriting_takes_a_runs_files_away_the_same_recipe_or_not(tmp_path):
    for found in (recipe(), recipe(lr=0.2)):
        trained(tmp_path, found) if found == recipe() else None
        (tmp_path / "checkpoint-10").mkdir(exist_ok=True)
        (tmp_path / "checkpoint-10" / "state").write_text("x")
        (tmp_path / "notes.txt").write_text("mine")
        assert not claim(tmp_path, found, other="overwrite").resumes
        assert {path.name for path in tmp_path.iterdir()} == {RECIPE_FILE, "notes.txt"}


def test_an_argument_that_may_grow_grows_by_hand_and_is_noted(tmp_path):
    trained(tmp_path)
    run = claim(tmp_path, recipe(max_step=20), may_grow={"max_step"})
    assert run.resumes
    assert run.facts()["grown_from"] == [{"max_step": 10}]
    assert claim(tmp_path, recipe(max_step=20)).grown == [{"max_step": 10}]
    with pytest.raises(InputError, match="max_step 20 there and 15 here"):
        claim(tmp_path, recipe(max_step=15), may_grow={"max_step"})
    with pytest.raises(InputError, match="lr 0.1 there and 0.3 here"):
        claim(tmp_path, recipe(max_step=30, lr=0.3), may_grow={"max_step"})


def test_a_run_that_would_grow_is_another_one_where_runs_are_set_aside(tmp_path):
    trained(tmp_path / "run")
    assert claim(tmp_path / "run", recipe(max_step=20), may_grow={"max_step"}, other="set_aside").set_aside is not None


def test_a_run_that_grew_is_another_one_where_runs_are_set_aside(tmp_path, capsys):
    """Its last steps are of this recipe, its first of another."""
    trained(tmp_path / "run")
    claim(tmp_path / "run", recipe(max_step=20), may_grow={"max_step"})
    assert claim(tmp_path / "run", recipe(max_step=20), other="set_aside").set_aside is not None
    assert "a run that grew from {'max_step': 10}" in capsys.readouterr().out


def test_the_flags_say_what_becomes_of_another_run():
    parser = argparse.ArgumentParser()
    add_folder_flags(parser.add_argument_group("files"))
    words = {(): "refuse", ("--overwrite",): "overwrite", ("--set_aside",): "set_aside", ("--set-aside",): "set_aside"}
    assert {given: way(parser.parse_args(given)) for given in words} == words
    with pytest.raises(SystemExit):
        parser.parse_args(["--overwrite", "--set_aside"])


# -- one process at a time ---------------------------------------------------------------------------------------------

_HOLDS = """
import multiprocessing, sys, time
from reproduction.runs.folder import hold_folder
hold_folder(sys.argv[1])
if sys.argv[2] == "worker":
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder():
    """Starts a process that holds a folder; its process group goes at the end."""
    started = []

    def start(folder, worker=""):
        command = [sys.executable, "-c", _HOLDS, folder, worker]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | {"PYTHONPATH": ROOT}
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_folder_that_another_process_trains_in_is_refused_as_long_as_it_does(tmp_path, holder):
    process = holder(tmp_path)
    for other in ("refuse", "set_aside", "overwrite"):
        with pytest.raises(InputError, match=f"{tmp_path}: expected a folder that no other process trains in, found"):
            claim(tmp_path, other=other)
    assert list(tmp_path.iterdir()) == []
    process.kill()
    process.wait()
    trained(tmp_path)
    assert claim(tmp_path).resumes  # in the process that holds it


def test_a_folder_that_was_refused_is_free_for_others(tmp_path, holder):
    trained(tmp_path)
    with pytest.raises(InputError, match="expected a folder without a run, or one of this recipe"):
        claim(tmp_path, recipe(lr=0.9))
    holder(tmp_path)  # fails to start if this process held it


def test_a_worker_that_outlives_its_training_holds_nothing(tmp_path, holder):
    process = holder(tmp_path, "worker")
    process.kill()
    process.wait()
    claim(tmp_path)


def test_what_killed_runs_were_writing_goes_when_the_folder_is_claimed(tmp_path):
    trained(tmp_path)
    for name in ("checkpoint_best.pt.tmp", ".tmpVKsAIY"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".run.json.0011223344556677.tmp").mkdir()
    assert claim(tmp_path).resumes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", RECIPE_FILE]

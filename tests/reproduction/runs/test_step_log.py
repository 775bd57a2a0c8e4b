"""Laws of the log of a training: an interrupted and continued one has the rows of one that was not."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import InputError
from reproduction.runs import step_log
from reproduction.runs.step_log import StepLog, add_log_flags, check_log_flags


def rows(folder: Path) -> list[list[str]]:
    with (folder / "steps.csv").open(newline="") as file:
        return list(csv.reader(file))


def write(folder: Path, done: int, last: int) -> None:
    with StepLog(folder, done, ["csv"]) as log:
        for step in range(done + 1, last + 1):
            log.add(step, "train", {"loss": 1 / step, "a, b": step})
        log.add(last, "valid", {"loss": 0.1})


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 60))
@settings(deadline=None, max_examples=40)
def test_rows_are_those_of_an_uninterrupted_run(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: int, beyond: int, cut: int
) -> None:
    """Killed so many steps after a checkpoint, the last row perhaps half written."""
    whole, parts = (tmp_path_factory.mktemp(name) for name in ("whole", "parts"))
    write(whole, 0, 12)
    with StepLog(parts, 0, ["csv"]) as log:
        for step in range(1, checkpoint + beyond + 1):
            log.add(step, "train", {"loss": 1 / step, "a, b": step})
    content = (parts / "steps.csv").read_bytes()
    later = len(b"".join(line for line in content.splitlines(True)[1 + 2 * checkpoint :]))
    (parts / "steps.csv").write_bytes(content[: len(content) - min(cut, later)])
    write(parts, checkpoint, 12)
    assert rows(parts) == rows(whole)
    assert rows(whole)[0] == ["step", "split", "name", "value"] and rows(whole)[-1] == ["12", "valid", "loss", "0.1"]
    assert [float(row[3]) for row in rows(whole) if row[1:3] == ["train", "loss"]] == [1 / n for n in range(1, 13)]


def test_a_table_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="expected a table of step, split, name, value, found a, b"):
        StepLog(tmp_path, 0, ["csv"])
    assert (tmp_path / "steps.csv").read_text() == "a,b\n1,2\n"


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_log_flags(parser)
    return parser.parse_args(words)


def test_tensorboard_has_the_same_numbers(tmp_path: Path, board) -> None:
    with StepLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.add(step, "train", {"loss": 2 / step, "sparsity": 0.5})
    with StepLog(tmp_path, 2) as log:  # interrupted after step 2: it comes again, with what it gives now
        log.add(3, "train", {"loss": 0.25, "sparsity": 0.5})
    assert board(tmp_path) == {
        "train/loss": {1: 2.0, 2: 1.0, 3: 0.25},
        "train/sparsity": {1: 0.5, 2: 0.5, 3: 0.5},
    }
    values = {(f"train/{name}", int(step)): float(value) for step, _, name, value in rows(tmp_path)[1:]}
    assert values == {(name, step): value for name, steps in board(tmp_path).items() for step, value in steps.items()}


@pytest.mark.parametrize("installed", [True, False])
def test_tensorboard_that_is_not_there_is_refused_at_once(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_log.importlib.util, "find_spec", lambda name: object() if installed else None)
    check_log_flags(parsed())
    check_log_flags(parsed("--logging-dir", "x", "--report_to", "csv"))
    if installed:
        check_log_flags(parsed("--logging_dir", "x"))
    else:
        with pytest.raises(InputError, match="expected the package tensorboard, found none; --report_to csv"):
            check_log_flags(parsed("--logging_dir", "x"))
    with pytest.raises(InputError, match="--report_to: expected --logging_dir"):
        check_log_flags(parsed("--report_to", "csv"))

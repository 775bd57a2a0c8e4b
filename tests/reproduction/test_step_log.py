"""Laws of the log of a training: an interrupted and continued one has the rows of one that was not."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import InputError
from reproduction import step_log
from reproduction.step_log import StepLog, add_log_flags, check_log_flags


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


def test_tensorboard_has_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that only remembers: TensorBoard need not be installed here."""
    calls: list = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            calls.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def close(self) -> None:
            calls.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with StepLog(tmp_path, 3) as log:
        log.add(4, "train", {"loss": 2, "sparsity": 0.5})
    assert calls == [(str(tmp_path), 4), ("train/loss", 2.0, 4), ("train/sparsity", 0.5, 4), "closed"]
    assert rows(tmp_path)[1:] == [["4", "train", "loss", "2.0"], ["4", "train", "sparsity", "0.5"]]


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

"""Numbers of a training step by step, for TensorBoard and as a table, that go on where an interrupted run does."""

from __future__ import annotations

import argparse
import csv
import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from attention_pruning import InputError
from reproduction.runs.files import atomic_path, make_folder

FILE = "steps.csv"
COLUMNS = ("step", "split", "name", "value")
WRITERS = ("csv", "tensorboard")


def add_log_flags(group: argparse._ActionsContainer) -> None:
    """``--logging_dir`` and ``--report_to``."""
    group.add_argument(
        "--logging_dir",
        "--logging-dir",
        type=Path,
        help=f"folder for numbers of every --log_interval, in {FILE} and for TensorBoard; unless it is given, they are "
        "only printed. What it has of another run is replaced",
    )
    group.add_argument(
        "--report_to",
        "--report-to",
        nargs="+",
        choices=WRITERS,
        default=list(WRITERS),
        help="what to write in --logging_dir; TensorBoard's files need the package tensorboard",
    )


def check_log_flags(args: argparse.Namespace) -> None:
    """Refuse what :class:`StepLog` could not do, before any work.

    Raises
    ------
    InputError
        If TensorBoard is asked for and not installed, or --report_to is given without a folder.
    """
    if args.logging_dir is None:
        if args.report_to != list(WRITERS):
            raise InputError("--report_to: expected --logging_dir beside it, found none")
    elif "tensorboard" in args.report_to and importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "--logging_dir: expected the package tensorboard, found none; --report_to csv writes the table alone"
        )


class StepLog:
    """Rows of a training, written as they come; those of steps that a continued run repeats are removed.

    Parameters
    ----------
    folder : path
        Made where there is none.
    done : int
        Steps done so far: what the folder says of later ones goes. With 0 all of it does.
    writers : collection of {"csv", "tensorboard"}

    Attributes
    ----------
    kept : list of [str, str, str, str]
        The rows of the table that stayed.

    Raises
    ------
    InputError
        If the folder cannot be written to, or its table is something else.
    """

    def __init__(self, folder: str | Path, done: int = 0, writers: Collection[str] = WRITERS) -> None:
        folder = make_folder(folder)
        self._board: Any = None
        self._table: Any = None
        self.kept: list[list[str]] = []
        if "csv" in writers:
            path = folder / FILE
            self.kept = [row for row in _read(path) if int(row[0]) <= done] if path.exists() else []
            with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *self.kept])
            self._table = path.open("a", newline="")
        if "tensorboard" in writers:
            from torch.utils.tensorboard import SummaryWriter  # optional: only who asks for it needs the package

            self._board = SummaryWriter(str(folder), purge_step=done + 1)

    def add(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write numbers of a step; TensorBoard shows them as ``split/name``."""
        if self._table is not None:
            csv.writer(self._table).writerows((step, split, name, float(value)) for name, value in values.items())
            self._table.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", float(value), step)

    def close(self) -> None:
        """Write what is still to be written."""
        for writer in (self._table, self._board):
            if writer is not None:
                writer.close()

    def __enter__(self) -> StepLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _read(path: Path) -> list[list[str]]:
    """Whole rows of a table: an interruption may have cut the last one short."""
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    header, *rows = list(csv.reader(whole.splitlines())) or [list(COLUMNS)]
    if header != list(COLUMNS):
        raise InputError(f"{path}: expected a table of {', '.join(COLUMNS)}, found {', '.join(header)}")
    return rows

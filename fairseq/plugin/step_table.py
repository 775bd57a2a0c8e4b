"""What fairseq logs for TensorBoard, as a table too: ``steps.csv`` with a value in each row."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from numbers import Number
from pathlib import Path
from typing import Any

import torch
from fairseq.logging.progress_bar import BaseProgressBar

from attention_pruning import InputError

FILE = "steps.csv"
COLUMNS = ("step", "split", "name", "value")


class StepTable:
    """Rows of a training, added as they come; those of updates that a continued run does again are taken away.

    Parameters
    ----------
    folder : path
        Made where there is none.
    done : int
        Updates done so far: what the file says of later ones goes.

    Raises
    ------
    InputError
        If a file of that name is something else.
    """

    def __init__(self, folder: str | Path, done: int) -> None:
        self.path = Path(folder) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in self._read() if int(row[0]) <= done] if done and self.path.exists() else []
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *kept])
        os.replace(temporary, self.path)

    def _read(self) -> list[list[str]]:
        with self.path.open(newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        if header != list(COLUMNS):
            raise InputError(f"{self.path}: expected a table of {', '.join(COLUMNS)}, found {', '.join(header)}")
        # an interruption may have cut the last row short
        return [row for row in rows if len(row) == len(COLUMNS) and row[0].isdigit()]

    def add(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Write what is a number; anything else is left out."""
        numbers = {
            name: value.item() if torch.is_tensor(value) and value.numel() == 1 else value
            for name, value in values.items()
            if name != "num_updates"
        }
        rows = [(step, split, name, value) for name, value in numbers.items() if isinstance(value, Number)]
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows(rows)


class TableBar(BaseProgressBar):
    """A progress bar of fairseq whose values go to a table, too, with the sparsity of the attention beside them."""

    def __init__(self, bar: BaseProgressBar, table: StepTable, sparsity: float) -> None:
        self.bar, self.table, self.sparsity = bar, table, sparsity

    def __iter__(self) -> Iterator[Any]:
        return iter(self.bar)

    def log(self, stats: dict[str, Any], tag: str | None = None, step: int | None = None) -> None:
        """Between two epochs."""
        self.bar.log(self._noted(stats, tag, step), tag=tag, step=step)

    def print(self, stats: dict[str, Any], tag: str | None = None, step: int | None = None) -> None:
        """At the end of an epoch or a validation."""
        self.bar.print(self._noted(stats, tag, step), tag=tag, step=step)

    def update_config(self, config: dict[str, Any]) -> None:
        """As the bar's."""
        self.bar.update_config(config)

    def _noted(self, stats: dict[str, Any], tag: str | None, step: int | None) -> dict[str, Any]:
        if tag == "train":
            stats = stats | {"effective_sparsity": self.sparsity}
        self.table.add(int(stats["num_updates"] if step is None else step), tag or "", stats)
        return stats

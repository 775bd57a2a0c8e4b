"""What fairseq logs for TensorBoard, as a table too: ``steps.csv`` with a value in each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Number
from typing import Any

import torch
from fairseq.logging.progress_bar import BaseProgressBar

from reproduction.runs.step_log import StepLog

#: fairseq's tag of the averages of an epoch.
EPOCH = "train"


@dataclass
class StepTable:
    """The table of a training, and the sparsity of its attention.

    The averages of an epoch get into it by :meth:`add_epoch`, everything else as its bars show it.
    """

    log: StepLog
    sparsity: float

    def bar(self, bar: BaseProgressBar) -> BaseProgressBar:
        """The same bar, whose values go to the table, too."""
        return _TableBar(bar, self)

    def add_epoch(self, step: int, stats: dict[str, Any]) -> None:
        """Add the averages of the epoch that ends with this step."""
        self.log.add(step, EPOCH, numbers(self.with_sparsity(stats)))

    def with_sparsity(self, stats: dict[str, Any]) -> dict[str, Any]:
        """The averages of an epoch, and the sparsity beside them."""
        return stats | {"effective_sparsity": self.sparsity}


class _TableBar(BaseProgressBar):
    def __init__(self, bar: BaseProgressBar, table: StepTable) -> None:
        self.bar, self.table = bar, table

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
        if tag == EPOCH:
            return self.table.with_sparsity(stats)
        self.table.log.add(int(stats["num_updates"] if step is None else step), tag or "", numbers(stats))
        return stats


def numbers(stats: Mapping[str, Any]) -> dict[str, float]:
    """What is a number; anything else is left out."""
    values = {
        name: value.item() if torch.is_tensor(value) and value.numel() == 1 else value for name, value in stats.items()
    }
    return {name: value for name, value in values.items() if isinstance(value, Number) and name != "num_updates"}

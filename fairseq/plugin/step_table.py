"""What fairseq logs for TensorBoard, as a table too: ``steps.csv`` with a value in each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Number
from typing import Any

import torch
from fairseq.logging.progress_bar import BaseProgressBar

from reproduction.runs.step_log import StepLog


class TableBar(BaseProgressBar):
    """A progress bar of fairseq whose values go to a table, too, with the sparsity of the attention beside them."""

    def __init__(self, bar: BaseProgressBar, table: StepLog, sparsity: float) -> None:
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
        self.table.add(int(stats["num_updates"] if step is None else step), tag or "", numbers(stats))
        return stats


def numbers(stats: Mapping[str, Any]) -> dict[str, float]:
    """What is a number; anything else is left out."""
    values = {
        name: value.item() if torch.is_tensor(value) and value.numel() == 1 else value for name, value in stats.items()
    }
    return {name: value for name, value in values.items() if isinstance(value, Number) and name != "num_updates"}

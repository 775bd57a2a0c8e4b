"""What a Trainer logs, as a table too: ``steps.csv`` in ``--logging_dir``, a value in each row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reproduction.runs.step_log import FILE, StepLog

#: Beginnings of the names that a Trainer gives values, as TensorBoard groups them; all others are of training.
_SPLITS = ("eval", "test", "predict")


class StepCallback(TrainerCallback):
    """Writes the values of a training, and of the evaluations during and after it.

    A run that continues from a checkpoint takes away what an earlier part wrote of later steps. A run that trains
    nothing leaves the table as it is. Where a step has several values of a name, as when --do_eval repeats the
    evaluation after the last one, or a finished run is repeated, the first is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.trained = Path(folder), False
        self._log: StepLog | None = None
        self._step, self._told = 0, set[tuple[str, str]]()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the table in the one process that writes."""
        # A run that was killed after its last step may have rows of that step left to write. A table that was removed
        # since is not begun again with them.
        table = state.global_step < state.max_steps or (self.folder / FILE).exists()
        if state.is_world_process_zero and table:
            self._log, self.trained = StepLog(self.folder, state.global_step, ["csv"]), True
            self._step = state.global_step
            self._told = {(split, name) for step, split, name, _ in self._log.kept if int(step) == self._step}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the numbers of a step."""
        if not self.trained or not logs:
            return
        if state.global_step != self._step:
            self._step, self._told = state.global_step, set()
        rows: dict[str, dict[str, float]] = {}
        for name, value in logs.items():
            first, _, rest = name.partition("_")
            place = (first, rest) if first in _SPLITS else ("train", name)
            if isinstance(value, int | float) and place not in self._told:
                rows.setdefault(place[0], {})[place[1]] = value
                self._told.add(place)
        log = StepLog(self.folder, state.global_step, ["csv"]) if self._log is None else self._log
        for split, values in rows.items():
            log.add(state.global_step, split, values)
        if self._log is None:
            log.close()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the table; what is logged later opens it again."""
        if self._log is not None:
            self._log.close()
            self._log = None

"""transformers' Trainer with clocks around updates and around the model in evaluation, the loss as these models compute
it, and no update more than was asked for."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from loss_state import LossState
from reproduction.runs.files import write_json
from step_callback import StepCallback


class _UpdateClock(TrainerCallback):
    """Counts updates and their seconds; evaluations and checkpoints between them take none."""

    def __init__(self) -> None:
        self.updates, self.seconds, self.started = 0, 0.0, 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.updates += 1
        self.seconds += time.perf_counter() - self.started


class TimedTrainer(Trainer):
    """A Trainer that knows how long the model took for each batch of its last evaluation.

    Beside a training loss it logs ``samples_per_second`` since the last one, and the ``sparsity`` of attention.

    Parameters
    ----------
    sparsity : float
        The effective one of the model's mask; 0 of a dense model.
    logging_dir : str, optional
        Folder for ``steps.csv``, and for the files of TensorBoard if ``--report_to`` asks for them.

    Attributes
    ----------
    batch_seconds : list of float
        The model alone, this process's: no data loading, no metrics. The device has finished when the clock stops.
    """

    def __init__(self, *args: Any, sparsity: float = 0.0, logging_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sparsity, self._clock = sparsity, _UpdateClock()
        self.add_callback(self._clock)
        self.add_callback(LossState.of(self))
        if logging_dir is not None:
            self.add_callback(StepCallback(logging_dir))
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, TensorBoardCallback):
                    callback.logging_dir = logging_dir
        # transformers believes it of every model with **kwargs. These take the mean over their batch whatever they are
        # told, and would then be summed, not averaged, over accumulated batches and over processes.
        self.model_accepts_loss_kwargs = False
        self.batch_seconds: list[float] = []

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers asks after an update whether it was the last one: resumed in an epoch, it would do one too many.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As Trainer's, with speed and sparsity beside a training loss."""
        if "loss" in logs and self._clock.seconds:
            # one process's batches of one update, times processes
            samples = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            logs["samples_per_second"] = round(samples * self._clock.updates / self._clock.seconds, 3)
            logs["sparsity"] = self.sparsity
            self._clock.updates, self._clock.seconds = 0, 0.0
        if "train_loss" in logs:  # some versions of transformers divide by the steps since the last start
            logs["train_loss"] = self._total_loss_scalar / max(1, self.state.global_step)
        super().log(logs, *args, **kwargs)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """As Trainer's, each file whole: it reads ``all_results.json`` back, and a killed run had left half of it."""
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        write_json(folder / f"{split}_results.json", metrics, indent=4)
        if combined:
            path = folder / "all_results.json"
            before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            write_json(path, before | metrics, indent=4)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, with the clock at zero and the accelerator's peak memory forgotten."""
        self.batch_seconds = []
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, timed."""
        inputs = self._prepare_inputs(inputs)
        self._finish_device()
        started = time.perf_counter()
        result = super().prediction_step(model, inputs, *args, **kwargs)
        self._finish_device()
        self.batch_seconds.append(time.perf_counter() - started)
        return result

    def _finish_device(self) -> None:
        if self.args.device.type == "cuda":
            torch.cuda.synchronize(self.args.device)

    def times(self) -> dict[str, float]:
        """``eval_seconds``, all batches of the last evaluation, and ``batch_seconds``, their median."""
        return {"eval_seconds": sum(self.batch_seconds), "batch_seconds": statistics.median(self.batch_seconds)}

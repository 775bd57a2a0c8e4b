"""transformers' Trainer with a clock around the model in evaluation, and the loss as these models compute it."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer


class TimedTrainer(Trainer):
    """A Trainer that knows how long the model took for each batch of its last evaluation.

    Attributes
    ----------
    batch_seconds : list of float
        The model alone, this process's: no data loading, no metrics. The device has finished when the clock stops.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # transformers believes it of every model with **kwargs. These take the mean over their batch whatever they are
        # told, and would then be summed, not averaged, over accumulated batches and over processes.
        self.model_accepts_loss_kwargs = False
        self.batch_seconds: list[float] = []

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

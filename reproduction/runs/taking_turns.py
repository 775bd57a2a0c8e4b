"""Time one model under several settings of its attention side by side: dense, under masks, and without attention.

All settings are timed in interleaved rounds of one process, so that the state of the machine affects all alike. Peak
memory is that of a process of its own for each. What the model takes without attention is the ceiling of any saving
(Amdahl's law).
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attention_pruning import PruneMask
from reproduction.runs.record import peak_memory_bytes

#: The setting in which attention is left out.
REMOVED = "attention_removed"
STEPS = ("inference", "training")


@dataclass(frozen=True)
class Setting:
    """One way to compute attention: dense, under a mask, or removed."""

    name: str
    mask: PruneMask | None = None

    def describe(self) -> dict[str, Any]:
        """What a table says about it."""
        if self.mask is None:
            return {"name": self.name, "tau": 0.0, "block_size": None, "block_sparsity": 0.0, "mask": None}
        mask = self.mask
        facts = {"name": self.name, "tau": mask.tau, "block_size": mask.block_size, "mask": mask.fingerprint}
        return facts | {"block_sparsity": mask.block_sparsity()}


class Bench(ABC):
    """A model, a batch, and how long a step takes under a setting; :meth:`use` and :meth:`work` are a subclass's.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Processor time leaves out what other programs take, but adds up threads and does not see a GPU.
        single = device.type == "cpu" and torch.get_num_threads() == 1
        self.clock: Callable[[], float] = time.process_time if single else time.perf_counter

    @abstractmethod
    def use(self, setting: Setting) -> None:
        """Change the model's attention, and let it prepare what it needs once."""

    @abstractmethod
    def work(self, step: str) -> None:
        """One batch forward ("inference"), or a whole step of training."""

    def run(self, step: str) -> None:
        """:meth:`work`; the device has finished when this returns."""
        self.work(step)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, step: str) -> float:
        """What :meth:`run` takes."""
        started = self.clock()
        self.run(step)
        return self.clock() - started


def measure_seconds(bench: Bench, settings: Sequence[Setting], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Step -> setting -> seconds of every round; the order of the settings turns from round to round."""
    found = {step: {setting.name: [] for setting in settings} for step in STEPS}
    # Whatever is loaded or allocated on first use; on a GPU pruned attention is compiled too.
    for setting in settings if bench.device.type == "cuda" else settings[:1]:
        bench.use(setting)
        for step in STEPS:
            bench.run(step)
    for index in range(rounds):
        first = index % len(settings)
        for setting in [*settings[first:], *settings[:first]]:
            bench.use(setting)
            for step in STEPS:
                found[step][setting.name].append(bench.seconds(step))
    return found


def measure_memory(bench: Bench, setting: Setting) -> dict[str, int]:
    """Step -> peak bytes of this process (of its GPU, if it uses one), from its start."""
    bench.use(setting)
    peak = {}
    for step in STEPS:  # training needs more, so that the peak of inference is known before it
        bench.run(step)
        peak[step] = peak_memory_bytes()["cuda" if bench.device.type == "cuda" else "host"]
    return peak


def memory_in_a_process(script: str | Path, argv: Sequence[str], setting: Setting) -> dict[str, int]:
    """:func:`measure_memory` where nothing else has been measured: by ``SCRIPT ... --memory_of NAME``, which prints it.

    Raises
    ------
    RuntimeError
        If that process fails; it has said why.
    """
    command = [sys.executable, str(script), *argv, "--memory_of", setting.name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {setting.name} failed with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measured_settings(
    settings: Sequence[Setting], seconds: dict[str, dict[str, list[float]]], memory: dict[str, dict[str, int]]
) -> list[dict[str, Any]]:
    """What was measured of each setting, for the file."""
    return [
        setting.describe()
        | {
            step: {
                "seconds": statistics.median(seconds[step][setting.name]),
                "seconds_by_round": seconds[step][setting.name],
                "peak_memory_bytes": memory[setting.name][step],
            }
            for step in STEPS
        }
        for setting in settings
    ]


def device_name(device: torch.device) -> str:
    """The GPU, or the processor, by the name that its maker gave it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

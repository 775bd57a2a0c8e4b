"""Timing of several models side by side: interleaved rounds in one process, medians, ratios round by round."""

from __future__ import annotations

import csv
import datetime
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

#: One timed unit of work.
Step = Callable[[], None]


class BenchmarkError(Exception):
    """A comparison that cannot be made; the message is one line."""


class Walk:
    """Endless walk over segments, with the memory that a model carries from step to step."""

    def __init__(self, segments: Sequence[Any], memory: Any) -> None:
        self.segments, self.position, self.memory = segments, -1, memory

    def next(self) -> Any:
        """The segment that follows; after the last comes the first."""
        self.position += 1
        return self.segments[self.position % len(self.segments)]


@dataclass(frozen=True)
class Timing:
    """Tokens per second of one model in one measurement, round by round."""

    measurement: str
    model: str
    rates: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    def times(self, base: Timing) -> tuple[float, float, float]:
        """Median, smallest and largest ratio to another model's speed in the same round.

        Ratios are steadier than times: what slows the machine for longer than a round slows both.
        """
        ratios = [rate / other for rate, other in zip(self.rates, base.rates, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def measure(
    measurement: str,
    steps: dict[str, Step],
    *,
    tokens: int,
    warm_up: int,
    rounds: int,
    repeat: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time steps interleaved, every round in another order.

    Parameters
    ----------
    steps : dict
        Model name -> step.
    tokens : int
        Tokens that a step reads.
    warm_up : int
        Untimed steps of each model first.
    rounds, repeat : int
        Rounds, and steps of each model in a round.
    clock : callable
        ``time.process_time`` counts the seconds of the processor that this process took, whatever others did.
    """
    for step in steps.values():
        for _ in range(warm_up):
            step()
    rates: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            # No model pays for the garbage of another.
            gc.collect()
            started = clock()
            for _ in range(repeat):
                steps[name]()
            rates[name].append(repeat * tokens / (clock() - started))
    return [Timing(measurement, name, values) for name, values in rates.items()]


def processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def write_csv(folder: Path, name: str, timings: list[Timing], bases: Sequence[str], threads: int) -> Path:
    """Write ``NAME-DATE.csv``, whole or not at all, and return its path; a file of the same day is replaced.

    Parameters
    ----------
    bases : sequence of str
        Models that the others are compared with, columns ``times_BASE low_BASE high_BASE`` each (median, lowest and
        highest round), empty where it was not timed.
    """
    today = datetime.date.today().isoformat()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{today}.csv"
    temporary = path.with_suffix(".tmp")
    ratio_columns = [f"{part}_{base}" for base in bases for part in ("times", "low", "high")]
    header = ["date", "measurement", "model", "tokens_per_second", *ratio_columns]
    machine = f"{processor()}, {os.cpu_count()} cores"
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "rounds", "threads", "torch", "machine"])
        for timing in timings:
            same = {other.model: other for other in timings if other.measurement == timing.measurement}
            ratios = []
            for base in bases:
                ratios += [f"{ratio:.3f}" for ratio in timing.times(same[base])] if base in same else [""] * 3
            writer.writerow(
                [today, timing.measurement, timing.model, f"{timing.median:.1f}", *ratios]
                + [len(timing.rates), threads, torch.__version__, machine]
            )
    os.replace(temporary, path)
    return path

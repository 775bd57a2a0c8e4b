"""Run the workflow, and say now and then how far its trainings are.

python -m reproduction.runs.watch --runs runs/quick -- snakemake figure --cores 2
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: The logs of trainings, by the names that the rules give them.
LOGS = ("train.log", "finetune.log")
#: Of a line that reports a step: Transformer-XL's, fairseq's, the Trainer's.
_STEP = re.compile(r"\| step +(?P<step>\d+)/(?P<total>\d+) .*?loss +(?P<loss>[\d.]+)")
_UPDATE = re.compile(r"\bloss=(?P<loss>[\d.]+).*num_updates=(?P<step>\d+)")
_EPOCH = re.compile(r"'loss': '?(?P<loss>[\d.]+).*'epoch': '?(?P<epoch>[\d.]+)")
_UPDATES = re.compile(r"'max_update': (\d+)")
#: How much of a log's end is read for its last report.
_END = 16_384


@dataclass(frozen=True)
class Report:
    """The last report of a training: its loss, and how far it is, in steps or epochs."""

    loss: float
    step: int | None = None
    total: int | None = None
    epoch: float | None = None

    def __str__(self) -> str:
        if self.step is None:
            return f"epoch {self.epoch:.2f}, loss {self.loss:.3g}"
        of = f" of {self.total:,}" if self.total else ""
        return f"step {self.step:,}{of}, loss {self.loss:.3g}"


def last_report(log: Path) -> Report | None:
    """What a training's log reports last, or None if nothing yet."""
    with log.open("rb") as file:
        beginning = file.read(_END).decode(errors="replace")
        file.seek(max(0, log.stat().st_size - _END))
        end = file.read().decode(errors="replace")
    for line in reversed(re.split(r"[\r\n]+", end)):
        if found := _STEP.search(line):
            return Report(float(found["loss"]), int(found["step"]), int(found["total"]))
        if found := _UPDATE.search(line):
            total = _UPDATES.search(beginning)
            return Report(float(found["loss"]), int(found["step"]), int(total[1]) if total else None)
        if found := _EPOCH.search(line):
            return Report(float(found["loss"]), epoch=float(found["epoch"]))
    return None


@dataclass
class Watch:
    """The trainings below a folder that are running, and what was said of them.

    Parameters
    ----------
    runs : path
    since : float
        Logs that were last written to before this time are of earlier calls.
    """

    runs: Path
    since: float
    _first: dict[Path, tuple[float, Report]] = field(default_factory=dict)
    _said: dict[Path, Report] = field(default_factory=dict)

    def news(self, now: float) -> list[str]:
        """A line for each training that is further than it was."""
        lines = []
        for log in sorted(path for name in LOGS for path in self.runs.rglob(name)):
            changed = log.stat().st_mtime
            if changed < self.since or _ended(log):
                continue
            report = last_report(log)
            if report is None or report == self._said.get(log):
                continue
            self._said[log] = report
            began, first = self._first.setdefault(log, (now, report))
            where = log.parent.relative_to(self.runs).as_posix()
            lines.append(f"  {where}: {report}{_left(first, report, now - began)} ({log})")
        return lines


def _ended(log: Path) -> bool:
    """Whether the record beside a log is newer than it: the training is done, or was before this call."""
    record = log.with_name("run.json")
    return record.exists() and record.stat().st_mtime >= log.stat().st_mtime


def _left(first: Report, now: Report, seconds: float) -> str:
    """How long it may take yet, from two reports; nothing where that cannot be told."""
    if not now.total or first.step is None or now.step <= first.step:
        return ""
    left = seconds / (now.step - first.step) * (now.total - now.step)
    return f", about {left / 60:.0f} min left" if left >= 60 else f", about {left:.0f} s left"


def run(command: Sequence[str], runs: Path, interval: float) -> int:
    """Run a command, print news of the trainings while it runs, and return its exit status.

    Control-C reaches the command by itself, as it is of the same process group: it decides what that means.
    """
    watch = Watch(runs, time.time())
    child = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    while True:
        try:
            status = child.wait(interval)
            return status if status >= 0 else 128 - status
        except subprocess.TimeoutExpired:
            for line in watch.news(time.time()):
                print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.runs.watch",
        description="Run a command of the workflow, and show the progress of its trainings.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder below which the logs of trainings are written")
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between two looks at the logs")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, after --")
    args = parser.parse_args(argv)
    return run(args.command, args.runs, args.interval)


if __name__ == "__main__":
    sys.exit(main())

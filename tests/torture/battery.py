"""Kill runs at random moments and start them again: do they end as one that nobody disturbed?

    python tests/torture/battery.py --out results/reliability.csv

Of every try the same is asked: the same command again ends well, with the results of an undisturbed run to the last
digit and its files, no more and no fewer; and no file was half written under its own name at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from cases import MAKERS, PATHS, Case, environment  # noqa: E402
from folder_events import FolderEvents  # noqa: E402
from outcomes import differences, half_written, outcome  # noqa: E402
from table import add_row, has_row  # noqa: E402

#: What a try may be left with: killed once, by a full disk, or beside another run.
REFUSED = 2
SECONDS = 300.0


class Server:
    """Starts a script in processes that have imported its packages already, see fork_server.py."""

    def __init__(self, case: Case) -> None:
        command = [sys.executable, Path(__file__).with_name("fork_server.py"), case.script, *case.modules]
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the server has ended")
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@dataclass
class Job:
    """One run of the script."""

    server: Server
    pid: int
    log: Path

    def ended(self) -> bool:
        """Whether it is over, and nobody has asked how."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    def kill(self) -> None:
        """SIGKILL, to it and all its children."""
        os.killpg(self.pid, signal.SIGKILL)

    def status(self) -> int:
        """How it has ended."""
        return self.server.ask(wait=self.pid)["status"]

    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-2000:]


@dataclass
class Battery:
    """Tries of one case in a folder of their own.

    Attributes
    ----------
    seconds, events : float, int
        What an undisturbed run takes, and what the kernel tells of its folder meanwhile.
    """

    case: Case
    room: Path
    server: Server
    draw: random.Random
    expected: dict[str, Any] = None
    seconds: float = 0.0
    events: int = 0
    tries: int = 0

    def start(self, folder: Path, limit: int | None = None) -> Job:
        self.tries += 1
        log = self.room / f"{self.tries}.log"
        answer = self.server.ask(argv=self.case.arguments(folder), log=str(log), file_limit=limit)
        return Job(self.server, answer["pid"], log)

    def measure(self) -> None:
        """Run it undisturbed, twice: the second time nothing is done for the first time in this process."""
        for number in range(2):
            folder = self.folder(f"whole{number}")
            started = time.monotonic()
            with FolderEvents(folder) as events:
                job = self.start(folder)
                while not job.ended():
                    events.wait(events.seen + 1, job.ended)
                while events.read() > self.events:
                    self.events = events.seen
            self.seconds = time.monotonic() - started
            if status := job.status():
                raise RuntimeError(f"{self.case.name} ends with {status}: {job.said()}")
            found = outcome(folder)
            if number and (differ := differences(found, self.expected)):
                raise RuntimeError(f"{self.case.name}: two undisturbed runs differ: {differ}")
            self.expected = found

    def folder(self, name: str) -> Path:
        folder = self.room / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    # -- what is done to a run ------------------------------------------------------------------------------------

    def kill_at_a_moment(self, folder: Path) -> str | None:
        """At a time drawn from those of an undisturbed run."""
        job = self.start(folder)
        time.sleep(self.draw.uniform(0.0, self.seconds))
        job.kill()
        job.status()
        return self.look(folder)

    def kill_in_a_write(self, folder: Path) -> str | None:
        """At one of the writes, renamings and removals in its folder."""
        number = self.draw.randint(1, max(1, self.events))
        with FolderEvents(folder) as events:
            job = self.start(folder)
            events.wait(number, job.ended)
            job.kill()
        job.status()
        return self.look(folder)

    def fill_the_disk(self, folder: Path) -> str | None:
        """On a disk that is too small; it is larger when the command is given again."""
        needed = sum(path.stat().st_size for path in (self.room / "whole0").rglob("*") if path.is_file())
        size = self.draw.randint(1, max(2, needed // 4096)) * 4096
        mounted = (
            os.geteuid() == 0
            and not subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
            ).returncode
        )
        try:
            job = self.start(folder, None if mounted else max(64, size // 8))
            status, said = job.status(), job.said()
            if problem := self.look(folder):
                return problem
            if status == 0 and (differ := differences(outcome(folder), self.expected)):
                return f"ended well on a full disk, but {differ[:3]}"
            if mounted:
                subprocess.run(["mount", "-o", "remount,size=1g", folder], check=True)
            if problem := self.again(folder):
                return f"{problem} (full disk: {said[-300:]})"
            return None
        finally:
            if mounted:
                subprocess.run(["umount", folder], check=True)

    def start_twice(self, folder: Path) -> str | None:
        """Two runs at once: each ends as one alone, or is refused in one line."""
        first = self.start(folder)
        time.sleep(self.draw.choice([0.0, self.draw.uniform(0.0, self.seconds)]))
        second = self.start(folder)
        for job in (first, second):
            status, said = job.status(), job.said()
            lines = [line for line in said.splitlines() if line.startswith("error: ")]
            if status not in (0, REFUSED) or (status == REFUSED and len(lines) != 1):
                return f"one of two ended with {status}: {said[-600:]}"
        return self.look(folder)

    # -- what is asked of it ---------------------------------------------------------------------------------------

    def look(self, folder: Path) -> str | None:
        half = half_written(folder, self.case.unfinished)
        return f"half written: {', '.join(half)}" if half else None

    def again(self, folder: Path) -> str | None:
        """The same command: what is wrong with its end, or None."""
        job = self.start(folder)
        if status := job.status():
            return f"the same command ends with {status}: {job.said()[-800:]}"
        differ = differences(outcome(folder), self.expected)
        return "; ".join(differ[:4]) or None

    def attempt(self, disturb: Callable[[Path], str | None]) -> str | None:
        folder = self.folder("tried")
        problem = disturb(folder)
        return problem or self.again(folder)


#: What is done, by the name in the table, and the share of tries that each gets.
KINDS = {
    "killed at a moment": (Battery.kill_at_a_moment, 1.0),
    "killed in a write": (Battery.kill_in_a_write, 1.0),
    "full disk": (Battery.fill_the_disk, 0.5),
    "two runs in one folder": (Battery.start_twice, 0.25),
}


def number_of(tries: int, kind: str) -> int:
    """How many tries of a kind there are where there are so many kills."""
    return max(1, round(tries * KINDS[kind][1]))


def torture(
    case: Case, room: Path, tries: int, seed: int, kinds: list[str], done: Callable[[dict[str, Any]], None]
) -> bool:
    """Call ``done`` with a row for each kind of disturbance, how many of its tries ended well; whether any did not."""
    server, failed = Server(case), False
    try:
        battery = Battery(case, room, server, random.Random(f"{seed} {case.name}"))
        battery.measure()
        for kind in kinds:
            disturb, number = KINDS[kind][0], number_of(tries, kind)
            passed, started, problems = 0, time.monotonic(), []
            for index in range(number):
                problem = battery.attempt(lambda folder, disturb=disturb: disturb(battery, folder))
                passed += problem is None
                if problem:
                    problems.append(f"try {index}: {problem}")
                    print(f"{case.name}, {kind}, {problems[-1]}", flush=True)
            seconds = time.monotonic() - started
            row = {"kind": kind, "what": case.name, "tries": number, "passed": passed, "seconds": round(seconds)}
            note = f"a run takes {battery.seconds:.1f} s and writes {battery.events} times"
            done(row | {"note": problems[0][:200] if problems else note})
            failed |= bool(problems)
            print(f"{case.name}, {kind}: {passed} of {number} in {seconds:.0f} s", flush=True)
    finally:
        server.close()
    return failed


def parser() -> argparse.ArgumentParser:
    """All flags, with their defaults."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--of", nargs="+", choices=MAKERS, default=list(MAKERS), help="subprojects (default: all)")
    top.add_argument("--only", help="part of the name of a script (default: all)")
    top.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what is done (default: all)")
    top.add_argument("--tries", type=int, default=20, help="kills of each kind (default: 20; of others fewer)")
    top.add_argument("--seed", type=int, default=1, help="seed of the moments (default: 1)")
    top.add_argument(
        "--out", type=Path, help="table that gets a row for each kind, and says what was done before (default: none)"
    )
    return top


def main() -> int:
    """Run the command; 1 if any try failed."""
    args = parser().parse_args()
    sys.path[:0] = list(map(str, PATHS))
    failed = False

    def done(row: dict[str, Any]) -> None:
        if args.out is not None:
            add_row(args.out, row)

    for name in args.of:
        with tempfile.TemporaryDirectory(prefix="torture") as room:
            inputs = Path(room) / "inputs"
            inputs.mkdir()
            for case in MAKERS[name](inputs):
                kinds = [
                    kind
                    for kind in args.kinds
                    if not (args.out and has_row(args.out, kind, case.name, number_of(args.tries, kind)))
                ]
                if kinds and (not args.only or args.only in case.name):
                    place = Path(room) / case.script.stem
                    failed |= torture(case, place, args.tries, args.seed, kinds, done)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

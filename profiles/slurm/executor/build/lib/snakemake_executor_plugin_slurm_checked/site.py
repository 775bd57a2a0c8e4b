"""What a cluster answers: which of its commands tells how a job ended, and whether it takes a job at all."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from snakemake_interface_common.exceptions import WorkflowError

#: What Slurm says of jobs that it would take, but cannot start now.
PASSING = ("down, drained or reserved", "busy")

#: States of a job that has ended without success.
ENDED = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")


class Answer(NamedTuple):
    """The exit status of a command, and what it said."""

    status: int
    text: str


class StatusSource(NamedTuple):
    """The command that tells how jobs ended, and the seconds after which it has to be asked again."""

    command: str
    longest_sleep: float


def run(command: Sequence[str], timeout: float = 60) -> Answer:
    """Run a command of Slurm; one that is missing or does not answer has failed, with the reason as its text."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError:
        return Answer(127, f"no command {command[0]}")
    except subprocess.TimeoutExpired:
        return Answer(124, f"no answer from {command[0]} in {timeout:g} s")
    return Answer(done.returncode, done.stdout if done.returncode == 0 else done.stderr or done.stdout)


def status_source(wanted: str | None, interval: int) -> StatusSource:
    """Choose who is asked how jobs ended: ``sacct``, or ``squeue`` where there is no accounting.

    Parameters
    ----------
    wanted : str or None
        "squeue" if the user prefers it; otherwise ``sacct`` is taken wherever it answers.
    interval : int
        Seconds between two queries. Jobs that ended have to stay in ``squeue`` for three of them.

    Raises
    ------
    WorkflowError
        If neither can tell.
    """
    accounting = run(["sacct", "-X", "--noheader", "--clusters", "all", "--format=JobIdRaw", "--starttime=now"])
    if wanted != "squeue" and accounting.status == 0:
        return StatusSource("sacct", 180)
    queue, kept = run(["squeue", "--noheader", "--states=all", "--name=asked"]), min_job_age()
    if queue.status == 0 and kept is not None and kept >= 3 * interval:
        return StatusSource("squeue", kept / 3)
    if accounting.status == 0:
        return StatusSource("sacct", 180)
    found = queue.text if queue.status else f"MinJobAge of {kept} s"
    raise WorkflowError(
        f"Slurm: expected accounting, or a MinJobAge of {3 * interval} s, so that something tells how jobs ended, "
        f"found: {one_line(accounting.text)}; {one_line(found)}"
    )


def min_job_age() -> int | None:
    """Seconds that jobs which ended stay in ``squeue``; None if the cluster does not say."""
    found = re.search(r"(?m)^MinJobAge\s*=\s*(\d+)", run(["scontrol", "show", "config"]).text)
    return int(found[1]) if found else None


def state_of(number: str) -> str | None:
    """The state of one job by the controller, in one word; None if it does not know it."""
    answer = run(["scontrol", "--oneliner", "show", "job", number])
    found = re.search(r"\bJobState=(\w+)", answer.text)
    return found[1] if found and not answer.status else None


def refusal(call: Sequence[str], rule: str, wanted: str) -> str | None:
    """Have Slurm judge a submission without submitting it.

    Parameters
    ----------
    call : sequence of str
        ``sbatch`` and its options.
    rule, wanted : str
        Whose job it is, and the partition and account that it names.

    Returns
    -------
    str or None
        Why Slurm would refuse it, in one line; None if it would take it, at once or later.
    """
    answer = run([*call, "--test-only", "--wrap=true"])
    if answer.status == 0 or any(passing in answer.text for passing in PASSING):
        return None
    reasons = [line for line in answer.text.splitlines() if "error" in line or "failure" in line]
    return (
        f"Slurm: expected a cluster that takes jobs of the rule {rule} ({wanted}), "
        f"found: {one_line((reasons or [answer.text])[-1])}; its partitions are {', '.join(partitions())}"
    )


def partitions() -> list[str]:
    """The names of the cluster's partitions."""
    return sorted(set(run(["sinfo", "--noheader", "--format=%R"]).text.split()))


def one_line(text: str) -> str:
    return " ".join(text.split())

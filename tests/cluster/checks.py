"""The workflow on a Slurm that is up: refused, interrupted, cancelled, out of time, and ended with the figure.

``run.sh`` starts it with the Slurm of ``slurm.sh``. Every check is one line with its seconds; the last line counts the
submissions. The first check that fails ends it.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LM = Path("runs/smoke/language_modelling/bible-bbe")
#: Seconds for one step of the workflow on a slow machine, and between two looks.
LONGEST, PAUSE = 5400, 0.5
CHECKS = ("refused", "interrupted", "figure")


def workflow(folder: Path, *arguments: str) -> list[str]:
    """The command of the workflow in a folder, with the profile for Slurm."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    command += ["--profile", ROOT / "profiles" / "slurm", "--slurm-checked-init-seconds-before-status-checks", "5"]
    return [
        *map(str, command),
        "--configfile",
        str(ROOT / "config" / "smoke.yaml"),
        str(HERE / "small.yaml"),
        *arguments,
    ]


def queue(*states: str) -> list[str]:
    """Jobs in the queue, ``NUMBER STATE``; of all states if none is named."""
    command = ["squeue", "--noheader", "--format=%i %T", f"--states={','.join(states) or 'all'}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def start(folder: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start the workflow as a shell starts one that Ctrl-C reaches: a process group of its own, SIGINT not ignored."""
    with log.open("wb") as file:
        return subprocess.Popen(
            workflow(folder, *arguments),
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def until(condition, process: subprocess.Popen[bytes], log: Path):
    """Wait for a condition while the workflow runs; its first true value."""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        if value := condition():
            return value
        if process.poll() is not None:
            sys.exit(f"error: the workflow ended with {process.returncode} before its time; see {log}")
        time.sleep(PAUSE)
    sys.exit(f"error: nothing in {LONGEST} s; see {log}")


def training_process(folder: Path, training: Path) -> tuple[str, int] | None:
    """The Slurm job and the process that train in a folder, once there is a checkpoint."""
    if not (folder / training / "checkpoint.pt").exists():
        return None
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")
            known = (process / "environ").read_text().split("\0")
            within = (process / "cwd").resolve()
        except (OSError, UnicodeDecodeError):
            continue
        if within != folder.resolve():
            continue
        if words[0].endswith("python") and str(training) in words and words[1].endswith("transformer-xl/train.py"):
            numbers = [entry.partition("=")[2] for entry in known if entry.startswith("SLURM_JOB_ID=")]
            return (numbers[0], int(process.name)) if numbers else None
    return None


def refused(folder: Path, named: str, value: str) -> float:
    """Have a partition or an account refused that is not there; the seconds that it took."""
    started = time.monotonic()
    command = workflow(folder, "--default-resources", f"slurm_{named}={value}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Slurm: expected")]
    assert done.returncode == 1 and len(lines) == 1 and f"{named} {value}" in lines[0], done.stdout + done.stderr
    assert not queue(), "something was submitted"
    print("|", lines[0])
    return time.monotonic() - started


def interrupted(folder: Path, log: Path, *chosen: str) -> float:
    """Press Ctrl-C while a job runs; the seconds until the workflow has ended and no job is left."""
    process = start(folder, log, *chosen)
    until(lambda: queue("RUNNING"), process, log)
    pressed = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    process.wait(120)
    left = queue("PENDING", "RUNNING", "COMPLETING", "SUSPENDED")
    assert process.returncode and not left, (process.returncode, left)
    return time.monotonic() - pressed


def end_in_the_middle(state: str, number: str, process: int) -> None:
    """Have Slurm end a job: cancelled, or out of time."""
    if state == "CANCELLED":
        subprocess.run(["scancel", number], check=True)
        return
    # A minute is the shortest limit that Slurm has, and the training must not end before it.
    os.kill(process, signal.SIGSTOP)
    subprocess.run(["scontrol", "update", f"JobId={number}", "TimeLimit=1"], check=True)


def to_the_figure(folder: Path, log: Path, *chosen: str) -> float:
    """Run to the figure, with one training out of time and another cancelled, each after a checkpoint; its seconds."""
    started = time.monotonic()
    process = start(folder, log, *chosen)
    logs = []
    for variant, state in (("dense/tau0", "TIMEOUT"), ("data/tau0.5", "CANCELLED")):
        run = LM / variant / "seed1"
        number, trains = until(lambda: training_process(folder, run / "training"), process, log)  # noqa: B023
        end_in_the_middle(state, number, trains)
        until(lambda: f"{number} {state}" in queue(), process, log)  # noqa: B023
        logs.append(folder / run / "train.log")
    returncode = process.wait(LONGEST)
    assert returncode == 0, f"the workflow ended with {returncode}; see {log}"
    figure = folder / "results" / "ap_figure.png"
    assert figure.read_bytes().startswith(b"\x89PNG"), figure
    for file in logs:
        restarts = [line for line in file.read_text().splitlines() if line.startswith("| restart from")]
        assert restarts, f"{file}: the training did not go on from its checkpoint"
        print(restarts[0])
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the workflow runs")
    parser.add_argument("--accounting", choices=("none", "slurmdbd"), required=True, help="what this Slurm has")
    parser.add_argument(
        "--checks", nargs="+", choices=CHECKS, default=CHECKS, help="which, in this order (default: all)"
    )
    parser.add_argument("--experiments", nargs="+", help="which of smoke's experiments (default: all)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    chosen = ["--config", f"experiments=[{','.join(args.experiments)}]"] if args.experiments else []
    for check in args.checks:
        if check == "refused":
            for name in ("partition", "account") if args.accounting == "slurmdbd" else ("partition",):
                print(
                    f"refused, a {name} that is not there: {refused(args.folder, name, 'absent'):.0f} s", flush=True
                )
        elif check == "interrupted":
            # In a folder of its own: another check may have left nothing to do in the other.
            folder = args.folder / "interrupted"
            folder.mkdir(exist_ok=True)
            seconds = interrupted(folder, args.folder / "interrupted.log", *chosen)
            print(f"Ctrl-C leaves no job: {seconds:.0f} s", flush=True)
        else:
            log = args.folder / "figure.log"
            seconds = to_the_figure(args.folder, log, *chosen)
            print(
                f"to the figure: {seconds:.0f} s, {counts(log)}, 2 trainings ended in the middle and resumed",
                flush=True,
            )


def counts(log: Path) -> str:
    """How many jobs and submissions a run had, and that it warned of no account."""
    text = log.read_text()
    warnings = [line for line in text.splitlines() if "account" in line.lower()]
    assert not warnings, warnings[0]
    submissions = len(re.findall(r"has been submitted with SLURM jobid", text))
    return f"{len(re.findall(r'Finished jobid', text))} jobs, {submissions} submissions"


if __name__ == "__main__":
    main()

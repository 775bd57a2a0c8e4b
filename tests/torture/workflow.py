"""Kill the workflow again and again, each time with all its jobs, and give the same command again.

    python tests/torture/workflow.py --out results/reliability.csv

It is one run that is killed at all those moments: what it has finished by then stays finished. In the end its numbers
and its files are those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from cases import ROOT, environment
from outcomes import differences, tensors
from table import add_row, has_row

#: Clocks, memory, and what is of the machine; and Snakemake's own records.
_MEASURED = re.compile(r".*(seconds|bytes|memory|per_second).*")
_RECORDS = re.compile(r"\.snakemake/.*|.*\.(log|benchmark\.tsv)|.*run\.json")


KIND = "killed at a moment"


def name(arguments: list[str]) -> str:
    """What the table calls the workflow."""
    return f"smoke workflow, {' '.join(arguments)}"


def command(folder: Path, arguments: list[str]) -> list[str]:
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    snakemake += ["--profile", ROOT / "profiles" / "default"]
    return [*map(str, snakemake), *arguments, "--cores", "2", "--configfile", str(ROOT / "config" / "smoke.yaml")]


def start(folder: Path, arguments: list[str]) -> subprocess.Popen:
    """The workflow, as the leader of a process group."""
    with (folder.parent / "workflow.log").open("a") as log:
        return subprocess.Popen(
            command(folder, arguments), env=environment(), stdout=log, stderr=log, start_new_session=True
        )


def descendants(pid: int) -> list[int]:
    """A process and all that it has started, jobs in sessions of their own included."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found, added = {pid}, {pid}
    while added:
        added = {child for child, parent in parents.items() if parent in added} - found
        found |= added
    return sorted(found)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL, to all of it at once: stopped first, so that nothing starts while the others die."""
    family = descendants(process.pid)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        family = sorted({*family, *descendants(process.pid)})
        for pid in family:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
    process.wait()


def outcome(folder: Path) -> dict[str, object]:
    """Names of all files but logs and records; the numbers of tables, without clocks; masks and patterns to the bit."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or _RECORDS.fullmatch(name):
            continue
        found[name] = None
        if path.name == "metrics.csv":
            table = pd.read_csv(path)
            found[name] = table[~table["metric"].str.fullmatch(_MEASURED)].to_csv(index=False)
        elif path.suffix == ".safetensors":
            found[name] = tensors(path)
    return found


def torture(room: Path, arguments: list[str], kills: int, seed: int) -> dict[str, object]:
    """A row for the table."""
    draw, started = random.Random(seed), time.monotonic()
    folders = {name: room / name for name in ("whole", "killed")}
    for folder in folders.values():
        folder.mkdir()
    if status := start(folders["whole"], arguments).wait():
        raise RuntimeError(f"the workflow ends with {status}: {(room / 'workflow.log').read_text()[-3000:]}")
    whole = time.monotonic() - started
    print(f"undisturbed: {whole:.0f} s", flush=True)
    expected, killed = outcome(folders["whole"]), 0
    while killed < kills:
        # What a start takes comes on top of each part.
        process = start(folders["killed"], arguments)
        try:
            status = process.wait(draw.uniform(0.0, 1.6 * whole / kills + 10.0))
        except subprocess.TimeoutExpired:
            kill(process)
            killed += 1
            print(f"killed {killed} times", flush=True)
            continue
        if status:
            break
        print(f"done after {killed} kills", flush=True)
        break
    problems = []
    if status := start(folders["killed"], arguments).wait():
        problems = [f"the same command ends with {status}: {(room / 'workflow.log').read_text()[-600:]}"]
    problems = problems or differences(outcome(folders["killed"]), expected)
    print(problems or f"as if it had not been killed {killed} times", flush=True)
    row = {
        "kind": KIND,
        "what": name(arguments),
        "tries": killed,
        "passed": 0 if problems else killed,
    }
    note = problems[0][:200] if problems else f"one run, killed so often; undisturbed it takes {whole:.0f} s"
    return row | {"seconds": round(time.monotonic() - started), "note": note}


def main() -> int:
    """Run the command; 1 if the run did not end as the undisturbed one."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--kills", type=int, default=20, help="how often it is killed (default: 20)")
    top.add_argument("--seed", type=int, default=1, help="seed of the moments (default: 1)")
    top.add_argument("--target", nargs="+", default=["figure"], help="what Snakemake makes (default: figure)")
    top.add_argument("--out", type=Path, help="table that gets a row (default: none)")
    args = top.parse_args()
    if args.out is not None and has_row(args.out, KIND, name(args.target), args.kills):
        return 0
    with tempfile.TemporaryDirectory(prefix="torture") as room:
        row = torture(Path(room), args.target, args.kills, args.seed)
    if args.out is not None:
        add_row(args.out, row)
    return int(row["passed"] < row["tries"])


if __name__ == "__main__":
    sys.exit(main())

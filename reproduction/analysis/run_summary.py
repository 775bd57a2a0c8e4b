"""What the runs of a configuration cost and what they ran on, from their run.json files.

python -m reproduction.analysis.run_summary --runs runs/quick --out runs.csv --software software.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.table import write_csv
from reproduction.runs.command import run_main
from reproduction.runs.json_file import read_json

_FIELDS = ("script", "seconds", "versions", "host", "peak_memory_bytes")


def read_records(folder: str | Path) -> list[dict[str, Any]]:
    """Read every run.json and NAME.run.json below a folder.

    Raises
    ------
    InputError
        If there is none, or one is not a run's record.
    """
    files = sorted(Path(folder).rglob("*run.json"))
    if not files:
        raise InputError(f"{folder}: expected a folder with the run.json of runs, found none")
    records = []
    for file in files:
        record = read_json(file)
        if lacking := [name for name in _FIELDS if not isinstance(record, dict) or name not in record]:
            raise InputError(f"{file}: expected a run's record with {', '.join(_FIELDS)}, found no {lacking[0]}")
        records.append(record)
    return records


def script_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a script: ``runs``, ``hours`` of all of them, ``longest_minutes``, the largest memory of any
    (``peak_host_gb``, ``peak_gpu_gb``), and the ``devices`` used.
    """
    table = pd.DataFrame(
        {
            "script": record["script"],
            "minutes": record["seconds"] / 60,
            "host": record["peak_memory_bytes"].get("host"),
            "gpu": record["peak_memory_bytes"].get("cuda"),
            "device": record["host"].get("device") or "cpu",
        }
        for record in records
    )
    groups = table.groupby("script")
    found = groups["minutes"].agg(runs="size", hours="sum", longest_minutes="max").reset_index()
    found["hours"] /= 60
    for name in ("host", "gpu"):
        found[f"peak_{name}_gb"] = groups[name].max().astype(float).to_numpy() / 1e9
    found["devices"] = groups["device"].agg(lambda column: ", ".join(sorted(set(column)))).to_numpy()
    return found.round({"hours": 3, "longest_minutes": 2, "peak_host_gb": 2, "peak_gpu_gb": 2})


def software_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a package and version, with the number of runs that recorded it."""
    pairs = [pair for record in records for pair in record["versions"].items()]
    counts = pd.DataFrame(pairs, columns=["package", "version"]).value_counts()
    return counts.rename("runs").reset_index().sort_values(["package", "version"], ignore_index=True)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.analysis.run_summary",
        description="Sum up time and memory of runs, and list their software.",
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder to search, in any depth, for run.json")
    parser.add_argument("--out", type=Path, required=True, help="table of scripts to write (.csv)")
    parser.add_argument("--software", type=Path, required=True, help="table of packages to write (.csv)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    records = read_records(args.runs)
    write_csv(script_table(records), args.out)
    write_csv(software_table(records), args.software)
    print(f"{args.out}, {args.software}: {len(records)} runs")
    return 0


if __name__ == "__main__":
    run_main(main)

"""results/reference/reliability.csv: what was tried, how often, and how often it went well; others add rows to it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reproduction.runs.files import atomic_path

COLUMNS = ("kind", "what", "tries", "passed", "seconds", "note")


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Write a row, in the place of an earlier one of the same kind and what."""
    rows = _read(path)
    same = [index for index, old in enumerate(rows) if (old["kind"], old["what"]) == (row["kind"], row["what"])]
    place = same[0] if same else len(rows)
    rows[place : place + 1] = [{"note": ""} | dict(row)]
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def has_row(path: Path, kind: str, what: str, tries: int) -> bool:
    """Whether so many tries, or more, were made already and all went well."""
    rows = [row for row in _read(path) if (row["kind"], row["what"]) == (kind, what)]
    return any(int(row["tries"]) >= tries and row["passed"] == row["tries"] for row in rows)


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))

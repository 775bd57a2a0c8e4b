"""results/reference/reliability.csv: what was tried, how often, and how often it went well; others add rows to it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reproduction.training import atomic_path

COLUMNS = ("kind", "what", "tries", "passed", "seconds", "note")


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Write a row, in the place of an earlier one of the same kind and what."""
    rows = []
    if path.exists():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    same = [index for index, old in enumerate(rows) if (old["kind"], old["what"]) == (row["kind"], row["what"])]
    place = same[0] if same else len(rows)
    rows[place : place + 1] = [{"note": ""} | dict(row)]
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

"""The published numbers, and their change from the dense model as a curve."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.curves import Panel, change

REFERENCE = Path(__file__).with_name("paper_reference.csv")
REFERENCE_COLUMNS = ("panel", "dataset", "metric", "direction", "percent_pruned", "value", "source")


def read_reference(path: str | Path) -> pd.DataFrame:
    """Read the published numbers (columns `REFERENCE_COLUMNS`).

    Raises
    ------
    InputError
        If the file is missing or is something else.
    """
    path = Path(path)
    try:
        reference = pd.read_csv(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected the published numbers, found no such file") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a table of published numbers, found something else ({error})") from error
    if tuple(reference.columns) != REFERENCE_COLUMNS:
        found = ",".join(map(str, reference.columns))
        raise InputError(f"{path}: expected the columns {','.join(REFERENCE_COLUMNS)}, found {found}")
    return reference


def published(reference: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    """The published curve: ``dataset``, ``percent``, ``value`` and ``change`` from its value at 0, in the panel's unit.

    Raises
    ------
    InputError
        If the reference has no such panel, or no value at 0.
    """
    rows = reference[reference["panel"] == panel.experiment].sort_values("percent_pruned")
    dense = rows.loc[rows["percent_pruned"] == 0, "value"]
    if len(dense) != 1:
        raise InputError(f"expected one published value of {panel.experiment} at 0, found {len(dense)}")
    curve = rows.rename(columns={"percent_pruned": "percent"}).astype({"percent": float})
    curve["change"] = change(curve["value"], dense.iloc[0], panel.unit)
    return curve[["dataset", "percent", "value", "change"]].reset_index(drop=True)

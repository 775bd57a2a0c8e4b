"""The published numbers, their change from the dense model as a curve, and ours beside it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.curves import Panel, change, changes, comparable, curve, panels_of

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
    found = rows.rename(columns={"percent_pruned": "percent"}).astype({"percent": float})
    found["change"] = change(found["value"], dense.iloc[0], panel.unit)
    return found[["dataset", "percent", "value", "change"]].reset_index(drop=True)


def comparison(table: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Our change from the dense model beside the published one: a row a panel and tau that either of the two has.

    Returns
    -------
    pandas.DataFrame
        ``experiment``, ``metric``, ``unit``, ``percent`` (100 tau), ``effective`` (in percent), ``change``, ``low``,
        ``high`` (mean, lowest and highest seed) and ``seeds`` of what was run here; ``published_change``.
    """
    parts = []
    for panel in panels_of(table):
        own, rows = comparable(table, panel)
        moved = changes(rows, own.unit)
        ours = pd.concat([curve(moved, "dense"), curve(moved, "data")]).rename(columns={"mean": "change"})
        paper = published(reference, own)[["percent", "change"]].rename(columns={"change": "published_change"})
        # Taus are fractions: 100 times 0.29 is not quite 29.
        ours["percent"], paper["percent"] = ours["percent"].round(6), paper["percent"].round(6)
        both = ours.merge(paper, on="percent", how="outer").sort_values("percent")
        known = {"experiment": own.experiment, "metric": own.metric, "unit": own.unit}
        parts.append(both.assign(**known).astype({"seeds": "Int64"}))
    columns = ["experiment", "metric", "unit", "percent", "effective", "change", "low", "high", "seeds"]
    return pd.concat(parts, ignore_index=True)[[*columns, "published_change"]]

"""From the metrics.json of every run to one tidy table, metrics.csv, one value a row.

    python -m reproduction.analysis.table --runs runs/quick --out results/quick/metrics.csv

A file named ``metrics@NAME.json`` is a further evaluation of the run that it stands beside; its metrics are called
``METRIC@NAME``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from attention_pruning import InputError
from attention_pruning.ops.layout import BLOCK_SIZES
from attention_pruning.recipe import RULES, SCOPES
from reproduction.runs.command import run_main
from reproduction.runs.files import atomic_path
from reproduction.runs.json_file import read_json
from reproduction.runs.metrics import LABELS, SPARSITIES

COLUMNS = (
    "config",
    "experiment",
    "dataset",
    "split",
    "variant",
    "sites",
    "rule",
    "scope",
    "block_size",
    "tau",
    "effective_sparsity",
    "evaluated_sparsity",
    "block_sparsity",
    "seed",
    "metric",
    "value",
)
EXPERIMENTS = ("language_modelling", "translation", "glue", "squad")
#: What needs no attention (counting words, copying the source, the majority class), models without a mask (of softmax,
#: of entmax, with as much attention dropped in training as a mask prunes, trained twice as long), and models with one:
#: each kind says more about itself than the one before.
BASELINES = ("kneser-ney", "kneser-ney-5", "copy", "majority")
DENSE = ("dense", "entmax-dense", "dropout", "dense-longer")
#: Data-informed masks of another rule or scope than the configuration's, such as ``allowed-head``.
CHOICES = tuple(f"{rule}-{scope}" for rule in RULES for scope in SCOPES)
#: Masks of whole blocks, of the efficiency tables' size or of that in the name.
BLOCKS = ("block", *(f"block{size}" for size in BLOCK_SIZES))
#: Controls that only the comparison of masks has.
FURTHER = ("window-sinks", "distance-sinks", "shuffled-heads", "other-seed")
MASKED = ("data", "random", "window", "distance", *FURTHER, "entmax-data", *BLOCKS, *CHOICES)
#: The scope of a mask whose metrics name none: it was the only one before they did.
SCOPE = "layer"
_ALWAYS = ("config", "experiment", "dataset", "variant")
_ATTENTION = ("sites", "tau", "seed", *SPARSITIES)
_MASK = ("rule", "block_size")
_TYPES: dict[str, type | tuple[type, ...]] = {
    "seed": int,
    "block_size": int,
    "tau": (int, float),
    **dict.fromkeys(SPARSITIES, (int, float)),
    **dict.fromkeys(("config", "experiment", "dataset", "variant", "sites", "rule", "scope"), str),
}
#: Columns that say what a value is the value of: no two rows agree in all of them.
_KEY = [name for name in COLUMNS if name not in (*SPARSITIES, "value")]


def read_run(path: str | Path) -> list[dict[str, Any]]:
    """Read one metrics.json as rows of the table. Masks of metrics without a scope have that of `SCOPE`.

    Parameters
    ----------
    path : path
        ``metrics.json``, or ``metrics@NAME.json``.

    Returns
    -------
    list of dict
        One a split and metric, with the keys `COLUMNS`.

    Raises
    ------
    InputError
        If the file is not such JSON, lacks a field or has one too many, or a value is not a finite number.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object of labels and metrics, found {type(content).__name__}")
    content.setdefault("scope")
    check_labels(path, content)
    if content["variant"] in MASKED and content["scope"] is None:
        content["scope"] = SCOPE
    evaluation = path.stem.partition("@")[2]
    labels = {name: content[name] for name in COLUMNS if name in content}
    rows = []
    for split, metrics in _objects(path, "metrics", content["metrics"]).items():
        for metric, value in _objects(path, f"metrics.{split}", metrics).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"{path}: metrics.{split}.{metric}: expected a finite number, found {value!r}")
            name = f"{metric}@{evaluation}" if evaluation else metric
            rows.append({**labels, "split": split, "metric": name, "value": float(value)})
    return rows


def check_labels(path: Path, content: dict[str, Any]) -> None:
    """Refuse metrics whose labels are not complete, or are not what the variant calls for."""
    expected = {*LABELS, *SPARSITIES, "metrics"}
    if missing := sorted(expected - set(content)):
        raise InputError(f"{path}: expected the field {missing[0]!r}, found none")
    if unknown := sorted(set(content) - expected):
        raise InputError(f"{path}: expected the fields of metrics.json, found {unknown[0]!r} too")
    variant = content["variant"]
    if variant not in BASELINES + DENSE + MASKED:
        raise InputError(f"{path}: variant: expected one of {', '.join(BASELINES + DENSE + MASKED)}, found {variant!r}")
    if (experiment := content["experiment"]) not in EXPERIMENTS:
        raise InputError(f"{path}: experiment: expected one of {', '.join(EXPERIMENTS)}, found {experiment!r}")
    given = _ALWAYS + (() if variant in BASELINES else _ATTENTION) + (_MASK if variant in MASKED else ())
    for name, kind in _TYPES.items():
        value = content[name]
        if value is None and name not in given:
            continue
        if isinstance(value, bool) or not isinstance(value, kind):
            wanted = kind.__name__ if isinstance(kind, type) else "number"
            raise InputError(f"{path}: {name}: expected {wanted} for variant {variant!r}, found {value!r}")
        if name == "scope" and value not in SCOPES:
            raise InputError(f"{path}: scope: expected one of {', '.join(SCOPES)}, found {value!r}")
        if name in ("tau", *SPARSITIES) and not 0 <= value <= 1:
            raise InputError(f"{path}: {name}: expected a fraction in [0, 1], found {value!r}")


def _objects(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise InputError(f"{path}: {name}: expected at least one entry, found {value!r}")
    return value


def collect(paths: Iterable[str | Path], config: str | None = None) -> pd.DataFrame:
    """Read the metrics of many runs.

    Parameters
    ----------
    paths : iterable of path
    config : str, optional
        The configuration that all of them must belong to.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`, sorted, so that the order of the files does not matter.

    Raises
    ------
    InputError
        If there is no file, or one is refused by `read_run`, is of another configuration, or repeats another's values.
    """
    rows, origin = [], {}
    for path in paths:
        for row in read_run(path):
            if config is not None and row["config"] != config:
                raise InputError(f"{path}: expected a run of configuration {config!r}, found one of {row['config']!r}")
            key = tuple(row[name] for name in _KEY)
            if key in origin:
                raise InputError(f"{path}: expected metrics of a run of its own, found those of {origin[key]} again")
            origin[key] = path
            rows.append(row)
    if not rows:
        raise InputError("expected the metrics.json of at least one run, found none")
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seed": "Int64", "block_size": "Int64"})
    return table.sort_values(_KEY, kind="stable", ignore_index=True)


def write_csv(table: pd.DataFrame, path: str | Path) -> None:
    """Write the table atomically; every number is read back as it was."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def read_csv(path: str | Path) -> pd.DataFrame:
    """Read a table written by `write_csv`; one without scopes is read as `read_run` reads metrics without one.

    Raises
    ------
    InputError
        If the file is missing, is not such a table, or is empty.
    """
    path = Path(path)
    types = {"seed": "Int64", "block_size": "Int64", **dict.fromkeys(("tau", *SPARSITIES, "value"), "float64")}
    try:
        # Every missing label is an empty cell; "NA" and its like are text.
        table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected a table of metrics, found no such file") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a table of metrics, found something else ({error})") from error
    if list(table.columns) == [name for name in COLUMNS if name != "scope"]:
        table.insert(COLUMNS.index("scope"), "scope", table["variant"].isin(MASKED).map({True: SCOPE, False: math.nan}))
    if list(table.columns) != list(COLUMNS):
        raise InputError(f"{path}: expected the columns {','.join(COLUMNS)}, found {','.join(map(str, table.columns))}")
    if table.empty:
        raise InputError(f"{path}: expected a table of metrics, found no row")
    return table


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.analysis.table",
        description="Collect the metrics of runs into one tidy table, one value a row.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("metrics", nargs="*", type=Path, metavar="METRICS.json", help="metrics of single runs")
    parser.add_argument(
        "--runs", type=Path, help="folder to search, in any depth, for metrics.json and metrics@NAME.json"
    )
    parser.add_argument("--config-name", help="refuse runs of another configuration than this one; None accepts all")
    parser.add_argument("--out", type=Path, required=True, help="metrics.csv to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    paths = list(args.metrics)
    if args.runs is not None:
        found = sorted(args.runs.glob("**/metrics.json")) + sorted(
            path for path in args.runs.glob("**/metrics@*.json") if not path.name.endswith(".run.json")
        )
        if not found:
            raise InputError(f"{args.runs}: expected a folder with the metrics.json of runs, found none")
        paths += found
    table = collect(paths, args.config_name)
    write_csv(table, args.out)
    print(f"{args.out}: {len(table)} values of {len(paths)} runs")
    return 0


if __name__ == "__main__":
    run_main(main)

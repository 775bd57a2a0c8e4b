"""Write ood_table: every model in distribution, on the test data of its training set, and out of distribution.

    python -m reproduction.analysis.figures ood_table --metrics runs/quick/*/*/*/*/*/metrics*.json --tau glue=0.8 \\
        --out results/quick/ood_table.md

``metrics@NAME.json`` beside a ``metrics.json`` is the same model on NAME, which it was not trained for. The .csv has
every model and seed; the .md shows one tau for each experiment, chosen before anything was measured, and contrasts
pruned with dense models of the same seed: log-perplexities in nats a token, scores in points.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.curves import BASELINE_NAMES, PANELS, VARIANTS, Panel, select
from reproduction.analysis.figures.captions import EVALUATED_SPARSITY, NAMES, SPREAD, name_of
from reproduction.analysis.stats import Difference, on_common_seeds
from reproduction.analysis.table import collect, write_csv
from reproduction.runs.files import atomic_path

QUESTIONS = Panel("squad", "Questions", "f1", "validation", "F1", "higher")
#: Experiments of the table, in order, and what they are called in it.
TITLES = {
    "language_modelling": "Language modelling",
    "translation": "Translation",
    "glue": "Sentences",
    "squad": "Questions",
}
_PANELS = {panel.experiment: panel for panel in (*PANELS, QUESTIONS)}
PLACES = ("in", "out")
COLUMNS = (
    *("config", "experiment", "trained_on", "evaluated_on", "metric", "split", "variant", "tau", "seed", "chosen_tau"),
    *(f"evaluated_{place}" for place in PLACES),
    *(f"value_{place}" for place in PLACES),
    "unit",
    *(f"minus_dense_{place}" for place in PLACES),
    "out_minus_in",
    *(f"unknown_{place}" for place in PLACES),
)
#: Share of the tokens that the vocabulary of a language model lacks.
_UNKNOWN = "unknown_share"
_PAIR = ["config", "experiment", "trained_on", "evaluated_on"]
_KEY = ["variant", "tau", "seed"]
#: Unit of a difference -> decimal places.
_UNITS = {"nats": 3, "points": 2}


@dataclass(frozen=True)
class Comparison:
    """One dataset and another one that its models were evaluated on: the rows of both.

    Attributes
    ----------
    panel : Panel
        What is compared.
    evaluated_on : str
    places : dict
        ``in`` and ``out`` -> what ``curves.select`` returns, baselines among them.
    unknown : dict
        ``in`` and ``out`` -> share of unknown tokens; nan where nobody counted.
    """

    panel: Panel
    evaluated_on: str
    places: dict[str, pd.DataFrame]
    unknown: dict[str, float]


def comparisons(table: pd.DataFrame) -> Iterator[Comparison]:
    """Every pair of a dataset and another one that its models were evaluated on, in the order of the table.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``table.COLUMNS``.

    Raises
    ------
    InputError
        If there is none, or a model was evaluated at one of the two alone.
    """
    found = False
    for experiment in TITLES:
        panel = replace(_PANELS[experiment], averaged=False)
        for dataset, part in table[table["experiment"] == experiment].groupby("dataset"):
            prefix = f"{panel.metric}@"
            for metric in sorted({metric for metric in part["metric"] if metric.startswith(prefix)}):
                found = True
                other = metric.removeprefix(prefix)
                places = {"in": select(part, panel), "out": select(part, replace(panel, metric=metric))}
                _check_same_models(places, f"{dataset} and {other}")
                unknown = {"in": _share(part, panel.split, _UNKNOWN)}
                unknown["out"] = _share(part, panel.split, f"{_UNKNOWN}@{other}")
                yield Comparison(panel, other, places, unknown)
    if not found:
        raise InputError("expected metrics@NAME.json of models evaluated out of distribution, found none")


def _check_same_models(places: Mapping[str, pd.DataFrame], where: str) -> None:
    models = {
        place: set(rows.loc[rows["seed"].notna(), _KEY].itertuples(index=False, name=None))
        for place, rows in places.items()
    }
    if lacking := sorted(models["in"] ^ models["out"]):
        variant, tau, seed = lacking[0]
        known = "in" if lacking[0] in models["in"] else "out of"
        one = f"{variant}, tau {tau:g}, seed {seed}"
        raise InputError(f"{where}: expected {one} in and out of distribution, found it {known} distribution alone")


def _share(rows: pd.DataFrame, split: str, metric: str) -> float:
    values = rows.loc[(rows["metric"] == metric) & (rows["split"] == split), "value"]
    return float(values.iloc[0]) if len(values) else float("nan")


def chosen_taus(table: pd.DataFrame, given: Mapping[str, float]) -> dict[str, float]:
    """The one tau of each experiment at which models are contrasted: as given, else the highest that has every seed.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``table.COLUMNS``.
    given : mapping
        Experiment -> tau.

    Raises
    ------
    InputError
        If data-informed masks of an experiment were not trained at its tau for every seed of the dense model.
    """
    chosen = {}
    for experiment in TITLES:
        rows = table[table["experiment"] == experiment]
        seeds = set(rows.loc[rows["variant"] == "dense", "seed"])
        data = rows[rows["variant"] == "data"].groupby("tau")["seed"].agg(set)
        whole = [tau for tau, found in data.items() if found >= seeds]
        if not whole and not rows.empty:
            raise InputError(f"{experiment}: expected data-informed masks of a tau for every seed, found none")
        if experiment in given and given[experiment] not in whole and not rows.empty:
            known = ", ".join(f"{tau:g}" for tau in whole)
            expected = f"a tau of {experiment} with every seed, {known}"
            raise InputError(f"--tau: expected {expected}, found {given[experiment]:g}")
        if whole:
            chosen[experiment] = given.get(experiment, max(whole))
    return chosen


def tabulate(table: pd.DataFrame, given: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Every model and seed in and out of distribution, columns :data:`COLUMNS`, what is not known empty.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``table.COLUMNS``.
    given : mapping, optional
        See `chosen_taus`.
    """
    chosen = chosen_taus(table, given or {})
    parts = [_rows_of(compared).assign(chosen_tau=chosen[compared.panel.experiment]) for compared in comparisons(table)]
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)].astype({"seed": "Int64"})


def _rows_of(compared: Comparison) -> pd.DataFrame:
    """Rows of the table: what needs no attention, dense, then every variant, tau and seed."""
    panel, places = compared.panel, compared.places
    unit = "nats" if panel.metric == "perplexity" else "points"
    columns = [*_KEY, "value", "evaluated_sparsity"]
    both = places["in"].merge(places["out"][columns], on=_KEY, suffixes=("", "_out"))
    order = {variant: number for number, variant in enumerate([*BASELINE_NAMES, "dense", *VARIANTS])}
    both = both[both["variant"].isin(order)]
    both = both.sort_values(_KEY, key=lambda column: column.map(order) if column.name == "variant" else column)
    both = both.rename(columns={"value": "value_in", "evaluated_sparsity": "evaluated_in", "dataset": "trained_on"})
    both = both.rename(columns={"evaluated_sparsity_out": "evaluated_out"})
    both = both.assign(evaluated_on=compared.evaluated_on, unit=unit)
    for place in PLACES:
        measured = np.log(both[f"value_{place}"]) if unit == "nats" else both[f"value_{place}"]
        dense = measured[both["variant"] == "dense"].set_axis(both.loc[both["variant"] == "dense", "seed"])
        both[f"minus_dense_{place}"] = measured - both["seed"].map(dense).astype(float)
        both[f"unknown_{place}"] = compared.unknown[place]
    return both.assign(out_minus_in=both["minus_dense_out"] - both["minus_dense_in"])


def read_table(path: str | Path) -> pd.DataFrame:
    """Read what `write_csv` wrote of `tabulate`.

    Raises
    ------
    InputError
        If the file is missing or is something else.
    """
    try:
        table = pd.read_csv(path, dtype={"seed": "Int64"})
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected the table of models out of distribution, found no such file") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected the table of models out of distribution, found: {error}") from error
    if tuple(table.columns) != COLUMNS:
        found = ",".join(map(str, table.columns))
        raise InputError(f"{path}: expected the columns {','.join(COLUMNS)}, found {found}")
    return table


def pairs(table: pd.DataFrame) -> list[tuple[Panel, pd.DataFrame]]:
    """The panel and the rows of each pair, in the order of the table."""
    return [(_PANELS[key[1]], rows) for key, rows in table.groupby(_PAIR, sort=False)]


def pair_table(panel: Panel, rows: pd.DataFrame) -> str:
    """One pair at the chosen tau as a Markdown table, on the seeds that all models of it have.

    There is no line break at its end.
    """
    unit = rows["unit"].iloc[0]
    metric = f"{name_of(panel)}, {panel.split}"
    contrasts = f"{f'log {name_of(panel)}' if unit == 'nats' else name_of(panel)} minus dense ({unit})"
    lines = [
        f"| model | tau | evaluated sparsity, in | out | {metric}, in | out | {contrasts}, in | out | out minus in |",
        "|---|---:|---:|---:|---|---|---|---|---|",
    ]
    counted = rows[rows["variant"].isin(BASELINE_NAMES)]
    for row in counted.itertuples():
        values = f"{row.value_in:.2f} | {row.value_out:.2f}"
        lines.append(f"| {BASELINE_NAMES[row.variant]} | | | | {values} | | | |")
    shown = rows[(rows["variant"] == "dense") | (rows["tau"] == rows["chosen_tau"])]
    for (variant, tau), model in on_common_seeds(shown, ("variant", "tau")).groupby(["variant", "tau"], sort=False):
        cells = [NAMES[variant], f"{100 * tau:.0f}%"]
        cells += [f"{100 * model[f'evaluated_{place}'].mean():.1f}%" for place in PLACES]
        cells += [_range(model[f"value_{place}"]) for place in PLACES]
        for column in (*(f"minus_dense_{place}" for place in PLACES), "out_minus_in"):
            cells.append("" if variant == "dense" else _difference(model, column).told(_UNITS[unit]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(model: pd.DataFrame, column: str) -> Difference:
    """A column of differences, one a seed."""
    ordered = model.sort_values("seed")
    return Difference(tuple(ordered["seed"].astype(int)), tuple(ordered[column].astype(float)))


def _range(values: pd.Series) -> str:
    """The mean, and the lowest and highest of several."""
    mean = f"{values.mean():.2f}"
    return mean if len(values) == 1 else f"{mean} ({values.min():.2f} to {values.max():.2f})"


def titled(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Title and Markdown table of each pair; the title has the tokens that are unknown to a vocabulary, if any are."""
    found = []
    for panel, rows in pairs(table):
        first = rows.iloc[0]
        title = f"{TITLES[panel.experiment]}: {first['trained_on']}, evaluated on {first['evaluated_on']}"
        if pd.notna(first["unknown_out"]):
            title += f" (unknown tokens: {100 * first['unknown_in']:.1f}% in, {100 * first['unknown_out']:.1f}% out)"
        found.append((title, pair_table(panel, rows)))
    return found


def how_to_read(table: pd.DataFrame) -> str:
    """What is compared, at which taus: a paragraph."""
    taus = table.drop_duplicates("experiment")[["experiment", "chosen_tau"]].itertuples(index=False, name=None)
    return (
        "Every model is trained once and evaluated twice: *in* distribution, on the data set that it was trained on, "
        "and *out* of it. One tau of each experiment was chosen in advance: "
        f"{', '.join(f'{experiment} {tau:g}' for experiment, tau in taus)}. *Minus dense* is pruned minus dense model "
        "of the same seed: of perplexity the logarithm (nats a token), of scores points. *Out minus in* is the "
        f"difference of both differences. The evaluated sparsity is {EVALUATED_SPARSITY}. {SPREAD} A table has the "
        "seeds that all of its models have. Each interval is of one difference; nothing corrects for how many there "
        "are. All taus and seeds are in ood_table.csv."
    )


def as_markdown(table: pd.DataFrame) -> str:
    """The whole table, a part for each pair."""
    parts = ["# Out of distribution", how_to_read(table)]
    for title, shown in titled(table):
        parts += [f"## {title}", shown]
    return "\n\n".join(parts) + "\n"


def read_taus(given: Sequence[str]) -> dict[str, float]:
    """Experiment -> tau, from ``EXPERIMENT=TAU``.

    Raises
    ------
    InputError
        If one is something else.
    """
    taus = {}
    for text in given:
        experiment, _, tau = text.partition("=")
        try:
            taus[experiment] = float(tau)
        except ValueError:
            experiment = ""
        if experiment not in TITLES:
            raise InputError(f"--tau: expected EXPERIMENT=TAU, of {', '.join(TITLES)}, found {text!r}")
    return taus


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.analysis.figures ood_table",
        description="Write the table of models in and out of distribution.",
    )
    add = parser.add_argument
    add("--metrics", type=Path, nargs="+", required=True, help="metrics.json and metrics@NAME.json of runs")
    add("--config-name", help="refuse runs of another configuration than this one (default: accept all)")
    add(
        "--tau",
        action="append",
        default=[],
        metavar="EXPERIMENT=TAU",
        help="tau to compare models of an experiment at; may be repeated (default: its highest with every seed)",
    )
    add("--out", type=Path, required=True, help="table to write (.md); .csv goes beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    if args.out.suffix != ".md":
        raise InputError(f"--out: expected a name that ends in .md, found {args.out}")
    table = tabulate(collect(args.metrics, args.config_name), read_taus(args.tau))
    with atomic_path(args.out) as temporary:
        temporary.write_text(as_markdown(table), encoding="utf-8")
    write_csv(table, args.out.with_suffix(".csv"))
    print(f"{args.out}: {'; '.join(title for title, _ in titled(table))}")
    return 0

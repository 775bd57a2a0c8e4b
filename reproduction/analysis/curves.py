"""The numbers behind the figure: which rows of metrics.csv a panel shows, and their mean and spread over seeds."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.stats import Difference, paired
from reproduction.runs.metrics import SPARSITIES

#: Variants that a panel draws, in the order of its legend. Dense is the point at 0.
VARIANTS = ("data", "random", "window", "distance")
#: What needs no attention, by the variants of `table.BASELINES`.
BASELINE_NAMES = {
    "kneser-ney": "Kneser-Ney bigram",
    "kneser-ney-5": "Kneser-Ney 5-gram",
    "copy": "copied source",
    "majority": "majority class",
}


@dataclass(frozen=True)
class Panel:
    """One panel of the figure.

    Attributes
    ----------
    experiment : str
        Value of the column ``experiment``; also the panel's name in the published numbers.
    title : str
    metric : str
        Value of the column ``metric``.
    split : str
        Value of the column ``split``.
    label : str
        Of the y axis.
    better : {"lower", "higher"}
    unit : {"percent", "points"}
        Of a change from the dense model. Scores that may be near zero, as correlations are, have no percent.
    sites : str, optional
        Value of the column ``sites`` of the models to show; by default all.
    averaged : bool
        Whether the panel shows the mean over several datasets.
    scale : float
        What values of the column ``value`` are multiplied by.
    companion : Panel, optional
        What is drawn beside the published curve, where that has another metric; by default the panel itself.
    """

    experiment: str
    title: str
    metric: str
    split: str
    label: str
    better: str
    unit: str = "points"
    sites: str | None = None
    averaged: bool = False
    scale: float = 1.0
    companion: Panel | None = None


#: The published curve of panel (c) is the mean accuracy of nine tasks; beside it stands that of the tasks with one.
ACCURACY = Panel(
    "glue", "(c) Language understanding", "accuracy", "validation", "Accuracy", "higher", averaged=True, scale=100.0
)
#: All panels that can be drawn, in order; a figure shows those whose experiment is in the table.
PANELS = (
    Panel("language_modelling", "(a) Language modelling", "perplexity", "test", "Perplexity", "lower", unit="percent"),
    Panel("translation", "(b) Translation", "bleu", "test", "BLEU", "higher", unit="percent", sites="all"),
    Panel(
        "glue",
        "(c) Language understanding",
        "glue_score",
        "validation",
        "GLUE score",
        "higher",
        averaged=True,
        companion=ACCURACY,
    ),
)


def panels_of(table: pd.DataFrame) -> list[Panel]:
    """The panels whose experiment is in the table.

    Raises
    ------
    InputError
        If there is none.
    """
    experiments = set(table["experiment"])
    panels = [panel for panel in PANELS if panel.experiment in experiments]
    if not panels:
        known = ", ".join(panel.experiment for panel in PANELS)
        raise InputError(f"expected runs of {known} in the table, found {', '.join(sorted(experiments)) or 'none'}")
    return panels


def select(table: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    """Return the rows of a table (`table.COLUMNS`) that a panel is about, all variants.

    Raises
    ------
    InputError
        If there is none, there is no dense one, or they are of several configurations or datasets.
    """
    rows = table[(table["experiment"] == panel.experiment) & (table["metric"] == panel.metric)]
    # MNLI has two validation splits, validation_matched and validation_mismatched.
    rows = rows[rows["split"].str.fullmatch(rf"{panel.split}(_\w+)?")]
    if panel.sites is not None:
        rows = rows[(rows["sites"] == panel.sites) | rows["sites"].isna()]
    wanted = f"{panel.metric} on {panel.split} of {panel.experiment}"
    if rows.empty:
        raise InputError(f"expected {wanted} in the table, found no such row")
    for column in ("config", *([] if panel.averaged else ["dataset"])):
        if len(found := sorted(rows[column].unique())) > 1:
            raise InputError(f"expected {wanted} of one {column}, found {', '.join(found)}")
    if not (rows["variant"] == "dense").any():
        found = ", ".join(sorted(rows["variant"].unique()))
        raise InputError(f"expected {wanted} of the dense model, found only {found}")
    if panel.scale != 1:
        rows = rows.assign(value=rows["value"] * panel.scale)
    return mean_over_datasets(rows.assign(split=panel.split)) if panel.averaged else rows


def mean_over_datasets(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each model and seed, its value and sparsities the mean over all datasets, each the mean of its rows.

    Raises
    ------
    InputError
        If a model was not measured on each of them.
    """
    datasets = sorted(rows["dataset"].unique())
    numbers = ["value", *SPARSITIES]
    same = [column for column in rows.columns if column not in ("dataset", *numbers)]
    of_datasets = rows.groupby([*same, "dataset"], dropna=False, sort=False)[numbers].mean().reset_index()
    groups = of_datasets.groupby(same, dropna=False, sort=False)
    for labels, group in groups:
        if lacking := set(datasets) - set(group["dataset"]):
            known = dict(zip(same, labels, strict=True))
            model = f"{known['variant']}, tau {known['tau']}, seed {known['seed']}"
            raise InputError(f"expected {model} on each of {', '.join(datasets)}, found none on {min(lacking)}")
    means = groups[numbers].mean().reset_index()
    name = datasets[0] if len(datasets) == 1 else f"mean of {len(datasets)} tasks"
    return means.assign(dataset=name)[list(rows.columns)]


def curve(rows: pd.DataFrame, variant: str) -> pd.DataFrame:
    """Summarise one variant over seeds.

    Parameters
    ----------
    rows : pandas.DataFrame
        What `select` returns.
    variant : str

    Returns
    -------
    pandas.DataFrame
        One row a tau, ascending: ``tau``, ``percent`` (100 tau), ``mean``, ``low`` and ``high`` (the lowest and the
        highest seed), ``seeds`` (how many), ``effective`` and ``evaluated`` (mean sparsities, in percent).
    """
    groups = rows[rows["variant"] == variant].groupby("tau", sort=True)
    summary = groups.agg(
        mean=("value", "mean"),
        low=("value", "min"),
        high=("value", "max"),
        seeds=("seed", "nunique"),
        effective=("effective_sparsity", "mean"),
        evaluated=("evaluated_sparsity", "mean"),
    ).reset_index()
    summary[["effective", "evaluated"]] *= 100
    summary.insert(1, "percent", 100 * summary["tau"])
    return summary


def changes(rows: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Replace each value by its change from the dense model of the same seed, in percent of that one or in points.

    Raises
    ------
    InputError
        If a seed has no dense model, or more than one.
    """
    seeded = rows[rows["seed"].notna()]
    dense = seeded[seeded["variant"] == "dense"].set_index("seed")["value"]
    seeds = set(seeded["seed"])
    if lacking := sorted(seeds - set(dense.index)):
        raise InputError(f"expected a dense model of each seed, found none of seed {lacking[0]}")
    if len(repeated := dense.index[dense.index.duplicated()]):
        raise InputError(f"expected one dense model of each seed, found several of seed {repeated[0]}")
    start = seeded["seed"].map(dense).astype(float)
    return seeded.assign(value=change(seeded["value"], start, unit))


def change(value: pd.Series, start: pd.Series | float, unit: str) -> pd.Series:
    return 100 * (value / start - 1) if unit == "percent" else value - start


def contrast(rows: pd.DataFrame, first: str, second: str, tau: float) -> Difference | None:
    """First minus second variant at a tau, on the seeds that both have; None if one of them was not trained.

    Parameters
    ----------
    rows : pandas.DataFrame
        What `select` returns.
    first, second : str
        Variants; ``dense`` is taken whatever tau is.
    tau : float
    """
    of_tau = rows[(rows["tau"] == tau) | (rows["variant"] == "dense")]
    parts = [of_tau[of_tau["variant"] == variant] for variant in (first, second)]
    return None if any(part.empty for part in parts) else paired(*parts)


def comparable(table: pd.DataFrame, panel: Panel) -> tuple[Panel, pd.DataFrame]:
    """What stands beside the published curve: its panel, and the rows of that, none if the table lacks its metric."""
    own = panel.companion or panel
    known = (table["experiment"] == own.experiment) & (table["metric"] == own.metric)
    return own, select(table, own) if own is panel or known.any() else table.iloc[:0]


def baselines(rows: pd.DataFrame) -> dict[str, float]:
    """The values of what needs no attention, by variant; those that the table has."""
    found = rows[rows["variant"].isin(BASELINE_NAMES)].set_index("variant")["value"]
    return {variant: float(found[variant]) for variant in BASELINE_NAMES if variant in found.index}


def numbers(table: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    """All that a panel draws as one table: a row a tau, and for each variant its mean, spread and change from dense."""
    rows = select(table, panel)
    moved = changes(rows, panel.unit)
    parts = []
    for variant in ("dense", *VARIANTS):
        part = curve(rows, variant)
        part["change"] = curve(moved, variant)["mean"]
        parts.append(part.assign(variant=variant))
    columns = ["variant", "tau", "percent", "effective", "evaluated", "mean", "low", "high", "seeds", "change"]
    return pd.concat(parts, ignore_index=True)[columns]

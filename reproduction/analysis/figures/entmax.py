"""Draw entmax_comparison: translation with softmax and with entmax 1.5, dense and pruned, and the zeros of entmax.

    cd results/quick
    python -m reproduction.analysis.figures entmax_comparison --metrics entmax_comparison.csv --out FILE.png

A mask prunes the same cells in every sentence; entmax gives some keys a probability of exactly zero, in each sentence
others. The figure shows the metric against tau and against what the masks took from the test sentences, and the zeros
of every site. The table holds every value by seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.curves import PANELS, select
from reproduction.analysis.figures.captions import EVALUATED_SPARSITY, SPREAD, name_of, spread
from reproduction.analysis.figures.sites import SITES as SITE_STYLES
from reproduction.analysis.figures.style import DPI, FONT, OfOneTable
from reproduction.analysis.stats import Difference, named_seeds, on_common_seeds, paired

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = next(panel for panel in PANELS if panel.experiment == "translation")
#: Normaliser -> its variants, dense and pruned.
NORMALISERS = {"softmax": ("dense", "data"), "entmax": ("entmax-dense", "entmax-data")}
STYLES = {
    "softmax": {"color": "#0072B2", "marker": "o", "label": "softmax"},
    "entmax": {"color": "#D18700", "marker": "v", "label": "entmax 1.5"},
}
BY_MASK = "#B8B8B8"
#: Name of each single site.
SITES = {site: style["label"] for site, style in SITE_STYLES.items() if site != "all"}
#: What ``fairseq/inspect_checkpoint.py`` measures, as `results` calls it.
_INSPECTED = "{}@checkpoint"
_LABELS = ["variant", "tau", "seed"]
_SHARES = ("zeros", "pruned", "kept_zeros")


def values(table: pd.DataFrame) -> pd.DataFrame:
    """One row a model and seed, with all that was measured of it, on the seeds that all models have.

    Returns
    -------
    pandas.DataFrame
        ``normaliser``, ``variant``, ``tau``, ``seed``, ``evaluated_sparsity``, ``value`` (of the panel's metric),
        ``chrf``, and shares in [0, 1]: ``zeros`` and ``pruned`` of the allowed cells, ``kept_zeros`` of the cells that
        the mask leaves, over all sites and as ``NAME_SITE``.

    Raises
    ------
    InputError
        If one of the normalisers has no dense model, or a model lacks one of the values.
    """
    rows = select(table, PANEL)
    owner = {variant: name for name, variants in NORMALISERS.items() for variant in variants}
    rows = rows[rows["variant"].isin(owner)]
    if not (rows["variant"] == "entmax-dense").any():
        raise InputError("expected a dense translation model with entmax in the table, found none")
    rows = rows.assign(normaliser=rows["variant"].map(owner))[["normaliser", *_LABELS, "evaluated_sparsity", "value"]]
    wanted = {"chrf": (PANEL.split, "chrf")}
    for share in _SHARES:
        wanted |= {share: (PANEL.split, _INSPECTED.format(share))}
        wanted |= {f"{share}_{site}": (PANEL.split, _INSPECTED.format(f"{share}_{site}")) for site in SITES}
    ours = table[(table["experiment"] == PANEL.experiment) & (table["sites"] == PANEL.sites)]
    for name, (split, metric) in wanted.items():
        found = ours[(ours["split"] == split) & (ours["metric"] == metric)]
        rows = rows.merge(found[[*_LABELS, "value"]].rename(columns={"value": name}), on=_LABELS, how="left")
        if rows[name].isna().any():
            lacking = rows[rows[name].isna()].iloc[0]
            model = f"{lacking['variant']}, tau {lacking['tau']:g}, seed {lacking['seed']}"
            raise InputError(f"expected {metric} on {split} of {model} in the table, found no such row")
    rows = on_common_seeds(rows, ("variant", "tau"))
    return rows.sort_values(["normaliser", "tau", "seed"], ascending=[False, True, True], ignore_index=True)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise what `values` returns over seeds.

    Returns
    -------
    pandas.DataFrame
        One row a normaliser and tau, softmax first: ``seeds``, ``mean``, ``low`` and ``high`` of the metric, means of
        all other values.
    """
    groups = rows.groupby(["normaliser", "tau"], sort=False)
    shares = [name for name in rows if name.startswith(_SHARES)]
    found = groups.agg(
        seeds=("seed", "nunique"),
        mean=("value", "mean"),
        low=("value", "min"),
        high=("value", "max"),
    )
    return found.join(groups[["evaluated_sparsity", "chrf", *shares]].mean()).reset_index()


def differences(rows: pd.DataFrame) -> dict[float, Difference]:
    """Entmax minus softmax at each tau, seed by seed."""
    pairs = {tau: dict(list(same.groupby("normaliser"))) for tau, same in rows.groupby("tau", sort=True)}
    return {tau: paired(pair["entmax"], pair["softmax"]) for tau, pair in pairs.items() if len(pair) == 2}


def draw(table: pd.DataFrame) -> Figure:
    """Draw the metric twice, above, and the zeros of every site, below.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``table.COLUMNS``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows = values(table)
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(9.4, 7.6), dpi=DPI, layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))
        by_tau, by_use = above.subplots(1, 2, sharey=True)
        for axes, column in ((by_tau, "tau"), (by_use, "evaluated_sparsity")):
            for name in NORMALISERS:
                _draw_line(axes, rows[rows["normaliser"] == name], column, STYLES[name])
            axes.set_xlim(-4, 100)
            axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines["top"].set_visible(False)
        _mark_own_zeros(by_use, rows)
        by_tau.set_xlabel("Attention pruned, \u03c4 (%)")
        by_tau.set_ylabel(f"{PANEL.label} ({PANEL.split}), {PANEL.better} is better")
        by_use.set_xlabel(f"Evaluated sparsity, {PANEL.split} (%)")
        above.legend(*by_use.get_legend_handles_labels(), loc="outside lower center", ncols=3, edgecolor="none")
        _draw_zeros(below.subplots(), rows[rows["normaliser"] == "entmax"])
    return figure


def _draw_line(axes: Axes, rows: pd.DataFrame, column: str, style: dict[str, str]) -> None:
    """A dot a seed, a line through the means of each tau, the dense model among them."""
    points = rows.assign(x=100 * rows[column])
    axes.scatter(points["x"], points["value"], s=13, color=style["color"], alpha=0.45, linewidths=0, zorder=3)
    means = points.groupby("tau", sort=True)[["x", "value"]].mean()
    axes.plot(means["x"], means["value"], linewidth=1.6, markersize=5.5, zorder=4, **style)


def _mark_own_zeros(axes: Axes, rows: pd.DataFrame) -> None:
    """On the x axis, what the dense model with entmax has of zeros by itself; a tick a seed."""
    zeros = 100 * rows.loc[rows["variant"] == "entmax-dense", "zeros"]
    style = {"color": STYLES["entmax"]["color"], "linestyle": (0, (4, 2)), "linewidth": 1.1}
    axes.axvline(zeros.mean(), zorder=2, label="exact zeros of unpruned entmax", **style)
    ticks = {"marker": "|", "color": style["color"], "s": 90, "linewidths": 1.4, "clip_on": False, "zorder": 5}
    axes.scatter(zeros, [0.0] * len(zeros), transform=axes.get_xaxis_transform(), **ticks)


def _draw_zeros(axes: Axes, rows: pd.DataFrame) -> None:
    """A bar a tau, for all sites and each of them: what is zero by the mask, and on top what entmax made zero."""
    taus = sorted(rows["tau"].unique())
    width, ticks, names = len(taus) + 1.5, [], []
    groups = {"": SITE_STYLES["all"]["label"], **{f"_{site}": name for site, name in SITES.items()}}
    for number, (site, title) in enumerate(groups.items()):
        places = [number * width + position for position in range(len(taus))]
        for place, tau in zip(places, taus, strict=True):
            models = rows[rows["tau"] == tau]
            total = 100 * models[f"zeros{site}"]
            own = 100 * models[f"kept_zeros{site}"] * (1 - models[f"pruned{site}"])
            first = place == 0
            masked = (total - own).mean()
            axes.bar(place, masked, 0.86, color=BY_MASK, label="zero by the mask" if first else None)
            style = {"color": STYLES["entmax"]["color"], "label": "zero by entmax" if first else None}
            axes.bar(place, own.mean(), 0.86, bottom=masked, **style)
            axes.scatter([place] * len(total), total, s=9, color="#000000", linewidths=0, zorder=3)
        ticks += places
        names += [f"{100 * tau:.0f}" for tau in taus]
        middle = sum(places) / len(places)
        axes.annotate(title, (middle, 0), (0, -20), ("data", "axes fraction"), "offset points", ha="center", va="top")
    axes.set_xticks(ticks, names, fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("Attention pruned, \u03c4 (%), by site", labelpad=20)
    axes.set_ylabel("Exact zeros of entmax,\n% of allowed cells (test)")
    axes.set_ylim(0, 100)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["top"].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.12), ncols=2, edgecolor="none", borderpad=0)


def caption(table: pd.DataFrame) -> str:
    """Return the caption of the figure: plain paragraphs, readable as Markdown and as reStructuredText."""
    rows = values(table)
    models = summary(rows)
    first = select(table, PANEL).iloc[0]
    rules = ", ".join(sorted(select(table, PANEL)["rule"].dropna().unique())) or "none"
    about = (
        f"Translation of {first['dataset']} with softmax and with entmax 1.5 at all three sites, configuration "
        f"{first['config']}: {name_of(PANEL)} on the {PANEL.split} split, {named_seeds(rows)} (dots; lines through "
        f"their means), rule: {rules}. {SPREAD} Each sparse model is pruned by the pattern of the dense model with the "
        "same normaliser and seed. On the right, the evaluated sparsity on the test sentences, read with their "
        f"references: {EVALUATED_SPARSITY}. Dashed, with a tick a seed, the share of those cells to which the unpruned "
        "entmax model itself gives a probability of exactly zero."
    )
    parts = [about, _quality_found(rows, models), _zeros_found(models, rows)]
    return "\n\n".join(parts) + "\n"


def _ends(models: pd.DataFrame) -> list[float]:
    """Tau 0, and the highest."""
    return sorted({models["tau"].min(), models["tau"].max()})


def _at(tau: float) -> str:
    return f"at tau {tau:g}" if tau else "dense"


def _quality_found(rows: pd.DataFrame, models: pd.DataFrame) -> str:
    found = []
    for tau in _ends(models):
        parts = [
            f"{STYLES[line.normaliser]['label']} {spread(line)} (chrF {line.chrf:.1f}, "
            f"evaluated sparsity {100 * line.evaluated_sparsity:.0f}%)"
            for line in models[models["tau"] == tau].itertuples()
        ]
        found.append(f"{_at(tau)}, {' and '.join(parts)}")
    gaps = [f"{_at(tau)} {difference.told()}" for tau, difference in differences(rows).items()]
    return f"{PANEL.label}: {'; '.join(found)}. Entmax minus softmax: {'; '.join(gaps)}."


def _zeros_found(models: pd.DataFrame, rows: pd.DataFrame) -> str:
    entmax = models[models["normaliser"] == "entmax"]
    dense, last = entmax.iloc[0], entmax.iloc[-1]
    sites = ", ".join(f"{name} {100 * dense[f'zeros_{site}']:.1f}%" for site, name in SITES.items())
    text = [
        "Below, exact zeros among the allowed cells (query and key real and, in the decoder, not in the future), each "
        "cell of each sentence, layer and head counted once: grey what is zero by the mask, coloured what entmax made "
        f"zero of the cells that the mask left. Unpruned, entmax zeroes {100 * dense['zeros']:.1f}% ({sites})."
    ]
    if last["tau"]:
        text.append(
            f"{_at(last['tau']).capitalize()} {100 * last['zeros']:.1f}% of the allowed cells are zero, and of those "
            f"that the mask leaves {100 * last['kept_zeros']:.1f}%."
        )
    largest = rows.loc[rows["normaliser"] == "softmax", "kept_zeros"].max()
    text.append(f"With softmax at most {100 * largest:.2g}% of the cells that a mask leaves are zero, by underflow.")
    return " ".join(text)


FIGURE = OfOneTable(draw, caption, lambda table: f"{len(summary(values(table)))} models")

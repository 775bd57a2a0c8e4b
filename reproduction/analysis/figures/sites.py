"""Draw translation_sites: the cost of pruning one site of attention alone, beside all three, in translation.

    cd results/quick
    python -m reproduction.analysis.figures translation_sites --metrics translation_sites.csv --out FILE.png

The figure shows the metric against tau, and against the evaluated sparsity of those sites: taus of different sites, and
masks of different kinds, compare there. All models are shown on the seeds that every one of them has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.curves import PANELS, curve, select
from reproduction.analysis.figures.captions import EVALUATED_SPARSITY, NAMES, SPREAD, name_of
from reproduction.analysis.figures.style import DPI, FONT, STYLES, OfOneTable
from reproduction.analysis.stats import named_seeds, on_common_seeds, paired

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Translation, with the models of all choices of sites.
PANEL = replace(next(panel for panel in PANELS if panel.experiment == "translation"), sites=None)
SITES = {
    "all": {"color": "#000000", "marker": "o", "label": "all three sites"},
    "enc-self": {"color": "#0072B2", "marker": "s", "label": "encoder self-attention"},
    "dec-self": {"color": "#009E73", "marker": "^", "label": "decoder self-attention"},
    "enc-dec": {"color": "#D55E00", "marker": "D", "label": "encoder-decoder attention"},
}
CONTROLS = ("random", "window", "distance")


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of all models that are drawn, on the seeds that every one of them has."""
    rows = select(table, PANEL)
    return on_common_seeds(rows[rows["variant"].isin(["dense", "data", *CONTROLS])])


def lines_of(table: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """What is drawn: variant, sites, and the rows of both, the controls last.

    Raises
    ------
    InputError
        If the table has no translation model that prunes one site alone.
    """
    rows = compared(table)
    chosen = [("data", sites) for sites in SITES] + [(variant, "all") for variant in CONTROLS]
    groups = dict(list(rows.groupby(["variant", "sites"])))
    lines = [(*line, groups[line]) for line in chosen if line in groups]
    if not any(variant == "data" and sites != "all" for variant, sites, _ in lines):
        raise InputError("expected translation models that prune one site alone in the table, found none")
    return lines


def draw(table: pd.DataFrame) -> Figure:
    """Draw both panels.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``table.COLUMNS``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    dense = curve(compared(table), "dense")
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(9.4, 4.6), dpi=DPI, layout="constrained")
        by_tau, by_use = figure.subplots(1, 2, sharey=True)
        for axes, column in ((by_tau, "tau"), (by_use, "evaluated_sparsity")):
            axes.axhline(dense["mean"].iloc[0], color="#000000", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            for variant, sites, rows in lines_of(table):
                if variant == "data" or column != "tau":
                    _draw_line(axes, rows, column, dense, _style(variant, sites))
            axes.set_xlim(-4, 100)
            axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines["top"].set_visible(False)
        by_tau.set_xlabel("Attention pruned, \u03c4 (%)")
        by_tau.set_ylabel(f"{PANEL.label} ({PANEL.split}), {PANEL.better} is better")
        by_use.set_xlabel(f"Evaluated sparsity of these sites, {PANEL.split} (%)")
        figure.legend(*by_use.get_legend_handles_labels(), loc="outside lower center", ncols=3, edgecolor="none")
    return figure


def _style(variant: str, sites: str) -> dict[str, str]:
    if variant == "data":
        return SITES[sites]
    label = f"{NAMES[variant]}, {SITES[sites]['label']}"
    return STYLES[variant] | {"color": "#888888", "linestyle": "--", "label": label}


def _draw_line(axes: Axes, rows: pd.DataFrame, column: str, dense: pd.DataFrame, style: dict[str, str]) -> None:
    """A dot a seed, and a line through the means of each tau, which starts at the dense model."""
    axes.scatter(100 * rows[column], rows["value"], s=13, color=style["color"], alpha=0.45, linewidths=0, zorder=3)
    means = rows.assign(x=100 * rows[column]).groupby("tau", sort=True)[["x", "value"]].mean()
    x = [0.0, *means["x"]]
    y = [dense["mean"].iloc[0], *means["value"]]
    axes.plot(x, y, linewidth=1.6, markersize=5.5, markevery=range(1, len(x)), zorder=4, **style)


def caption(table: pd.DataFrame) -> str:
    """Return the caption of the figure: plain paragraphs, readable as Markdown and as reStructuredText."""
    rows = compared(table)
    dense = rows[rows["variant"] == "dense"]
    text = [
        f"{PANEL.title} of {rows['dataset'].iloc[0]} with one site of attention pruned alone, and with all three, "
        f"configuration {rows['config'].iloc[0]}: {name_of(PANEL)} on the {PANEL.split} split, {named_seeds(rows)}, "
        f"which all models have (dots; lines through their means). Dense {dense['value'].mean():.1f} (dotted). On the "
        f"right the same models, and controls, against the evaluated sparsity of those sites, {EVALUATED_SPARSITY}. "
        f"{SPREAD}"
    ]
    found = []
    for variant, sites, line in lines_of(table):
        last = line[line["tau"] == line["tau"].max()]
        name = SITES[sites]["label"] if variant == "data" else f"{NAMES[variant]} ({SITES[sites]['label']})"
        found.append(
            f"{name} at tau {last['tau'].iloc[0]:g} {paired(last, dense).told()}, evaluated sparsity "
            f"{last['evaluated_sparsity'].mean():.0%}"
        )
    return "\n\n".join([*text, f"Minus dense, at the highest tau of each: {'; '.join(found)}."]) + "\n"


FIGURE = OfOneTable(draw, caption, lambda table: f"{len(lines_of(table))} lines")

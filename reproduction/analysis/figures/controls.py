"""Draw controls, an ablation: data-informed masks against less informed ones, by evaluated sparsity.

    python -m reproduction.analysis.figures controls --metrics results/quick/metrics.csv --out controls.png

Masks of one tau need not prune as much of a text's attention. The x axis is therefore the evaluated sparsity; the table
beside the figure has the differences at equal tau, seed by seed. A panel has the seeds that all of its models have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from reproduction.analysis.curves import VARIANTS, Panel, curve, panels_of, select
from reproduction.analysis.figures.captions import EVALUATED_SPARSITY, NAMES, SPREAD, name_of
from reproduction.analysis.figures.style import DPI, FONT, STYLES, OfOneTable
from reproduction.analysis.stats import Difference, named_seeds, on_common_seeds, paired

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTROLS = tuple(variant for variant in VARIANTS if variant != "data")
#: What a caption calls the masks of each control.
KINDS = {
    "random": "random ones",
    "window": "a fixed window around the diagonal",
    "distance": "masks that know the pattern by distance alone",
}


def compared(table: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    """Dense, data-informed and control models of a panel, on the seeds that all of them have."""
    rows = select(table, panel)
    return on_common_seeds(rows[rows["variant"].isin(["dense", *VARIANTS])])


def draw(table: pd.DataFrame) -> Figure:
    """Draw a panel for each experiment.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``table.COLUMNS``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    panels = panels_of(table)
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(4.4 * len(panels), 4.3), dpi=DPI, layout="constrained")
        places = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(places, panels, strict=True):
            _draw_panel(axes, compared(table, panel), panel)
        shown = {
            label: handle for axes in places for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        columns = min(len(shown), 2 * len(panels))  # what the width of the panels has room for
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns, edgecolor="none")
    return figure


def _draw_panel(axes: Axes, rows: pd.DataFrame, panel: Panel) -> None:
    """A dot a seed; a line from the dense model through the means, of both axes, at each tau."""
    dense = curve(rows, "dense")["mean"].iloc[0]
    style = STYLES["dense"]
    axes.axhline(dense, color=style["color"], linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    for variant in ("dense", *VARIANTS):
        single = rows[rows["variant"] == variant]
        if single.empty:
            continue
        style = STYLES[variant]
        x = 100 * single["evaluated_sparsity"]
        axes.scatter(x, single["value"], s=13, color=style["color"], alpha=0.45, linewidths=0, zorder=3)
        means = single.assign(x=x).groupby("tau", sort=True)[["x", "value"]].mean()
        start = [] if variant == "dense" else [(0.0, dense)]
        points = [*start, *means.itertuples(index=False, name=None)]
        markers = range(len(start), len(points))
        axes.plot(*zip(*points, strict=True), linewidth=1.5, markersize=5.5, markevery=markers, zorder=4, **style)
    axes.set_xlim(-4, 100)
    axes.set_xlabel(f"Evaluated sparsity, {panel.split} (%)")
    axes.set_ylabel(f"{panel.label} ({panel.split}), {panel.better} is better")
    axes.set_title(f"{panel.title}, {named_seeds(rows)}")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["top"].set_visible(False)


def contrasts(table: pd.DataFrame, panel: Panel) -> list[tuple[str, float, pd.DataFrame, pd.DataFrame, Difference]]:
    """Data-informed against each control at equal tau: control, tau, the rows of both, their paired difference."""
    rows, found = compared(table, panel), []
    for control in CONTROLS:
        for tau, same in rows.groupby("tau", sort=True):
            data, other = (same[same["variant"] == variant] for variant in ("data", control))
            if not data.empty and not other.empty:
                found.append((control, tau, data, other, paired(data, other)))
    return found


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Data-informed minus control at equal tau, seed by seed, and then the mean over seeds.

    Returns
    -------
    pandas.DataFrame
        One row a panel, control and tau: ``seeds`` (how many), ``data`` and ``control`` (mean values), ``difference``,
        ``low`` and ``high`` (mean, lowest and highest over seeds), ``ci_low`` and ``ci_high`` (its t interval, empty
        for fewer than three seeds), ``data_better`` (seeds in which the data-informed mask is better),
        ``data_evaluated`` and ``control_evaluated`` (mean evaluated sparsities). No row where a control was not
        trained.
    """
    found = []
    for panel in panels_of(table):
        for control, tau, data, other, difference in contrasts(table, panel):
            sign = -1 if panel.better == "lower" else 1
            low, high = difference.interval or (None, None)
            known = {"experiment": panel.experiment, "metric": panel.metric, "better": panel.better}
            known |= {"against": control, "tau": tau, "seeds": len(difference.seeds)}
            means = {"data": data["value"].mean(), "control": other["value"].mean(), "difference": difference.mean}
            spread = {"low": min(difference.values), "high": max(difference.values), "ci_low": low, "ci_high": high}
            shares = {"data_better": sum(sign * value > 0 for value in difference.values)}
            shares |= {"data_evaluated": data["evaluated_sparsity"].mean()}
            shares |= {"control_evaluated": other["evaluated_sparsity"].mean()}
            found.append(known | means | spread | shares)
    columns = ["experiment", "metric", "better", "against", "tau", "seeds", "data", "control", "difference"]
    columns += ["low", "high", "ci_low", "ci_high", "data_better", "data_evaluated", "control_evaluated"]
    return pd.DataFrame(found, columns=columns).astype({"ci_low": float, "ci_high": float})


def caption(table: pd.DataFrame) -> str:
    """Return the caption of the figure: plain paragraphs, readable as Markdown and as reStructuredText."""
    trained = [control for control in CONTROLS if (table["variant"] == control).any()]
    parts = [
        f"Ablation: does the pattern matter, or only how much is kept? Configuration {table['config'].iloc[0]}: "
        f"data-informed masks beside {', '.join(KINDS[control] for control in trained) or 'the dense model'}, by "
        f"evaluated sparsity, {EVALUATED_SPARSITY}. Dots are seeds, lines their means from the dense model (dotted) "
        f"on; each marker is a tau. A panel has the seeds that all of its models have. {SPREAD}"
    ]
    for panel in panels_of(table):
        found = [
            f"tau {tau:g}, {NAMES[control]} {difference.told()}, evaluated sparsity "
            f"{data['evaluated_sparsity'].mean():.0%} and {other['evaluated_sparsity'].mean():.0%}"
            for control, tau, data, other, difference in contrasts(table, panel)
        ]
        text = "; ".join(found) or "no control was trained"
        seeds = named_seeds(compared(table, panel))
        parts.append(
            f"{panel.title}, {name_of(panel)}, {panel.better} is better, {seeds}. Data-informed minus control: {text}."
        )
    return "\n\n".join(parts) + "\n"


FIGURE = OfOneTable(draw, caption, lambda table: ", ".join(panel.title for panel in panels_of(table)), differences)

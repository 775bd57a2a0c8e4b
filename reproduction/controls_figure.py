"""Draw controls: data-informed masks against less informed ones, by the attention that the text really lost.

    python -m reproduction.controls_figure --metrics results/quick/metrics.csv --out results/quick/controls.png

Masks of one tau need not take as much attention from a text. The x axis is therefore the evaluated sparsity; the table
beside the figure has the differences at equal tau, seed by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from reproduction.captions import NAMES, name_of
from reproduction.curves import VARIANTS, Panel, curve, select
from reproduction.figure_command import run_figure
from reproduction.figures import DPI, FONT, STYLES, panels_of
from reproduction.training import run_main

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


def draw(table: pd.DataFrame) -> Figure:
    """Draw a panel for each experiment.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``results.COLUMNS``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    panels = panels_of(table)
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(4.4 * len(panels), 4.3), dpi=DPI, layout="constrained")
        places = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(places, panels, strict=True):
            _draw_panel(axes, select(table, panel), panel)
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
    axes.set_xlabel(f"Attention that the {panel.split} text lost (%)")
    axes.set_ylabel(f"{panel.label} ({panel.split}), {panel.better} is better")
    axes.set_title(panel.title)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["top"].set_visible(False)


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Data-informed minus control at equal tau, seed by seed, and then the mean over seeds.

    Returns
    -------
    pandas.DataFrame
        One row a panel, control and tau: ``seeds`` (that have both), ``data`` and ``control`` (mean values),
        ``difference``, ``low`` and ``high`` (mean, lowest and highest over seeds), ``data_better`` (seeds in which the
        data-informed mask is better), ``data_evaluated`` and ``control_evaluated`` (mean evaluated sparsities). No row
        where a control was not trained.
    """
    paired = ["seed", "tau", "value", "evaluated_sparsity"]
    found = []
    for panel in panels_of(table):
        rows = select(table, panel)
        data = rows.loc[rows["variant"] == "data", paired]
        for control in CONTROLS:
            pairs = data.merge(rows.loc[rows["variant"] == control, paired], on=["seed", "tau"], suffixes=("", "_c"))
            for tau, pair in pairs.groupby("tau", sort=True):
                difference = pair["value"] - pair["value_c"]
                better = difference < 0 if panel.better == "lower" else difference > 0
                known = {"experiment": panel.experiment, "metric": panel.metric, "better": panel.better}
                known |= {"against": control, "tau": tau, "seeds": len(pair)}
                means = {"data": pair["value"].mean(), "control": pair["value_c"].mean()}
                spread = {"difference": difference.mean(), "low": difference.min(), "high": difference.max()}
                shares = {"data_better": int(better.sum()), "data_evaluated": pair["evaluated_sparsity"].mean()}
                shares["control_evaluated"] = pair["evaluated_sparsity_c"].mean()
                found.append(known | means | spread | shares)
    columns = ["experiment", "metric", "better", "against", "tau", "seeds", "data", "control", "difference"]
    columns += ["low", "high", "data_better", "data_evaluated", "control_evaluated"]
    return pd.DataFrame(found, columns=columns)


def caption(table: pd.DataFrame) -> str:
    """Return the caption of the figure: plain paragraphs, readable as Markdown and as reStructuredText."""
    compared = differences(table)
    beside = [KINDS[control] for control in CONTROLS if (compared["against"] == control).any()]
    parts = [
        f"Does the pattern matter, or only how much is kept? Configuration {table['config'].iloc[0]}: data-informed "
        f"masks beside {', '.join(beside) or 'the dense model'}, by the share of the attention that "
        "the evaluated text lost (each cell weighed by how often the text uses it). Dots are seeds, lines their means "
        "from the dense model (dotted) on; each marker is a tau."
    ]
    for panel in panels_of(table):
        rows = compared[compared["experiment"] == panel.experiment]
        found = [
            f"tau {line.tau:g} against {NAMES[line.against]} {line.difference:+.2f} ({_seeds(line)}; "
            f"{line.data_evaluated:.0%} and {line.control_evaluated:.0%} lost)"
            for line in rows.itertuples()
        ]
        text = "; ".join(found) or "no control was trained"
        parts.append(f"{panel.title}, {name_of(panel)}, {panel.better} is better, data-informed minus control: {text}.")
    return "\n\n".join(parts) + "\n"


def _seeds(line: Any) -> str:
    """What the seeds say of a difference (a row from ``itertuples``); one seed has no spread."""
    if line.seeds == 1:
        return "one seed"
    return f"seeds {line.low:+.2f} to {line.high:+.2f}, better in {line.data_better} of {line.seeds}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_figure(
        "controls_figure",
        "Draw data-informed masks against random ones, windows and masks by distance.",
        argv,
        draw=draw,
        caption=caption,
        contents=lambda table: ", ".join(panel.title for panel in panels_of(table)),
        numbers=differences,
    )


if __name__ == "__main__":
    run_main(main)

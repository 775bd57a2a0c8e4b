"""Draw ap_figure, the paper's figure, from metrics.csv.

    python -m reproduction.analysis.figures ap_figure --metrics results/quick/metrics.csv --out ap_figure.png
    python -m reproduction.analysis.figures ap_figure --metrics results/quick/metrics.csv --table

Each experiment in the table is a panel as in the paper, and beside it the change from dense, ours and the published
one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.curves import (
    BASELINE_NAMES,
    VARIANTS,
    Panel,
    baselines,
    changes,
    comparable,
    curve,
    panels_of,
    select,
)
from reproduction.analysis.figures.captions import caption, table_text
from reproduction.analysis.figures.style import DPI, FONT, STYLES, add_runs_flag, require_png, save_with_caption
from reproduction.analysis.paper import REFERENCE, comparison, published, read_reference
from reproduction.analysis.table import read_csv, write_csv

if TYPE_CHECKING:  # matplotlib takes a second to import, which printing the table does not need
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_X_LIMITS = (-4, 100)
_X_TICKS = (0, 20, 40, 60, 80, 100)
#: Of what needs no attention, one after the other.
_DASHES = ("--", "-.")


def draw(table: pd.DataFrame, reference: pd.DataFrame) -> Figure:
    """Draw all panels that the table has runs of.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``table.COLUMNS``.
    reference : pandas.DataFrame
        Published numbers, columns ``paper.REFERENCE_COLUMNS``.

    Returns
    -------
    matplotlib.figure.Figure
        One panel stands beside its companion, several stand above theirs.
    """
    import matplotlib

    # Not pyplot: no display is asked for, and nothing global is left behind.
    from matplotlib.figure import Figure

    panels = panels_of(table)
    with matplotlib.rc_context(FONT):
        if len(panels) == 1:
            figure = Figure(figsize=(9.0, 4.6), dpi=DPI, layout="constrained")
            pairs = [figure.subplots(1, 2, width_ratios=(1.7, 1))]
        else:
            figure = Figure(figsize=(4.6 * len(panels), 7.6), dpi=DPI, layout="constrained")
            pairs = figure.subplots(2, len(panels), height_ratios=(1.6, 1)).T
        for panel, (main_axes, side_axes) in zip(panels, pairs, strict=True):
            draw_panel(main_axes, select(table, panel), panel)
            draw_change(side_axes, table, panel, reference)
    return figure


def draw_panel(axes: Axes, rows: pd.DataFrame, panel: Panel) -> None:
    """Draw a panel as in the paper: the metric against the share of attention pruned.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    rows : pandas.DataFrame
        What ``curves.select`` returns.
    panel : Panel
    """
    dense = curve(rows, "dense")
    axes.axhline(dense["mean"].iloc[0], color=STYLES["dense"]["color"], linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    draw_curve(axes, rows, "dense")
    for variant in VARIANTS:
        draw_curve(axes, rows, variant, start=dense if variant == "data" else None)
    _frame(axes)
    axes.set_title(panel.title)
    axes.set_ylabel(f"{panel.label} ({panel.split}), {panel.better} is better")
    axes.margins(y=0.08)
    axes.autoscale_view(scalex=False)
    for line, (variant, value) in zip(_DASHES, baselines(rows).items(), strict=False):
        _draw_baseline(axes, value, BASELINE_NAMES[variant], line)
    effective_axis(axes, pd.concat([dense, curve(rows, "data")]))
    _legend_below(axes)


def draw_curve(
    axes: Axes, rows: pd.DataFrame, variant: str, start: pd.DataFrame | None = None, label: str | None = None
) -> None:
    """Draw one variant: a dot a seed, a line through the means, a band from the lowest to the highest seed.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    rows : pandas.DataFrame
        What ``curves.select`` or ``curves.changes`` returns.
    variant : str
        A key of `STYLES`. Nothing is drawn if no row is of it.
    start : pandas.DataFrame, optional
        A curve to begin with: the dense model, where nothing is pruned yet. The line starts there, without a marker.
    label : str, optional
        In the legend; else that of `STYLES`.
    """
    line = curve(rows, variant)
    if line.empty:
        return
    single = rows[rows["variant"] == variant]
    style = STYLES[variant] | ({} if label is None else {"label": label})
    above = 6 if variant == "dense" else 4
    axes.scatter(100 * single["tau"], single["value"], s=13, color=style["color"], alpha=0.45, linewidths=0, zorder=3)
    if start is not None:
        line = pd.concat([start, line], ignore_index=True)
    markers = list(range(0 if start is None else 1, len(line)))
    if len(line) > 1:
        band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(line["percent"], line["low"], line["high"], zorder=2, **band)
    elif line["seeds"].iloc[0] > 1:
        spread = [line["mean"] - line["low"], line["high"] - line["mean"]]
        axes.errorbar(line["percent"], line["mean"], spread, color=style["color"], linewidth=1.2, alpha=0.5, zorder=2)
    axes.plot(line["percent"], line["mean"], linewidth=1.6, markersize=5.5, markevery=markers, zorder=above, **style)


def _draw_baseline(axes: Axes, value: float, name: str, line: str) -> None:
    """A line where no attention gets; where that would squeeze the curves, the legend alone says where it is."""
    low, high = axes.get_ylim()
    room = 0.35 * (high - low)
    if not low - room <= value <= high + room:
        label = f"{name} {value:.1f} ({'below' if value < low else 'above'})"
        axes.plot([], [], linewidth=0.9, linestyle=line, label=label, **STYLES["baseline"])
        return
    axes.axhline(value, linewidth=0.9, linestyle=line, zorder=1, label=name, **STYLES["baseline"])
    margin = 0.08 * (high - low)
    axes.set_ylim(min(low, value - margin), max(high, value + margin))


def _legend_below(axes: Axes) -> None:
    """The legend stands below the axes, where no line is."""
    columns = 2 if len(axes.get_legend_handles_labels()[1]) > 1 else 1
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 4.3}
    axes.legend(ncols=columns, edgecolor="none", borderpad=0.2, **below)


def effective_axis(axes: Axes, line: pd.DataFrame) -> None:
    """Say above each tau how much of the real attention went: zeros of the causal mask count as pruned in tau."""
    if line.empty:
        return
    top = axes.secondary_xaxis("top")
    top.set_xticks(line["percent"], [f"{value:.0f}" for value in line["effective"]])
    top.set_xlabel("Effective sparsity (%)", fontsize=8.5, color="#444444")
    top.tick_params(labelsize=8.5, colors="#444444")


def draw_change(axes: Axes, table: pd.DataFrame, panel: Panel, reference: pd.DataFrame) -> None:
    """Draw the companion: change from the dense model, ours and the published one, of one metric.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    table : pandas.DataFrame
        Columns ``table.COLUMNS``.
    panel : Panel
    reference : pandas.DataFrame
        Published numbers, columns ``paper.REFERENCE_COLUMNS``.
    """
    own, rows = comparable(table, panel)
    paper = published(reference, own)
    axes.axhline(0, color=STYLES["dense"]["color"], linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    if not rows.empty:
        moved = changes(rows, own.unit)
        draw_curve(axes, moved, "data", start=curve(moved, "dense"), label=f"here, {rows['dataset'].iloc[0]}")
    style = STYLES["published"] | {"label": f"published, {paper['dataset'].iloc[0]}"}
    axes.plot(paper["percent"], paper["change"], linewidth=1.6, markersize=6, linestyle="--", zorder=3, **style)
    _frame(axes)
    axes.spines["top"].set_visible(False)
    axes.set_title("Change from dense")
    axes.set_ylabel(f"{own.label} ({'%' if own.unit == 'percent' else own.unit})")
    _legend_below(axes)


def _frame(axes: Axes) -> None:
    axes.set_xlim(*_X_LIMITS)
    axes.set_xticks(_X_TICKS)
    axes.set_xlabel("Attention pruned, \u03c4 (%)")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.analysis.figures ap_figure",
        description="Draw the paper's figure from a table of metrics, with a caption beside it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.csv")
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="published numbers")
    parser.add_argument("--out", type=Path, help="picture to write (.png); .md and .csv go beside it")
    add_runs_flag(parser)
    parser.add_argument("--table", action="store_true", help="print the numbers that the figure draws")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    if args.out is None and not args.table:
        raise InputError("expected --out, a picture to write, or --table, found neither")
    if args.out is not None:
        require_png(args.out)
    table = read_csv(args.metrics)
    panels = panels_of(table)
    if args.out is not None:
        reference = read_reference(args.reference)
        save_with_caption(draw(table, reference), caption(table, panels), args.out, args.runs)
        write_csv(comparison(table, reference), args.out.with_suffix(".csv"))
        print(f"{args.out}: {', '.join(panel.title for panel in panels)}")
    if args.table:
        print(table_text(table, panels))
    return 0

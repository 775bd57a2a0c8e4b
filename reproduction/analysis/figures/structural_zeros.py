"""Draw structural_zeros: nominal sparsity (tau) against effective sparsity, layer by layer, at every site.

    python -m reproduction.analysis.figures structural_zeros --out structural_zeros.png \\
        --site "language model" dense/pattern.safetensors tau0.5/mask.safetensors tau0.9/mask.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from reproduction.analysis.figures.captions import EFFECTIVE_SPARSITY
from reproduction.analysis.figures.site_patterns import add_site_flag, layer_table, read_sites
from reproduction.analysis.figures.style import DPI, FONT, require_png, save_with_caption
from reproduction.analysis.table import write_csv

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EFFECTIVE, LOST = "#0072B2", "#D55E00"
COLUMNS = 3


def draw(table: pd.DataFrame) -> Figure:
    """Draw a panel for each site, three in a row.

    Parameters
    ----------
    table : pandas.DataFrame
        What ``site_patterns.layer_table`` returns.
    """
    import matplotlib
    from matplotlib.figure import Figure

    groups = list(table.groupby("site", sort=False))
    columns = min(len(groups), COLUMNS)
    rows = -(-len(groups) // columns)
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(3.5 * columns, 3.1 * rows + 0.5), dpi=DPI, layout="constrained")
        places = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
        for (title, part), axes in zip(groups, places, strict=False):
            _draw_site(axes, part)
            axes.set_title(str(title))
        for axes in places[len(groups) :]:
            axes.set_axis_off()
        for axes in places[max(len(groups) - columns, 0) : len(groups)]:
            axes.tick_params(labelbottom=True)  # nothing stands below
        figure.supxlabel("Attention pruned, \u03c4 (%)", fontsize=10)
        figure.supylabel("Share (%)", fontsize=10)
        handles, labels = places[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), edgecolor="none")
    return figure


def _draw_site(axes: Axes, part: pd.DataFrame) -> None:
    """Nominal against effective sparsity and lost attention: a thin line a layer, a thick one their mean."""
    means = part.groupby("tau", sort=True)[["effective_sparsity", "lost_attention"]].mean()
    taus = 100 * np.array([0.0, *means.index])
    axes.plot(taus, taus, color="#666666", linewidth=1, linestyle="--", label="nominal (\u03c4)")
    effective = 100 * np.array([0.0, *means["effective_sparsity"]])
    axes.fill_between(taus, effective, taus, where=effective < taus, interpolate=True, color="#DDDDDD", linewidth=0)
    for column, colour, label in (
        ("effective_sparsity", EFFECTIVE, "effective: share of allowed cells"),
        ("lost_attention", LOST, "share of probability on them"),
    ):
        for _, layer in part.groupby("layer"):
            line = layer.sort_values("tau")
            y = 100 * np.array([0.0, *line[column]])
            axes.plot(taus, y, color=colour, linewidth=0.7, alpha=0.5)
        y = 100 * np.array([0.0, *means[column]])
        axes.plot(taus, y, color=colour, linewidth=1.8, marker="o", markersize=4, label=label)
    axes.set(xlim=(0, 100), ylim=(0, 100), xticks=range(0, 101, 20), yticks=range(0, 101, 20))
    axes.grid(color="#EEEEEE", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["top"].set_visible(False)


def caption(table: pd.DataFrame) -> str:
    """Return the caption of the figure: plain paragraphs, readable as Markdown and as reStructuredText."""
    found = []
    for title, part in table.groupby("site", sort=False):
        last = part[part["tau"] == part["tau"].max()]
        low, high = last["effective_sparsity"].min(), last["effective_sparsity"].max()
        found.append(
            f"{title}, tau {last['tau'].iloc[0]:g}: {last['effective_sparsity'].mean():.0%} of the allowed cells "
            f"(layers {low:.1%} to {high:.1%}) with {last['lost_attention'].mean():.0%} of the probability; "
            f"{last['already_zero'].mean():.0%} of what tau counts could not be pruned"
        )
    rules = ", ".join(sorted(table["rule"].unique()))
    parts = [
        "Nominal sparsity, tau, (dashed) and effective sparsity (blue) of each site, of the dense model of the first "
        f"seed; rule: {rules}. The effective sparsity is {EFFECTIVE_SPARSITY}; orange is the share of the attention "
        "probability on the pruned cells. Thin lines are single layers, thick ones their mean. The grey gap is what "
        "tau counts as pruned although there was nothing to prune: cells that causality hides or that no sentence "
        "reaches, and best keys, which the row floor keeps.",
        f"{'. '.join(found)}.",
    ]
    return "\n\n".join(parts) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.analysis.figures structural_zeros",
        description="Draw effective against nominal sparsity, layer by layer, at every site.",
    )
    add_site_flag(parser)
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.png); .md and .csv go beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    require_png(args.out)
    table = layer_table(read_sites(args.site))
    save_with_caption(draw(table), caption(table), args.out)
    write_csv(table, args.out.with_suffix(".csv"))
    print(f"{args.out}: {', '.join(table['site'].unique())}")
    return 0

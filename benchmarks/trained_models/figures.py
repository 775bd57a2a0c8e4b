"""The figures of without_training.py and pattern_data.py, each beside its csv.

python benchmarks/trained_models/figures.py results/reference/benchmarks
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

#: Of each tau.
LINES = {0.5: "--", 0.9: "-"}
#: Before and after fine-tuning: column of the loss, of the dense model's, and the colour.
STAGES = {"no training": ("loss", "dense", "C3"), "fine-tuned": ("loss_tuned", "dense_tuned", "C0")}


def draw_masks(axis: Axes, rows: pd.DataFrame, kinds: list[str]) -> None:
    """A line of dots for each kind of mask: the rise of the loss over the dense model's, a dot a seed."""
    for offset, (stage, (loss, dense, colour)) in zip((0.12, -0.12), STAGES.items(), strict=True):
        height = [len(kinds) - 1 - kinds.index(kind) + offset for kind in rows["mask"]]
        axis.plot(rows[loss] - rows[dense], height, "o", color=colour, ms=4, alpha=0.8, label=stage)
    axis.axvline(rows["budget"].iloc[0], color="grey", lw=0.8, ls=":")
    axis.axvline(0, color="grey", lw=0.8)
    axis.set_yticks(range(len(kinds)), kinds[::-1], fontsize=8)
    axis.set_xscale("symlog", linthresh=0.05)
    axis.margins(x=0.1)
    axis.tick_params(axis="x", labelsize=7)
    axis.grid(axis="y", lw=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def draw_without_training(path: Path) -> None:
    """Models across, budgets down."""
    table = pd.read_csv(path)
    models, budgets, kinds = (list(dict.fromkeys(table[name])) for name in ("model", "budget", "mask"))
    kinds = sorted(kinds, key=lambda kind: (kind == "random", kind.startswith("window"), kind))
    figure, axes = plt.subplots(
        len(budgets), len(models), figsize=(3.4 * len(models), 2.3 * len(budgets)), layout="constrained", squeeze=False,
        sharey=True,
    )  # fmt: skip
    for line, budget in zip(axes, budgets, strict=True):
        for axis, model in zip(line, models, strict=True):
            rows = table[(table["model"] == model) & (table["budget"] == budget)]
            shares = rows.groupby("seed")["sparsity"].max()
            draw_masks(axis, rows, kinds)
            pruned = " and ".join(f"{share:.0%}" for share in shares)
            axis.set_title(f"{model}: {pruned} pruned\n(budget {budget:g} {rows['unit'].iloc[0]})", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    figure.supxlabel("rise of the test loss over the dense model's, a dot a seed (dotted: the budget)", fontsize=9)
    figure.savefig(path.with_suffix(".png"), dpi=110)


def draw_overlap(axis: Axes, rows: pd.DataFrame) -> None:
    """How much masks from few sequences prune in common with that of all of them."""
    for colour, (tau, some) in zip(("C0", "C1"), rows.groupby("tau"), strict=False):
        grown = some[some["data"].str.startswith("first")].sort_values("sequences")
        for number, (_, line) in enumerate(grown.groupby("seed")):
            axis.plot(line["sequences"], line["overlap"], "o-", color=colour, ms=3, lw=1,
                      label=None if number else f"tau {tau:g}")  # fmt: skip
        other = some[some["data"] == "out-of-distribution"]
        axis.plot(other["sequences"], other["overlap"], "x", color=colour, ms=6)
        axis.axhline(some["by_chance"].mean(), color=colour, lw=0.8, ls=":", label=f"random masks, tau {tau:g}")
    axis.set(xscale="log", ylim=(0, 1.02))


def draw_losses(axis: Axes, rows: pd.DataFrame) -> None:
    """What masks from few sequences cost, before and after fine-tuning."""
    for tau, some in rows.groupby("tau"):
        for stage, (loss, dense, colour) in STAGES.items():
            grown = some[some["data"].str.startswith("first") | (some["data"] == "all")].sort_values("sequences")
            for number, (_, line) in enumerate(grown.groupby("seed")):
                axis.plot(
                    line["sequences"], line[loss] - line[dense], f"o{LINES[tau]}", color=colour, ms=3,
                    lw=1, label=None if number else f"tau {tau:g}, {stage}",
                )  # fmt: skip
            other = some[some["data"] == "out-of-distribution"]
            axis.plot(other["sequences"], other[loss] - other[dense], "x", color=colour, ms=6, alpha=tau)
    axis.axhline(0, color="grey", lw=0.8)
    axis.set(xscale="log")


def draw_pattern_data(path: Path) -> None:
    """Models across; overlap above, losses below."""
    table = pd.read_csv(path)
    models = list(dict.fromkeys(table["model"]))
    size = (max(5.0, 3.4 * len(models)), 5.6)
    figure, axes = plt.subplots(2, len(models), figsize=size, layout="constrained", squeeze=False)
    for column, model in enumerate(models):
        rows = table[table["model"] == model]
        draw_overlap(axes[0, column], rows)
        draw_losses(axes[1, column], rows)
        axes[0, column].set_title(model, fontsize=9)
        axes[1, column].set_ylabel(f"rise of the test loss, {rows['unit'].iloc[0]}", fontsize=8)
    figure.supxlabel("sequences that the pattern saw; crosses: out-of-distribution data; a line a seed", fontsize=8)
    axes[0, 0].set_ylabel("pruned by both / by either,\nwith the mask of all the data", fontsize=8)
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.savefig(path.with_suffix(".png"), dpi=110)


def main() -> None:
    """Draw what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where without_training.csv and pattern_data.csv lie")
    folder = parser.parse_args().folder
    for name, draw in (("without_training", draw_without_training), ("pattern_data", draw_pattern_data)):
        if (folder / f"{name}.csv").exists():
            draw(folder / f"{name}.csv")


if __name__ == "__main__":
    main()

"""The figure of block_sparse_gpu.py: times torch's attention against the share of blocks pruned.

    python benchmarks/block_sparse_gpu_figure.py results/reference/benchmarks/block_sparse_gpu.csv

It lies beside the csv. Times are of the GPU alone where the csv has them, else of plain calls; the number format is the
first of the csv. Above is attention without a mask, below the same under the mask, which a pruned model takes
otherwise. What is in a mask does not change its time: it was measured at one sparsity of a length and is used for all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

KINDS = ("forward", "forward+backward")
LINES = {32: "--", 64: "-", 128: ":"}
TICKS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16)


def of_gpu(table: pd.DataFrame) -> bool:
    """Whether the GPU was timed alone."""
    return "gpu_milliseconds" in table and bool(table["gpu_milliseconds"].notna().all())


def against_dense(line: pd.DataFrame) -> tuple[pd.Series, list[pd.Series] | None]:
    """Medians of the ratio within a round, and how far the lowest and the highest round are from them, if known."""
    if of_gpu(line):
        return line["gpu_times_dense"], None
    middle = line["times_dense"]
    return middle, [middle - line["low_dense"], line["high_dense"] - middle]


def against_masked(line: pd.DataFrame, masked: pd.DataFrame) -> tuple[pd.Series, None] | None:
    """Ratios of medians; None where masked attention was not measured."""
    alike = masked[(masked["length"] == line["length"].iloc[0]) & (masked["kind"] == line["kind"].iloc[0])]
    time = "gpu_milliseconds" if of_gpu(line) and of_gpu(alike) else "milliseconds"
    return None if alike.empty else (alike[time].median() / line[time], None)


def draw_panel(axis: Axes, table: pd.DataFrame, kind: str, base: str) -> None:
    """Curves of every length and block."""
    masked = table[table["model"] == "masked"]
    model = "triton" if (table["model"] == "triton").any() else "ours"
    ours = table[(table["model"] == model) & (table["kind"] == kind)]
    colors = {length: f"C{index}" for index, length in enumerate(sorted(ours["length"].unique()))}
    for (block, length), line in ours.groupby(["block", "length"]):
        line = line.sort_values("sparsity")
        found = against_dense(line) if base == "dense" else against_masked(line, masked)
        if found is None:
            continue
        label, style = f"L = {length}, block {block}", {"linestyle": LINES[block], "marker": "o", "markersize": 3}
        axis.errorbar(1 - line["sparsity"], *found, color=colors[length], capsize=2, label=label, **style)
    sparsities = sorted(ours["sparsity"].unique())
    kept = [1 - sparsity for sparsity in sparsities]
    if base == "dense":
        axis.plot(kept, [1 / share for share in kept], "k--", linewidth=0.8, label="ideal: 1 / kept")
    axis.axhline(1.0, color="grey", linewidth=0.8)
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(kept, [f"{sparsity:.0%}" for sparsity in sparsities])
    axis.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.minorticks_off()
    axis.set_xlim(max(kept) * 1.15, min(kept) / 1.15)


def draw(path: Path) -> None:
    """Write the figure of a csv beside it."""
    table = pd.read_csv(path)
    made, table = table.iloc[0], table[table["dtype"] == table["dtype"].iloc[0]]
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, sharey=True, layout="constrained")
    for row, base, words in zip(axes, ("dense", "masked"), ("without a mask", "under the mask"), strict=True):
        for axis, kind in zip(row, KINDS, strict=True):
            draw_panel(axis, table, kind, base)
        row[0].set_ylabel(f"times torch's attention\n{words}")
    for axis, kind in zip(axes[0], KINDS, strict=True):
        axis.set_title(kind)
    for axis in axes[1]:
        axis.set_xlabel("blocks pruned")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(f"{made['machine']}, torch {made['torch']}, {made['dtype']}", fontsize=10)
    figure.savefig(path.with_suffix(".png"), dpi=130)
    plt.close(figure)


def main() -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, help="what block_sparse_gpu.py wrote")
    path = parser.parse_args().csv
    if not path.is_file():
        print(f"error: {path}: expected the csv of block_sparse_gpu.py, found no such file", file=sys.stderr)
        return 2
    draw(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The figure of generation.py: tokens a second against the context, and memory of a cache against the position.

    python benchmarks/generation_figure.py results/reference/benchmarks/generation.csv

It lies beside the csv. On the right is what the masks of one context need by themselves, in megabytes for one sequence,
without the room that a PrunedCache has beyond it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from generation import KV_HEADS, WIDTH, WIDTHS, build_model, draw_masks
from matplotlib.axes import Axes

from attention_pruning.huggingface import PrunedCache, prune_model

#: The context of the right panel, and the layers of its model.
CONTEXT, LAYERS = 2048, 4
STYLES = {"whole": "--", "pruned": "-"}


def draw_speed(axis: Axes, table: pd.DataFrame) -> None:
    """Times dense, a line for each mask and cache."""
    pruned = table[table["mask"] != "dense"]
    colours = {mask: f"C{number}" for number, mask in enumerate(pruned["mask"].unique())}
    for (mask, cache), rows in pruned.groupby(["mask", "cache"], sort=False):
        spread = [rows["times_dense"] - rows["low_dense"], rows["high_dense"] - rows["times_dense"]]
        axis.errorbar(
            rows["context"], rows["times_dense"], spread, fmt=f"o{STYLES[cache]}", color=colours[mask], capsize=2,
            label=f"{mask}, {cache} cache",
        )  # fmt: skip
    axis.axhline(1.0, color="grey", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="context", ylabel="times dense, a token", ylim=(0, None))
    axis.set_xticks(contexts := sorted(table["context"].unique()), contexts)
    axis.legend(fontsize=7, loc="lower right", ncols=2)


def draw_memory(axis: Axes) -> None:
    """Megabytes that the masks need after each position."""
    megabytes = KV_HEADS * (WIDTH // len(WIDTHS)) * 2 * 4 / 1e6
    axis.plot(range(1, CONTEXT + 1), [LAYERS * n * megabytes for n in range(1, CONTEXT + 1)], "k--", label="dense")
    for number, (name, mask) in enumerate(draw_masks(LAYERS, CONTEXT).items()):
        model = prune_model(build_model(LAYERS, CONTEXT), mask)
        needed = PrunedCache(model).keys_needed(CONTEXT).sum(0) * megabytes
        axis.plot(range(1, CONTEXT + 1), needed, color=f"C{number}", label=name)
    axis.set(xlabel=f"position, of {CONTEXT}", ylabel="MB of keys and values", xlim=(0, CONTEXT), ylim=(0, None))
    axis.legend(fontsize=8)


def draw(path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    draw_speed(left, pd.read_csv(path))
    draw_memory(right)
    figure.savefig(path.with_suffix(".png"), dpi=130)
    plt.close(figure)


def main() -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, help="what generation.py wrote")
    path = parser.parse_args().csv
    if not path.is_file():
        print(f"error: {path}: expected the csv of generation.py, found no such file", file=sys.stderr)
        return 2
    draw(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

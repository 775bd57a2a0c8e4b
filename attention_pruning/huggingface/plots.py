"""Figures of what ``long_context`` measures; needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files.whole import written_whole

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure


def plot_perplexity(by_name: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path) -> None:
    """Perplexity against the position, a line for each model, on a logarithmic axis of positions.

    Parameters
    ----------
    by_name : mapping
        What ``perplexity_by_position`` returns, by the name in the legend. Rows may also have ``lowest`` and
        ``highest``, such as those of several seeds: they are drawn as a band.
    path : path
        The .png to write.
    """
    figure, axes = _axes(6.0, 3.6)
    for name, rows in by_name.items():
        middle = [(row["first"] + row["last"]) / 2 for row in rows]
        (line,) = axes.plot(middle, [row["perplexity"] for row in rows], marker="o", markersize=3, label=name)
        if all("lowest" in row for row in rows):
            edges = ([row[edge] for row in rows] for edge in ("lowest", "highest"))
            axes.fill_between(middle, *edges, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("Position (tokens)")
    axes.set_ylabel("Perplexity, lower is better")
    axes.grid(axis="y", color="0.88")
    axes.legend(frameon=False)
    _save(figure, path)


def plot_passkey(rows: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """The share of pass keys that were found: lengths across, depths down.

    Parameters
    ----------
    rows : sequence of mappings
        What ``passkey`` returns.
    path : path
        The .png to write.
    """
    lengths, depths = (sorted({row[name] for row in rows}) for name in ("length", "depth"))
    found = np.full((len(depths), len(lengths)), np.nan)
    for row in rows:
        found[depths.index(row["depth"]), lengths.index(row["length"])] = row["found"]
    figure, axes = _axes(1.6 + 0.7 * len(lengths), 1.4 + 0.45 * len(depths))
    image = axes.imshow(found, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (down, across), share in np.ndenumerate(found):
        axes.text(across, down, f"{100 * share:.0f}", ha="center", va="center", color="w" if share < 0.6 else "k")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{100 * depth:.0f}%" for depth in depths])
    axes.set_xlabel("Length of the text (tokens)")
    axes.set_ylabel("Where the key is told")
    figure.colorbar(image, label="Found (share of trials)")
    _save(figure, path)


def _axes(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Figure, path: str | Path) -> None:
    with written_whole(path, ".png") as temporary:
        figure.savefig(temporary, format="png", dpi=200, metadata={"Software": None})

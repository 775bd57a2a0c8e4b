"""Heat maps of a pattern or a mask: a panel for each layer (down) and head (across), queries down, keys across."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..errors import InputError
from ..files.whole import written_whole
from ..mask import PruneMask
from ..pattern import AttentionPattern
from ..structure import block_any

INVISIBLE, UNOBSERVED, KEPT, PRUNED = "#bdbdbd", "#f6d9c8", "#fff7bc", "#2b3a67"
#: A log scale spans at most this many powers of ten below the largest average.
DECADES = 5
MEMORY_LINE = {"color": "black", "linewidth": 0.6, "linestyle": ":"}
#: Inches around the panels, for title, labels, legend and colour bar.
LEFT, RIGHT, TOP, BOTTOM = 0.9, 1.3, 0.9, 0.8


def plot(thing: AttentionPattern | PruneMask, path: str | Path, log: bool = True) -> None:
    """Write a picture (.png, .pdf or .svg), whole or not at all.

    Parameters
    ----------
    log : bool
        Patterns only: a logarithmic colour scale.

    Raises
    ------
    InputError
        If the path has another ending or cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise InputError(f"{path}: expected the name of a .png, .pdf or .svg file, found {path.suffix or 'no ending'}")
    figure = _pattern_figure(thing, log) if isinstance(thing, AttentionPattern) else _mask_figure(thing)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=110)


def _pattern_figure(pattern: AttentionPattern, log: bool) -> Figure:
    visible, allowed = (block_any(cells, pattern.pool).numpy() for cells in (pattern.visible, pattern.allowed))
    average = pattern.average.numpy()
    norm = _log_norm(average) if log else Normalize(0, float(average.max()) or 1.0)
    colours = matplotlib.colormaps["viridis"]

    def image(layer: int, head: int) -> np.ndarray:
        rgba = colours(norm(np.maximum(average[layer, head], norm.vmin)))
        rgba[~allowed] = to_rgba(UNOBSERVED)
        rgba[~visible] = to_rgba(INVISIBLE)
        return rgba

    figure = _figure(pattern, image, pattern.pool, {UNOBSERVED: "never observed", INVISIBLE: "not visible"})
    width, height = figure.get_size_inches()
    place = figure.add_axes((1 - 1.05 / width, BOTTOM / height, 0.2 / width, 1 - (BOTTOM + TOP) / height))
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=place, extend="min" if log else "neither")
    bar.set_label("average attention" + (", log scale" if log else ""), fontsize=8)
    bar.ax.tick_params(which="both", labelsize=7)
    return figure


def _log_norm(average: np.ndarray) -> LogNorm:
    largest = float(average.max()) or 1.0
    smallest = float(average[average > 0].min()) if average.any() else largest
    return LogNorm(min(max(smallest, largest * 10.0**-DECADES), largest / 10), largest)


def _mask_figure(mask: PruneMask) -> Figure:
    meanings = {PRUNED: "pruned", KEPT: "kept", UNOBSERVED: "never observed, kept", INVISIBLE: "not visible"}
    palette = np.array([to_rgba(colour) for colour in meanings])
    visible, allowed = mask.visible.numpy(), mask.allowed.numpy()

    def image(layer: int, head: int) -> np.ndarray:
        return palette[np.select([~visible, mask.cells(layer)[head].numpy(), allowed], [3, 0, 1], 2)]

    return _figure(mask, image, 1, meanings)


def _figure(
    thing: AttentionPattern | PruneMask,
    image: Callable[[int, int], np.ndarray],
    block_size: int,
    meanings: dict[str, str],
) -> Figure:
    """Everything but a colour bar.

    Parameters
    ----------
    image : callable
        (layer, head) -> floats [q, k, 4], red, green, blue and opacity of each block of ``block_size``.
    meanings : dict
        What the colours of the legend mean.
    """
    queries, keys = thing.query_length, thing.key_length
    # a panel has about the proportions of the attention, and a readable width however many heads there are
    width = float(np.clip(26 / thing.heads, 1.1, 3.2)) if thing.heads > 1 else 5.0
    height = width * float(np.clip(queries / keys, 0.25, 2.0))
    size = np.array([width * thing.heads + LEFT + RIGHT, height * thing.layers + TOP + BOTTOM])
    # Laid out by hand, axes not shared: matplotlib's own ways take half a minute for 144 panels.
    figure = Figure(figsize=tuple(size))
    panels = figure.subplots(thing.layers, thing.heads, squeeze=False)
    margins = {
        "left": LEFT / size[0],
        "right": 1 - RIGHT / size[0],
        "bottom": BOTTOM / size[1],
        "top": 1 - TOP / size[1],
    }
    figure.subplots_adjust(**margins, wspace=0.06, hspace=0.08)
    for (layer, head), panel in np.ndenumerate(panels):
        rgba = image(layer, head)
        extent = (0, rgba.shape[1] * block_size, rgba.shape[0] * block_size, 0)
        panel.imshow(rgba, extent=extent, aspect="auto", interpolation="nearest")
        panel.set(xlim=(0, keys), ylim=(queries, 0))  # the last block may be larger than what is left
        panel.locator_params(nbins=4, integer=True)
        panel.tick_params(labelsize=6, length=2)
        panel.label_outer()
        if layer == 0:
            panel.set_title(f"head {head}", fontsize=8)
        if head == 0:
            panel.set_ylabel(f"layer {layer}", fontsize=8)
        if _memory(thing):
            panel.axvline(_memory(thing), **MEMORY_LINE)
    figure.suptitle(f"{Path(thing.source).name}\n{_title(thing)}", fontsize=10, y=1 - 0.12 / size[1], va="top")
    figure.supxlabel("key", fontsize=10, y=0.35 / size[1])
    figure.supylabel("query", fontsize=10, x=0.12 / size[0])
    _legend(figure, thing, meanings)
    return figure


def _title(thing: AttentionPattern | PruneMask) -> str:
    is_pattern = isinstance(thing, AttentionPattern)
    block = thing.pool if is_pattern else thing.block_size
    words = ["average attention" if is_pattern else f"{thing.kind} mask", thing.site]
    words += ["causal"] if thing.causal else []
    words += [f"blocks of {block}"] if block > 1 else []
    if not is_pattern:
        words += [f"rule {thing.rule}"] if thing.rule else []
        words += [f"tau {thing.tau:g}", f"effective sparsity {thing.effective_sparsity:.3f}"]
    return ", ".join(words)


def _memory(thing: AttentionPattern | PruneMask) -> int:
    return thing.key_length - thing.query_length if thing.causal else 0


def _legend(figure: Figure, thing: AttentionPattern | PruneMask, meanings: dict[str, str]) -> None:
    absent = {INVISIBLE} if thing.visible.all() else set()
    absent |= {UNOBSERVED} if thing.allowed.equal(thing.visible) else set()
    handles: list = [Patch(color=colour, label=label) for colour, label in meanings.items() if colour not in absent]
    if _memory(thing):
        handles.append(Line2D([], [], **MEMORY_LINE, label="memory is left of it"))
    if handles:
        figure.legend(handles=handles, loc="lower right", ncols=len(handles), fontsize=8, frameon=False)

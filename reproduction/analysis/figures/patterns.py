"""Draw pattern_gallery: the average attention of every site, and what its mask prunes, for some layers and heads.

    python -m reproduction.analysis.figures pattern_gallery --out pattern_gallery.png \\
        --site "language model" dense/pattern.safetensors data/mask.safetensors

Sites stand side by side. Of each are shown its first, middle and last layer, and of each layer the mean over its heads
and the two heads whose average is nearest to and farthest from uniform attention.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.figures.site_patterns import Site, add_site_flag, focus, lost_attention, read_sites
from reproduction.analysis.figures.style import FONT, require_png, save_with_caption
from reproduction.analysis.table import write_csv

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure, SubFigure

#: The colours of `attention-pruning plot`: cells that no query sees, that were never observed, kept and pruned ones.
INVISIBLE, UNOBSERVED, KEPT, PRUNED = "#bdbdbd", "#f6d9c8", "#fff7bc", "#2b3a67"
#: Colours of averages span this many powers of ten below a site's largest.
DECADES = 2.5
#: Dots an inch: fewer than in other figures, for this one is large and of squares.
RESOLUTION = 150
#: Inches of a panel, which a long memory makes up to so many times wider; around the panels of a site; above and below.
PANEL, WIDEST = 1.05, 1.9
BESIDE, ABOVE, BELOW = 0.55, 0.75, 1.05


def chosen_layers(layers: int) -> list[int]:
    """First, middle and last."""
    return sorted({0, layers // 2, layers - 1})


def chosen_heads(focus_H: np.ndarray) -> list[int]:
    """The heads whose average is most and least focused; one if there is only one."""
    return list(dict.fromkeys([int(focus_H.argmax()), int(focus_H.argmin())]))


def draw(sites: Sequence[Site], taus: Sequence[float]) -> Figure:
    """Draw all sites side by side.

    Parameters
    ----------
    sites : sequence of Site
    taus : sequence of float
        Which mask of each site to show.
    """
    import matplotlib
    from matplotlib.figure import Figure

    widths = [PANEL * float(np.clip(site.pattern.key_length / site.pattern.query_length, 1, WIDEST)) for site in sites]
    rows = max(len(panel_rows(site)) for site in sites)
    whole = [2 * width + BESIDE for width in widths]
    size = (sum(whole), rows * (PANEL + 0.12) + ABOVE + BELOW)
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=size, dpi=RESOLUTION)
        parts = figure.subfigures(1, len(sites), width_ratios=whole, squeeze=False)
        for part, site, tau in zip(parts.flat, sites, taus, strict=True):
            _draw_site(part, site, tau, rows, size[1])
        _legend(figure, sites, size[1])
    return figure


def panel_rows(site: Site) -> list[tuple[int, int | None]]:
    """(layer, head) of each row of a site's panels; head None is the mean over heads."""
    focus_LH = focus(site.pattern)
    rows: list[tuple[int, int | None]] = []
    for layer in chosen_layers(site.pattern.layers):
        rows += [(layer, None), *((layer, head) for head in chosen_heads(focus_LH[layer]))]
    return rows


def _draw_site(part: SubFigure, site: Site, tau: float, rows: int, height: float) -> None:
    """Two columns of panels, averages and what the mask prunes, and the colour scale of the averages below."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgba

    pattern, mask = site.pattern, site.masks[tau]
    average, visible, allowed = pattern.average.numpy(), pattern.visible.numpy(), pattern.allowed.numpy()
    largest = float(average.max())
    norm = LogNorm(largest / 10**DECADES, largest)
    colours, pruning = matplotlib.colormaps["viridis"], LinearSegmentedColormap.from_list("", [KEPT, PRUNED])
    panels = part.subplots(rows, 2, squeeze=False)
    part.subplots_adjust(left=0.15, right=0.97, top=1 - ABOVE / height, bottom=BELOW / height, wspace=0.06, hspace=0.12)
    for panel in panels[len(panel_rows(site)) :].flat:
        panel.set_axis_off()
    for (layer, head), (left, right) in zip(panel_rows(site), panels, strict=False):
        heads = slice(None) if head is None else slice(head, head + 1)
        mean = average[layer, heads].mean(0)
        share = mask.cells(layer)[heads].double().mean(0).numpy()
        for panel, rgba in ((left, colours(norm(np.maximum(mean, norm.vmin)))), (right, pruning(share))):
            rgba[~allowed], rgba[~visible] = to_rgba(UNOBSERVED), to_rgba(INVISIBLE)
            panel.imshow(rgba, aspect="auto", interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            if pattern.causal and (memory := pattern.key_length - pattern.query_length):
                panel.axvline(memory - 0.5, color="white", linewidth=0.7, linestyle=":")
        left.set_ylabel(f"layer {layer}\n" + ("mean" if head is None else f"head {head}"), fontsize=6.5, labelpad=2)
    panels[0, 0].set_title("average", fontsize=7.5, pad=3)
    panels[0, 1].set_title(f"pruned, \u03c4 {tau:g}", fontsize=7.5, pad=3)
    lengths = f"{pattern.query_length} queries, {pattern.key_length} keys"
    part.suptitle(f"{site.title}\n{lengths}", fontsize=8.5, y=1 - 0.08 / height)
    place = part.add_axes((0.15, (BELOW - 0.22) / height, 0.39, 0.09 / height))
    bar = part.colorbar(ScalarMappable(norm, colours), cax=place, orientation="horizontal", extend="min")
    bar.ax.tick_params(labelsize=6, length=2, which="major")
    bar.ax.tick_params(length=0, which="minor", labelbottom=False)


def _legend(figure: Figure, sites: Sequence[Site], height: float) -> None:
    from matplotlib.patches import Patch

    meanings = {KEPT: "kept by all heads", PRUNED: "pruned by all heads", INVISIBLE: "not visible"}
    if not all(site.pattern.allowed.equal(site.pattern.visible) for site in sites):
        meanings[UNOBSERVED] = "never observed, kept"
    handles = [Patch(facecolor=colour, edgecolor="#888888", label=label) for colour, label in meanings.items()]
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.2 / height)}
    figure.legend(handles=handles, ncols=len(handles), fontsize=8, frameon=False, **place)
    note = "queries down, keys across; colours of averages: logarithmic, a scale for each site"
    figure.text(0.5, 0.1 / height, note, ha="center", va="bottom", fontsize=7.5, color="#444444")


def head_table(sites: Sequence[Site], taus: Sequence[float]) -> pd.DataFrame:
    """Every head in numbers, those that are not drawn too: ``focus``, ``pruned`` (share of its allowed cells) and
    ``lost_attention``.
    """
    rows = []
    for site, tau in zip(sites, taus, strict=True):
        mask = site.masks[tau]
        focus_LH, lost_LH = focus(site.pattern), lost_attention(site.pattern, mask)
        for layer in range(mask.layers):
            pruned_H = mask.cells(layer)[:, mask.allowed].double().mean(1)
            for head in range(mask.heads):
                known = {"site": site.title, "tau": tau, "layer": layer, "head": head}
                numbers = {"focus": focus_LH[layer, head], "pruned": float(pruned_H[head])}
                rows.append(known | numbers | {"lost_attention": lost_LH[layer, head]})
    return pd.DataFrame(rows)


def caption(sites: Sequence[Site], taus: Sequence[float]) -> str:
    """Return the caption of the figure: plain paragraphs, readable as Markdown and as reStructuredText."""
    means = head_table(sites, taus).groupby("site", sort=False)[["tau", "focus", "pruned", "lost_attention"]].mean()
    found = [
        f"{title}, tau {line['tau']:g}: focus {line['focus']:.2f}, {line['pruned']:.0%} of the allowed cells pruned, "
        f"which held {line['lost_attention']:.0%} of the attention probability"
        for title, line in means.iterrows()
    ]
    parts = [
        "Average attention of every site, and what a data-informed mask prunes of it, from the dense model of the "
        "first seed. Of each site the first, middle and last layer are shown; of each layer the mean over its heads, "
        "then the head whose average is farthest from uniform attention, then the one that is nearest to it. The shade "
        "of a mask in a row of means is the share of heads that prune the cell. Memory is left of the dotted line.",
        "Focus is 0 where the average of a head is uniform over the keys that a query sees, and 1 where it is one key. "
        "A mask that is the same for every input can only keep what is focused on average: a head that looks elsewhere "
        "in every sentence has little of it, however sharp it is in each.",
        f"Mean over all layers and heads: {'; '.join(found)}. Single heads are in the table.",
    ]
    return "\n\n".join(parts) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.analysis.figures pattern_gallery",
        description="Draw the average attention of every site and what its mask prunes.",
    )
    add_site_flag(parser)
    parser.add_argument("--tau", type=float, help="masks to show (default: the highest tau that all sites share)")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.png); .md and .csv go beside it")
    return parser


def chosen_taus(sites: Sequence[Site], tau: float | None = None) -> list[float]:
    """The tau asked for; without one the highest that all sites have a mask of, or else each site's own highest.

    Raises
    ------
    InputError
        If a site has no mask of the tau asked for.
    """
    for site in sites:
        if tau is not None and tau not in site.masks:
            found = ", ".join(f"{known:g}" for known in site.masks)
            raise InputError(f"--tau: expected one that {site.title} has a mask of ({found}), found {tau:g}")
    shared = set.intersection(*(set(site.masks) for site in sites))
    if tau is None and shared:
        tau = max(shared)
    return [max(site.masks) if tau is None else tau for site in sites]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    require_png(args.out)
    sites = read_sites(args.site)
    taus = chosen_taus(sites, args.tau)
    save_with_caption(draw(sites, taus), caption(sites, taus), args.out)
    write_csv(head_table(sites, taus), args.out.with_suffix(".csv"))
    print(f"{args.out}: {', '.join(f'{site.title} (tau {tau:g})' for site, tau in zip(sites, taus, strict=True))}")
    return 0

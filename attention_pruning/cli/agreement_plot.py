"""How much masks from little data prune in common with others, against how much data they had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..agreement import Agreement
from ..errors import InputError
from ..files.whole import written_whole

_WORDS = {"others": "as many others", "all": "all of the data"}


def plot_agreement(agreements: Sequence[Agreement], path: str | Path) -> None:
    """Write a picture (.png, .pdf or .svg): a panel for each site (across) and tau (down).

    Lines are means over layers and heads, shades reach down to the head with the least, dots are two random masks.

    Raises
    ------
    InputError
        If there is nothing to draw, or the path has another ending or cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise InputError(f"{path}: expected the name of a .png, .pdf or .svg file, found {path.suffix or 'no ending'}")
    if not agreements:
        raise InputError(f"{path}: expected agreements of masks to draw, found none")
    sites = list(dict.fromkeys(one.site for one in agreements))
    taus = sorted({one.tau for one in agreements})
    figure = Figure(figsize=(3.6 * len(sites) + 0.6, 2.6 * len(taus) + 0.6), layout="constrained")
    panels = figure.subplots(len(taus), len(sites), squeeze=False, sharex=True, sharey=True)
    for row, tau in zip(panels, taus, strict=True):
        for panel, site in zip(row, sites, strict=True):
            _draw(panel, [one for one in agreements if (one.site, one.tau) == (site, tau)])
            panel.set_title(f"{site}, tau {tau:g}", fontsize=9)
    panels[0, 0].legend(fontsize=7, frameon=False, loc="lower right")
    figure.supxlabel("sequences behind the mask", fontsize=9)
    figure.supylabel("pruned by both / pruned by either", fontsize=9)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=110)


def _draw(panel: Axes, agreements: list[Agreement]) -> None:
    for colour, (what, words) in zip(("#2b3a67", "#c44e52"), _WORDS.items(), strict=True):
        some = [one for one in agreements if one.compared_with == what]
        sequences = [one.sequences for one in some]
        panel.plot(
            sequences, [one.overlap for one in some], "o-", color=colour, ms=3, label=f"with the mask of {words}"
        )
        panel.fill_between(
            sequences, [one.lowest for one in some], [one.overlap for one in some], color=colour, alpha=0.15, lw=0
        )
    panel.plot(sequences, [one.by_chance for one in some], "k:", lw=1, label="random masks")
    panel.set(xscale="log", ylim=(0, 1.02))
    panel.tick_params(labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)

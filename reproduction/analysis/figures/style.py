"""How figures look, and how they are written: the picture, and its caption beside it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from attention_pruning import InputError
from reproduction.runs.files import atomic_path
from reproduction.runs.source import other_source

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

DPI = 200
#: Okabe and Ito's colours, told apart by colour-blind readers; the markers differ too.
STYLES = {
    "data": {"color": "#0072B2", "marker": "o", "label": "data-informed (AP)"},
    "random": {"color": "#D55E00", "marker": "s", "label": "random"},
    "window": {"color": "#009E73", "marker": "^", "label": "fixed window"},
    "distance": {"color": "#E69F00", "marker": "v", "label": "by distance"},
    "dense": {"color": "#000000", "marker": "D", "label": "dense"},
    "baseline": {"color": "#666666"},
    "published": {"color": "#A34B7F", "marker": "X", "label": "published"},
}
FONT = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class OfOneTable:
    """A figure that is drawn from one table of metrics and nothing else.

    Attributes
    ----------
    draw, caption : callable
        Of the table: the figure, and its caption (.md).
    contents : callable
        Of the table: what is in the figure, in a line.
    numbers : callable, optional
        Of the table: the numbers that the figure shows (.csv).
    """

    draw: Callable[[pd.DataFrame], Figure]
    caption: Callable[[pd.DataFrame], str]
    contents: Callable[[pd.DataFrame], str]
    numbers: Callable[[pd.DataFrame], pd.DataFrame] | None = None


def save(figure: Figure, path: str | Path) -> None:
    """Write the picture atomically, without a date in it: the same numbers give the same file."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix.lstrip(".") or "png", metadata={"Software": None})


def require_png(path: Path) -> None:
    """Refuse another ending than .png, before anything is drawn."""
    if path.suffix != ".png":
        raise InputError(f"--out: expected a .png file, found {path}")


def add_runs_flag(parser: argparse.ArgumentParser) -> None:
    """``--runs``, for what :func:`save_with_caption` says of them."""
    parser.add_argument(
        "--runs", type=Path, help="runs behind the table; the caption says if another version of the code made them"
    )


def save_with_caption(figure: Figure, text: str, path: Path, runs: Path | None = None) -> None:
    """Write the picture and, beside it, its caption (.md).

    Where another version of the source code made some of the runs, the caption and the terminal say so.
    """
    if runs is not None and (remark := other_source(runs)):
        text += f"\n{remark}\n"
        print(remark)
    save(figure, path)
    with atomic_path(path.with_suffix(".md")) as temporary:
        temporary.write_text(text, encoding="utf-8")

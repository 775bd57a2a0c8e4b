"""The command of a figure that is drawn from a table of metrics and nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from reproduction.analysis.figures.style import add_runs_flag, require_png, save_with_caption
from reproduction.analysis.table import read_csv, write_csv

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure


def run_figure(
    module: str,
    description: str,
    argv: Sequence[str] | None,
    *,
    draw: Callable[[pd.DataFrame], Figure],
    caption: Callable[[pd.DataFrame], str],
    contents: Callable[[pd.DataFrame], str],
    numbers: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> int:
    """Read ``--metrics``, write the picture ``--out`` and what goes beside it; return the exit status.

    Parameters
    ----------
    module : str
        The module of this package whose command it is.
    description : str
        For ``--help``.
    argv : sequence of str, optional
        The command line; that of the process by default.
    draw, caption : callable
        Of the table: the figure, and its caption (.md).
    contents : callable
        Of the table: what is in the figure, to be printed.
    numbers : callable, optional
        Of the table: the numbers that the figure shows (.csv).

    Raises
    ------
    InputError
        If the picture is no .png, or the table cannot be read or drawn.
    """
    beside = ".md and .csv go beside it" if numbers else "the caption goes beside it"
    parser = argparse.ArgumentParser(prog=f"python -m reproduction.analysis.figures.{module}", description=description)
    parser.add_argument("--metrics", type=Path, required=True, help="table that reproduction.analysis.table makes")
    parser.add_argument("--out", type=Path, required=True, help=f"picture to write (.png); {beside}")
    add_runs_flag(parser)
    args = parser.parse_args(argv)
    require_png(args.out)
    table = read_csv(args.metrics)
    save_with_caption(draw(table), caption(table), args.out, args.runs)
    if numbers:
        write_csv(numbers(table), args.out.with_suffix(".csv"))
    print(f"{args.out}: {contents(table)}")
    return 0

"""The command line of all figures and tables: ``python -m reproduction.analysis.figures NAME --help``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from attention_pruning import InputError
from reproduction.analysis.figures.style import OfOneTable, add_runs_flag, require_png, save_with_caption
from reproduction.analysis.table import read_csv, write_csv

#: What can be drawn, by the name of its file, and the module that draws it.
MODULES = {
    "ap_figure": "quality",
    "glue_tasks": "tasks",
    "controls": "controls",
    "translation_sites": "sites",
    "entmax_comparison": "entmax",
    "mask_comparison": "masks",
    "pairs_comparison": "pairs",
    "pattern_gallery": "patterns",
    "structural_zeros": "structural_zeros",
    "efficiency_table": "efficiency",
    "language_model_efficiency": "language_model_efficiency",
    "ood_table": "shift",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Draw what the first word names, as the flags say; return the exit status.

    Raises
    ------
    InputError
        If there is no such figure, the picture is no .png, or a table cannot be read or drawn.
    """
    name, *flags = [*(sys.argv[1:] if argv is None else argv)] or ["nothing"]
    if name in ("-h", "--help"):
        print(f"usage: python -m reproduction.analysis.figures {{{','.join(MODULES)}}} [--help] ...")
        return 0
    if name not in MODULES:
        raise InputError(f"expected the name of a figure, {', '.join(MODULES)}, found {name}")
    module = importlib.import_module(f"reproduction.analysis.figures.{MODULES[name]}")
    if not hasattr(module, "FIGURE"):  # has more than one table, and flags of its own
        return module.main(flags)
    return draw_from_table(name, module.FIGURE, module.__doc__.partition("\n")[0], flags)


def draw_from_table(name: str, figure: OfOneTable, description: str, flags: Sequence[str]) -> int:
    """Read ``--metrics``, write the picture ``--out`` and what goes beside it; return the exit status."""
    beside = ".md and .csv go beside it" if figure.numbers else "the caption goes beside it"
    parser = argparse.ArgumentParser(prog=f"python -m reproduction.analysis.figures {name}", description=description)
    parser.add_argument("--metrics", type=Path, required=True, help="table that reproduction.analysis.table makes")
    parser.add_argument("--out", type=Path, required=True, help=f"picture to write (.png); {beside}")
    add_runs_flag(parser)
    args = parser.parse_args(flags)
    require_png(args.out)
    table = read_csv(args.metrics)
    save_with_caption(figure.draw(table), figure.caption(table), args.out, args.runs)
    if figure.numbers:
        write_csv(figure.numbers(table), args.out.with_suffix(".csv"))
    print(f"{args.out}: {figure.contents(table)}")
    return 0

"""``attention-pruning explore``: a page that shows a pattern, with a mask or a second pattern, in a browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from ..explore import write_page
from ..files.load import load_any, load_pattern


def add_command(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the command to ``attention-pruning``."""
    command = commands.add_parser(
        "explore",
        help="write a page to look at a pattern in a browser: heads, cells, distances, and masks by a slider",
        description="Write one page that needs no connection: the heads of a pattern, each cell, attention by distance "
        "and the mask of any tau. A mask in OTHER lies over the pattern, a pattern in OTHER stands beside it. A page "
        "stays under 8 MB: what is larger is rounded to 16 bits and averaged over blocks, and the page says so.",
    )
    command.add_argument("pattern", metavar="PATTERN", help="the pattern to look at")
    command.add_argument("other", metavar="OTHER", nargs="?", help="a mask or a second pattern (default: none)")
    command.add_argument("-o", "--output", metavar="HTML", required=True, help="the page to write (required)")
    command.set_defaults(run=run)
    return command


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    given = {name: getattr(arguments, name) for name in ("site", "causal", "layout")}
    output = Path(arguments.output)
    if output.suffix != ".html":
        raise InputError(f"{output}: expected the name of a .html file to write, found {output.suffix or 'no ending'}")
    pattern = load_pattern(arguments.pattern, **given)
    other = None
    if arguments.other is not None:
        other = load_any(arguments.other, **(given if Path(arguments.other).suffix == ".npy" else {}))
    write_page(output, pattern, other)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")

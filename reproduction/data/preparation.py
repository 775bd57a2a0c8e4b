"""What the commands that prepare a corpus share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reproduction.runs.record import RunRecord


def run_preparation(
    parser: argparse.ArgumentParser,
    prepare: Callable[..., Any],
    report: Callable[[Any], tuple[str, str]],
    argv: Sequence[str] | None = None,
) -> int:
    """Prepare a corpus as the flags say, write run.json into its folder, and print a line about it.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Its flags are the arguments of ``prepare``; one of them is ``--out``.
    report : callable
        What ``prepare`` returned -> fingerprint and line.

    Returns
    -------
    int
        The exit status.
    """
    arguments = vars(parser.parse_args(argv))
    record = RunRecord(parser.prog.removeprefix("python -m "), arguments)
    fingerprint, line = report(prepare(**arguments))
    record.write(Path(arguments["out"]) / "run.json", fingerprint=fingerprint)
    print(line)
    return 0

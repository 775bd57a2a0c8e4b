"""What the commands of all subprojects share: how they end, their threads, how they show their flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

from attention_pruning import InputError


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command's main function: an :class:`InputError` becomes one line on stderr and exit status 2."""
    try:
        sys.exit(main() or 0)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def limit_threads(threads: int) -> None:
    """Let torch use this many threads; 0 keeps its own choice (OMP_NUM_THREADS)."""
    if threads < 0:
        raise InputError(f"--threads: expected 0 (torch's choice) or more, found {threads}")
    if threads:
        torch.set_num_threads(threads)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the description's lines; show every default that the help does not tell in its own words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.required or action.default is None else super()._get_help_string(action)

"""What the commands of all subprojects share: how they end, their threads, how they show their flags."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable

import torch

from attention_pruning import InputError
from reproduction.runs.device_pool import take_device


def run_main(main: Callable[[], int | None], takes_device: bool = False) -> None:
    """Run a command's main function: an :class:`InputError` or a full disk becomes one line on stderr, and status 2.

    Parameters
    ----------
    main : callable
        Returns the exit status, or None for 0.
    takes_device : bool
        The command runs a model, so it takes a GPU of its own where processes share several.
    """
    try:
        if takes_device:
            take_device()
        sys.exit(main() or 0)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if (found := no_room(error)) is None:
            raise
        print(f"error: expected room on the disk for what is written, found none ({found})", file=sys.stderr)
        sys.exit(2)


#: How Python, torch and safetensors say that a disk is full, or a quota used up.
_NO_ROOM = re.compile(".*(No space left on device|Disk quota exceeded|File too large|failed writing file).*")


def no_room(error: BaseException | None) -> str | None:
    """The line of an error, or of one that it came from, which says that a disk is full; None if none does."""
    while error is not None:
        if found := _NO_ROOM.search(str(error)):
            return found[0]
        error = error.__cause__ or error.__context__
    return None


#: What `accelerate launch` tells its processes, by the name that a message has for it.
_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


def refuse_sharding(**flags: object) -> None:
    """Refuse to spread a model over processes: masks, patterns and checkpoints are of whole ones.

    Parameters
    ----------
    flags
        Those of the script that would spread it, with their values; a value that is empty does not.

    Raises
    ------
    InputError
        If a flag or `accelerate launch` asks for it.
    """
    asked = {f"--{name}": value for name, value in flags.items() if value}
    asked |= {name: what for name, what in _SHARDING.items() if os.environ.get(name, "").lower() == "true"}
    for name, found in asked.items():
        raise InputError(f"{name}: expected the whole model in every process, as torchrun starts them, found {found}")


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

"""Average the weights of several checkpoints of one training: the flags of fairseq's script of the same name.

    python fairseq/average_checkpoints.py --inputs checkpoints --num-epoch-checkpoints 10 --output average.pt

PyPI's fairseq does not install that script; this one was written for this repository. Prune masks are no numbers to be
averaged: the checkpoints must agree on them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import launcher

launcher.prepare()

import torch  # noqa: E402

from attention_pruning import InputError  # noqa: E402
from plugin.checkpoint import read_checkpoint  # noqa: E402
from reproduction.runs.checkpoint import save_checkpoint  # noqa: E402
from reproduction.runs.command import run_main  # noqa: E402
from reproduction.runs.record import RunRecord  # noqa: E402

#: Which files each kind of "the last N" means; the number is what they are ordered by.
NAMES = {
    "num_epoch_checkpoints": re.compile(r"checkpoint(\d+)\.pt"),
    "num_update_checkpoints": re.compile(r"checkpoint_\d+_(\d+)\.pt"),
    "num_best_checkpoints": re.compile(r"checkpoint\.best_.+_(-?\d+\.\d+)\.pt"),
}


def parser() -> argparse.ArgumentParser:
    """All flags, with their defaults."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = top.add_argument
    add(
        "--inputs",
        nargs="+",
        required=True,
        help="checkpoint files, or with a --num-... flag the folder that holds them",
    )
    add("--output", type=Path, required=True, help="checkpoint to write")
    kind = top.add_mutually_exclusive_group()
    kind.add_argument(
        "--num-epoch-checkpoints", type=int, help="average the last N of checkpointEPOCH.pt (default: none)"
    )
    kind.add_argument(
        "--num-update-checkpoints", type=int, help="average the last N of checkpoint_EPOCH_UPDATE.pt (default: none)"
    )
    kind.add_argument(
        "--num-best-checkpoints",
        type=int,
        help="average the N of checkpoint.best_METRIC_VALUE.pt with the lowest value",
    )
    add("--checkpoint-upper-bound", type=int, help="leave out later epochs or updates than this (default: none)")
    return top


def chosen_files(args: argparse.Namespace) -> list[Path]:
    """The checkpoints that the flags name.

    Raises
    ------
    InputError
        If there are fewer than asked for, or none.
    """
    kinds = {name: getattr(args, name) for name in NAMES if getattr(args, name) is not None}
    if args.checkpoint_upper_bound is not None and not kinds.keys() - {"num_best_checkpoints"}:
        raise InputError(
            "--checkpoint-upper-bound: expected --num-epoch-checkpoints or --num-update-checkpoints, found none"
        )
    if not kinds:
        return [Path(name) for name in args.inputs]
    (name, number), folder = next(iter(kinds.items())), Path(args.inputs[0])
    if len(args.inputs) > 1 or not folder.is_dir():
        raise InputError(f"--inputs: expected one folder, found {' '.join(args.inputs)}")
    found = [(float(match[1]), file) for file in folder.iterdir() if (match := NAMES[name].fullmatch(file.name))]
    if args.checkpoint_upper_bound is not None:
        found = [(order, file) for order, file in found if order <= args.checkpoint_upper_bound]
    found.sort(reverse=name != "num_best_checkpoints")
    if number < 1 or len(found) < number:
        raise InputError(f"--{name.replace('_', '-')}: expected {number} checkpoints in {folder}, found {len(found)}")
    return [file for _, file in found[:number]]


def average(files: Sequence[Path]) -> dict[str, Any]:
    """The first checkpoint, its weights replaced by the mean over all of them (summed in float32 at least).

    Raises
    ------
    InputError
        If one cannot be read, has other weights, or other masks.
    """
    result: dict[str, Any] = {}
    sums: dict[str, torch.Tensor] = {}
    for file in files:
        state = read_checkpoint(file)
        weights = state["model"]
        if not result:
            result = state
            sums = {name: _wide(tensor) for name, tensor in weights.items()}
            continue
        if {name: tensor.shape for name, tensor in weights.items()} != {
            name: total.shape for name, total in sums.items()
        }:
            raise InputError(f"{file}: expected the weights of {files[0]}, found others by name or shape")
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                sums[name] += tensor
            elif not torch.equal(tensor, sums[name]):
                raise InputError(f"{file}: expected the {name} of {files[0]}, found another")
    for name, tensor in result["model"].items():
        if tensor.is_floating_point():
            result["model"][name] = (sums[name] / len(files)).to(tensor.dtype)
    return result


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return (
        tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True) if tensor.is_floating_point() else tensor
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    record = RunRecord("fairseq/average_checkpoints.py", vars(args))
    files = chosen_files(args)
    save_checkpoint(args.output, average(files))
    record.write(args.output.with_suffix(".run.json"), averaged=[str(file) for file in files])
    print(f"{args.output}: the average of {', '.join(file.name for file in files)}")


if __name__ == "__main__":
    run_main(main)

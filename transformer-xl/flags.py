"""Flags that the three scripts share."""

from __future__ import annotations

import argparse
import sys

import torch

from attention_pruning import InputError
from attention_pruning.ops.choice import BACKENDS


class Parser(argparse.ArgumentParser):
    """A parser whose flags may be written with dashes or underscores, as the published ones are with either."""

    def parse_known_args(self, args=None, namespace=None):  # noqa: D102 (argparse's)
        spelt = {flag.replace("-", "_"): flag for action in self._actions for flag in action.option_strings}

        def known(word: str) -> str:
            flag, equals, value = word.partition("=")
            return spelt.get(flag.replace("-", "_"), flag) + equals + value if word.startswith("--") else word

        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([known(word) for word in words], namespace)


def add_run_flags(group: argparse._ArgumentGroup) -> None:
    """--device and --threads."""
    group.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one"
    )
    group.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to OMP_NUM_THREADS")


def add_beyond_flag(group: argparse._ActionsContainer) -> None:
    """--beyond."""
    group.add_argument(
        "--beyond",
        choices=("error", "dense"),
        default="error",
        help="segments and memories that are longer than the mask covers: an error, or unpruned there (dense)",
    )


def add_backend_flag(group: argparse._ActionsContainer) -> None:
    """--attention_backend."""
    group.add_argument(
        "--attention_backend",
        choices=BACKENDS,
        default="auto",
        help="what computes pruned attention: whatever was measured to be fastest (auto), the compiled kernel, "
        "FlexAttention, the Triton kernels, or the readable reference",
    )


def choose_device(name: str) -> torch.device:
    """The device that --device asks for.

    Raises
    ------
    InputError
        For "cuda" without one.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: expected a CUDA device, found none")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")

"""Flags that only the published PyTorch implementation has: what each means here, or why it is refused.

docs/reproducing.md has the table of all its flags.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from attention_pruning import InputError
from reproduction.data.language.corpus import DESCRIPTION_FILE

#: Data sets that the published scripts know. The raw text of the last three is not cut into words as theirs is.
DATASETS = ("wt103", "wt2", "lm1b", "enwik8", "text8")
_READ_ALIKE = ("wt103", "wt2")
_NO_EFFECT = "it has no effect in the published code"
_DEV_PERF = "the schedule dev_perf is not here"
#: Flags that are taken at the published default alone, and why.
REFUSED: dict[str, tuple[Any, str]] = {
    "ext_len": (0, "a context beside the memory is not here"),
    "attn_type": (0, "attention is that of the paper alone"),
    "sample_softmax": (-1, "a sampled softmax is not here"),
    "varlen": (False, "segments of random length have no fixed positions that a mask could be of"),
    "static_loss_scale": (1.0, "the loss is scaled dynamically"),
    "decay_rate": (0.5, _DEV_PERF),
    "lr_min": (0.0, _DEV_PERF),
    "patience": (0, _DEV_PERF),
    "emb_init": ("normal", _NO_EFFECT),
    "emb_init_range": (0.01, _NO_EFFECT),
    "clip_nonemb": (False, _NO_EFFECT),
    "finetune_v2": (False, _NO_EFFECT),
    "finetune_v3": (False, _NO_EFFECT),
    "debug": (False, "a training keeps its model"),
}
#: Flags that are done with once they are checked: they make no difference to what is computed.
_SETTLED = (*REFUSED, "multi_gpu", "gpu0_bsz", "dynamic_loss_scale")


def add_published_flags(group: argparse._ActionsContainer) -> None:
    """--cuda, --dataset and --ext_len, of both scripts."""
    group.add_argument(
        "--cuda", dest="device", action="store_const", const="cuda", help="the same as --device cuda; auto unless given"
    )
    group.add_argument(
        "--dataset",
        choices=DATASETS,
        help="which one --data holds, or anything unless given; lm1b, enwik8 and text8 have to be prepared",
    )
    _add_refused(group, "ext_len")


def add_upstream_flags(group: argparse._ActionsContainer) -> None:
    """What ``train.py`` there has and here has not under the same name."""
    add_published_flags(group)
    group.add_argument("--multi_gpu", action="store_true", help="no difference: torchrun starts a process for each GPU")
    group.add_argument("--gpu0_bsz", type=int, default=-1, help="no difference: all GPUs take as much of a batch")
    group.add_argument(
        "--fp16",
        dest="mixed_precision",
        action="store_const",
        const="fp16",
        help="the same as --mixed_precision fp16; no unless given",
    )
    group.add_argument("--dynamic_loss_scale", action="store_true", help="no difference: with fp16 it always is")
    for name in REFUSED:
        if name != "ext_len":
            _add_refused(group, name)


def _add_refused(group: argparse._ActionsContainer, name: str) -> None:
    default, reason = REFUSED[name]
    kind: dict[str, Any] = {"action": "store_true"} if default is False else {"type": type(default), "default": default}
    group.add_argument(f"--{name}", **kind, help=f"refused at any other value: {reason}")


def check_upstream_flags(args: argparse.Namespace) -> None:
    """Refuse what is not here, and remove the flags that say nothing else.

    Raises
    ------
    InputError
        With the reason.
    """
    for name, (default, reason) in REFUSED.items():
        if (found := getattr(args, name, default)) != default:
            raise InputError(f"--{name}: expected {default}, as {reason}, found {found}")
    if getattr(args, "scheduler", None) == "dev_perf":
        raise InputError("--scheduler: expected one that depends on the step alone, found dev_perf")
    prepared = (Path(args.data) / DESCRIPTION_FILE).is_file()
    if args.dataset not in (None, *_READ_ALIKE) and not prepared and Path(args.data).is_dir():
        raise InputError(
            f"--dataset: expected a prepared corpus in --data {args.data} for {args.dataset}, found raw text"
        )
    if getattr(args, "dynamic_loss_scale", False) and args.mixed_precision != "fp16":
        raise InputError("--dynamic_loss_scale: expected --fp16 beside it, found none")
    if getattr(args, "multi_gpu", False) and torch.cuda.device_count() > 1:
        print(f"| --multi_gpu: torchrun --nproc_per_node {torch.cuda.device_count()} uses all GPUs, this process one")
    for name in _SETTLED:
        if hasattr(args, name):
            delattr(args, name)

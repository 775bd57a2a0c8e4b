"""Read fairseq's checkpoints, refusing in one line what is none."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attention_pruning import InputError
from fairseq import checkpoint_utils
from reproduction.runs.checkpoint import weights_fingerprint
from reproduction.runs.torch_files import read_torch_file

#: What a message says of objects that are not declared safe, see ``shims.install``.
UNSAFE = "objects that might run code; if you trust it, set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"


@dataclass(frozen=True)
class LoadedModel:
    """A model with what it was trained as and its task.

    Attributes
    ----------
    model : nn.Module
        In eval mode.
    task
        fairseq's task of its training; sources are padded on the right.
    arguments
        The namespace that the model was built from.
    fingerprint : str
        16 hexadecimal digits of the weights and masks.
    """

    model: nn.Module
    task: Any
    arguments: Any
    fingerprint: str


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Everything in a checkpoint of fairseq, ours or stock, its tensors mapped from the file where its format allows
    it.

    Nothing in it is run, see ``shims.install``.

    Raises
    ------
    InputError
        If the file is missing, damaged or something else, or holds objects that might run code.
    """
    state = read_torch_file(path, "a checkpoint of fairseq", unsafe=UNSAFE, mmap=True, may_be_trusted=True)
    weights = state.get("model") if isinstance(state, dict) else None
    named = isinstance(weights, Mapping) and all(isinstance(tensor, Tensor) for tensor in weights.values())
    if not named or not _is_configuration(state):
        raise InputError(f"{path}: expected a checkpoint of fairseq, found no model and configuration in it")
    return state


def _is_configuration(state: Mapping[str, Any]) -> bool:
    """Whether it says what its model was built from, in one of the two ways of fairseq's versions."""
    if state.get("args"):
        return isinstance(state["args"], argparse.Namespace)
    cfg = state.get("cfg")
    return isinstance(cfg, Mapping) and isinstance(cfg.get("model"), argparse.Namespace | Mapping)


def model_arguments(state: dict[str, Any]) -> Any:
    """The namespace (or dictionary) that a checkpoint's model was built from."""
    return state["args"] if state.get("args") else state["cfg"]["model"]


def training_speed(state: Mapping[str, Any]) -> tuple[float, int]:
    """Seconds per update of the training that wrote a checkpoint, and how many updates were timed.

    fairseq's own stopwatch: from a batch to the updated weights, all processes waiting for one another, without loading
    data, validation and saving. Of a training that was resumed it has a part of the updates, and their time.

    Parameters
    ----------
    state : mapping
        What `read_checkpoint` returns.

    Raises
    ------
    InputError
        If the checkpoint does not have it.
    """
    try:
        meters = {name: meter for _, name, _, meter in state["extra_state"]["metrics"]["default"]}
        # The norm of the gradient is logged once an update; the stopwatch itself does not count.
        seconds, updates = float(meters["train_wall"]["sum"]), int(meters["gnorm"]["count"])
        speed = seconds / updates
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise InputError("checkpoint: expected fairseq's own record of its training time, found none") from error
    if updates < 1 or not 0 <= speed < math.inf:
        raise InputError(f"checkpoint: expected the time of some updates, found {seconds} seconds of {updates}")
    return speed, updates


def load_model(path: str | Path, **overrides: Any) -> LoadedModel:
    """Build the model of a checkpoint, with its masks.

    Parameters
    ----------
    overrides
        Replace what was given in training, such as ``data``.

    Raises
    ------
    InputError
        If it cannot be read, or its data cannot be found.
    """
    arguments = model_arguments(read_checkpoint(path))
    given = {name: value for name, value in overrides.items() if value is not None}
    if "data" in given and not any(Path(given["data"]).glob("dict.*.txt")):
        raise InputError(f"{given['data']}: expected a folder of binarised data (dict.LANGUAGE.txt), found none")
    try:
        models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], arg_overrides=given)
    except InputError:
        raise
    except Exception as error:  # fairseq looks into what it is given while it uses it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: expected a checkpoint whose model and data are at hand, found: {reason}") from error
    task.cfg.left_pad_source = False
    # A buffer that only tells its device; fairseq makes it anew without a value.
    fingerprint = weights_fingerprint(models[0], leave_out="_float_tensor")
    return LoadedModel(models[0].eval(), task, arguments, fingerprint)

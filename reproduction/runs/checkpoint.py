"""What a training needs to go on where it was interrupted: seeds, checkpoints, signals."""

from __future__ import annotations

import hashlib
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attention_pruning import InputError
from reproduction.runs.files import atomic_path
from reproduction.runs.torch_files import read_torch_file

CHECKPOINT_FORMAT = "reproduction/checkpoint/1"


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write a training state (tensors, numbers, strings, lists and dicts of them) atomically."""
    with atomic_path(path) as temporary:
        torch.save({"format": CHECKPOINT_FORMAT, **state}, temporary)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a state written by :func:`save_checkpoint`, without unpickling code.

    Raises
    ------
    InputError
        If the file is missing, truncated, or not such a checkpoint.
    """
    expected = "a training checkpoint"
    state = read_torch_file(path, expected, unsafe="a foreign file", only_archives=True)
    if not isinstance(state, dict) or state.pop("format", None) != CHECKPOINT_FORMAT:
        raise InputError(f"{path}: expected {expected}, found no training state in it")
    return state


def random_state() -> dict[str, Any]:
    """State of the generators that a training step of this process draws from: the CPU's, and its own GPU's."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def weights_fingerprint(model: nn.Module, leave_out: str | None = None) -> str:
    """First 16 hexadecimal digits of the SHA-256 of names and values of all weights and buffers, masks among them.

    Buffers of the name ``leave_out`` do not count.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.rpartition(".")[2] == leave_out:
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class Interruption:
    """Turn SIGTERM and SIGINT into a request that the training loop honours between two steps.

    Used as a context manager; a second signal of the same kind has its usual effect.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        signal.signal(number, self._before[number])

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """128 + the signal, as a shell reports it."""
        return 128 + (self.signal or signal.SIGTERM)

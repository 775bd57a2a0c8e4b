"""Batches of a binarised data set, outside of fairseq's training loop."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import data_utils
from torch import nn

from attention_pruning import InputError
from fairseq import utils


def load_split(task: Any, split: str) -> Any:
    """A ``LanguagePairDataset`` of a translation task.

    Raises
    ------
    InputError
        If the task's data has no such split.
    """
    try:
        task.load_dataset(split)
    except FileNotFoundError as error:
        raise InputError(
            f"{task.cfg.data}: expected binarised data with a split {split!r}, found none ({error})"
        ) from error
    return task.dataset(split)


def data_fingerprint(folder: str | Path, split: str) -> str:
    """16 hexadecimal digits of the binarised files of a split, and of the dictionaries."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob(f"{split}.*")) + sorted(Path(folder).glob("dict.*.txt")):
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]


def plan_batches(
    task: Any, dataset: Any, model: nn.Module, max_tokens: int, max_batches: int = -1, seed: int = 1
) -> list[Sequence[int]]:
    """Sentence numbers of each batch, sentences of like lengths together, those too long for the model left out.

    Parameters
    ----------
    max_tokens : int
        Of a batch, padding counted.
    max_batches : int
        Not more than these, drawn with ``seed``; below 0 all of them, shortest first.

    Raises
    ------
    InputError
        If nothing is left, ``max_batches`` is 0, or a sentence does not fit into a batch.
    """
    with data_utils.numpy_seed(seed):
        indices = dataset.ordered_indices()
    indices, _ = dataset.filter_indices_by_size(indices, sentence_limits(task, model))
    longest = max((dataset.num_tokens(index) for index in indices), default=0)
    if longest > max_tokens:
        raise InputError(f"--max-tokens: expected at least {longest}, the longest sentence, found {max_tokens}")
    batches = list(dataset.batch_by_size(indices, max_tokens=max_tokens)) if len(indices) else []
    if max_batches >= 0:
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
        batches = [batches[number] for number in order[:max_batches].tolist()]
    if not batches:
        raise InputError(f"{task.cfg.data}: expected sentences to read, found none (--max-batches {max_batches})")
    return batches


def dropped_sentences(task: Any, dataset: Any, model: nn.Module) -> int:
    """How many sentence pairs are too long for the model, and so in no batch."""
    _, dropped = dataset.filter_indices_by_size(np.arange(len(dataset)), sentence_limits(task, model))
    return len(dropped)


def sentence_limits(task: Any, model: nn.Module) -> tuple[int, int]:
    """The most tokens of a source and of a target."""
    return utils.resolve_max_positions(task.max_positions(), model.max_positions())


def collated(dataset: Any, batches: Sequence[Sequence[int]], device: torch.device) -> Iterator[dict[str, Any]]:
    """The batches themselves, on a device."""
    for batch in batches:
        sample = dataset.collater([dataset[int(index)] for index in batch])
        yield sample if device.type == "cpu" else utils.move_to_cuda(sample, device)

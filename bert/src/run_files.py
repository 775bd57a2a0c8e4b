"""What a run writes beside transformers' own files: metrics.json and run.json; and what both say about data and mask.

Letters in names: Q queries, K keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from attention_pruning import PruneMask
from reproduction.metrics import SPARSITIES, write_metrics

#: A mask of single cells: the share of the smallest kernel blocks that happen to be empty.
_SMALLEST_BLOCK = 16


def fingerprint_rows(dataset: Dataset) -> str:
    """16 hexadecimal digits of the rows of a dataset, in order."""
    digest = hashlib.sha256()
    for batch in dataset.iter(batch_size=1000):
        digest.update(json.dumps(batch, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def real_lengths(dataset: Dataset) -> np.ndarray:
    """Real tokens of each tokenised sequence."""
    return np.array([sum(row) for batch in dataset.iter(batch_size=1000) for row in batch["attention_mask"]])


def cell_counts(lengths: Sequence[int] | np.ndarray, causal: bool = False) -> Tensor:
    """How often sequences of these lengths use each cell of one layer and head: int64 [Q, K] up to the longest."""
    # A cell (q, k) belongs to every sequence longer than both.
    longer_N = torch.bincount(torch.as_tensor(lengths)).flip(0).cumsum(0).flip(0)[1:]
    positions = torch.arange(len(longer_N))
    counts = longer_N[torch.maximum(positions[:, None], positions[None, :])]
    return counts.tril() if causal else counts


def sparsities(mask: PruneMask | None, lengths: Sequence[int] | np.ndarray) -> dict[str, float]:
    """The three sparsities of metrics.json, of a model with this mask on sequences of these real lengths."""
    if mask is None:
        return dict.fromkeys(SPARSITIES, 0.0)
    size = mask.block_size if mask.block_size > 1 else _SMALLEST_BLOCK
    return {
        "effective_sparsity": mask.effective_sparsity,
        "evaluated_sparsity": mask.evaluated_sparsity(cell_counts(lengths, bool(mask.causal))),
        "block_sparsity": mask.block_sparsity(size),
    }


def report_metrics(
    folder: str | Path,
    labels: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
    mask: PruneMask | None,
    lengths: Sequence[int] | np.ndarray,
) -> None:
    """Print what was measured, a line a split, and write metrics.json."""
    for split, values in metrics.items():
        print(f"{split}: " + "  ".join(f"{name} {value:,.5g}" for name, value in values.items()))
    shares = sparsities(mask, lengths)
    print("attention pruned: " + "  ".join(f"{name} {value:.4f}" for name, value in shares.items()))
    write_metrics(Path(folder) / "metrics.json", labels, metrics, **shares)

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
from datasets import Dataset

from attention_pruning import PruneMask
from attention_pruning.sparsity import cell_counts
from reproduction.runs.metrics import SPARSITIES, write_metrics


def fingerprint_rows(dataset: Dataset) -> str:
    """16 hexadecimal digits of the rows of a dataset, in order."""
    digest = hashlib.sha256()
    for batch in dataset.iter(batch_size=1000):
        digest.update(json.dumps(batch, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def real_lengths(dataset: Dataset) -> np.ndarray:
    """Real tokens of each tokenised sequence."""
    return np.array([sum(row) for batch in dataset.iter(batch_size=1000) for row in batch["attention_mask"]])


def sparsities(mask: PruneMask | None, lengths: Sequence[int] | np.ndarray) -> dict[str, float]:
    """The three sparsities of metrics.json, of a model with this mask on sequences of these real lengths."""
    if mask is None:
        return dict.fromkeys(SPARSITIES, 0.0)
    return {
        "effective_sparsity": mask.effective_sparsity,
        "evaluated_sparsity": mask.evaluated_sparsity(cell_counts(lengths, lengths, bool(mask.causal))),
        "block_sparsity": mask.block_sparsity(),
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

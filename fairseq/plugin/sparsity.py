"""How sparse the attention of a checkpoint is, by its own masks: over all cells and over those that a test set uses.

Letters in names: L layers, H heads, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_pruning.sparsity import cell_counts, pruned_share

from .model import adopt_attention


def sparsities(model: nn.Module, record: dict[str, dict[str, Any]], dataset: Any) -> dict[str, float]:
    """Effective, evaluated and block sparsity of a model, over the sites that it prunes; 0 for a dense one.

    The evaluated cells are those of the sources and the references, so that two models compare at the same ones; beyond
    its mask a model prunes nothing.

    Parameters
    ----------
    record : dict
        Site -> ``site_masks.describe``.
    dataset
        ``LanguagePairDataset`` with targets.
    """
    attention = adopt_attention(model)
    lengths = {"source": dataset.src_sizes.tolist(), "target": dataset.tgt_sizes.tolist()}
    pruned = used = 0.0
    for site in record:
        queries, keys = (
            lengths["source" if site == "enc-self" else "target"],
            lengths["target" if site == "dec-self" else "source"],
        )
        count_TS = cell_counts(queries, keys, causal=site == "dec-self")
        weight = int(count_TS.sum()) * len(attention[site]) * attention[site][0].num_heads
        masks = [module.prune_mask for module in attention[site]]
        used += weight
        if masks[0] is not None:
            pruned += weight * pruned_share(fitted(torch.stack(masks).cpu(), count_TS.shape), count_TS)
    return {
        "effective_sparsity": effective_sparsity(record),
        "evaluated_sparsity": pruned / used if used else 0.0,
        "block_sparsity": _weighted(record, "block_sparsity", "allowed_blocks"),
    }


def effective_sparsity(record: dict[str, dict[str, Any]]) -> float:
    """That of all pruned sites together; 0 for a dense model."""
    return _weighted(record, "effective_sparsity", "allowed_cells")


def fitted(pruned: Tensor, shape: Sequence[int]) -> Tensor:
    """Cells of a mask [..., T, S] over other lengths of queries and keys; beyond the mask nothing is pruned."""
    part = pruned[..., : shape[0], : shape[1]]
    return F.pad(part, (0, shape[1] - part.size(-1), 0, shape[0] - part.size(-2)))


def _weighted(record: dict[str, dict[str, Any]], value: str, weight: str) -> float:
    total = sum(facts[weight] for facts in record.values())
    return sum(facts[value] * facts[weight] for facts in record.values()) / total if total else 0.0

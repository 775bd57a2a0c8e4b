"""How many attention probabilities of a translation model are exactly zero: pruned ones, and those of entmax itself.

Letters in names: B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attention_pruning.structure import visible_cells

from .model import adopt_attention
from .observing import observe_attention
from .sparsity import fitted


@dataclass
class ZeroCounts:
    """Cells of attention, summed over sentences, layers and heads.

    Attributes
    ----------
    allowed : int
        Cells whose query and key are real and that causality shows.
    kept : int
        Those of them that no mask prunes.
    zeros : int
        Allowed cells whose probability is exactly zero.
    kept_zeros : int
        Kept cells whose probability is exactly zero: what the normaliser itself left out.
    """

    allowed: int = 0
    kept: int = 0
    zeros: int = 0
    kept_zeros: int = 0

    def __add__(self, other: ZeroCounts) -> ZeroCounts:
        return ZeroCounts(
            self.allowed + other.allowed,
            self.kept + other.kept,
            self.zeros + other.zeros,
            self.kept_zeros + other.kept_zeros,
        )

    def shares(self) -> dict[str, float]:
        """``zeros`` and ``pruned`` over the allowed cells, ``kept_zeros`` over the kept ones (0 if none is kept)."""
        return {
            "zeros": self.zeros / self.allowed,
            "pruned": (self.allowed - self.kept) / self.allowed,
            "kept_zeros": self.kept_zeros / self.kept if self.kept else 0.0,
        }


def count_cells(
    p_BHTS: Tensor, real_query_BT: Tensor, real_key_BS: Tensor, causal: bool, pruned_HTS: Tensor | None
) -> ZeroCounts:
    """Count the cells of one layer in one batch."""
    heads, queries, keys = p_BHTS.shape[1:]
    allowed_BTS = real_query_BT[:, :, None] & real_key_BS[:, None, :]
    if causal:
        allowed_BTS = allowed_BTS & visible_cells(queries, keys, True).to(allowed_BTS.device)
    zero_BHTS = (p_BHTS == 0) & allowed_BTS[:, None]
    counts = ZeroCounts(allowed=heads * int(allowed_BTS.sum()), zeros=int(zero_BHTS.sum()))
    if pruned_HTS is None:
        counts.kept, counts.kept_zeros = counts.allowed, counts.zeros
    else:
        kept_HTS = ~fitted(pruned_HTS, (queries, keys))
        counts.kept = int((kept_HTS & allowed_BTS[:, None]).sum())
        counts.kept_zeros = int((zero_BHTS & kept_HTS).sum())
    return counts


def count_zeros(
    model: nn.Module, batches: Iterable[dict[str, Any]], sites: Sequence[str], padding: int
) -> dict[str, ZeroCounts]:
    """Run a model over batches, in eval mode and teacher-forced, and count the zeros of its attention, by site.

    A row whose kept keys are all out of reach attends to pruned ones (docs/method.md): those count as pruned, not as
    zero. Probabilities are counted as the model uses them, so what underflows in a softmax counts too.

    Parameters
    ----------
    model : nn.Module
        A transformer of fairseq, ours or stock; its attention is adopted.
    batches : iterable of dict
        As ``LanguagePairDataset.collater`` makes them, sources padded on the right, on the model's device.
    padding : int
        The padding token.

    Raises
    ------
    InputError
        If the model lacks a site, or a source is padded on the left.
    """
    attention = adopt_attention(model)
    counts = {site: ZeroCounts() for site in sites}

    def count(site: str, layer: int, p_BHTS: Tensor, real_query_BT: Tensor, real_key_BS: Tensor) -> None:
        mask = attention[site][layer].prune_mask
        counts[site] += count_cells(p_BHTS, real_query_BT, real_key_BS, site == "dec-self", mask)

    observe_attention(model, attention, sites, batches, padding, count)
    return counts

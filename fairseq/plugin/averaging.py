"""Average attention patterns of a translation model: every site in one pass, the attention itself observed.

Letters in names: B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attention_pruning import PatternAccumulator

from .model import adopt_attention
from .observing import observe_attention


@dataclass(frozen=True)
class Lengths:
    """The longest source and target, in tokens with the end of the sentence."""

    source: int
    target: int

    @classmethod
    def of(cls, dataset: Any, batches: Iterable[Sequence[int]]) -> Lengths:
        """Of the sentences in some batches of a ``LanguagePairDataset``."""
        indices = [index for batch in batches for index in batch]
        return cls(int(dataset.src_sizes[indices].max()), int(dataset.tgt_sizes[indices].max()))

    def of_site(self, site: str) -> tuple[int, int]:
        """Queries and keys."""
        queries = self.source if site == "enc-self" else self.target
        return queries, self.target if site == "dec-self" else self.source


def masks_observed_under(record: Mapping[str, Mapping[str, Any]], site: str) -> dict[str, str]:
    """What a pattern's metadata says of the masks of the model that showed it: ``observed_under_mask`` is its own
    site's, ``observed_under_mask_SITE`` another's; nothing for a dense model.

    Parameters
    ----------
    record : mapping
        Site -> ``site_masks.describe``.
    """
    own = "observed_under_mask"
    pruned = {other: facts["fingerprint"] for other, facts in record.items() if facts["prunes"]}
    return {own if other == site else f"{own}_{other}": fingerprint for other, fingerprint in pruned.items()}


def average_attention(
    model: nn.Module, batches: Iterable[dict[str, Any]], sites: Sequence[str], lengths: Lengths, padding: int
) -> dict[str, PatternAccumulator]:
    """Run a model over batches, in eval mode and teacher-forced, and accumulate its attention at some sites.

    Parameters
    ----------
    model : nn.Module
        A transformer of fairseq, ours or stock; its attention is adopted.
    batches : iterable of dict
        As ``LanguagePairDataset.collater`` makes them, sources padded on the right, on the model's device.
    lengths : Lengths
        At least those of the batches: the sizes of the patterns.
    padding : int
        The padding token. Cells of padded queries or keys never count.

    Raises
    ------
    InputError
        If the model lacks a site, or a source is padded on the left.
    """
    attention = adopt_attention(model)
    accumulators = {
        site: PatternAccumulator(len(attention[site]), attention[site][0].num_heads, *lengths.of_site(site), site)
        for site in sites
        if attention[site]
    }

    def accumulate(site: str, layer: int, p_BHTS: Tensor, real_query_BT: Tensor, real_key_BS: Tensor) -> None:
        accumulators[site].update(layer, p_BHTS, real_query_BT, real_key_BS)

    observe_attention(model, attention, sites, batches, padding, accumulate)
    return accumulators

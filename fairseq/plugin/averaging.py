"""Average attention patterns of a translation model: every site in one pass, the attention itself observed.

Letters in names: B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attention_pruning import InputError, PatternAccumulator

from .model import adopt_attention


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


@torch.no_grad()
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
    accumulators = {}
    for site in sites:
        if not attention[site]:
            raise InputError(f"model: expected {site} attention, found a model without")
        heads = attention[site][0].num_heads
        accumulators[site] = PatternAccumulator(len(attention[site]), heads, *lengths.of_site(site), site)
    real: dict[str, Tensor] = {}

    def observe(site: str, layer: int, p_BHTS: Tensor) -> None:
        queries, keys = ("source" if site == "enc-self" else "target"), ("target" if site == "dec-self" else "source")
        accumulators[site].update(layer, p_BHTS, real[queries], real[keys])

    model.eval()
    for site in sites:
        for layer, module in enumerate(attention[site]):
            module.observer = partial(observe, site, layer)
    try:
        for batch in batches:
            net_input = batch["net_input"]
            real["source"] = net_input["src_tokens"].ne(padding)
            real["target"] = net_input["prev_output_tokens"].ne(padding)
            if not real["source"][:, 0].all():
                raise InputError("sources: expected padding on the right, found it on the left")
            model(**net_input)
    finally:
        for modules in attention.values():
            for module in modules:
                module.observer = None
    return accumulators

"""Show the attention of a translation model to an observer: every layer of some sites, batch by batch.

Letters in names: B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attention_pruning import InputError

from .attention import PrunedAttention

#: Called with site, layer, float32 probabilities [B, H, T, S] before dropout, real queries [B, T] and real keys [B, S].
SiteObserver = Callable[[str, int, Tensor, Tensor, Tensor], None]


@torch.no_grad()
def observe_attention(
    model: nn.Module,
    attention: Mapping[str, Sequence[PrunedAttention]],
    sites: Sequence[str],
    batches: Iterable[dict[str, Any]],
    padding: int,
    observer: SiteObserver,
) -> None:
    """Run a model over batches, in eval mode and teacher-forced, and show its attention at some sites.

    Parameters
    ----------
    attention : mapping
        What ``model.adopt_attention`` found in the model.
    batches : iterable of dict
        As ``LanguagePairDataset.collater`` makes them, sources padded on the right, on the model's device.
    padding : int
        The padding token: a query or key is real unless it is one.

    Raises
    ------
    InputError
        If the model lacks a site, or a source is padded on the left.
    """
    for site in sites:
        if not attention[site]:
            raise InputError(f"model: expected {site} attention, found a model without")
    real: dict[str, Tensor] = {}

    def show(site: str, layer: int, p_BHTS: Tensor) -> None:
        queries, keys = ("source" if site == "enc-self" else "target"), ("target" if site == "dec-self" else "source")
        observer(site, layer, p_BHTS, real[queries], real[keys])

    model.eval()
    for site in sites:
        for layer, module in enumerate(attention[site]):
            module.observer = partial(show, site, layer)
    try:
        for batch in batches:
            net_input = batch["net_input"]
            real["source"] = net_input["src_tokens"].ne(padding)
            real["target"] = net_input["prev_output_tokens"].ne(padding)
            if not real["source"][:, 0].all():
                raise InputError("sources: expected padding on the right, found it on the left")
            model(**net_input, features_only=True)  # the words of the output show no attention
    finally:
        for modules in attention.values():
            for module in modules:
                module.observer = None

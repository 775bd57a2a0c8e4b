"""Perplexity of a model on a text."""

from __future__ import annotations

import math
from typing import Any

import torch
from tqdm import tqdm

from data_utils import LMOrderedIterator
from mem_transformer import MemTransformerLM


@torch.no_grad()
def evaluate(
    model: MemTransformerLM, iterator: LMOrderedIterator, device: torch.device, progress: bool = False
) -> dict[str, Any]:
    """Average negative log-likelihood over a text, memory carried from segment to segment.

    Parameters
    ----------
    model : MemTransformerLM
        Put into eval mode, and back into the mode it was in.
    progress : bool
        Show a progress bar where a terminal is.

    Returns
    -------
    dict
        ``nll`` (nats a token), ``perplexity``, ``tokens``.
    """
    was_training = model.training
    model.eval()
    total, tokens, memory = 0.0, 0, None
    for data_BT, target_BT in tqdm(iterator, disable=None if progress else True, unit="segment"):
        nll, memory = model(data_BT.to(device), target_BT.to(device), memory)
        total += nll.double().sum().item()
        tokens += target_BT.numel()
    model.train(was_training)
    nll = total / tokens
    return {"nll": nll, "perplexity": math.exp(min(nll, 700.0)), "tokens": tokens}

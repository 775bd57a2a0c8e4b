"""Perplexity of a model on a text."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from tqdm import tqdm

from attention_pruning.ops.reasons import recorded
from data_utils import LMOrderedIterator
from mem_transformer import MemTransformerLM


@torch.no_grad()
def explain_attention(
    model: MemTransformerLM, iterator: LMOrderedIterator, device: torch.device
) -> list[dict[str, Any]]:
    """What computes each layer of a pruned model and why, for run.json: a segment of a text after a full memory.

    Returns
    -------
    list of dict
        The fields of ``attention_pruning.ops.reasons.Explained``, a layer each; none of a dense model.
    """
    if model.pruned is None:
        return []
    was_training, memory = model.training, None
    model.eval()
    for index in range(min(len(iterator), -(-model.config.mem_len // iterator.tgt_len) + 1)):
        data_BT, target_BT = (x.to(device) for x in iterator.segment(index))
        with recorded() as rows:
            _, memory = model(data_BT, target_BT, memory)
    model.train(was_training)
    return [dataclasses.asdict(row) for row in rows]


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

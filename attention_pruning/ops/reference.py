"""Block-sparse attention in plain torch, of any float dtype and on any device: what every other backend must equal.

It computes all scores, so it saves nothing. A NaN or an infinity among the values of a pruned key is multiplied by a
probability of 0 here, and spreads; in a kernel it does not, because a pruned block is never read.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Call
from .dropout import keep_mask


def kept_and_visible(call: Call) -> Tensor:
    """bool, broadcastable to [B, H, L, S]: the cells whose scores count."""
    kept, visible = call.kept()[None], call.visible()
    return kept if visible is None else kept & visible


def attend(call: Call) -> tuple[Tensor, Tensor]:
    """Outputs [B, H, L, D], 0 in rows without a key, and which rows those are, bool broadcastable to [B, H, L, 1]."""
    counts = kept_and_visible(call)
    scores = call.q @ call.k.transpose(-1, -2) * call.scale
    if call.bias is not None:
        scores = scores + call.bias
    scores = scores.masked_fill(~counts, -math.inf)
    empty = (scores == -math.inf).all(-1, keepdim=True)  # also where a bias of -inf hides what was left
    p = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    if call.dropout_p > 0.0:
        kept = keep_mask(call.dropout_seed, call.dropout_p, *scores.shape).to(p.device)
        p = p * kept / (1.0 - call.dropout_p)
    return p.to(call.q.dtype) @ call.v, empty


def attend_fused(call: Call) -> tuple[Tensor, Tensor]:
    """The same by torch's fused attention, under a mask unless nothing is hidden; dropout is torch's own."""
    counts, mask = kept_and_visible(call), None
    if call.bias is not None:
        bias = call.bias.to(call.q.dtype).expand(*call.q.shape[:3], call.k.shape[2])
        counts = counts & (bias != -math.inf)  # a row with nothing else would be NaN
    empty = ~counts.any(-1, keepdim=True)
    if call.bias is not None:
        mask = bias.masked_fill(~counts, -math.inf).masked_fill(empty, 0.0)
    elif not (counts.all() if counts.device.type == "cpu" else call.hides_nothing):  # a GPU's answer is waited for
        mask = counts | empty
    out = F.scaled_dot_product_attention(
        call.q, call.k, call.v, attn_mask=mask, dropout_p=call.dropout_p, scale=call.scale
    )
    return out.masked_fill(empty, 0.0), empty


def fill_empty_rows(call: Call, out: Tensor, empty: Tensor) -> Tensor:
    """Let rows with nothing left attend uniformly over their visible keys; rows that see nothing stay 0.

    A mean of values, so dropout is not applied to it.
    """
    queries, keys = call.q.shape[2], call.k.shape[2]
    v = call.v if call.key_seen is None else call.v.masked_fill(~call.key_seen[:, None, :, None], 0.0)
    seen = torch.ones(1, keys, device=v.device) if call.key_seen is None else call.key_seen
    seen = seen.to(v.dtype)[:, None, :, None]
    if call.causal:  # a running sum, of which a query takes what lies at its last visible key
        last = torch.arange(queries, device=v.device) + (keys - queries)
        total, count = v.cumsum(2)[:, :, last], seen.cumsum(2)[:, :, last]
    else:
        total, count = v.sum(2, keepdim=True), seen.sum(2, keepdim=True)
    return torch.where(empty, (total / count.clamp(min=1)).to(out.dtype), out)

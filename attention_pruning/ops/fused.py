"""Torch's own fused attention under a mask: what computes where no kernel of blocks can, or where it would not pay.

It computes every score. The mask of a layer is one tensor [H, L, S], the same for every sequence of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Call
from .layer_mask import last_first_kept

#: Columns that carry the padding, beside the head: whole vectors for the kernels of a GPU.
PADDING_COLUMNS = 8
#: There a pruned score and a padded key lose this much, instead of everything: beside a kept key exp of it is exactly
#: 0, and a row whose kept keys are all padding is even over its pruned ones, in the backward pass too, whose logarithm
#: of the sum keeps three digits of that.
PRUNED_SCORE, PADDED_SCORE = -1e4, -3e4


def attend(call: Call) -> Tensor:
    """[B, H, L, E]. Dropout is torch's own."""
    if not call.mask.prunes and call.bias is None:
        return _attend_dense(call)
    uniform, blind = _uniform_rows(call), _blind_rows(call)
    q, k, v = call.q, call.k, call.v
    if uniform is not None:  # a row of equal scores, through which no gradient passes
        q = q.masked_fill(uniform, 0.0)
    if _padding_in_product(call):
        scores = _masked_scores(call, None, PRUNED_SCORE)
        q, k, v = _with_padding(call, q)
    else:
        scores = _masked_scores(call, uniform, -torch.inf)
        if call.key_padding_mask is not None:
            scores = scores + _padding_scores(call, -torch.inf)  # [B, H, L, S]
        if blind is not None:
            scores = scores.masked_fill(blind, 0.0)  # computed over anything, then zeroed
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=scores[(None,) * (4 - scores.ndim)],
        dropout_p=call.dropout_p,
        scale=call.scale,
        enable_gqa=call.groups > 1,
    )[..., : call.v.shape[-1]]
    return out if blind is None else out.masked_fill(blind, 0.0)


def _padding_in_product(call: Call) -> bool:
    """Whether padding becomes part of the product of queries and keys, so that the scores keep one mask for all
    sequences. On a CPU the longer product takes more time than [B, H, L, S] costs."""
    return call.key_padding_mask is not None and call.bias is None and call.q.device.type != "cpu"


def _attend_dense(call: Call) -> Tensor:
    visible, blind = call.visible(), _blind_rows(call)
    upper_left = call.causal and call.key_padding_mask is None and call.diagonal == 0
    if visible is not None and blind is not None:
        visible = visible | blind
    out = F.scaled_dot_product_attention(
        call.q,
        call.k,
        call.v,
        attn_mask=None if upper_left or visible is None else visible[(None,) * (4 - visible.ndim)],
        is_causal=upper_left,
        dropout_p=call.dropout_p,
        scale=call.scale,
        enable_gqa=call.groups > 1,
    )
    return out if blind is None else out.masked_fill(blind, 0.0)


def _masked_scores(call: Call, uniform: Tensor | None, pruned_score: float) -> Tensor:
    """What is added to the scores, padding apart: [H, L, S], or wider where a bias or ``uniform`` rows make it so."""
    device, dtype = call.q.device, call.q.dtype
    scores = call.mask.additive(device, dtype, pruned_score)[:, call.rows, : call.keys]
    if call.causal and not call.mask.causal:
        scores = scores.masked_fill(~call.past(), -torch.inf)
    if call.bias is not None:
        scores = scores + call.bias.to(dtype)
        nothing = (scores == -torch.inf).all(-1, keepdim=True)  # a bias of -inf may hide what was left
        uniform = nothing if uniform is None else uniform | nothing
    if uniform is not None:
        past = torch.zeros(call.queries, call.keys, dtype=dtype, device=device)
        scores = torch.where(uniform, past.masked_fill(~call.past(), -torch.inf) if call.causal else past, scores)
    return scores


def _uniform_rows(call: Call) -> Tensor | None:
    """bool [B or 1, H, L, 1]: rows left empty by the mask; None where there are none, as far as is known without
    waiting for a GPU."""
    device = call.q.device
    if call.key_padding_mask is None:
        told = call.causal and not call.mask.causal  # causality that the mask does not know of
        if not told and call.keys > last_first_kept(call.mask):
            return None
        last = torch.full((call.queries,), call.keys - 1, device=device)
        if told:
            last = torch.arange(call.queries, device=device) + call.diagonal
        uniform = (call.mask.first_kept(device)[:, call.rows] > last)[None, :, :, None]
    else:
        # As many kept keys as are no padding, counted by one product for all sequences.
        kept = call.mask.additive(device, call.q.dtype, -torch.inf)[:, call.rows, : call.keys] == 0
        if call.causal and not call.mask.causal:
            kept = kept & call.past()
        real = (~call.key_padding_mask).to(call.q.dtype)
        uniform = (kept.to(call.q.dtype) @ real.T).eq(0).permute(2, 0, 1)[..., None]
    if device.type == "cpu" and not torch.compiler.is_compiling() and not uniform.any():
        return None
    return uniform


def _blind_rows(call: Call) -> Tensor | None:
    """bool [B, 1, L or 1, 1]: rows that see nothing but padding."""
    if call.key_padding_mask is None:
        return None
    if not call.causal:
        blind = call.key_padding_mask.all(1)[:, None, None, None]
    else:
        last = torch.arange(call.queries, device=call.q.device) + call.diagonal
        blind = (~call.key_padding_mask).cumsum(1)[:, last].eq(0)[:, None, :, None]
    if call.q.device.type == "cpu" and not torch.compiler.is_compiling() and not blind.any():
        return None
    return blind


def _padding_scores(call: Call, padded_score: float) -> Tensor:
    """[B, 1, 1, S]"""
    zeros = torch.zeros(call.key_padding_mask.shape, dtype=call.q.dtype, device=call.q.device)
    return zeros.masked_fill_(call.key_padding_mask, padded_score)[:, None, None, :]


def _with_padding(call: Call, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values with columns more, whose product is the padding."""
    # The product is scaled, the padding is not to be.
    padding = _padding_scores(call, PADDED_SCORE).permute(0, 1, 3, 2).expand(*call.k.shape[:3], 1) / call.scale
    q = torch.cat([q, q.new_ones(*q.shape[:3], 1), q.new_zeros(*q.shape[:3], PADDING_COLUMNS - 1)], -1)
    k = torch.cat([call.k, padding, padding.new_zeros(*call.k.shape[:3], PADDING_COLUMNS - 1)], -1)
    return q, k, F.pad(call.v, (0, PADDING_COLUMNS))

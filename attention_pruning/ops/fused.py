"""Torch's own fused attention under a mask: what computes where no kernel of blocks can, or where it would not pay.

It computes every score. The mask of a layer is one tensor [H, L, S], the same for every sequence of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Call
from .layer_mask import last_first_kept
from .relative import by_shift

#: Columns that carry the padding, beside the head: whole vectors for the kernels of a GPU.
PADDING_COLUMNS = 8
#: There a pruned score and a padded key lose this much, instead of everything: beside a kept key exp of it is exactly
#: 0, and a row whose kept keys are all padding is even over its pruned ones, in the backward pass too, whose logarithm
#: of the sum keeps three digits of that.
PRUNED_SCORE, PADDED_SCORE = -1e4, -3e4


def attend(call: Call) -> Tensor:
    """[B, H, L, E]. Dropout is torch's own."""
    if not call.mask.prunes and call.bias is None and call.relative is None:
        return _attend_dense(call)
    in_product = _padding_in_product(call)
    scores = _masked_scores(call, PRUNED_SCORE if in_product else -torch.inf)
    uniform, blind = _uniform_rows(call, scores), _blind_rows(call)
    if call.relative is not None:
        scores = scores + by_shift(call)  # what is hidden stays so, whatever the view holds there
    q, k, v = call.q, call.k, call.v
    if uniform is not None:  # a row of equal scores, through which no gradient passes
        q = q.masked_fill(uniform, 0.0)
    if in_product:
        q, k, v = _with_padding(call, q)
    else:
        if uniform is not None:
            scores = torch.where(uniform, _past_scores(call), scores)
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
    plain = call.bias is None and call.relative is None
    return call.key_padding_mask is not None and plain and call.q.device.type != "cpu"


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


def _masked_scores(call: Call, pruned_score: float) -> Tensor:
    """What is added to the scores, padding apart: [H, L, S], or the shape that a bias gives it."""
    scores = call.mask.additive(call.q.device, call.q.dtype, pruned_score)[:, call.rows, : call.keys]
    if call.causal and not call.mask.causal:
        scores = scores.masked_fill(~call.past(), -torch.inf)
    return scores if call.bias is None else scores + call.bias.to(call.q.dtype)


def _past_scores(call: Call) -> Tensor:
    """[L, S]: 0 where causality shows a key, else -inf."""
    zeros = torch.zeros(call.queries, call.keys, dtype=call.q.dtype, device=call.q.device)
    return zeros.masked_fill_(~call.past(), -torch.inf) if call.causal else zeros


def _uniform_rows(call: Call, scores: Tensor) -> Tensor | None:
    """bool [B or 1, H, L, 1]: rows left empty, by the mask or by a bias of -inf.

    None where there are none, as far as is known without waiting for a GPU.
    """
    device, mask = call.q.device, call.mask
    if call.bias is not None:
        counts = scores > -torch.inf
        if call.key_padding_mask is not None:
            counts = counts & ~call.key_padding_mask[:, None, None, :]
        uniform = ~counts.any(-1, keepdim=True)
    elif call.key_padding_mask is not None:
        # As many kept keys as are no padding, counted by one product for all sequences.
        real = (~call.key_padding_mask).to(call.q.dtype)
        uniform = ((scores == 0).to(call.q.dtype) @ real.T).eq(0).permute(2, 0, 1)[..., None]
    else:
        told = call.causal and not mask.causal  # causality that the mask does not know of
        if not told and call.keys > last_first_kept(mask):
            return None
        last = torch.full((call.queries,), call.keys - 1, device=device)
        if told:
            last = torch.arange(call.queries, device=device) + call.diagonal
        uniform = (mask.first_kept(device)[:, call.rows] > last)[None, :, :, None]
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

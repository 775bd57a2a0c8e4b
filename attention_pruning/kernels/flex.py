"""Block-sparse attention by torch's FlexAttention: the backend for GPUs. On a CPU it computes inference only.

FlexAttention takes the kept blocks from the same layout. It has no dropout.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ..blocks import block_count
from .call import Call
from .reference import kept_and_visible


def refusal(call: Call) -> str | None:
    """What FlexAttention would need to compute a call, or None."""
    needs_gradient = any(x is not None and x.requires_grad for x in (call.q, call.k, call.v, call.bias))
    if call.dropout_p > 0.0:
        return f"no dropout, found {call.dropout_p}"
    if call.q.device.type == "cpu" and torch.is_grad_enabled() and needs_gradient:
        return "a GPU for gradients, found tensors on the CPU"
    if call.q.device.type == "cpu" and call.q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"float32, bfloat16 or float16, found {call.q.dtype}"
    return None


def attend(call: Call) -> tuple[Tensor, Tensor]:
    """Outputs [B, H, L, D], 0 in rows without a key, and which rows those are."""
    if call.q.numel() == 0 or call.k.numel() == 0:
        return torch.zeros_like(call.q), torch.ones_like(call.q[..., :1], dtype=torch.bool)
    mask = block_mask(call)
    bias = call.bias
    if bias is None:
        out = compiled()(call.q, call.k, call.v, block_mask=mask, scale=call.scale)
    else:
        bias = bias.expand(*call.q.shape[:3], call.k.shape[2])

        def add_bias(score, b, h, i, j):
            return score + bias[b, h, i, j]

        out = compiled()(call.q, call.k, call.v, score_mod=add_bias, block_mask=mask, scale=call.scale)
    empty = ~kept_and_visible(call).any(-1, keepdim=True)
    return out.masked_fill(empty, 0.0), empty


def block_mask(call: Call) -> BlockMask:
    """The kept blocks of the layout, cut to the sequence, with what is padding and what is not yet to be seen.

    Every block is "partial", its cells looked up one by one: a mask without a partial block does not compile on the CPU
    in torch 2.13.
    """
    layout, device, size = call.layout, call.q.device, call.layout.block_size
    queries, keys = call.q.shape[2], call.k.shape[2]
    kept = layout.blocks[:, : block_count(queries, size), : block_count(keys, size)]
    order = kept.int().argsort(dim=-1, descending=True, stable=True).int()[None].to(device)
    cells_HLS = call.kept()
    seen_BS = call.key_seen
    if seen_BS is None:
        seen_BS = torch.ones(call.q.shape[0], keys, dtype=torch.bool, device=device)
    future = keys - queries if call.causal else keys  # keys beyond the query's own number that it sees

    def counts(b, h, i, j):
        return cells_HLS[h, i, j] & seen_BS[b, j] & (j <= i + future)

    return BlockMask.from_kv_blocks(
        kept.sum(-1, dtype=torch.int32)[None].to(device),
        order,
        BLOCK_SIZE=(size, size),
        mask_mod=counts,
        seq_lengths=(queries, keys),
    )


@functools.cache
def compiled():
    """One graph for all layers: what differs between them are tensors."""
    return torch.compile(flex_attention, dynamic=False)

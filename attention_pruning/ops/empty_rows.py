"""Rows left empty: queries whose visible keys are all pruned. They attend uniformly, whatever computes the others.

The compiled kernel does so itself; this is for backends that give 0 there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .call import Call


def fill_empty_rows(call: Call, out_BHLE: Tensor, empty: Tensor) -> Tensor:
    """The mean of the visible values in the rows of ``empty`` (bool [B, H, L, 1]); a row that sees nothing stays 0.

    Dropout is not applied to it. Sums are in float32: 16 bits stop counting at 256.
    """
    v = call.v if call.groups == 1 else call.v.repeat_interleave(call.groups, 1)
    precise = torch.promote_types(v.dtype, torch.float32)
    seen = torch.ones(1, call.keys, dtype=torch.bool, device=v.device)
    if call.key_padding_mask is not None:
        seen = ~call.key_padding_mask
        v = v.masked_fill(~seen[:, None, :, None], 0.0)
    v, seen = v.to(precise), seen.to(precise)[:, None, :, None]
    if call.causal:  # a running sum, of which a query takes what lies at its last visible key
        last = torch.arange(call.queries, device=v.device) + call.diagonal
        total, count = v.cumsum(2)[:, :, last], seen.cumsum(2)[:, :, last]
    else:
        total, count = v.sum(2, keepdim=True), seen.sum(2, keepdim=True)
    return torch.where(empty, (total / count.clamp(min=1)).to(out_BHLE.dtype), out_BHLE)

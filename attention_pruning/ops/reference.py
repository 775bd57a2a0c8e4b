"""The operator in plain torch, of any float dtype and on any device: what every other backend must equal.

It computes all scores, so it saves nothing. A NaN or an infinity among the values of a pruned key is multiplied by a
probability of 0 here, and spreads; in a kernel it does not, because a pruned block is never read.
"""

from __future__ import annotations

import math

from torch import Tensor

from .call import Call
from .dropout import keep_mask
from .empty_rows import fill_empty_rows
from .relative import by_definition


def attend(call: Call) -> Tensor:
    """[B, H, L, E]"""
    call = call.expanded()
    counts, visible = ~call.pruned()[None], call.visible()
    if visible is not None:
        counts = counts & visible
    scores = call.q @ call.k.transpose(-1, -2) * call.scale
    if call.relative is not None:
        scores = scores + by_definition(call)
    if call.bias is not None:
        scores = scores + call.bias
    scores = scores.masked_fill(~counts, -math.inf)
    empty = (scores == -math.inf).all(-1, keepdim=True)  # also where a bias of -inf hides what was left
    p = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    if call.dropout_p > 0.0:
        kept = keep_mask(int(call.dropout_seed()), call.dropout_p, *scores.shape).to(p.device)
        p = p * kept / (1.0 - call.dropout_p)
    return fill_empty_rows(call, p.to(call.q.dtype) @ call.v, empty)

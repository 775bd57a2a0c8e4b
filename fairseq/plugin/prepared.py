"""What the masks of a call need, found once: for all layers that see the same padding, for all calls of one length.

Nothing here waits for a GPU unless it says so. Letters in names: B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from attention_pruning import LayerMask
from attention_pruning.ops.eager import ScoreMask
from attention_pruning.structure import visible_cells


def _once_a_tensor(make: Any) -> Any:
    """Remember what is made of a tensor for as long as there is that tensor, unchanged."""
    known: Any = WeakTensorKeyDictionary()

    @functools.wraps(make)
    def wrapper(tensor: Tensor) -> Any:
        version = 0 if tensor.is_inference() else tensor._version
        found = known.get(tensor)
        if found is None or found[0] != version:
            found = known[tensor] = (version, make(tensor))
        return found[1]

    return wrapper


class Padding:
    """The padded keys of a batch.

    Parameters
    ----------
    mask : Tensor
        [B, S], True (or 1) = padding.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask if mask.dtype == torch.bool else mask.bool()
        self._additive: dict[torch.dtype, Tensor] = {}

    @functools.cached_property
    def lengths(self) -> Tensor:
        """Real keys of each sentence: int64 [B]."""
        return (~self.mask).sum(1)

    @functools.cached_property
    def facts(self) -> tuple[int, bool, bool]:
        """The fewest real keys, whether there is padding, and whether it is on the left anywhere. Waits for a GPU."""
        mask = self.mask
        # A row of padding alone says nothing about sides.
        told = torch.stack([self.lengths.min(), mask.any().long(), (mask[:, 0] & ~mask[:, -1]).any().long()])
        shortest, some, left = told.tolist()
        return shortest, bool(some), bool(left)

    def additive(self, dtype: torch.dtype) -> Tensor:
        """[B, 1, 1, S]: 0 at real keys, else -inf."""
        if dtype not in self._additive:
            zeros = torch.zeros(self.mask.shape, dtype=dtype, device=self.mask.device)
            self._additive[dtype] = zeros.masked_fill_(self.mask, -math.inf)[:, None, None, :]
        return self._additive[dtype]


padding_of = _once_a_tensor(Padding)


@_once_a_tensor
def _verified(whole: Tensor) -> dict[tuple, bool]:
    return {}


def hides_only_the_future(attn_mask: Tensor) -> bool:
    """Whether [T, T] is -inf above the diagonal and nowhere else. Waits for a GPU once for each length."""
    # fairseq gives a part of one tensor that it keeps.
    whole = attn_mask if attn_mask._base is None else attn_mask._base
    known, part = _verified(whole), (attn_mask.shape, attn_mask.stride(), attn_mask.storage_offset())
    if part not in known:
        future = ~visible_cells(*attn_mask.shape, True).to(attn_mask.device)
        known[part] = attn_mask.size(0) == attn_mask.size(1) and torch.equal(attn_mask == -math.inf, future)
    return known[part]


def rows_of(mask: LayerMask, rows: slice, keys: int, like: Tensor) -> Tensor:
    """[H, T, S]: 0 where a mask keeps a key, else -inf, as the scores ``like``; made once and sliced."""
    return mask.additive(like.device, like.dtype)[:, rows, :keys]


def lost_rows(mask: LayerMask, rows: slice, keys: int, padding: Padding | None, device: torch.device) -> Tensor | None:
    """bool [B or none, H, T, 1]: rows whose kept keys are all padding, or beyond these keys; None if there are none.

    Waits for a GPU.

    Parameters
    ----------
    padding : Padding or None
        On the right.
    """
    last = max(_last_first_kept(mask)[rows])
    if padding is None:
        return None if last < keys else _some(mask.first_kept(device)[:, rows] >= keys)
    if last < padding.facts[0]:
        return None
    # As the first kept key is padding, so are all of them.
    return _some(mask.first_kept(device)[:, rows] >= padding.lengths[:, None, None])


def _some(lost: Tensor) -> Tensor | None:
    return lost[..., None] if lost.any() else None


def score_mask(mask: LayerMask, queries: int, keys: int, padding: Padding | None, like: Tensor) -> ScoreMask:
    """What is added to the scores of a whole sequence.

    Parameters
    ----------
    mask : LayerMask
        Long enough; causality is part of it.
    padding : Padding or None
        On the right, and of no sentence that is padding alone.
    like : Tensor
        Of the device and dtype of the scores.
    """
    rows = slice(0, queries)
    additive, uniform = rows_of(mask, rows, keys, like), lost_rows(mask, rows, keys, padding, like.device)
    if uniform is not None:  # such a row is even over what it sees
        additive = torch.where(uniform, _past(mask, like)[rows, :keys] if mask.causal else 0.0, additive)
    if padding is not None:
        additive = additive + padding.additive(like.dtype)
    return ScoreMask(additive, uniform)


def _last_first_kept(mask: LayerMask) -> list[int]:
    """For each query, the largest of ``first_kept`` of all heads: with more keys than that no head prunes all."""
    return mask.once(("last_first_kept_by_row",), lambda: mask.first_kept(torch.device("cpu")).amax(0).tolist())


def _past(mask: LayerMask, like: Tensor) -> Tensor:
    """[Q, K]: 0 where causality shows a key, else -inf."""

    def make() -> Tensor:
        future = ~visible_cells(mask.query_length, mask.key_length, True)
        return torch.zeros(future.shape, dtype=like.dtype).masked_fill_(future, -math.inf).to(like.device)

    return mask.once(("past", like.device, like.dtype), make)


def extended(mask: LayerMask, queries: int, keys: int) -> LayerMask:
    """A mask that prunes nothing beyond another one and is at least so long; made once for as many lengths as share it.

    Of single cells, whatever the mask's own blocks are.
    """
    queries, keys = (
        -(-max(length, own) // 64) * 64 for length, own in ((queries, mask.query_length), (keys, mask.key_length))
    )
    if mask.causal:
        queries = keys = max(queries, keys)

    def make() -> LayerMask:
        pruned = torch.zeros(mask.heads, queries, keys, dtype=torch.bool)
        pruned[:, : mask.query_length, : mask.key_length] = mask.cells(torch.device("cpu"))
        return LayerMask(pruned, 1, queries, keys, causal=mask.causal, source=mask.source)

    return mask.once(("extended", queries, keys), make)

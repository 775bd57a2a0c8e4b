"""Which row and which column of a mask a token stands for.

The position of a token is the number of real tokens before it in its sequence: what ``generate`` calls position ids. So
neither the side of the padding nor a cache moves a token to another row. transformers hands an attention function no
positions, but its mask shows them: padding is what no query sees, and a causal query sees as many keys as its position
says, itself included. All of it is read from the mask of the call (once for all layers that share it), hence gradient
checkpointing, beams and caches need no care.

Letters in names: B batch, Q queries, S keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..structure import visible_cells

#: Mask of a call -> what was read from it, as long as the mask lives.
_READ = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class Axis:
    """The positions along one axis of an attention call.

    Attributes
    ----------
    index : Tensor
        int64, [N] if all sequences of the batch share them, else [B, N]. That of padding is any position in use.
    bound : int
        Every index is below it, known without looking at the numbers.
    real : Tensor or None
        bool [B, N], True = a real token; None: all real, or (queries of a call with a cache) not known.
    whole : bool
        Whether ``index`` is known to be 0, 1, 2, ..., N - 1: whole sequences, padded on the right or not at all.
    """

    index: Tensor
    bound: int
    real: Tensor | None = None
    whole: bool = False

    def last(self) -> Tensor:
        """The highest position of a real token."""
        if self.real is None:
            return self.index.max()
        return self.index.expand_as(self.real).masked_fill(~self.real, 0).max()


def _once_a_mask(read: Callable) -> Callable:
    """Read each mask once: the layers of a model share one, and looking at it takes time (on a GPU, waiting)."""

    @functools.wraps(read)
    def remembered(visible: Tensor, *more: object) -> object:
        if torch.compiler.is_compiling() or visible.is_inference():  # which have no count of changes
            return read(visible, *more)
        known, key = _READ.setdefault(visible, {}), (read.__name__, visible._version, *more)
        if key not in known:
            known[key] = read(visible, *more)
        return known[key]

    return remembered


def from_lengths(queries: int, keys: int, causal: bool, device: torch.device) -> tuple[Axis, Axis]:
    """Positions where no mask was made, so that there is no padding; a single causal query is the last token."""
    key = Axis(torch.arange(keys, device=device), keys, whole=True)
    if causal and queries == 1:
        return Axis(key.index[-1:], keys), key
    return Axis(torch.arange(queries, device=device), queries, whole=True), key


@_once_a_mask
def from_causal(visible_BhQS: Tensor) -> tuple[Axis, Axis]:
    """Positions of causal self-attention, with a cache (Q < S) or without."""
    queries, keys = visible_BhQS.shape[-2:]
    visible_BQS = visible_BhQS.any(1)
    seen_BQ = (visible_BQS.sum(-1) - 1).clamp(min=0)
    real_BS = visible_BQS.any(1)
    if queries == keys:  # no cache: a key stands where its query stands, also in packed sequences
        axis = _shared(seen_BQ, real_BS)
        return axis, axis
    return Axis(seen_BQ, keys), Axis(_count_before(real_BS), keys, real_BS)


@_once_a_mask
def from_bidirectional(visible_BhQS: Tensor) -> Axis:
    """Positions of the keys where every query sees all real keys."""
    real_BS = visible_BhQS.any(2).any(1)
    return _shared(_count_before(real_BS), real_BS)


@_once_a_mask
def padding_alone(visible_BhQS: Tensor, causal: bool) -> tuple[bool, Tensor | None]:
    """Whether a mask hides nothing but padded keys (and the future, if ``causal``), and the padding.

    Returns
    -------
    (bool, Tensor or None)
        The padding is bool [B, S], True = padding; None for none.
    """
    heads, queries, keys = visible_BhQS.shape[1:]
    if heads != 1 or (causal and queries != keys):
        return False, None
    visible_BQS = visible_BhQS[:, 0]
    real_BS = visible_BQS[:, -1]  # the last query sees all real keys
    expected = real_BS[:, None, :]
    if causal:
        expected = expected & visible_cells(queries, keys, True).to(visible_BQS.device)
    if not torch.equal(visible_BQS, expected.expand_as(visible_BQS)):
        return False, None
    return True, None if real_BS.all() else ~real_BS


def _count_before(real_BN: Tensor) -> Tensor:
    return (real_BN.long().cumsum(-1) - 1).clamp(min=0)


def _shared(index_BN: Tensor, real_BN: Tensor) -> Axis:
    """Notice that padding on the right (or none) leaves every token at its place: then one mask serves the batch.

    There padding stands at its place too.
    """
    length = index_BN.shape[-1]
    if not torch.compiler.is_compiling():  # a look at the numbers would break the graph
        place_N = torch.arange(length, device=index_BN.device)
        if ((index_BN == place_N) | ~real_BN).all():
            return Axis(place_N, length, real_BN, whole=True)
    return Axis(index_BN, length, real_BN)

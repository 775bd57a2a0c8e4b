"""Which row and which column of a mask a token stands for.

The position of a token is the number of real tokens before it in its sequence: what ``generate`` calls position ids. So
neither the side of the padding nor a cache moves a token to another row. It is read from the mask of the call (once for
all layers that share it): padding is what no query sees, and a causal query sees as many keys as its position says,
itself included. A mask that hides anything else, such as that of a prefix or of sequences packed into one row, does not
tell positions: there the model's own position ids are taken, and without them the call is refused.

Letters in names: B batch, Q queries, S keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import InputError
from ..structure import window_cells

#: Mask of a call -> what was read from it, as long as the mask lives.
_READ = WeakTensorKeyDictionary()
#: Why a call has no offset, if what it hides tells no positions.
HIDES_MORE = "the mask hides more than padding and the future"


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
    """

    index: Tensor
    bound: int
    real: Tensor | None = None

    def part(self, some: slice) -> Axis:
        """Some of the tokens."""
        real = None if self.real is None else self.real[..., some]
        return Axis(self.index[..., some], self.bound, real)

    def last(self) -> Tensor:
        """The highest position of a real token."""
        if self.real is None:
            return self.index.max()
        return self.index.expand_as(self.real).masked_fill(~self.real, 0).max()


@dataclass(frozen=True)
class Places:
    """Where the tokens of a call stand.

    Attributes
    ----------
    query, key : Axis
    keys : int
        Keys in use: a static cache has more.
    offset : int or None
        The row of the first query where the others follow it and key j stands in column j, in every sequence: then
        nothing but padding and the future is hidden. None where positions differ or cannot be looked at.
    padding : Tensor or None
        bool [B, keys], True = padding; None for none. Told only with an offset.
    reason : str
        Why there is no offset.
    starts : Tensor or None
        int64 [B]: how much padding stands on the left of each sequence of a causal call without an offset, if there is
        no other.
    """

    query: Axis
    key: Axis
    keys: int
    offset: int | None = None
    padding: Tensor | None = None
    reason: str = ""
    starts: Tensor | None = None

    @property
    def queries(self) -> int:
        return self.query.index.shape[-1]

    @functools.cached_property
    def first_rows(self) -> tuple[int, Tensor | None] | None:
        """The last position of a first query, and how much before it that of each sequence is (int32 [B], None for 0);
        None where the other queries do not follow the first."""
        if self.offset is not None:
            return self.offset, None
        if self.starts is not None:
            first_B = self.keys - self.queries - self.starts
        elif self.queries == 1:
            first_B = self.query.index[..., 0]
        else:
            return None
        last = max(0, int(first_B.max()))  # 0 if all sequences begin with padding
        return last, (last - first_B).int()

    @functools.cached_property
    def _made(self) -> dict[object, Any]:
        return {}

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made at the first call with this key: the layers of a model share their places."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def can_look(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at: not while a graph is made of it, nor on the meta device."""
    return not (torch.compiler.is_compiling() or tensor.is_meta)


def from_lengths(queries: int, keys: int, causal: bool, device: torch.device) -> Places:
    """Positions where no mask was made, so that there is no padding; a single causal query is the last token."""
    if torch.compiler.is_compiling():
        return _from_lengths(queries, keys, causal, device)
    return _known_from_lengths(queries, keys, causal, device, torch.is_inference_mode_enabled())


@functools.lru_cache(maxsize=8)
def _known_from_lengths(queries: int, keys: int, causal: bool, device: torch.device, _: bool) -> Places:
    """The layers of a model ask for the same; tensors of inference mode serve within it alone."""
    return _from_lengths(queries, keys, causal, device)


def _from_lengths(queries: int, keys: int, causal: bool, device: torch.device) -> Places:
    if causal and queries > 1:
        keys = queries  # as in transformers' own: what follows is a cache not filled yet
    offset = keys - 1 if causal and queries == 1 else 0
    key = Axis(torch.arange(keys, device=device), keys)
    query = Axis(torch.arange(offset, offset + queries, device=device), offset + queries)
    return Places(query, key, keys, offset)


def from_mask(
    visible_BhQS: Tensor, causal: bool, position_ids: Tensor | None, name: str, window: int | None = None
) -> Places:
    """Positions that a mask tells (bool, True = visible), or, where it does not, the model's position ids.

    With a window, keys as far away as that are hidden, too, and a cache may have dropped them.

    Raises
    ------
    InputError
        For a causal call whose mask is not triangular plus padding, without position ids for all of its keys.
    """
    if window is not None and visible_BhQS.shape[-1] < window:
        window = None
    if window is not None and causal and visible_BhQS.shape[-2] != visible_BhQS.shape[-1]:
        return _after_cache(visible_BhQS, position_ids, name)
    if not can_look(visible_BhQS):
        if window is not None:
            raise InputError(f"{name}: expected a model that is not being compiled for more keys than its window")
        return _unseen(visible_BhQS, causal)
    places = _read_once(visible_BhQS, causal, window)
    return _from_position_ids(visible_BhQS, causal, position_ids, name) if places is None else places


def _read_once(visible: Tensor, causal: bool, window: int | None) -> Places | None:
    """Read each mask once: the layers of a model share one, and looking at it takes time (on a GPU, waiting)."""
    if visible.is_inference():  # has no count of changes
        return _read(visible, causal, window)
    known, key = _READ.setdefault(visible, {}), (visible._version, causal, window)
    if key not in known:
        known[key] = _read(visible, causal, window)
    return known[key]


def _read(visible_BhQS: Tensor, causal: bool, window: int | None) -> Places | None:
    """None where more than padding and the future is hidden, so that the mask does not tell positions."""
    _, heads, queries, keys = visible_BhQS.shape
    visible_BQS = visible_BhQS[:, 0]
    real_BS = visible_BQS.any(1)
    expected_BQS, first, number = real_BS[:, None, :], 0, keys
    if causal:
        seen = visible_BQS[:, 0].any(0).nonzero()  # the first query sees itself last; a static cache goes on behind it
        first = int(seen.max()) if len(seen) else keys - queries
        query, key = torch.arange(queries, device=real_BS.device), torch.arange(keys, device=real_BS.device)
        expected_BQS = expected_BQS & (key[None, :] <= query[:, None] + first)
        number = first + queries
    if window is not None:  # of as many queries as keys
        place = torch.arange(keys, device=real_BS.device)
        expected_BQS = expected_BQS & window_cells(place[:, None], place, window)
    if heads != 1 or number > keys or not torch.equal(visible_BQS, expected_BQS.expand_as(visible_BQS)):
        return None
    real_BS = real_BS[:, :number]
    index_BS = _count_before(real_BS)
    place_S = torch.arange(number, device=real_BS.device)
    if not ((index_BS == place_S) | ~real_BS).all():
        key = Axis(index_BS, number, real_BS)
        if not causal:
            return Places(key, key, number, reason="sequences are padded on the left")
        query = key if queries == number else Axis(index_BS[:, first:], number)
        starts_B = number - real_BS.sum(1)
        if not torch.equal(real_BS, place_S >= starts_B[:, None]):
            starts_B = None
        return Places(query, key, number, reason="padding stands before real tokens", starts=starts_B)
    padding = None if real_BS.all() else ~real_BS
    key = Axis(place_S, number, real_BS)
    if not causal or queries == number:
        return Places(key, key, number, 0, padding)
    return Places(Axis(place_S[first:], number), key, number, first, padding)


def _after_cache(visible_BhQS: Tensor, position_ids: Tensor | None, name: str) -> Places:
    """Positions where the cache of a sliding window may have dropped keys: the last key is that of the last query."""
    queries, keys = visible_BhQS.shape[-2:]
    if position_ids is None or list(position_ids.shape[-1:]) != [queries]:
        raise InputError(f"{name}: expected position_ids for its {queries} queries after a cache, found none")
    if not can_look(visible_BhQS) or not visible_BhQS[:, :, -1, -1].all():
        found = "a static one, which is filled from the front, or torch.compile"
        raise InputError(f"{name}: expected a dynamic cache beyond its sliding window, found {found}")
    real_BS = visible_BhQS.any(2).any(1)
    query_BQ = position_ids.expand(len(real_BS), -1)
    index_BS = query_BQ[:, -1:] - torch.arange(keys - 1, -1, -1, device=query_BQ.device)
    bound = int(query_BQ.max()) + 1
    key = Axis(index_BS.clamp(min=0), bound, real_BS & (index_BS >= 0))
    return Places(Axis(query_BQ, bound), key, keys, reason="the cache of a sliding window drops keys")


def _unseen(visible_BhQS: Tensor, causal: bool) -> Places:
    """The same by tensor operations alone, whatever padding there is; a mask of another kind goes unnoticed."""
    queries, keys = visible_BhQS.shape[-2:]
    reason = "positions cannot be looked at while torch.compile makes a graph"
    if not causal:
        real_BS = visible_BhQS.any(2).any(1)
        key = Axis(_count_before(real_BS), keys, real_BS)
        return Places(key, key, keys, reason=reason)
    visible_BQS = visible_BhQS.any(1)
    seen_BQ, real_BS = (visible_BQS.sum(-1) - 1).clamp(min=0), visible_BQS.any(1)
    if queries == keys:
        key = Axis(seen_BQ, keys, real_BS)
        return Places(key, key, keys, reason=reason)
    return Places(Axis(seen_BQ, keys), Axis(_count_before(real_BS), keys, real_BS), keys, reason=reason)


def _from_position_ids(visible_BhQS: Tensor, causal: bool, position_ids: Tensor | None, name: str) -> Places:
    queries, keys = visible_BhQS.shape[-2:]
    if not causal and position_ids is None:  # such a model counts its rows from the first column
        real_BS = visible_BhQS.any(2).any(1)
        key = Axis(_count_before(real_BS), keys, real_BS)
        return Places(key, key, keys, reason=HIDES_MORE)
    if position_ids is None or queries != keys or list(position_ids.shape[-1:]) != [queries]:
        raise InputError(
            f"{name}: expected a mask that hides padding and the future alone, or position_ids for all {keys} keys, "
            "found a mask of another kind, which does not tell where its tokens stand"
        )
    real_BS = visible_BhQS.any(2).any(1)
    index = position_ids.expand(len(real_BS), -1)
    key = Axis(index, int(index.max()) + 1, real_BS)
    return Places(key, key, keys, reason=HIDES_MORE)


def _count_before(real_BN: Tensor) -> Tensor:
    return (real_BN.long().cumsum(-1) - 1).clamp(min=0)

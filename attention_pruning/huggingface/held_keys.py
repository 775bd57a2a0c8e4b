"""Attention over the keys that a PrunedCache holds, and few queries of sequences whose tokens stand in other rows.

Letters in names: B batch, H heads, G heads of keys and values, Q queries, S keys, D head size, K keys of a mask.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..distance_mask import DistanceMask
from ..ops.choice import Choice
from ..ops.cpu import few_queries, native, op
from ..ops.eager import ScoreMask, attend
from ..ops.layer_mask import LayerMask
from ..ops.reasons import record
from .attention_site import AttentionSite
from .positions import Places


class Held(Protocol):
    """What a layer of a PrunedCache says of the keys that it gave.

    Attributes
    ----------
    held_columns : Tensor
        int32 [B, G, S]: the column of each key; -1 for none.
    base : int or Tensor
        How far the rows of queries lie before their positions; int64 [B] where sequences differ.
    """

    mask: LayerMask
    length: int
    held_columns: Tensor
    base: int | Tensor

    def place(self, places: Places) -> None: ...

    def forget(self, count: int) -> None: ...


#: Under this name the keys that a PrunedCache gave have the layer of it that holds them.
HELD = "_held_by_attention_pruning"
#: A call's choice over such keys.
_CHOICE = Choice("block_sparse", "of the keys that are held", kept_keys=True)
#: From so many blocks on, a query over a whole cache is computed as an early row that keeps the same, where rows
#: repeat: the mask of its own length would take memory with the square of it.
LONG = 2048


class FewRows(NamedTuple):
    """Where a few queries and their keys stand in a mask.

    Attributes
    ----------
    last : int
        The last row of a first query.
    starts_B : Tensor or None
        int32: how much before it that of each sequence is; None for 0.
    columns_BGS : Tensor or None
        int32: the column of each key; None: that of the sequences, padded on the left.
    """

    mask: LayerMask
    last: int
    starts_B: Tensor | None = None
    columns_BGS: Tensor | None = None


def rows_at(position_BN: Tensor, base: int | Tensor) -> Tensor:
    """Rows that lie so far before their positions."""
    if isinstance(base, int):
        return position_BN - base if base else position_BN
    return position_BN - base[:, None]


def rows_in_cache(site: AttentionSite, places: Places) -> FewRows | None:
    """Of queries over all keys of their sequences; None where the other queries do not follow the first."""
    if places.first_rows is None:
        return None
    if site.any_length and places.first_rows[0] >= LONG * site.mask.block_size:
        last, starts_B, columns_B1S = places.once(site.mask, lambda: _moved_back(site.mask, places))
        return FewRows(site.of_length(last + places.queries), last, starts_B, columns_B1S)
    return FewRows(site.of_length(places.key.bound), *places.first_rows)


def _moved_back(mask: DistanceMask, places: Places) -> tuple[int, Tensor | None, Tensor]:
    """The same rows and columns where they first are, for rows of a mask by distance repeat."""
    last, starts_B = places.first_rows
    base = mask.moved(last if starts_B is None else last - starts_B.long())
    last, starts_B = _before(places, base)
    column_BS = places.key.index[..., : places.keys]
    moved_BS = rows_at(column_BS, base)
    column_BS = torch.where(column_BS < mask.sinks, column_BS, moved_BS.masked_fill(moved_BS < mask.sinks, -1))
    if places.key.real is not None:
        column_BS = column_BS.masked_fill(~places.key.real[..., : places.keys], -1)
    return last, starts_B, column_BS.int().reshape(-1, 1, places.keys)


def rows_held(site: AttentionSite, held: Held, places: Places) -> FewRows | None:
    """Of queries over what a PrunedCache holds; None where the other queries do not follow the first."""
    if places.first_rows is None:
        return None
    last, starts_B = _before(places, held.base)
    return FewRows(site.of_length(last + places.queries), last, starts_B, held.held_columns)


def _before(places: Places, base: int | Tensor) -> tuple[int, Tensor | None]:
    """``first_rows`` of rows that lie so far before the positions."""
    last, starts_B = places.first_rows
    if isinstance(base, int):
        return last - base, starts_B
    first_B = last - base if starts_B is None else last - starts_B - base
    last = max(0, int(first_B.max()))
    return last, (last - first_B).int()


def reason_against(
    site: AttentionSite,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Places,
    rows: FewRows | None,
    dropout: float,
) -> str | None:
    """Why the kernel of few queries cannot compute a call whose positions differ; None if it can."""
    if site.backend not in ("auto", "block_sparse"):
        return f"{site.backend} is asked for"
    if native.missing():
        return native.missing()
    refused = op.unsupported(query, key, value)
    if refused:
        return f"block_sparse needs {refused}"
    if dropout or torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        return "block_sparse needs no dropout and no gradient for few queries"
    if rows is None:
        return places.reason
    if rows.last + query.shape[2] > rows.mask.query_length:
        return "padding reaches beyond the mask"
    return None


def by_kept_keys(
    rows: FewRows, query: Tensor, key: Tensor, value: Tensor, places: Places, scaling: float | None
) -> Tensor:
    """[B, H, Q, D] by the kernel of few queries; see :func:`reason_against`."""
    columns = rows.columns_BGS
    if columns is None:  # no sequence needs what all have of padding, which may be longer than the mask
        first, last = places.keys - query.shape[2] - rows.last, places.keys
    else:
        first, last = 0, columns.shape[2]
        columns = columns.expand(*key.shape[:2], -1)
    if first or last != key.shape[2]:
        key, value = key[:, :, first:last], value[:, :, first:last]
    return few_queries.few_queries(
        query,
        key,
        value,
        rows.mask,
        causal=True,
        query_offset=rows.last,
        starts=None if rows.starts_B is None else rows.starts_B.expand(len(query)).contiguous(),
        columns=columns,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
    )


def by_held_cells(
    site: AttentionSite,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Places,
    held: Held,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """The same by every score, on any device and of any dtype."""
    groups = query.shape[1] // key.shape[1]
    column_BHS = held.held_columns.long().repeat_interleave(groups, 1)
    row_BQ = rows_at(places.query.index.expand(len(query), -1), held.base)
    visible = (column_BHS >= 0)[:, :, None] & (column_BHS[:, :, None] <= row_BQ[:, None, :, None])
    mask = site.of_length(int(row_BQ.max()) + 1) if site.any_length else site.layer_mask
    side, blocks = mask.block_size, mask.blocks(query.device)
    head = torch.arange(query.shape[1], device=query.device)[None, :, None, None]
    pruned = blocks[head, row_BQ[:, None, :, None] // side, column_BHS.clamp(min=0)[:, :, None] // side]
    return attend(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        ScoreMask.build(pruned, visible, query.dtype),
        scale=scaling,
        dropout_p=dropout,
        implementation="eager" if site.backend == "reference" else "sdpa",
    )


def over_held_keys(
    site: AttentionSite,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Places,
    held: Held,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """[B, H, Q, D], by whichever of the two can."""
    rows = rows_held(site, held, places)
    reason = reason_against(site, query, key, value, places, rows, dropout)
    if reason is None:
        record(site.site, site.layer, rows.mask, _CHOICE)
        return by_kept_keys(rows, query, key, value, places, scaling)
    backend = "reference" if site.backend == "reference" else "sdpa"
    record(site.site, site.layer, site.layer_mask, Choice(backend, f"of the keys that are held: {reason}"))
    return by_held_cells(site, query, key, value, places, held, scaling, dropout)

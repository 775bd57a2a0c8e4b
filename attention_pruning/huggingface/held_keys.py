"""Attention over the keys that a PrunedCache holds, and few queries of sequences whose tokens stand in other rows.

Letters in names: B batch, H heads, G heads of keys and values, Q queries, S keys, D head size, K keys of a mask.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..ops.choice import Choice
from ..ops.cpu import few_queries, native, op
from ..ops.eager import ScoreMask, attend
from ..ops.layer_mask import LayerMask
from ..ops.reasons import record
from ..structure import expand_blocks
from .attention_site import AttentionSite
from .positions import Places


class Held(Protocol):
    """What a layer of a PrunedCache says of the keys that it gave."""

    mask: LayerMask
    length: int
    held_columns: Tensor

    def place(self, places: Places) -> None: ...

    def forget(self, count: int) -> None: ...


#: Keys that a PrunedCache gave -> the layer of it that holds them.
HELD: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def last_row_needing(mask: LayerMask, kv_heads: int) -> Tensor:
    """int64 [G, K]: the last row of a causal mask that needs a key, for any of the query heads that share it; -1: none.

    Needed is what a row keeps, and everything where a row is left empty.
    """
    return mask.once(("last_row_needing", kv_heads), lambda: _find_last_rows(mask, kv_heads))


def _find_last_rows(mask: LayerMask, kv_heads: int) -> Tensor:
    kept_Gqk = ~mask.pruned.unflatten(0, (kv_heads, -1)).all(1)
    blocks = kept_Gqk.shape[1]
    last_Gk = blocks - 1 - kept_Gqk.flip(1).byte().argmax(1)
    last_Gk = ((last_Gk + 1) * mask.block_size).clamp(max=mask.query_length) - 1
    last_Gk = last_Gk.masked_fill(~kept_Gqk.any(1), -1)
    last_GK = expand_blocks(last_Gk[:, None], mask.block_size, 1, mask.key_length)[:, 0]
    return torch.maximum(last_GK, last_empty_row(mask, kv_heads)[:, None])


def last_empty_row(mask: LayerMask, kv_heads: int) -> Tensor:
    """int64 [G]: the last row that is left empty in any of the query heads that share a head; -1: none."""
    empty_HQ = mask.first_kept(torch.device("cpu")) >= mask.key_length
    rows = torch.arange(mask.query_length)
    return torch.where(empty_HQ, rows, -1).unflatten(0, (kv_heads, -1)).amax((1, 2))


def reason_against(
    site: AttentionSite, mask: LayerMask, query: Tensor, key: Tensor, value: Tensor, places: Places, dropout: float
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
    standing = _standing(places)
    if standing is None:
        return places.reason
    if standing[0] + query.shape[2] > mask.query_length:
        return "padding reaches beyond the mask"
    return None


def _standing(places: Places) -> tuple[int, Tensor | None] | None:
    """The last row of a first query, and how much before it that of each sequence is (int32 [B], None for 0); None
    where the other queries do not follow the first."""
    if places.offset is not None:
        return places.offset, None
    queries = places.query.index.shape[-1]
    if places.starts is not None:
        first_B = places.keys - queries - places.starts
    elif queries == 1:
        first_B = places.query.index[..., 0]
    else:
        return None
    last = max(0, int(first_B.max()))  # 0 if all sequences begin with padding
    return last, (last - first_B).int()


def by_kept_keys(
    mask: LayerMask,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Places,
    scaling: float | None,
    columns: Tensor | None = None,
) -> Tensor:
    """[B, H, Q, D] by the kernel of few queries; see :func:`reason_against`.

    Parameters
    ----------
    columns : Tensor, optional
        int32 [B, G, S], of keys that a PrunedCache holds; without them they are those of the sequences, padded on the
        left.
    """
    last, starts_B = _standing(places)
    if columns is None:  # no sequence needs what all have of padding, which may be longer than the mask
        seen = slice(places.keys - query.shape[2] - last, places.keys)
        key, value = key[:, :, seen], value[:, :, seen]
    return few_queries.few_queries(
        query,
        key,
        value,
        mask,
        causal=True,
        query_offset=last,
        starts=None if starts_B is None else starts_B.expand(len(query)).contiguous(),
        columns=columns,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
    )


def by_held_cells(
    site: AttentionSite,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Places,
    scaling: float | None,
    columns: Tensor,
    dropout: float,
) -> Tensor:
    """The same by every score, on any device and of any dtype."""
    groups = query.shape[1] // key.shape[1]
    column_BHS = columns.long().repeat_interleave(groups, 1)
    row_BQ = places.query.index.expand(len(query), -1)
    visible = (column_BHS >= 0)[:, :, None] & (column_BHS[:, :, None] <= row_BQ[:, None, :, None])
    side, blocks = site.layer_mask.block_size, site.layer_mask.blocks(query.device)
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
    scaling: float | None,
    dropout: float,
    columns: Tensor,
) -> Tensor:
    """[B, H, Q, D], by whichever of the two can."""
    reason = reason_against(site, site.layer_mask, query, key, value, places, dropout)
    if reason is None:
        record(
            site.site, site.layer, site.layer_mask, Choice("block_sparse", "of the keys that are held", kept_keys=True)
        )
        return by_kept_keys(site.layer_mask, query, key, value, places, scaling, columns)
    backend = "reference" if site.backend == "reference" else "sdpa"
    record(site.site, site.layer, site.layer_mask, Choice(backend, f"of the keys that are held: {reason}"))
    return by_held_cells(site, query, key, value, places, scaling, columns, dropout)

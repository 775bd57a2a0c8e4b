"""The kept blocks of a layout as the kernels go over them: on the device, by row and by column of blocks, made once.

Within a row or a column those come first that are kept and visible whole, of which no cell has to be looked at; then
those that are cut: kept in part, by causality, or by the end of the keys.

Letters in names: H heads; q, k rows and columns of blocks.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ...structure import block_count
from ..layout import WHOLE, BlockLayout


class BlockList(NamedTuple):
    """Kept blocks of one direction.

    Attributes
    ----------
    bounds : Tensor
        int32 [H, q, 3] (or k): where the whole blocks of each row begin in what follows, where those that are cut do,
        and where they end.
    other : Tensor
        int32 [kept]: the column of a block in its row, or the row in its column.
    part : Tensor
        int32 [kept]: as in the layout.
    """

    bounds: Tensor
    other: Tensor
    part: Tensor


class BlockLists(NamedTuple):
    """What the kernels read of a layout.

    Attributes
    ----------
    rows, columns : BlockList
        By row of blocks and by column; the columns list the rows of the call alone.
    bits : Tensor
        uint8 [parts, B keys, B / 8], as in the layout.
    in_part : bool
        Whether any block has bits.
    may_be_empty : bool
        Whether a row may have no kept visible key, padding and bias apart. Where this is not known, it is true.
    """

    rows: BlockList
    columns: BlockList
    bits: Tensor
    in_part: bool
    may_be_empty: bool


_made: WeakKeyDictionary[BlockLayout, dict[tuple, object]] = WeakKeyDictionary()


def block_lists(
    layout: BlockLayout, device: torch.device, causal: bool, query_offset: int, queries: int, keys: int
) -> BlockLists:
    """The lists for a call; one that needs the same blocks gets the same tensors."""
    made = _made.setdefault(layout, {})
    size = layout.block_size
    # Under causality the rows say how far the keys go: their number changes nothing.
    columns = (keys // size, keys % size > 0) if not causal else None
    rows = (query_offset // size, block_count(query_offset + queries, size))
    key = (device, causal, columns, rows)
    if key not in made:
        of_rows = (device, causal, columns)
        if of_rows not in made:
            made[of_rows] = _by_row(layout, device, causal, keys), _may_be_empty(layout, causal, keys)
        if ("bits", device) not in made:
            made["bits", device] = layout.bits.to(device)
        by_row, may_be_empty = made[of_rows]
        by_column = _by_column(layout, device, causal, keys, rows)
        made[key] = BlockLists(by_row, by_column, made["bits", device], len(layout.bits) > 0, may_be_empty)
    return made[key]


# They are constants of the layout: while torch.compile makes a graph they are looked up, instead of being traced.
block_lists._dynamo_marked_constant = True


def _by_row(layout: BlockLayout, device: torch.device, causal: bool, keys: int) -> BlockList:
    head, row, column, part, cut = _blocks(layout, causal, keys)
    rows = layout.row_start.shape[1] - 1
    return _listed(head * rows + row, column, part, cut, layout.heads, rows, device)


def _by_column(layout: BlockLayout, device: torch.device, causal: bool, keys: int, rows: tuple[int, int]) -> BlockList:
    found = _blocks(layout, causal, keys)
    called = (found[1] >= rows[0]) & (found[1] < rows[1])
    head, row, column, part, cut = (x[called] for x in found)
    columns = block_count(layout.key_length, layout.block_size)
    return _listed(head * columns + column, row, part, cut, layout.heads, columns, device)


def _blocks(layout: BlockLayout, causal: bool, keys: int) -> tuple[np.ndarray, ...]:
    """Head, row, column and part of each kept block with a visible cell, and whether its cells have to be looked at."""
    rows, size = layout.row_start.shape[1] - 1, layout.block_size
    counts = layout.row_start.diff(dim=1).flatten().numpy()
    line = np.repeat(np.arange(len(counts)), counts)
    head, row = line // max(1, rows), line % max(1, rows)
    column, part = layout.column.numpy(), layout.part.numpy()
    first_query, first_key = row * size, column * size
    if causal:
        future = layout.key_length - layout.query_length
        last_query = np.minimum(first_query + size, layout.query_length) - 1
        seen, seen_whole = first_key <= last_query + future, first_key + size - 1 <= first_query + future
    else:
        seen, seen_whole = first_key < keys, first_key + size <= keys
    cut = ~seen_whole | (part != WHOLE)
    return tuple(x[seen] for x in (head, row, column, part, cut))


def _listed(
    line: np.ndarray, other: np.ndarray, part: np.ndarray, cut: np.ndarray, heads: int, lines: int, device: torch.device
) -> BlockList:
    """Sorted by line (a row or a column of a head), whole blocks first, then by number."""
    order = np.lexsort((other, cut, line))
    counts = np.stack([np.bincount(line[mine], minlength=heads * lines) for mine in (~cut, cut)], 1)
    ends = counts.cumsum().reshape(-1, 2)  # of the whole blocks of each line, and of those that are cut
    begins = np.concatenate([[0], ends[:-1, 1]]) if len(ends) else np.zeros(0, np.int64)
    bounds = np.concatenate([begins[:, None], ends], 1).reshape(heads, lines, 3)
    return BlockList(*(torch.from_numpy(x.astype(np.int32)).to(device) for x in (bounds, other[order], part[order])))


def _may_be_empty(layout: BlockLayout, causal: bool, keys: int) -> bool:
    """Whether there is a row of blocks without a block that is kept whole and whose first key all of its rows see."""
    head, row, column, part, _ = _blocks(layout, causal, keys)
    reach = row * layout.block_size + layout.key_length - layout.query_length if causal else keys - 1
    serves = (part == WHOLE) & (column * layout.block_size <= reach)
    rows = layout.row_start.shape[1] - 1
    return len(np.unique((head * rows + row)[serves])) < layout.heads * rows

"""Layouts of masks by distance, for any length: made from one short layout, for its rows repeat.

Beyond the longest kept distance every row of blocks keeps the same as the row before it, one block further on, and the
first positions (sinks). Letters in names: H heads, D distances, in cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structure import block_count
from .layout import BlockLayout


def kept_cells(kept_HD: Tensor, sinks: int, length: int) -> Tensor:
    """bool [H, length, length]: what a mask by distance keeps, whether causality shows it or not.

    Parameters
    ----------
    kept_HD : Tensor
        bool: the distances (query - key) that each head keeps; longer ones it does not.
    sinks : int
        How many first positions every query keeps.
    """
    position = torch.arange(length)
    distance_QK = position[:, None] - position
    longest = kept_HD.shape[1]
    kept = F.pad(kept_HD, (0, 1))[:, distance_QK.clamp(0, longest)]
    kept[..., :sinks] = True
    return kept


def band_layout(kept_HD: Tensor, sinks: int, length: int, block_size: int) -> BlockLayout:
    """The causal layout of :func:`kept_cells`, without a cell of it beyond the longest distance.

    Parameters
    ----------
    length : int
        Queries and keys: a multiple of ``block_size``.
    """
    # From this row of blocks on, the sinks are apart from the band, and the whole band lies within the sequence.
    apart = block_count(kept_HD.shape[1], block_size) + block_count(sinks, block_size) + 1
    rows = length // block_size
    if rows <= apart:
        return BlockLayout.from_cells(kept_cells(kept_HD, sinks, length), block_size, causal=True)
    short = BlockLayout.from_cells(kept_cells(kept_HD, sinks, apart * block_size), block_size, causal=True)
    more, sink_blocks = rows - apart, block_count(sinks, block_size)
    starts, columns, parts = [], [], []
    total = 0
    for begin, end, last in zip(
        short.row_start[:, 0].tolist(), short.row_start[:, -1].tolist(), short.row_start[:, -2].tolist(), strict=True
    ):
        row = short.column[last:end]
        moves = torch.arange(1, more + 1, dtype=torch.int32)[:, None] * (row >= sink_blocks)
        columns += [short.column[begin:end], (row + moves).flatten()]
        parts += [short.part[begin:end], short.part[last:end].repeat(more)]
        own = short.row_start[len(starts)] - begin + total
        starts.append(torch.cat([own, own[-1] + torch.arange(1, more + 1, dtype=torch.int32) * len(row)]))
        total = int(starts[-1][-1])
    return BlockLayout(
        block_size,
        length,
        length,
        row_start=torch.stack(starts).int(),
        column=torch.cat(columns).int(),
        part=torch.cat(parts),
        bits=short.bits,
        causal=True,
    )

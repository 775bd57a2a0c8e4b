"""What a page holds of a pattern and of a mask over it: as fine as its room allows, and what that means.

Letters in names: L layers, H heads, Q queries, K keys in cells; q, k the same in blocks of the page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..mask import PruneMask
from ..pattern import AttentionPattern
from ..structure import block_cells, block_count, block_sum, row_blocks

#: Low bits of a float32 that a page leaves out; the sign is 0, so 16 bits stay: 8 of the exponent, 8 of the fraction.
DROPPED_BITS = 15
#: How far a number of 16 bits may be from the average, as a share of it: half a step of the fraction.
PRECISION = 2.0**-9
#: Sides of the blocks that kernels skip.
KERNEL_BLOCKS = (16, 32)


@dataclass(frozen=True)
class Shown:
    """The blocks of a pattern in a page.

    Parameters
    ----------
    pattern : AttentionPattern
        Where they come from.
    average : Tensor
        float32 [L, H, q, k], to the precision of the page.
    pool : int
        The side of a block in cells: the pattern's own pool times a power of two.
    exact : bool
        Whether the averages are the pattern's own to the last bit.
    """

    pattern: AttentionPattern
    average: Tensor
    pool: int
    exact: bool

    @classmethod
    def within(cls, pattern: AttentionPattern, room: int, bytes_beside: int = 0) -> Shown:
        """As fine as fits: the pattern itself; else with 16 bits a number; else in blocks of twice the side, and so on.

        Parameters
        ----------
        room : int
            Bytes, before base64. The coarsest blocks are taken whatever their size.
        bytes_beside : int
            Bytes of each block of each head for what else is shown of it.
        """
        if _size(pattern, pattern.pool, 4 + bytes_beside) <= room:
            return cls(pattern, pattern.average, pattern.pool, exact=True)
        pool, longest = pattern.pool, max(pattern.query_length, pattern.key_length)
        while _size(pattern, pool, 2 + bytes_beside) > room and pool < longest:
            pool *= 2
        return cls(pattern, from_codes(to_codes(_coarser(pattern, pool))), pool, exact=False)

    def packed(self, mask: PruneMask | None = None) -> bytes:
        """Everything that has a number for each block, in the order in which ``decode`` of rule.js reads it.

        How often a cell of each block was observed on average and how many allowed cells it has, uint32 [q, k] each;
        the averages, float32 or 16 bits; with a mask the pruned share of each block in 255ths, uint8 [L, H, q, k];
        which blocks hold an allowed cell of each query, a bit each, [Q, ceil(k / 8)].
        """
        allowed_QK = self.pattern.allowed
        cells_qk = block_cells(allowed_QK, self.pool)
        seen_qk = torch.where(cells_qk > 0, self.pattern.block_counts(self.pool) / cells_qk.clamp(min=1), 0).round()
        average = self.average.numpy() if self.exact else to_codes(self.average)
        parts = [seen_qk.clamp(max=2**32 - 1).numpy().astype("<u4"), cells_qk.numpy().astype("<u4")]
        parts.append(average.astype("<f4" if self.exact else "<u2"))
        if mask is not None:
            parts.append(_pruned_share(mask, self.pool))
        parts.append(np.packbits(row_blocks(allowed_QK, self.pool).numpy(), axis=1, bitorder="little"))
        return b"".join(part.tobytes() for part in parts)


def to_codes(average: Tensor) -> np.ndarray:
    """Averages as uint16, the nearest number with a fraction of 8 bits: finer the smaller it is, as a log scale is."""
    bits = np.ascontiguousarray(average.numpy()).view(np.uint32)
    return ((bits + (1 << (DROPPED_BITS - 1))) >> DROPPED_BITS).astype(np.uint16)


def from_codes(codes: np.ndarray) -> Tensor:
    """The float32 numbers that :func:`to_codes` took down."""
    return torch.from_numpy((codes.astype(np.uint32) << DROPPED_BITS).view(np.float32))


def _size(pattern: AttentionPattern, pool: int, bytes_each: int) -> int:
    """Bytes of a packed pattern."""
    q, k = (block_count(length, pool) for length in (pattern.query_length, pattern.key_length))
    return q * k * (8 + pattern.layers * pattern.heads * bytes_each) + pattern.query_length * -(-k // 8)


def _coarser(pattern: AttentionPattern, pool: int) -> Tensor:
    """Means over the allowed cells of larger blocks: float32 [L, H, q, k]; ``pool`` is a multiple of the pattern's."""
    if pool == pattern.pool:
        return pattern.average
    allowed_QK, ratio = pattern.allowed, pool // pattern.pool
    cells_qk = block_cells(allowed_QK, pattern.pool)
    larger_qk = block_sum(cells_qk, ratio).clamp(min=1)
    layers = [block_sum(layer.double() * cells_qk, ratio) / larger_qk for layer in pattern.average]
    return torch.stack(layers).float()


def _pruned_share(mask: PruneMask, pool: int) -> np.ndarray:
    """The pruned share of the visible cells of each block in 255ths: uint8 [L, H, q, k]; only whole blocks are 255."""
    visible_QK = mask.visible
    cells_qk = block_cells(visible_QK, pool).clamp(min=1)
    layers = [block_cells(mask.cells(layer) & visible_QK, pool) * 255 // cells_qk for layer in range(mask.layers)]
    return torch.stack(layers).to(torch.uint8).numpy()

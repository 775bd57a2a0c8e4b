"""BlockLayout: which blocks of an attention matrix are computed, in the form that kernels read.

Letters in names: H heads, Q queries, K keys in cells; q, k the same in blocks; B block size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..structure import block_any, block_count, expand_blocks, visible_blocks, visible_cells

BLOCK_SIZES = (16, 32, 64, 128)
WHOLE = -1
#: Blocks and cells are counted in 32 bits.
_LONGEST = 1 << 31


@dataclass(frozen=True, eq=False)
class BlockLayout:
    """Kept blocks of every head, row by row (CSR), and what is kept of those that are kept in part.

    Made by :meth:`from_cells`, :meth:`from_blocks` or ``PruneMask.layout``. Checked when it is made; never change its
    tensors afterwards.

    Attributes
    ----------
    block_size : int
        Side of a block: 16, 32, 64 or 128.
    query_length, key_length : int
        Q and K, in cells. They need not be multiples of the block.
    row_start : Tensor
        int32 [H, q + 1]: where each row of blocks begins and ends in ``column`` and ``part``, over all heads.
    column : Tensor
        int32 [kept]: the number of a kept block within its row of blocks, rising.
    part : Tensor
        int32 [kept]: -1 for a whole block, else the entry of ``bits`` that says which of its cells are kept.
    bits : Tensor
        uint8 [parts, B keys, B / 8]: one bit for each query, the lowest first.
    causal : bool
        Whether causality (key <= query + K - Q) is part of the layout. It is a comparison of positions, never bits;
        blocks without a visible cell are not listed.
    """

    block_size: int
    query_length: int
    key_length: int
    row_start: Tensor
    column: Tensor
    part: Tensor
    bits: Tensor
    causal: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.block_size, int) or self.block_size not in BLOCK_SIZES:
            raise InputError(f"block_size: expected one of {BLOCK_SIZES} for a layout, found {self.block_size!r}")
        for name in ("query_length", "key_length"):
            length = getattr(self, name)
            if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length < _LONGEST:
                raise InputError(f"layout: expected {name} to be a whole number below {_LONGEST}, found {length!r}")
        for name in ("row_start", "column", "part", "bits"):
            tensor, kind = getattr(self, name), torch.uint8 if name == "bits" else torch.int32
            if tensor.dtype != kind or tensor.device.type != "cpu" or not tensor.is_contiguous():
                found = f"{tensor.dtype} on {tensor.device}"
                raise InputError(f"layout: expected {name} to be contiguous {kind} on the CPU, found {found}")
        q, side = block_count(self.query_length, self.block_size), self.block_size
        shapes = {
            "row_start": [len(self.row_start), q + 1],
            "column": [self.column.numel()],
            "part": [self.column.numel()],
            "bits": [len(self.bits), side, side // 8],
        }
        for name, expected in shapes.items():
            if list(getattr(self, name).shape) != expected:
                raise InputError(f"layout: expected {name} of {expected}, found {list(getattr(self, name).shape)}")
        self._check_ranges()

    def _check_ranges(self) -> None:
        """Refuse numbers that would lead out of the arrays."""
        starts, k = self.row_start.long().flatten(), block_count(self.key_length, self.block_size)
        inside = starts.numel() == 0 or (starts[0] == 0 and starts[-1] == self.column.numel())
        if not inside or (starts.diff() < 0).any():
            raise InputError(f"layout: expected row_start to rise from 0 to {self.column.numel()}, found otherwise")
        if ((self.column < 0) | (self.column >= k)).any():
            raise InputError(f"layout: expected columns of 0 to {k - 1}, found others")
        if ((self.part < WHOLE) | (self.part >= len(self.bits))).any():
            raise InputError(f"layout: expected parts of {WHOLE} to {len(self.bits) - 1}, found others")
        rises = self.column.diff() > 0
        rises[starts[(starts > 0) & (starts < self.column.numel())] - 1] = True  # a new row of blocks begins
        if not rises.all():
            raise InputError("layout: expected the columns of a row to rise, found others")

    # How it is made

    @classmethod
    def from_cells(cls, kept_HQK: Tensor, block_size: int, causal: bool = False) -> BlockLayout:
        """The blocks that hold a kept visible cell.

        Parameters
        ----------
        kept_HQK : Tensor
            bool, True = computed.
        block_size : int
            16, 32, 64 or 128.
        causal : bool
            Cells beyond key <= query + K - Q are hidden.

        Raises
        ------
        InputError
            For anything else.
        """
        _require_kept(kept_HQK, "[head, query, key]", block_size)
        kept_HQK = kept_HQK.cpu()
        visible_QK = visible_cells(*kept_HQK.shape[1:], causal)
        some_Hqk = block_any(kept_HQK & visible_QK, block_size)
        # Cells beyond the lengths and beyond the diagonal are neither kept nor not: lengths and positions tell them.
        partial_Hqk = some_Hqk & block_any(~kept_HQK & visible_QK, block_size)
        bits = _pack(kept_HQK, partial_Hqk, block_size)
        return cls._assemble(some_Hqk, partial_Hqk, bits, block_size, *kept_HQK.shape[1:], causal)

    @classmethod
    def from_blocks(
        cls,
        kept_Hqk: Tensor,
        block_size: int,
        query_length: int | None = None,
        key_length: int | None = None,
        causal: bool = False,
    ) -> BlockLayout:
        """Whole blocks; lengths, in cells, are those of whole blocks unless given.

        Raises
        ------
        InputError
            If the lengths do not take as many blocks as there are.
        """
        _require_kept(kept_Hqk, "[head, query, key] by block", block_size)
        query_length = kept_Hqk.shape[1] * block_size if query_length is None else query_length
        key_length = kept_Hqk.shape[2] * block_size if key_length is None else key_length
        expected = [block_count(query_length, block_size), block_count(key_length, block_size)]
        if list(kept_Hqk.shape[1:]) != expected:
            found = list(kept_Hqk.shape[1:])
            raise InputError(f"layout: expected {expected} blocks for {query_length} x {key_length}, found {found}")
        kept_Hqk = kept_Hqk.cpu() & visible_blocks(query_length, key_length, block_size, causal)
        bits = torch.zeros(0, block_size, block_size // 8, dtype=torch.uint8)
        return cls._assemble(kept_Hqk, None, bits, block_size, query_length, key_length, causal)

    @classmethod
    def _assemble(
        cls,
        some_Hqk: Tensor,
        partial_Hqk: Tensor | None,
        bits: Tensor,
        block_size: int,
        query_length: int,
        key_length: int,
        causal: bool,
    ) -> BlockLayout:
        """From the blocks that are kept, those of them that are kept in part, and the bits of these."""
        heads, q, k = some_Hqk.shape
        # 32 bits throughout: a layout of millions of blocks is made without a copy in int64.
        column = torch.arange(k, dtype=torch.int32).expand(heads, q, k)[some_Hqk]
        if partial_Hqk is None:
            part = torch.full_like(column, WHOLE)
        else:
            numbers = torch.full((heads, q, k), WHOLE, dtype=torch.int32)
            numbers[partial_Hqk] = torch.arange(len(bits), dtype=torch.int32)
            part = numbers[some_Hqk]
        ends = some_Hqk.sum(-1, dtype=torch.int32).flatten().cumsum(0)
        starts = F.pad(ends, (1, 0)).int()
        rows = torch.arange(heads)[:, None] * q + torch.arange(q + 1)
        return cls(
            block_size,
            query_length,
            key_length,
            row_start=starts[rows],
            column=column,
            part=part,
            bits=bits,
            causal=causal,
        )

    # What it is

    @property
    def heads(self) -> int:
        return len(self.row_start)

    @cached_property
    def blocks(self) -> Tensor:
        """bool [H, q, k]: what is kept, whole or in part."""
        heads, q = self.heads, self.row_start.shape[1] - 1
        kept = torch.zeros(heads, q, block_count(self.key_length, self.block_size), dtype=torch.bool)
        kept.flatten(0, 1)[self._rows, self.column.long()] = True
        return kept

    @cached_property
    def whole_blocks(self) -> Tensor:
        """bool [H, q, k]: what is kept whole."""
        whole = torch.zeros_like(self.blocks)
        whole.flatten(0, 1)[self._rows, self.column.long()] = self.part == WHOLE
        return whole

    @property
    def _rows(self) -> Tensor:
        """int64 [kept]: the row of blocks of each kept block, counted over the heads."""
        counts = self.row_start.diff(dim=1).flatten().long()
        return torch.arange(len(counts)).repeat_interleave(counts)

    @cached_property
    def cells(self) -> Tensor:
        """bool [H, Q, K]: the cells that are computed."""
        size = self.block_size
        kept = expand_blocks(self.blocks, size, self.blocks.shape[1] * size, self.blocks.shape[2] * size)
        if len(self.bits):
            tiles = kept.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3)  # a view: [H, q, k, B, B]
            kept, rows = tiles.contiguous(), self._rows
            partial = self.part != WHOLE
            unpacked = np.unpackbits(self.bits.numpy(), axis=-1, bitorder="little")
            inside = torch.from_numpy(unpacked).bool().transpose(1, 2)[self.part[partial].long()]
            kept.flatten(0, 1)[rows[partial], self.column[partial].long()] = inside
            kept = kept.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        cells = kept[:, : self.query_length, : self.key_length]
        return (cells & visible_cells(self.query_length, self.key_length, self.causal)).contiguous()

    @cached_property
    def visible_count(self) -> int:
        """Blocks with a visible cell, over all heads."""
        visible = visible_blocks(self.query_length, self.key_length, self.block_size, self.causal)
        return self.heads * int(visible.sum())

    @cached_property
    def density(self) -> float:
        """Kept blocks / blocks with a visible cell, over all heads: the share of computation that is left."""
        return self.column.numel() / max(1, self.visible_count)

    @cached_property
    def keeps_everything(self) -> bool:
        """Whether no visible cell is left out."""
        return not len(self.bits) and self.column.numel() == self.visible_count

    def __repr__(self) -> str:
        return (
            f"BlockLayout({self.heads} heads, {self.query_length} x {self.key_length}, block {self.block_size}, "
            f"density {self.density:.3f}{', causal' if self.causal else ''})"
        )


def _require_kept(kept: Tensor, axes: str, block_size: int) -> None:
    if not isinstance(kept, Tensor) or kept.ndim != 3 or kept.dtype != torch.bool:
        found = f"{kept.dtype} of {list(kept.shape)}" if isinstance(kept, Tensor) else type(kept).__name__
        raise InputError(f"layout: expected bools {axes}, True = kept, found {found}")
    if block_size not in BLOCK_SIZES:
        raise InputError(f"block_size: expected one of {BLOCK_SIZES} for a layout, found {block_size!r}")


def _pack(kept_HQK: Tensor, partial_Hqk: Tensor, size: int) -> Tensor:
    """uint8 [parts, B keys, B / 8]: the cells of the partial blocks, keys down, one bit a query."""
    heads, q, k = partial_Hqk.shape
    missing = (0, k * size - kept_HQK.shape[2], 0, q * size - kept_HQK.shape[1])
    tiles = F.pad(kept_HQK, missing).view(heads, q, size, k, size).transpose(2, 3)[partial_Hqk]
    return torch.from_numpy(np.packbits(tiles.transpose(1, 2).contiguous().numpy(), axis=-1, bitorder="little"))

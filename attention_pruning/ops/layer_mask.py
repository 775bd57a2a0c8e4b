"""LayerMask: what one layer of a prune mask removes, and what each backend derives from it once.

Letters in names: H heads, Q queries, K keys in cells; q, k the same in blocks of side B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..structure import block_count, expand_blocks, require_block_size, visible_blocks, visible_cells, window_cells
from .layout import BLOCK_SIZES, BlockLayout


class LayerMask:
    """One layer of a prune mask: a view that never changes, made by ``PruneMask.layer`` or :meth:`from_layout`.

    Tensors and layouts that computation needs are made at first use and kept for all calls, layers that share it,
    copies of a model and devices. Nothing of it is a parameter or a buffer: it follows no ``to``, is in no state dict,
    and is never broadcast.

    Parameters
    ----------
    pruned_Hqk : Tensor
        bool [H, ceil(Q/B), ceil(K/B)] on the CPU, True = pruned.
    block_size : int
        B; 1 for cells.
    query_length, key_length : int
        Q and K, in cells.
    causal : bool
        Whether key <= query + K - Q is part of the structure.
    source : str
        Where the mask comes from, for the beginning of error messages.

    Attributes
    ----------
    prunes : bool
        Whether any visible cell is pruned; if not, the layer is dense.
    given_layout : BlockLayout or None
        What it was made from, by :meth:`from_layout`.
    """

    def __init__(
        self,
        pruned_Hqk: Tensor,
        block_size: int,
        query_length: int,
        key_length: int,
        causal: bool = False,
        source: str = "mask",
    ) -> None:
        self.block_size = require_block_size(block_size)
        self.query_length, self.key_length = query_length, key_length
        self.causal, self.source = causal, source
        blocks = [block_count(length, block_size) for length in (query_length, key_length)]
        if pruned_Hqk.ndim != 3 or pruned_Hqk.dtype != torch.bool or list(pruned_Hqk.shape[1:]) != blocks:
            found = f"{pruned_Hqk.dtype} of {list(pruned_Hqk.shape)}"
            raise InputError(f"{source}: expected bools [head, {blocks[0]}, {blocks[1]}], found {found}")
        self.heads = len(pruned_Hqk)
        self.prunes = bool((pruned_Hqk & visible_blocks(query_length, key_length, block_size, causal)).any())
        self.given_layout: BlockLayout | None = None
        self._made: dict[tuple, object] = {("blocks", torch.device("cpu")): pruned_Hqk}

    @classmethod
    def from_cells(cls, pruned_HQK: Tensor, causal: bool = False, source: str = "mask") -> LayerMask:
        """The mask of cells, in the largest blocks of a kernel that it prunes whole, if in any.

        Parameters
        ----------
        pruned_HQK : Tensor
            bool [H, Q, K] on the CPU, True = pruned.
        causal, source
            As in LayerMask.
        """
        lengths = tuple(pruned_HQK.shape[1:])
        for size in reversed(BLOCK_SIZES):
            blocks = pruned_HQK[:, ::size, ::size]
            if torch.equal(expand_blocks(blocks, size, *lengths), pruned_HQK):
                return cls(blocks, size, *lengths, causal, source)
        return cls(pruned_HQK, 1, *lengths, causal, source)

    @classmethod
    def from_layout(cls, layout: BlockLayout) -> LayerMask:
        """The mask of a layout that somebody made, which is what kernels then compute."""
        if "layer_mask" not in layout.__dict__:
            mask = cls.__new__(cls)
            mask.block_size = 1 if len(layout.bits) else layout.block_size
            mask.query_length, mask.key_length = layout.query_length, layout.key_length
            mask.causal, mask.source, mask.heads = layout.causal, "layout", layout.heads
            mask.prunes, mask.given_layout = not layout.keeps_everything, layout
            mask._made = {("layout", layout.block_size): layout}
            layout.__dict__["layer_mask"] = mask  # as a cached property keeps its value
        return layout.__dict__["layer_mask"]

    @property
    def pruned(self) -> Tensor:
        """bool [H, q, k] on the CPU, True = pruned."""
        return self.blocks(torch.device("cpu"))

    def __deepcopy__(self, memo: dict) -> LayerMask:
        return self  # it never changes

    def __getstate__(self) -> dict[str, object]:
        kept = ("blocks", torch.device("cpu")), *(("layout", size) for size in BLOCK_SIZES if self.given_layout)
        return self.__dict__ | {"_made": {key: self._made[key] for key in kept if key in self._made}}

    def __repr__(self) -> str:
        return (
            f"LayerMask({self.heads} heads, {self.query_length} x {self.key_length}, block {self.block_size}"
            f"{', causal' if self.causal else ''})"
        )

    @property
    def has_whole_blocks(self) -> bool:
        """Whether it prunes blocks that a kernel can leave out whole, without a look at their cells."""
        return self.block_size % BLOCK_SIZES[0] == 0

    @property
    def whole_block(self) -> int:
        """The largest side of a kernel's blocks that divides the mask's own; needs :attr:`has_whole_blocks`."""
        return max(size for size in BLOCK_SIZES if self.block_size % size == 0)

    def layout(self, block_size: int) -> BlockLayout:
        """The blocks of this side that a kernel computes, exactly what the mask keeps.

        Where the side divides the mask's own, they are whole; elsewhere a block kept in part has bits.
        """
        return self.once(("layout", block_size), lambda: self._make_layout(block_size))

    def _make_layout(self, block_size: int) -> BlockLayout:
        if block_size not in BLOCK_SIZES:
            raise InputError(f"{self.source}: expected a layout of blocks of {BLOCK_SIZES}, found {block_size!r}")
        if self.block_size % block_size:
            return BlockLayout.from_cells(~self._make_cells(torch.device("cpu")), block_size, self.causal)
        lengths = self.query_length, self.key_length
        blocks = [block_count(length, block_size) for length in lengths]
        kept = expand_blocks(~self.pruned, self.block_size // block_size, *blocks)
        return BlockLayout.from_blocks(kept, block_size, *lengths, self.causal)

    def blocks(self, device: torch.device) -> Tensor:
        """bool [H, q, k] on a device, True = pruned."""
        return self.once(("blocks", device), lambda: self._make_blocks().to(device))

    def _make_blocks(self) -> Tensor:
        given = self.given_layout
        if given is None:
            return self._made["blocks", torch.device("cpu")]
        return ~given.cells if self.block_size == 1 else ~given.blocks

    def cells(self, device: torch.device) -> Tensor:
        """bool [H, Q, K] on a device, True = pruned, whether causality shows the cell or not."""
        return self.once(("cells", device), lambda: self._make_cells(device))

    def _make_cells(self, device: torch.device) -> Tensor:
        return expand_blocks(self.blocks(device), self.block_size, self.query_length, self.key_length)

    @property
    def kept_count(self) -> tuple[int, int]:
        """How many of its own blocks with a visible cell it keeps, and how many there are, over all heads."""
        return self.once(("kept_count",), self._count_kept)

    def _count_kept(self) -> tuple[int, int]:
        visible = visible_blocks(self.query_length, self.key_length, self.block_size, self.causal)
        pruned = sum(int((head & visible).sum()) for head in self.pruned)
        return self.heads * int(visible.sum()) - pruned, self.heads * int(visible.sum())

    @property
    def row_bits(self) -> Tensor:
        """uint8 [H, q, whole words of 64 bits]: a bit for each block of keys, the lowest first, 1 = kept."""
        return self.once(("row_bits",), self._make_row_bits)

    def _make_row_bits(self) -> Tensor:
        bits = np.packbits((~self.pruned).numpy(), axis=-1, bitorder="little")
        return torch.from_numpy(np.pad(bits, ((0, 0), (0, 0), (0, -bits.shape[-1] % 8))))

    def additive(self, device: torch.device, dtype: torch.dtype, pruned_score: float = -torch.inf) -> Tensor:
        """[H, Q, K]: what is added to a score: 0 where it counts, ``pruned_score`` where pruned, -inf in the future."""
        key = ("additive", device, dtype, pruned_score)
        return self.once(key, lambda: self._make_additive(device, dtype, pruned_score))

    def _make_additive(self, device: torch.device, dtype: torch.dtype, pruned_score: float) -> Tensor:
        cells = self._make_cells(device)
        scores = torch.zeros(cells.shape, dtype=dtype, device=device).masked_fill_(cells, pruned_score)
        if self.causal:
            future = ~visible_cells(self.query_length, self.key_length, True).to(device)
            scores.masked_fill_(future, -torch.inf)
        return scores

    def within(self, window: int) -> tuple[LayerMask, bool, bool]:
        """The mask that prunes whatever is as far as a window away, too; whether every query keeps its own key, and
        whether none is left without a key.

        For self-attention: query i is key i + K - Q.
        """
        return self.once(("within", window), lambda: self._make_within(window))

    def _make_within(self, window: int) -> tuple[LayerMask, bool, bool]:
        own, key = torch.arange(self.query_length) + self.key_length - self.query_length, torch.arange(self.key_length)
        pruned = self._make_cells(torch.device("cpu")) | ~window_cells(own[:, None], key, window)
        kept = ~pruned & visible_cells(self.query_length, self.key_length, self.causal)
        mask = LayerMask.from_cells(pruned, self.causal, self.source)
        return mask, bool(kept[:, torch.arange(self.query_length), own].all()), bool(kept.any(-1).all())

    def first_kept(self, device: torch.device) -> Tensor:
        """int64 [H, Q]: the first key that a query keeps and sees; K for none."""
        return self.once(("first_kept", device), lambda: self._make_first_kept().to(device))

    def _make_first_kept(self) -> Tensor:
        size, row = self.block_size, torch.arange(self.query_length)
        # Causality shows keys from 0 on: within a kept block the first key is the first that is seen, if any of it is.
        first_Hq = (~self.pruned).byte().argmax(-1) * size
        first_HQ = first_Hq.masked_fill(self.pruned.all(-1), self.key_length)[:, row // size]
        if not self.causal:
            return first_HQ
        return torch.where(first_HQ <= row + (self.key_length - self.query_length), first_HQ, self.key_length)

    def once(self, key: tuple, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made at the first call with this key."""
        if key in self._made:
            return self._made[key]
        made = make()  # two threads may both make it; either result serves
        if not torch.compiler.is_compiling():
            self._made[key] = made
        return made


def last_first_kept(mask: LayerMask) -> int:
    """The largest of ``first_kept``: a call with more keys has no row left empty, padding aside."""
    return mask.once(("last_first_kept",), lambda: int(mask.first_kept(torch.device("cpu")).amax()))


# A constant of the mask: while torch.compile makes a graph it is looked up, instead of being traced.
last_first_kept._dynamo_marked_constant = True

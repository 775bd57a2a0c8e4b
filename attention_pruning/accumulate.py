"""Collect an AttentionPattern from the attention probabilities of a model, batch by batch.

Letters in names: B batch, H heads, Q queries, K keys; q and k count blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .arrays import as_tensor
from .errors import InputError
from .files.tensors import MetadataValue
from .pattern import AttentionPattern
from .processes import gathered, meeting_device, process_count, summed
from .structure import block_count, block_sum, resolve_structure, visible_cells

#: Rows of a batch added up in the precision of the probabilities (float32) before the sum moves to float64. A float32
#: sum of n equal numbers errs by at most n/2 * 2^-23 of their mean: 9.6e-7 here, below the 1e-6 that a mean may be off.
ROWS_IN_FLOAT32 = 16
#: What two accumulators that are added up must have in common, in the order of PatternAccumulator's arguments.
_ARGUMENTS = ("layers", "heads", "query_length", "key_length", "site", "causal", "block_size")


class PatternAccumulator:
    """Running sums of attention probabilities in float64, and how often each cell was observed.

    Feed it every layer of every batch with :meth:`update`, then :meth:`finalize`. Feed probabilities after softmax or
    entmax and before dropout, from a model in evaluation mode without gradients.

    Parameters
    ----------
    layers, heads, query_length, key_length : int
        Of the pattern. The lengths are the longest that any batch may have.
    site : str
        One of ``structure.SITES``.
    causal : bool, optional
        By default only ``dec-self`` is causal. Transformer-XL is ``site="self", causal=True``.
    block_size : int
        With B > 1 the sums are kept over B x B blocks: layers * heads * (Q/B) * (K/B) numbers instead of layers * heads
        * Q * K, beside one [Q, K] count. A block's average is then the mean over its observations, so often-seen cells
        weigh more; it equals ``pattern.pooled(B)`` where all allowed cells of the block were seen equally often.

    Attributes
    ----------
    sequences : int
        Rows of the batches that had a real query (counted at layer 0).
    tokens : int
        Real queries seen (counted at layer 0).

    Raises
    ------
    InputError
        For an unknown site, or sizes below 1.

    Notes
    -----
    Sums live on the device of the probabilities that they were made from, so nothing is copied between devices until
    :meth:`finalize`, whose pattern is on the CPU.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        query_length: int,
        key_length: int,
        site: str,
        causal: bool | None = None,
        block_size: int = 1,
    ) -> None:
        sizes = (layers, heads, query_length, key_length, block_size)
        if min(sizes) < 1:
            raise InputError(
                "accumulator: expected layers, heads, query_length, key_length and block_size of 1 or more, found "
                f"{sizes}"
            )
        self.layers, self.heads = layers, heads
        self.query_length, self.key_length = query_length, key_length
        self.site = site
        self.causal = resolve_structure(site, causal, query_length, key_length)
        self.block_size = block_size
        self.sequences = 0
        self.tokens = 0
        self._visible = visible_cells(query_length, key_length, self.causal)
        # Made at the first update of a layer, on its device: float64 [H, q, k] and int64 [q, k].
        self._sums: list[Tensor | None] = [None] * layers
        self._counts: list[Tensor | None] = [None] * layers
        self._cell_count = torch.zeros(query_length, key_length, dtype=torch.int64)  # of layer 0, at full resolution

    def update(
        self,
        layer: int,
        probabilities_BHQK: Tensor,
        real_query_BQ: Tensor | None = None,
        real_key_BK: Tensor | None = None,
        query_offset: int = 0,
        key_offset: int = 0,
        visible_QK: Tensor | None = None,
    ) -> None:
        """Add the attention of one layer for one batch.

        Parameters
        ----------
        layer : int
            From 0.
        probabilities_BHQK : Tensor
            [B, heads, Q, K], any floating dtype and device; Q and K may be shorter than the pattern's. Here and below,
            what ``torch.as_tensor`` takes will do, such as a numpy array.
        real_query_BQ, real_key_BK : Tensor, optional
            bool, True = a real token, False = padding. None: all real. A cell of a sequence counts only if its query
            and its key are real; what the probabilities say elsewhere, nan included, is never looked at.
        query_offset, key_offset : int
            Where the batch's first query and key stand in the pattern. Transformer-XL with a memory of m < mem_len
            slots gives ``key_offset = mem_len - m``.
        visible_QK : Tensor, optional
            bool [Q, K]: what a structure beyond causality shows in this batch, such as a window. Hidden cells are not
            observed.

        Raises
        ------
        InputError
            For what is no array, or if the batch is longer than the pattern, has other heads or a mask of another
            shape, or attends to hidden cells (told here or by :meth:`finalize`).
        """
        p_BHQK = as_tensor(probabilities_BHQK, "attention probabilities")
        self._check(layer, p_BHQK, query_offset, key_offset)
        batch, _, queries, keys = p_BHQK.shape
        real_query_BQ = _checked_bools("real_query_BQ", real_query_BQ, (batch, queries))
        real_key_BK = _checked_bools("real_key_BK", real_key_BK, (batch, keys))
        visible_QK = _checked_bools("visible_QK", visible_QK, (queries, keys))
        self._visible = self._visible.to(p_BHQK.device)
        visible = self._visible[query_offset : query_offset + queries, key_offset : key_offset + keys]
        if visible_QK is not None:
            visible = visible & visible_QK.to(visible.device)

        real_BQK = _real_cells(p_BHQK, real_query_BQ, real_key_BK)
        if real_BQK is None:
            sums_HQK = _sum_batch(p_BHQK)
            count_QK = visible * batch
        else:
            sums_HQK = _sum_batch(p_BHQK, real_BQK)
            count_QK = real_BQK.sum(0) * visible

        if layer == 0:
            self._count_tokens(batch, queries, real_query_BQ)
            if self.block_size > 1:
                cells = self._cell_count[query_offset : query_offset + queries, key_offset : key_offset + keys]
                cells += count_QK.to(cells.device)
        if self.block_size > 1 or visible_QK is not None:  # else finalize can still tell, at no cost here
            self._refuse_leak(layer, sums_HQK.masked_fill(visible, 0.0))
        self._add(layer, sums_HQK, count_QK, query_offset, key_offset)

    def _check(self, layer: int, p: Tensor, query_offset: int, key_offset: int) -> None:
        if not (isinstance(layer, int) and 0 <= layer < self.layers):
            raise InputError(f"layer: expected 0 to {self.layers - 1}, found {layer!r}")
        if p.ndim != 4 or p.shape[1] != self.heads or not p.is_floating_point():
            raise InputError(
                f"attention probabilities: expected floats of shape [batch, {self.heads} heads, query, key], found "
                f"{p.dtype} of {list(p.shape)}"
            )
        queries, keys = p.shape[2:]
        if query_offset < 0 or key_offset < 0:
            raise InputError(f"offsets: expected 0 or more, found query_offset {query_offset}, key_offset {key_offset}")
        if query_offset + queries > self.query_length or key_offset + keys > self.key_length:
            raise InputError(
                f"attention probabilities: expected at most {self.query_length} queries and {self.key_length} keys, "
                f"found {queries} queries from {query_offset} and {keys} keys from {key_offset}"
            )

    def _count_tokens(self, batch: int, queries: int, real_query_BQ: Tensor | None) -> None:
        if real_query_BQ is None:
            self.sequences += batch
            self.tokens += batch * queries
        else:
            self.sequences += int(real_query_BQ.any(1).sum())
            self.tokens += int(real_query_BQ.sum())

    def _add(self, layer: int, sums_HQK: Tensor, count_QK: Tensor, query_offset: int, key_offset: int) -> None:
        self._allocate(layer, sums_HQK.device)
        size = self.block_size
        if size > 1:  # shift the batch to where it stands within its first block
            shift = (key_offset % size, 0, query_offset % size, 0)
            sums_HQK, count_QK = block_sum(F.pad(sums_HQK, shift), size), block_sum(F.pad(count_QK, shift), size)
        row, column = query_offset // size, key_offset // size
        rows, columns = slice(row, row + count_QK.shape[0]), slice(column, column + count_QK.shape[1])
        device = self._sums[layer].device
        self._sums[layer][:, rows, columns] += sums_HQK.to(device)
        self._counts[layer][rows, columns] += count_QK.to(device)

    def _allocate(self, layer: int, device: torch.device) -> None:
        if self._sums[layer] is None:
            device = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
            shape = (block_count(self.query_length, self.block_size), block_count(self.key_length, self.block_size))
            self._sums[layer] = torch.zeros(self.heads, *shape, dtype=torch.float64, device=device)
            self._counts[layer] = torch.zeros(*shape, dtype=torch.int64, device=device)

    def _refuse_leak(self, layer: int, hidden: Tensor) -> None:
        if hidden.any():
            raise InputError(
                f"layer {layer}: expected no attention to keys that a query cannot see (site {self.site}, causal "
                f"{self.causal}), found some: is the site right, does the model apply its causal mask?"
            )

    def merge(self, other: PatternAccumulator) -> None:
        """Add what another accumulator of the same dimensions saw.

        Raises
        ------
        InputError
            If it was made with other arguments.
        """
        if self._arguments() != other._arguments():
            raise InputError(f"merge: expected an accumulator of {self._arguments()}, found {other._arguments()}")
        for layer, (sums, counts) in enumerate(zip(other._sums, other._counts, strict=True)):
            if sums is not None:
                self._allocate(layer, sums.device)
                self._sums[layer] += sums.to(self._sums[layer].device)
                self._counts[layer] += counts.to(self._counts[layer].device)
        self._cell_count += other._cell_count
        self.sequences += other.sequences
        self.tokens += other.tokens

    def _arguments(self) -> tuple:
        return tuple(getattr(self, name) for name in _ARGUMENTS)

    def all_reduce(self) -> None:
        """Make every process's accumulator hold what all of them saw together; call it once, after the last update.

        A process may have had no batch. Without an initialised ``torch.distributed`` it does nothing.

        Raises
        ------
        InputError
            In every process, if they were made with different arguments; nothing is added up then.
        """
        _require_alike(gathered(self._arguments()), "accumulator")
        if process_count() == 1:
            return
        for layer in range(self.layers):
            self._allocate(layer, meeting_device())  # a process may have had no batch
            self._sums[layer] = summed(self._sums[layer])
            self._counts[layer] = summed(self._counts[layer])
        self._cell_count = summed(self._cell_count)
        self.sequences, self.tokens = summed(torch.tensor([self.sequences, self.tokens])).tolist()

    def finalize(self, metadata: Mapping[str, MetadataValue] | None = None) -> AttentionPattern:
        """The pattern of everything seen so far; ``sequences`` and ``tokens`` join the metadata.

        Raises
        ------
        InputError
            If nothing was seen, if the layers did not see the same cells equally often, or if a query attended to keys
            that it cannot see.
        """
        missing = [layer for layer, counts in enumerate(self._counts) if counts is None or not counts.any()]
        if missing:
            raise InputError(f"pattern: expected observations of every layer, found none of layers {_listed(missing)}")
        counts = [count.cpu() for count in self._counts]
        odd = [layer for layer, count in enumerate(counts) if not torch.equal(count, counts[0])]
        if odd:
            raise InputError(
                f"pattern: expected every layer to see what layer 0 saw, found other counts at layers {_listed(odd)}"
            )
        if self.block_size == 1:
            for layer, sums in enumerate(self._sums):
                self._refuse_leak(layer, sums.masked_fill(self._visible.to(sums.device), 0.0))
        average = torch.stack([sums.cpu() / counts[0].clamp(min=1) for sums in self._sums]).float()
        return AttentionPattern(
            average,
            counts[0] if self.block_size == 1 else self._cell_count,
            self.site,
            self.causal,
            self.block_size,
            metadata={**(metadata or {}), "sequences": self.sequences, "tokens": self.tokens},
        )


def _require_alike(arguments: list[tuple], name: str) -> None:
    """Refuse, with InputError, accumulators of the processes (by rank) that were made with different arguments."""
    for rank, each in enumerate(arguments):
        for argument, expected, found in zip(_ARGUMENTS, arguments[0], each, strict=True):
            if expected != found:
                raise InputError(
                    f"{name}: expected {argument} {expected}, that of process 0, in every process, found {found} in "
                    f"process {rank}"
                )


def _checked_bools(name: str, bools: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    if bools is None:
        return None
    bools = as_tensor(bools, name)
    if bools.dtype != torch.bool or tuple(bools.shape) != shape:
        raise InputError(f"{name}: expected bools of shape {list(shape)}, found {bools.dtype} of {list(bools.shape)}")
    return bools


def _real_cells(p_BHQK: Tensor, real_query_BQ: Tensor | None, real_key_BK: Tensor | None) -> Tensor | None:
    """bool [B, Q, K], or None when every cell is real, which is the common and the fast case."""
    batch, _, queries, keys = p_BHQK.shape
    real_BQK = None
    if real_query_BQ is not None and not real_query_BQ.all():
        real_BQK = real_query_BQ.to(p_BHQK.device)[:, :, None].expand(batch, queries, keys)
    if real_key_BK is not None and not real_key_BK.all():
        real_key = real_key_BK.to(p_BHQK.device)[:, None, :].expand(batch, queries, keys)
        real_BQK = real_key if real_BQK is None else real_BQK & real_key
    return real_BQK


def _sum_batch(p_BHQK: Tensor, real_BQK: Tensor | None = None) -> Tensor:
    """Sum over the batch, of real cells where a mask is given: [H, Q, K] in float64 (float32 on mps)."""
    precise = torch.float32 if p_BHQK.device.type == "mps" else torch.float64
    partly = torch.promote_types(p_BHQK.dtype, torch.float32)
    total = torch.zeros(p_BHQK.shape[1:], dtype=precise, device=p_BHQK.device)
    for start in range(0, len(p_BHQK), ROWS_IN_FLOAT32):
        rows = slice(start, start + ROWS_IN_FLOAT32)
        some = p_BHQK[rows]
        if real_BQK is not None:  # where, not a product: a padded row may hold nan
            some = torch.where(real_BQK[rows, None], some, 0.0)
        total += some.sum(0, dtype=partly)
    return total


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))

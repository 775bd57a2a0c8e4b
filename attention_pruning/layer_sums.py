"""The attention of one layer in one batch, added up by runs of query rows.

Letters in names: B batch, H heads, Q queries, K keys, R a run of queries; q and k count blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .structure import block_count, visible_cells

#: Rows of a batch added up in the precision of the probabilities (float32) before the sum moves to float64. A float32
#: sum of n equal numbers errs by at most n/2 * 2^-23 of their mean: 9.6e-7 here, below the 1e-6 that a mean may be off.
ROWS_IN_FLOAT32 = 16


@dataclass(frozen=True)
class Structure:
    """What a site shows to its queries, and the refusal of attention to anything else."""

    site: str
    causal: bool
    query_length: int
    key_length: int

    def visible(self, rows: slice = slice(None)) -> Tensor:
        """bool [R, K]: what some rows see."""
        return visible_cells(self.query_length, self.key_length, self.causal, rows)

    def refuse_leak(self, layer: int, hidden: Tensor) -> None:
        """Refuse, with InputError, attention to hidden keys, all of which must be 0."""
        if hidden.any():
            raise InputError(
                f"layer {layer}: expected no attention to keys that a query cannot see (site {self.site}, causal "
                f"{self.causal}), found some: is the site right, does the model apply its causal mask?"
            )


class LayerSums:
    """What one layer attends to in one batch, added up by runs of query rows before it joins an accumulator.

    So the probabilities of a long sequence never have to be there at once.

    Parameters
    ----------
    layer : int
    structure : Structure
        Of the pattern.
    block_size : int
    lengths : (int, int)
        Queries and keys of the batch.
    offsets : (int, int)
        Where the first of them stand in the pattern.

    Attributes
    ----------
    total : Tensor or None
        float64 (float32 on mps) [H, q, k], from the block of the first query and key on; None before the first run.
    """

    def __init__(
        self, layer: int, structure: Structure, block_size: int, lengths: tuple[int, int], offsets: tuple[int, int]
    ) -> None:
        self.layer, self.structure, self.block_size = layer, structure, block_size
        self.lengths, self.offsets = lengths, offsets
        self.total: Tensor | None = None

    def add(
        self,
        p_BHRK: Tensor,
        real_query_BR: Tensor | None = None,
        real_key_BK: Tensor | None = None,
        start: int = 0,
        visible_RK: Tensor | None = None,
    ) -> None:
        """Add the probabilities of a run of queries.

        Parameters
        ----------
        p_BHRK : Tensor
            [B, heads, R, K], of the batch or of some sequences of it; keys beyond the last one given have 0.
        real_query_BR, real_key_BK : Tensor, optional
            bool, True = real; what is not is not looked at. None: all are.
        start : int
            The run's first query in the batch.
        visible_RK : Tensor, optional
            bool: what a structure beyond causality shows.

        Raises
        ------
        InputError
            If hidden keys are attended to, in blocks or where ``visible_RK`` is given.
        """
        device = p_BHRK.device
        if self.total is None:
            size = self.block_size
            shape = (
                block_count(offset % size + length, size)
                for offset, length in zip(self.offsets, self.lengths, strict=True)
            )
            precise = torch.float32 if device.type == "mps" else torch.float64
            self.total = torch.zeros(p_BHRK.shape[1], *shape, dtype=precise, device=device)
        real_query_BR, real_key_BK = (
            None if real is None else real.to(device) for real in (real_query_BR, real_key_BK)
        )
        if self.block_size == 1:
            self._add_cells(p_BHRK, real_query_BR, real_key_BK, start, visible_RK)
        else:
            self._add_blocks(p_BHRK, real_query_BR, real_key_BK, start, visible_RK)

    def _add_cells(
        self,
        p_BHRK: Tensor,
        real_query_BR: Tensor | None,
        real_key_BK: Tensor | None,
        start: int,
        visible_RK: Tensor | None,
    ) -> None:
        target_HRK = self.total[:, start : start + p_BHRK.shape[2], : p_BHRK.shape[3]]
        partly = torch.promote_types(p_BHRK.dtype, torch.float32)
        for first in range(0, len(p_BHRK), ROWS_IN_FLOAT32):
            rows = slice(first, first + ROWS_IN_FLOAT32)
            target_HRK += _real_only(p_BHRK, real_query_BR, real_key_BK, rows).sum(0, dtype=partly)
        if visible_RK is not None:  # else finalize can still tell, at no cost here
            visible_RK = visible_RK.to(self.total.device) & self._shown(start, *p_BHRK.shape[2:])
            self.structure.refuse_leak(self.layer, target_HRK.masked_fill(visible_RK, 0.0))

    def _add_blocks(
        self,
        p_BHRK: Tensor,
        real_query_BR: Tensor | None,
        real_key_BK: Tensor | None,
        start: int,
        visible_RK: Tensor | None,
    ) -> None:
        if real_key_BK is not None:
            p_BHRK = _real_only(p_BHRK, None, real_key_BK)
        self._refuse_leaks(p_BHRK, real_query_BR, start, visible_RK)
        size, shift = self.block_size, self.offsets[1] % self.block_size
        p_BHRk = _sum_key_blocks(p_BHRK, size, shift)
        sums_HRk = _real_only(p_BHRk, real_query_BR, None).sum(0, dtype=self.total.dtype)
        row = (self.offsets[0] % size + start + torch.arange(p_BHRK.shape[2], device=p_BHRK.device)) // size
        self.total[..., : sums_HRk.shape[2]].index_add_(1, row, sums_HRk)

    def _refuse_leaks(
        self, p_BHRK: Tensor, real_query_BR: Tensor | None, start: int, visible_RK: Tensor | None
    ) -> None:
        """Look at the keys that not every row of the run sees."""
        whole, (rows, keys) = self.structure, p_BHRK.shape[2:]
        first = 0
        if visible_RK is None:
            if not whole.causal:
                return
            seen = sum(self.offsets[:1], start) + whole.key_length - whole.query_length + 1 - self.offsets[1]
            first = min(max(seen, 0), keys)
        shown_RK = self._shown(start, rows, keys)
        shown_RK = shown_RK if visible_RK is None else shown_RK & visible_RK.to(shown_RK.device)
        hidden = p_BHRK[..., first:].masked_fill(shown_RK[:, first:], 0.0)
        whole.refuse_leak(self.layer, _real_only(hidden, real_query_BR, None))

    def _shown(self, start: int, rows: int, keys: int) -> Tensor:
        """bool [R, K]: what causality shows to a run of queries."""
        first = self.offsets[0] + start
        visible = self.structure.visible(slice(first, first + rows))
        return visible[:, self.offsets[1] : self.offsets[1] + keys].to(self.total.device)


def _real_only(
    p_BHRK: Tensor, real_query_BR: Tensor | None, real_key_BK: Tensor | None, some: slice = slice(None)
) -> Tensor:
    """The probabilities of some sequences, 0 where a token is not real: by where, since a padded row may hold nan."""
    p_BHRK = p_BHRK[some]
    if real_query_BR is None and real_key_BK is None:
        return p_BHRK
    real = True
    for bools, axis in (
        (real_query_BR, (slice(None), None, slice(None), None)),
        (real_key_BK, (slice(None), None, None)),
    ):
        real = real if bools is None else bools[some][axis] & real
    return torch.where(real, p_BHRK, 0.0)


def _sum_key_blocks(p_BHRK: Tensor, size: int, shift: int) -> Tensor:
    """[..., K] -> [..., k] in float32, blocks beginning ``shift`` keys before the first one.

    A row's probabilities add up to 1: in float32 their sum over any number of keys errs by less than that number of
    2^-24, their mean by less than 6e-8.
    """
    partly = torch.promote_types(p_BHRK.dtype, torch.float32)
    keys = p_BHRK.shape[-1]
    begin = min(-shift % size, keys)
    end = begin + (keys - begin) // size * size
    parts = [p_BHRK[..., :begin].sum(-1, keepdim=True, dtype=partly)] if begin else []
    if end > begin:
        parts.append(p_BHRK[..., begin:end].unflatten(-1, (-1, size)).sum(-1, dtype=partly))
    if end < keys:
        parts.append(p_BHRK[..., end:].sum(-1, keepdim=True, dtype=partly))
    return torch.cat(parts, -1)

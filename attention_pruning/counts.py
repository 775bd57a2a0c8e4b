"""How often each cell was observed, without a number for each cell.

A sequence is observed in a rectangle: all of its real queries against all of its real keys. A sum of rectangles changes
only at their corners, so the corners are all that is kept: four of them for a sequence, equal ones only once, whatever
the lengths. Letters in names: B batch, Q queries, K keys, N either; n corners.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError
from .structure import block_cells

#: Cells that are written out at a time.
_CELLS_AT_ONCE = 1 << 19
#: Cells that a file may speak of: four corners and two lengths could claim any number, and all are looked at.
_MOST_CELLS = 1 << 36


class CellCounts:
    """Counts [Q, K] as the sum of rectangles. It has a tensor's shape and dtype and, part by part, its content.

    Parameters
    ----------
    query_length, key_length : int
    causal : bool
        Whether cells that causality hides count 0, whatever the rectangles say.
    corners : Tensor, optional
        int64 [n, 3] of query, key and change: the count of a cell is the sum of the changes at or above and at or left
        of it. None: nothing was observed.
    """

    dtype = torch.int64

    def __init__(self, query_length: int, key_length: int, causal: bool, corners: Tensor | None = None) -> None:
        self.shape = torch.Size((query_length, key_length))
        self.causal = causal
        self._place = torch.zeros(0, dtype=torch.int64)
        self._change = torch.zeros(0, dtype=torch.int64)
        self._settled = 0
        if corners is not None:
            self._add_corners(*corners.unbind(1))

    @classmethod
    def of(cls, count_QK: Tensor) -> CellCounts:
        """Any counts at all; few corners if they are a sum of few rectangles."""
        counts = cls(*count_QK.shape, causal=False)
        counts._add_cells(count_QK, 0, 0)
        return counts

    @classmethod
    def read(cls, lengths: object, causal: object, corners: Tensor, source: str) -> CellCounts:
        """What a file says.

        Raises
        ------
        InputError
            For anything but two lengths, a bool and corners within the lengths, or counts below 0.
        """
        whole = isinstance(lengths, list) and len(lengths) == 2 and all(type(one) is int and one > 0 for one in lengths)
        if whole and lengths[0] * lengths[1] > _MOST_CELLS:
            raise InputError(f"{source}: expected at most {_MOST_CELLS} cells, found lengths {lengths}")
        inside = whole and corners.ndim == 2 and corners.shape[1] == 3 and isinstance(causal, bool)
        if inside and len(corners):
            places = corners[:, :2]
            inside = bool((places >= 0).all() and (places < torch.tensor(lengths)).all())
        if not inside or (causal and lengths[1] < lengths[0]):
            raise InputError(
                f"{source}: expected corners of counts [query, key, change] within the lengths, found corners of shape "
                f"{list(corners.shape)} and lengths {lengths}"
            )
        counts = cls(*lengths, causal, corners)
        if (smallest := min(int(part.min()) for part in counts.parts())) < 0:
            raise InputError(f"{source}: expected counts of at least 0, found {smallest}")
        return counts

    @property
    def corners(self) -> Tensor:
        """int64 [n, 3] of query, key and change, in order: equal counts have equal corners."""
        self._settle()
        query, key = self._place // self.shape[1], self._place % self.shape[1]
        return torch.stack([query, key, self._change], 1)

    def add(
        self,
        batch: int,
        real_query_BQ: Tensor | None,
        real_key_BK: Tensor | None,
        lengths: tuple[int, int],
        offsets: tuple[int, int] = (0, 0),
        visible_QK: Tensor | None = None,
    ) -> None:
        """Count the sequences of a batch.

        Parameters
        ----------
        real_query_BQ, real_key_BK : Tensor, optional
            bool, True = real. None: all are.
        lengths : (int, int)
            Queries and keys of the batch.
        offsets : (int, int)
            Where the first of them stand.
        visible_QK : Tensor, optional
            bool: cells that a structure beyond causality shows. None: all.
        """
        if visible_QK is not None:
            real = [
                torch.ones(batch, length, dtype=torch.int64) if bools is None else bools.cpu().long()
                for bools, length in zip((real_query_BQ, real_key_BK), lengths, strict=True)
            ]
            self._add_cells(real[0].T @ real[1] * visible_QK.cpu(), *offsets)
        elif real_query_BQ is None and real_key_BK is None:
            query, key = (torch.tensor([0, length]) + offset for length, offset in zip(lengths, offsets, strict=True))
            self._add_corners(query.repeat_interleave(2), key.repeat(2), batch * torch.tensor([1, -1, -1, 1]))
        else:
            rows, columns = (
                _edges(bools, batch, length)
                for bools, length in zip((real_query_BQ, real_key_BK), lengths, strict=True)
            )
            self._add_rectangles(rows, columns, offsets)

    def _add_rectangles(self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], offsets: tuple[int, int]) -> None:
        """Every edge along the queries with every edge along the keys of the same sequence."""
        (row_sequence, query, enters), (column_sequence, key, begins) = rows, columns
        number = torch.bincount(column_sequence, minlength=int(row_sequence.max()) + 1 if len(row_sequence) else 0)
        first = number.cumsum(0) - number
        times = number[row_sequence]
        left = torch.arange(len(times)).repeat_interleave(times)
        right = first[row_sequence][left] + torch.arange(len(left)) - (times.cumsum(0) - times)[left]
        self._add_corners(query[left] + offsets[0], key[right] + offsets[1], enters[left] * begins[right])

    def _add_cells(self, count_QK: Tensor, query_offset: int, key_offset: int) -> None:
        change = F.pad(count_QK.long(), (1, 1, 1, 1)).diff(dim=0).diff(dim=1)
        query, key = change.nonzero(as_tuple=True)
        self._add_corners(query + query_offset, key + key_offset, change[query, key])

    def _add_corners(self, query: Tensor, key: Tensor, change: Tensor) -> None:
        inside = (query < self.shape[0]) & (key < self.shape[1])  # no cell is below or right of others
        place = query * self.shape[1] + key
        self._place = torch.cat([self._place, place[inside]])
        self._change = torch.cat([self._change, change[inside]])
        if len(self._place) > 2 * self._settled + 4096:
            self._settle()

    def _settle(self) -> None:
        """Write equal corners as one, in order."""
        self._place, where = self._place.unique(return_inverse=True)
        change = torch.zeros(len(self._place), dtype=torch.int64).index_add_(0, where, self._change)
        self._place, self._change = self._place[change != 0], change[change != 0]
        self._settled = len(self._place)

    def merge(self, other: CellCounts) -> None:
        """Add the counts of another one of the same shape."""
        self._add_corners(*other.corners.unbind(1))

    def split(self, rows: int) -> Iterator[Tensor]:
        """The counts in parts of so many rows, int64 [<= rows, K], as ``Tensor.split`` gives those of a tensor."""
        self._settle()
        queries, keys = self.shape
        above_K = torch.zeros(keys, dtype=torch.int64)
        bounds = torch.searchsorted(self._place, torch.arange(0, queries + rows, rows) * keys)
        for part, start in enumerate(range(0, queries, rows)):
            number = min(rows, queries - start)
            some = slice(bounds[part], bounds[part + 1])
            if some.start == some.stop:  # no corner: all rows are alike
                count = above_K.cumsum(0).expand(number, keys)
            else:
                change = torch.zeros(number * keys, dtype=torch.int64)
                change[self._place[some] - start * keys] = self._change[some]
                change = change.view(number, keys)
                change[0] += above_K
                count = change.cumsum(0)
                above_K = count[-1].clone()
                count = count.cumsum_(1)
            yield count.tril(start + keys - queries) if self.causal else count

    def parts(self, rows: int = 1) -> Iterator[Tensor]:
        """:meth:`split` by as many rows as are convenient, a multiple of ``rows``."""
        return self.split(max(1, _CELLS_AT_ONCE // self.shape[1] // rows) * rows)

    def any(self) -> bool:
        """Whether any cell was observed."""
        return any(bool(part.any()) for part in self.parts())

    def dense(self) -> Tensor:
        """int64 [Q, K]"""
        return torch.cat(list(self.parts()))

    def blocks(self, block_size: int) -> Tensor:
        """int64 [q, k]: the sum over the cells of each block."""
        return torch.cat([block_cells(part, block_size) for part in self.parts(block_size)])


def _edges(real_BN: Tensor | None, batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where runs of real tokens begin (1) and end (-1), by sequence: sequence, place and change, int64 each."""
    if real_BN is None:
        sequence = torch.arange(batch).repeat_interleave(2)
        return sequence, torch.tensor([0, length]).repeat(batch), torch.tensor([1, -1]).repeat(batch)
    change = F.pad(real_BN.cpu().long(), (1, 1)).diff(dim=1)
    sequence, place = change.nonzero(as_tuple=True)
    return sequence, place, change[sequence, place]

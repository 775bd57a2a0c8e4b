"""The average attention of a model over data.

Letters in names: H heads, Q queries, K keys, B block size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .arrays import as_tensor
from .counts import CellCounts
from .errors import InputError
from .files.tensors import FileKind, MetadataValue, Stored, checked_metadata, fingerprint, read_stored, save_tensors
from .structure import (
    block_any,
    block_cells,
    block_count,
    block_sum,
    require_block_size,
    resolve_structure,
    visible_cells,
)

#: Rows of counts that are looked at together.
ROWS = 64
#: How far above 1 an average may lie: probabilities in half precision add up to a little more.
SLACK = 1e-3


class AttentionPattern:
    """Average attention A[layer, head, query, key] with the number of observations N[query, key] behind it.

    Parameters
    ----------
    average : Tensor or numpy array
        [layers, heads, Q, K] (kept as float32): the mean probability of each cell over the sequences in which its query
        and its key are real tokens; 0 where a cell is not visible or was never observed. With ``pool`` B > 1: [layers,
        heads, ceil(Q/B), ceil(K/B)], the mean over the allowed cells of each B x B block.
    count : Tensor, numpy array or CellCounts
        [Q, K] (kept as int64): how often each cell was observed, always at full resolution. Cells of one block may
        differ: a sequence that ends inside the block was observed up to its end.
    site : str
        Where the attention happens: one of ``structure.SITES``.
    causal : bool, optional
        Whether a query sees only keys up to its own position. By default only for ``dec-self``.
    pool : int
        The block size of ``average``; 1 means cells.
    lengths : (int, int), optional
        The true lengths (Q, K), checked against ``count``.
    metadata : mapping, optional
        Where the pattern comes from: model and data fingerprints, sequences, tokens, seed...

    Attributes
    ----------
    file : str or None
        The file that the pattern was read from.
    source : str
        That file, else "pattern". Error messages begin with it.

    Raises
    ------
    InputError
        For wrong types or shapes, an unknown site, numbers that are no averages of probabilities (not finite, negative
        or above 1), or a non-zero average where no query sees a key or nothing was observed.
    """

    FILE: ClassVar = FileKind(
        "attention-pruning/pattern/1",
        {"average": torch.float32, "count": torch.int64},
        ("site", "causal", "pool", "metadata"),
    )
    #: A pattern of blocks: a number for each cell would take far more room than the averages.
    POOLED_FILE: ClassVar = FileKind(
        "attention-pruning/pattern/2",
        {"average": torch.float32, "corners": torch.int64},
        ("site", "causal", "pool", "metadata", "lengths", "counted_causal"),
    )
    FILES: ClassVar = (FILE, POOLED_FILE)

    def __init__(
        self,
        average: Tensor | np.ndarray,
        count: Tensor | np.ndarray | CellCounts,
        site: str,
        causal: bool | None = None,
        pool: int = 1,
        lengths: tuple[int, int] | None = None,
        metadata: Mapping[str, MetadataValue] | None = None,
        source: str | None = None,
    ) -> None:
        self.file, self.source = source, source or "pattern"
        self.average = as_tensor(average, f"{self.source}: average").to("cpu", torch.float32)
        self.site = site
        self.pool = require_block_size(pool)
        self._count = _as_count(count, self.source)
        self.metadata = checked_metadata(metadata)
        self._check_shapes(lengths)
        self.causal = resolve_structure(site, causal, *self._count.shape)
        self._check_values()

    def _check_shapes(self, lengths: tuple[int, int] | None) -> None:
        if self.average.ndim != 4 or 0 in self.average.shape:
            raise InputError(
                f"{self.source}: expected an average of shape [layer, head, query, key], found "
                f"{list(self.average.shape)}"
            )
        if len(self._count.shape) != 2:
            raise InputError(f"{self.source}: expected a count of shape [query, key], found {list(self._count.shape)}")
        if lengths is not None and tuple(lengths) != tuple(self._count.shape):
            raise InputError(
                f"{self.source}: expected a count of lengths {list(lengths)}, found {list(self._count.shape)}"
            )
        blocks = [block_count(length, self.pool) for length in self._count.shape]
        if list(self.average.shape[2:]) != blocks:
            raise InputError(
                f"{self.source}: expected an average of {blocks[0]} x {blocks[1]} for a count of {self.query_length} "
                f"x {self.key_length} and pool {self.pool}, found {self.average.shape[2]} x {self.average.shape[3]}"
            )

    def _check_values(self) -> None:
        if not torch.isfinite(self.average).all() or (self.average < 0).any():
            raise InputError(f"{self.source}: expected finite averages of at least 0, found nan, inf or negative ones")
        if (largest := float(self.average.max())) > 1 + SLACK:
            raise InputError(f"{self.source}: expected averages of probabilities, of at most 1, found {largest:.4g}")
        if isinstance(self._count, Tensor) and (self._count < 0).any():
            raise InputError(f"{self.source}: expected counts of at least 0, found {int(self._count.min())}")
        # A mean over nothing is 0 by convention. Anything else betrays a wrong causal flag or attention that leaked.
        stray = (self.average != 0).any(0).any(0) & ~block_any(self.allowed, self.pool)
        if stray.any():
            query, key = stray.nonzero()[0].tolist()
            raise InputError(
                f"{self.source}: expected average 0 where a cell is not visible (site {self.site}, causal "
                f"{self.causal}) or was never observed, found attention on {int(stray.sum())} such cells, the first "
                f"at query {query}, key {key}"
            )

    @property
    def layers(self) -> int:
        return self.average.shape[0]

    @property
    def heads(self) -> int:
        return self.average.shape[1]

    @property
    def query_length(self) -> int:
        """Number of query positions Q, in cells even when the average is pooled."""
        return self._count.shape[0]

    @property
    def key_length(self) -> int:
        """Number of key positions K, in cells even when the average is pooled."""
        return self._count.shape[1]

    @property
    def count(self) -> Tensor:
        """int64 [Q, K]: how often each cell was observed; of a pooled pattern it is written out at each call."""
        return self._count.dense() if isinstance(self._count, CellCounts) else self._count

    @property
    def visible(self) -> Tensor:
        """bool [Q, K]: the structure (causality, memory) shows this key to this query."""
        return visible_cells(self.query_length, self.key_length, self.causal)

    @property
    def allowed(self) -> Tensor:
        """bool [Q, K]: visible and observed at least once."""
        allowed = self.visible
        for rows_RK, count_RK in zip(allowed.split(ROWS), self._count.split(ROWS), strict=True):
            rows_RK &= count_RK > 0
        return allowed

    def block_counts(self, block_size: int) -> Tensor:
        """int64 [ceil(Q/B), ceil(K/B)]: the observations of all visible cells of each B x B block."""
        rows = max(1, ROWS // require_block_size(block_size)) * block_size
        parts = []
        for start, count_RK in zip(range(0, self.query_length, rows), self._count.split(rows), strict=True):
            visible_RK = visible_cells(self.query_length, self.key_length, self.causal, slice(start, start + rows))
            parts.append(block_sum(count_RK * visible_RK, block_size))
        return torch.cat(parts)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the tensors, the site, causality and the pool, whatever the metadata."""
        tensors = {"average": self.average, "count": self._count}
        return fingerprint(tensors, site=self.site, causal=self.causal, pool=self.pool)

    def __repr__(self) -> str:
        return (
            f"AttentionPattern({self.site}{', causal' if self.causal else ''}, layers {self.layers}, heads "
            f"{self.heads}, queries {self.query_length}, keys {self.key_length}, pool {self.pool})"
        )

    def pooled(self, block_size: int) -> AttentionPattern:
        """The same pattern over B x B blocks: each the unweighted mean over its allowed cells, 0 if it has none.

        Raises
        ------
        InputError
            If the pattern is pooled already and ``block_size`` is not its pool: means cannot be taken apart.
        """
        if require_block_size(block_size) == self.pool:
            return self
        if self.pool != 1:
            raise InputError(
                f"{self.source}: expected block size {self.pool}, the pattern's own pool, found {block_size}"
            )
        cells = block_cells(self.allowed, block_size)
        # Averages are 0 where not allowed. Layer by layer: a float64 copy of a whole pattern can be large.
        sums = torch.stack([block_sum(layer.double(), block_size) for layer in self.average])
        average = sums / cells.clamp(min=1)
        return AttentionPattern(
            average, self._count, self.site, self.causal, block_size, metadata=self.metadata, source=self.file
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all: of format ``attention-pruning/pattern/1``, or 2 if pooled."""
        fields = {"site": self.site, "causal": self.causal, "pool": self.pool, "metadata": self.metadata}
        if self.pool == 1:
            save_tensors(path, self.FILE, {"average": self.average, "count": self.count}, fields)
            return
        counts = self._count if isinstance(self._count, CellCounts) else CellCounts.of(self._count)
        fields |= {"lengths": [self.query_length, self.key_length], "counted_causal": counts.causal}
        save_tensors(path, self.POOLED_FILE, {"average": self.average, "corners": counts.corners}, fields)

    @classmethod
    def load(cls, path: str | Path) -> AttentionPattern:
        """Read a file written by :meth:`save`.

        Raises
        ------
        InputError
            If the file is missing, damaged, or anything but a pattern.
        """
        return cls.from_stored(read_stored(path, *cls.FILES))

    @classmethod
    def from_stored(cls, stored: Stored) -> AttentionPattern:
        """The pattern that was read from a file."""
        tensors, fields = dict(stored.tensors), dict(stored.fields)
        if stored.kind is cls.POOLED_FILE:
            lengths, causal = fields.pop("lengths"), fields.pop("counted_causal")
            _require_blocks(tensors["average"], lengths, fields["pool"], str(stored.path))
            tensors["count"] = CellCounts.read(lengths, causal, tensors.pop("corners"), str(stored.path))
        return cls(**tensors, **fields, source=str(stored.path))


def _require_blocks(average: Tensor, lengths: object, pool: object, source: str) -> None:
    """Refuse lengths that are not those of the averages, before anything is made of their size."""
    whole = isinstance(lengths, list) and all(type(length) is int for length in lengths)
    if not whole or [block_count(length, require_block_size(pool)) for length in lengths] != list(average.shape[2:]):
        raise InputError(
            f"{source}: expected lengths of averages of shape {list(average.shape)} with pool {pool}, found {lengths}"
        )


def _as_count(count: Tensor | np.ndarray | CellCounts, source: str) -> Tensor | CellCounts:
    if isinstance(count, CellCounts):
        return count
    count = as_tensor(count, f"{source}: count").cpu()
    if count.is_floating_point() and not torch.equal(count, count.round()):
        raise InputError(f"{source}: expected whole numbers as counts, found fractions")
    return count.to(torch.int64)


def require_pattern(thing: object) -> None:
    """Refuse what is no AttentionPattern, with the way to one.

    Raises
    ------
    InputError
    """
    if isinstance(thing, AttentionPattern):
        return
    hint = ""
    if isinstance(thing, Mapping) and any(isinstance(value, AttentionPattern) for value in thing.values()):
        hint = f"; it has one pattern a site, take patterns[{next(iter(thing))!r}]"
    elif isinstance(thing, str | Path):
        hint = "; AttentionPattern.load reads a file"
    elif isinstance(thing, Tensor | np.ndarray):
        hint = "; AttentionPattern(average, count, site) makes one of arrays"
    raise InputError(f"pattern: expected an AttentionPattern, found {type(thing).__name__}{hint}")

"""DistanceMask: one fixed prune mask that knows distances alone, and so holds for sequences of any length.

Letters in names: L layers, H heads, d distances in blocks, q and k queries and keys in blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .arrays import as_tensor
from .errors import InputError
from .files.tensors import FileKind, MetadataValue, Stored, checked_metadata, fingerprint, read_stored, save_tensors
from .mask import PruneMask
from .ops.bands import band_layout, kept_cells
from .ops.layer_mask import LayerMask
from .ops.layout import BLOCK_SIZES
from .recipe import MaskRecipe
from .structure import block_count, require_block_size, resolve_structure

#: A layer's blocks are made for lengths of powers of two, from this one on, and serve every shorter call.
SHORTEST = 256
#: What a file's header says beside the mask's tensor.
_FIELDS = ("site", "sinks", "block_size", "tau", "scope", "observed", "metadata")


#: The longest sequence that distances can be said to be learned from: sparsity looks at each of its positions.
_LONGEST = 1 << 24


def _require_length(observed: object, source: str) -> None:
    if isinstance(observed, bool) or not isinstance(observed, int) or not 0 <= observed <= _LONGEST:
        raise InputError(f"{source}: expected a length of 0 to {_LONGEST} as observed, found {observed!r}")


class DistanceMask:
    """What causal self-attention keeps by distance: a set of distances for each head, and the first positions.

    A query keeps a key if its head keeps their distance (query minus key), or if the key is one of the ``sinks``, the
    first positions, which every query keeps. Distances beyond the last one that is named are pruned. So the mask has no
    length of its own: :meth:`layer` gives a layer of it for any. Made from a pattern by ``make.by_distance``.

    Two masks are equal if they prune the same (:attr:`fingerprint`), however they were made.

    Parameters
    ----------
    kept_LHd : Tensor
        bool [layers, heads, distances], True = kept, each for a distance in blocks. What no head of any layer keeps at
        the end is cut off.
    sinks : int
        First positions that every query keeps; a multiple of ``block_size``.
    block_size : int
        The side of the square blocks, on the grid from position 0, that are kept or pruned whole; 1 = single cells.
    site : {"self", "dec-self"}
        Where the attention happens. It is causal.
    tau : float
        The share that was asked for.
    scope : {"layer", "head", "model"} or None
        Within what distances competed; None for distances of one's own.
    observed : int
        The length of the sequences that the distances were learned from, 0 for distances of one's own.
    metadata : mapping, optional
        What the pattern said about itself.

    Raises
    ------
    InputError
        For wrong types or shapes, another site, or a mask under which a query keeps no key: without sinks, every head
        keeps distance 0.
    """

    FILE: ClassVar = FileKind("attention-pruning/distance-mask/1", {"kept": torch.bool}, _FIELDS)

    causal: ClassVar[bool] = True
    kind: ClassVar[str] = "distance"
    rule: ClassVar[None] = None
    seed: ClassVar[None] = None
    row_floor: ClassVar[str] = "keep-best"

    def __init__(
        self,
        kept_LHd: Tensor,
        *,
        sinks: int = 0,
        block_size: int = 1,
        site: str = "self",
        tau: float = 0.0,
        scope: str | None = None,
        observed: int = 0,
        metadata: Mapping[str, MetadataValue] | None = None,
        source: str | None = None,
    ) -> None:
        self.file, self.source = source, source or "mask"
        self.kept = as_tensor(kept_LHd, f"{self.source}: kept_LHd").cpu()
        self.block_size = require_block_size(block_size)
        self._check(sinks, site)
        _require_length(observed, self.source)
        named = self.kept.any(0).any(0).nonzero()
        self.kept = self.kept[..., : int(named.max()) + 1 if len(named) else 1].contiguous()
        self.sinks, self.site, self.observed = sinks, site, observed
        recipe = MaskRecipe(tau=tau, scope=scope, block_size=block_size, row_floor=self.row_floor)
        self.tau, self.scope = recipe.tau, recipe.scope
        self.metadata = checked_metadata(metadata)
        self._layers: dict[tuple[int, int], LayerMask] = {}

    def _check(self, sinks: int, site: str) -> None:
        kept = self.kept
        if kept.dtype != torch.bool or kept.ndim != 3 or 0 in kept.shape:
            found = f"{kept.dtype} of {list(kept.shape)}"
            raise InputError(f"{self.source}: expected kept_LHd to be bools [layer, head, distance], found {found}")
        whole = isinstance(sinks, int) and not isinstance(sinks, bool) and 0 <= sinks <= _LONGEST
        if not whole or sinks % self.block_size:
            raise InputError(
                f"{self.source}: expected sinks to be a multiple of the block size {self.block_size}, {_LONGEST} at "
                f"most, found {sinks!r}"
            )
        if site not in ("self", "dec-self"):
            resolve_structure(site, None, 1, 1)
            raise InputError(f"{self.source}: expected the site self or dec-self, which is causal, found {site!r}")
        if not sinks and not kept[..., 0].all():
            layer, head = (~kept[..., 0]).nonzero()[0].tolist()
            raise InputError(
                f"{self.source}: expected sinks, or distance 0 kept by every head, found queries without a key in "
                f"layer {layer}, head {head}"
            )

    # What it is

    @property
    def layers(self) -> int:
        return self.kept.shape[0]

    @property
    def heads(self) -> int:
        return self.kept.shape[1]

    @property
    def span(self) -> int:
        """How many of the last positions, the query's own included, a query may keep: what a cache holds at most,
        beside the sinks."""
        return self.kept.shape[2] * self.block_size

    @property
    def repeating(self) -> int:
        """From this row on, each keeps what the row a block before it keeps, one block further on, and the sinks."""
        return self.sinks + self.span + self.block_size

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of what is kept, the site and the block size, whatever the metadata."""
        return fingerprint({"kept": self.kept}, site=self.site, sinks=self.sinks, block_size=self.block_size)

    @property
    def effective_sparsity(self) -> float:
        """The share of visible cells that is pruned at the length that was observed; 0 if none was."""
        return self.sparsity(self.observed) if self.observed else 0.0

    def __eq__(self, other: object) -> bool:
        return self.fingerprint == other.fingerprint if isinstance(other, DistanceMask) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"DistanceMask({self.site}, causal, layers {self.layers}, heads {self.heads}, any length, span "
            f"{self.span}, sinks {self.sinks}, tau {self.tau}, block {self.block_size})"
        )

    def sparsity(self, length: int) -> float:
        """The share of visible cells that is pruned in sequences of a length, without a cell of them."""
        if length < 1:
            raise InputError(f"length: expected at least 1, found {length}")
        row = torch.arange(length)
        block, within = row // self.block_size, row % self.block_size
        # Distances of the keys that are no sinks: 0, ..., last; none where a row sees sinks alone.
        last = block - self.sinks // self.block_size
        pruned_LHd = F.pad(~self.kept, (0, max(0, int(block[-1]) + 1 - self.kept.shape[2])), value=True).long()
        upto_LHd = F.pad(pruned_LHd.cumsum(-1), (1, 0))
        own_LH1 = pruned_LHd[..., :1]
        whole = upto_LHd[..., (last + 1).clamp(min=0)] - own_LH1 * (last >= 0)
        cells = self.block_size * whole + own_LH1 * (within + 1) * (last >= 0)
        visible = length * (length + 1) // 2
        return int(cells.sum()) / (visible * self.layers * self.heads)

    # What it prunes

    def pruned(self, layer: int, query: Tensor, key: Tensor) -> Tensor:
        """Whether the keys at some positions are pruned for the queries at others: bool [H, ...].

        Parameters
        ----------
        query, key : Tensor
            int64 positions that broadcast to one another.
        """
        size, kept_Hd = self.block_size, F.pad(self.kept[layer], (0, 1)).to(query.device)
        distance = (query // size - key // size).clamp(0, kept_Hd.shape[1] - 1)
        return ~(kept_Hd[:, distance] | (key < self.sinks))

    def moved(self, row: int | Tensor) -> int | Tensor:
        """How far rows, with all keys but the sinks, may be moved back, in whole blocks, so that they keep the same and
        this one is among the first that repeat; 0 for rows before them."""
        beyond = row - self.repeating
        beyond = max(0, beyond) if isinstance(beyond, int) else beyond.clamp(min=0)
        return beyond // self.block_size * self.block_size

    def layer(self, layer: int, length: int = SHORTEST) -> LayerMask:
        """One layer's part for sequences of at least ``length``, in the form that ``pruned_attention`` takes.

        Made once for each power of two, and not to be changed.
        """
        made_for = max(SHORTEST, 1 << (length - 1).bit_length())
        key = (layer, made_for)
        if key not in self._layers:
            self._layers[key] = self._make_layer(layer, made_for)
        return self._layers[key]

    def _make_layer(self, layer: int, length: int) -> LayerMask:
        if self.block_size == 1:
            side = BLOCK_SIZES[0]
            return LayerMask.from_layout(band_layout(self.kept[layer], self.sinks, length, side))
        blocks = block_count(length, self.block_size)
        kept = kept_cells(self.kept[layer], self.sinks // self.block_size, blocks)
        return LayerMask(~kept, self.block_size, length, length, causal=True, source=self.source)

    def at(self, length: int, memory: int = 0) -> PruneMask:
        """The same as a mask of one length: [layers, heads, length, memory + length] in cells or blocks.

        Parameters
        ----------
        memory : int
            Keys of earlier segments before the first query; a multiple of the block size.

        Raises
        ------
        InputError
            For sinks and a memory, whose first slots are no first positions, or a memory that cuts a block.
        """
        if memory and (self.sinks or memory % self.block_size):
            expected = "no sinks" if self.sinks else f"a memory of a multiple of {self.block_size}"
            raise InputError(f"{self.source}: expected {expected} for a memory of {memory}, found otherwise")
        first, blocks = memory // self.block_size, block_count(memory + length, self.block_size)
        sinks = self.sinks // self.block_size
        pruned = torch.stack([~kept_cells(kept_Hd, sinks, blocks)[:, first:] for kept_Hd in self.kept])
        visible = torch.arange(memory + length) <= torch.arange(length)[:, None] + memory
        recipe = MaskRecipe(tau=self.tau, scope=self.scope, block_size=self.block_size, row_floor=self.row_floor)
        metadata = self.metadata | {"distance_mask_fingerprint": self.fingerprint}
        made = {"kind": self.kind, "metadata": metadata, "source": self.file}
        return PruneMask(pruned, visible, site=self.site, causal=True, recipe=recipe, **made)

    # Where it is kept

    def save(self, path: str | Path) -> None:
        """Write a safetensors file (format ``attention-pruning/distance-mask/1``), whole or not at all."""
        save_tensors(path, self.FILE, {"kept": self.kept}, {name: getattr(self, name) for name in _FIELDS})

    @classmethod
    def load(cls, path: str | Path) -> DistanceMask:
        """Read a file written by :meth:`save`.

        Raises
        ------
        InputError
            If the file is missing, damaged, or anything but a mask by distance.
        """
        return cls.from_stored(read_stored(path, cls.FILE))

    @classmethod
    def from_stored(cls, stored: Stored) -> DistanceMask:
        """The mask that was read from a file."""
        return cls(stored.tensors["kept"], **stored.fields, source=str(stored.path))

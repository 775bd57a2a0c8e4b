"""PruneMask: one fixed global mask over attention, what it prunes and how sparse it is.

Letters in names: H heads, Q queries, K keys in cells; q, k the same in blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from . import sparsity
from .arrays import as_tensor
from .errors import InputError
from .files.tensors import FileKind, MetadataValue, Stored, checked_metadata, fingerprint, read_stored, save_tensors
from .ops.layer_mask import LayerMask
from .ops.layout import BLOCK_SIZES, BlockLayout
from .pattern import AttentionPattern
from .recipe import RECORDED, MaskRecipe, require_choice
from .structure import (
    block_any,
    block_count,
    block_sum,
    expand_blocks,
    require_block_size,
    resolve_structure,
    visible_cells,
)

KINDS = ("data", "random", "window", "distance", "shuffled-heads", "custom")
#: What a mask is beside its tensors, and what its file's header says.
_FIELDS = ("site", "causal", *RECORDED, "kind", "seed", "metadata")
#: What two masks have in common if one can take the place of the other.
_SHAPE = ("site", "causal", "layers", "heads", "query_length", "key_length", "block_size")
#: Fields of a recipe that the metadata of a mask says, where they are known.
_IN_METADATA = ("unobserved", "crop")


class PruneMask:
    """One fixed global prune mask: what attention never computes, whatever the input.

    Made from a pattern by ``make.from_pattern``, to compare with by ``make.random_like``, ``make.window_like``,
    ``make.distance_like`` and ``make.shuffled_heads_like``, of cells of one's own by :meth:`from_cells`, of two masks
    by ``|`` and ``&``, and read by :meth:`load`. A mask is data and stays on the CPU; models and layouts take what they
    need of it to their devices.

    Two masks are equal if they prune the same of the same attention (:attr:`fingerprint`), however they were made.

    Parameters
    ----------
    pruned : Tensor
        bool [layers, heads, ceil(Q/B), ceil(K/B)] for the recipe's block size B, True = pruned. :meth:`cells` and
        :meth:`slice` give it by cell. Blocks that no query can see may be True or False; it makes no difference.
    allowed : Tensor
        bool [Q, K]: the cells that the pattern saw, the denominator of every sparsity.
    site, causal
        As in AttentionPattern.
    recipe : MaskRecipe
        How it was made: its tau is what was asked for, and neither that nor block size and row floor may be left open.
        Masks of other kinds than "data" keep the recipe of the mask that they are like; a custom one has no rule.
    kind : {"data", "random", "window", "distance", "shuffled-heads", "custom"}
    seed : int, optional
        Of a random mask, or of shuffled heads.
    metadata : mapping, optional
        What the pattern said about itself, and which pattern or masks this one was made from. ``unobserved`` and
        ``crop`` of the recipe join it.

    Attributes
    ----------
    tau, rule, scope, row_floor, block_size
        Those of the recipe.
    file : str or None
        The file that the mask, or the pattern behind it, was read from.
    source : str
        That file, else "mask". Error messages begin with it.

    Raises
    ------
    InputError
        For wrong types or shapes, an unknown site or kind, a recipe without tau, block size or row floor, or allowed
        cells that are none or that no query can see.
    """

    FILE: ClassVar = FileKind(
        "attention-pruning/mask/1",
        {"pruned": torch.bool, "allowed": torch.bool},
        (*_FIELDS, "effective_sparsity"),
    )

    def __init__(
        self,
        pruned: Tensor,
        allowed: Tensor,
        *,
        site: str,
        causal: bool | None,
        recipe: MaskRecipe,
        kind: str = "data",
        seed: int | None = None,
        metadata: Mapping[str, MetadataValue] | None = None,
        source: str | None = None,
    ) -> None:
        self.file, self.source = source, source or "mask"
        require_choice("kind", kind, KINDS)
        _require_recipe(recipe, self.source)
        self.recipe = recipe
        self.pruned = as_tensor(pruned, f"{self.source}: pruned").cpu()
        self.allowed = as_tensor(allowed, f"{self.source}: allowed").cpu()
        self._check_shapes()
        self._layers: dict[int, LayerMask] = {}
        self.site = site
        self.causal = resolve_structure(site, causal, *self.allowed.shape)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise InputError(f"{self.source}: expected a whole number or none as seed, found {seed!r}")
        self.kind, self.seed = kind, seed
        made = {name: getattr(recipe, name) for name in _IN_METADATA}
        self.metadata = checked_metadata(metadata) | {name: how for name, how in made.items() if how is not None}
        if not self.allowed.any() or (self.allowed & ~self.visible).any():
            raise InputError(
                f"{self.source}: expected allowed cells, all of them visible to their query, found none or others"
            )

    def _check_shapes(self) -> None:
        for name, tensor, axes in (
            ("pruned", self.pruned, "[layer, head, query, key]"),
            ("allowed", self.allowed, "[query, key]"),
        ):
            if tensor.dtype != torch.bool or tensor.ndim != axes.count(",") + 1 or 0 in tensor.shape:
                raise InputError(
                    f"{self.source}: expected {name} to be bools {axes}, found {tensor.dtype} of {list(tensor.shape)}"
                )
        blocks = [block_count(length, self.block_size) for length in self.allowed.shape]
        if list(self.pruned.shape[2:]) != blocks:
            raise InputError(
                f"{self.source}: expected {blocks[0]} x {blocks[1]} blocks of {self.block_size} for "
                f"{self.query_length} queries and {self.key_length} keys, found {self.pruned.shape[2]} x "
                f"{self.pruned.shape[3]}"
            )

    @classmethod
    def from_cells(
        cls,
        pruned_LHQK: Tensor,
        *,
        site: str,
        causal: bool | None = None,
        allowed: Tensor | None = None,
        block_size: int = 1,
        metadata: Mapping[str, MetadataValue] | None = None,
    ) -> PruneMask:
        """A mask of one's own, of kind "custom": its tau is its effective sparsity, it has no rule and no scope.

        Its row floor is "keep-best" if every row keeps a cell, else "none": controls made like it do as it does.

        Parameters
        ----------
        pruned_LHQK : Tensor
            bool [layers, heads, Q, K], True = pruned. What it says of cells that no query can see does not matter.
        site, causal
            As in AttentionPattern.
        allowed : Tensor, optional
            bool [Q, K], visible cells that occur in the data: the denominator of every sparsity. By default all.
        block_size : int
            The side of the blocks that are pruned whole. Only such masks become time and memory.

        Raises
        ------
        InputError
            For what is not bool, other shapes, an unknown site, or a block that is pruned in part.
        """
        pruned = as_tensor(pruned_LHQK, "mask: pruned_LHQK").cpu()
        if pruned.dtype != torch.bool or pruned.ndim != 4 or 0 in pruned.shape:
            raise InputError(
                f"mask: expected pruned_LHQK to be bools [layer, head, query, key], found {pruned.dtype} of "
                f"{list(pruned.shape)}"
            )
        size = require_block_size(block_size)
        visible = visible_cells(*pruned.shape[2:], resolve_structure(site, causal, *pruned.shape[2:]))
        kept = block_any(visible & ~pruned, size)
        pruned = block_any(visible & pruned, size)
        if (kept & pruned).any():
            layer, head, query, key = (kept & pruned).nonzero()[0].tolist()
            raise InputError(
                f"mask: expected blocks of {size} that are pruned whole or not at all, found one pruned in part, at "
                f"layer {layer}, head {head}, query {query * size}, key {key * size}"
            )
        allowed = visible if allowed is None else allowed
        return cls._custom(pruned, allowed, site, causal, size, metadata)

    @classmethod
    def _custom(
        cls,
        pruned_LHqk: Tensor,
        allowed_QK: Tensor,
        site: str,
        causal: bool | None,
        block_size: int,
        metadata: Mapping[str, MetadataValue] | None,
    ) -> PruneMask:
        asked = MaskRecipe(tau=0.0, block_size=block_size, row_floor="none")
        mask = cls(pruned_LHqk, allowed_QK, site=site, causal=causal, recipe=asked, kind="custom", metadata=metadata)
        floor = "none" if mask.empty_rows else "keep-best"
        mask.recipe = MaskRecipe(tau=mask.effective_sparsity, block_size=block_size, row_floor=floor)
        return mask

    def with_pruned(self, pruned: Tensor, **changes: object) -> PruneMask:
        """A mask that prunes something else and is as this one otherwise, but for ``changes`` of its arguments."""
        same = {name: getattr(self, name) for name in ("site", "causal", "recipe", "kind", "seed", "metadata")}
        return type(self)(pruned, self.allowed, **same | changes, source=self.file)

    def with_custom(self, pruned: Tensor, metadata: Mapping[str, MetadataValue] | None = None) -> PruneMask:
        """A mask of kind "custom" of the same attention, in blocks of the same size: no one tau made it."""
        return self._custom(pruned, self.allowed, self.site, self.causal, self.block_size, metadata)

    def __or__(self, other: PruneMask) -> PruneMask:
        """What either mask prunes, of kind "custom"; allowed is what is allowed in either.

        Raises
        ------
        InputError
            For what is no mask, or one of another site, causality, shape or block size.
        """
        self._require_like(other, *_SHAPE)
        return self._combined(self.pruned | other.pruned, other, "union_of")

    def __and__(self, other: PruneMask) -> PruneMask:
        """What both masks prune; otherwise as ``|``."""
        self._require_like(other, *_SHAPE)
        return self._combined(self.pruned & other.pruned, other, "intersection_of")

    def _require_like(self, other: PruneMask, *names: str) -> None:
        require_mask(other)
        for name in names:
            if (expected := getattr(self, name)) != (found := getattr(other, name)):
                raise InputError(f"{other.source}: expected {name} {expected}, that of {self.source}, found {found}")

    def _combined(self, pruned: Tensor, other: PruneMask, how: str) -> PruneMask:
        metadata = {how: f"{self.fingerprint} {other.fingerprint}"}
        allowed = self.allowed | other.allowed
        return self._custom(pruned, allowed, self.site, self.causal, self.block_size, metadata)

    def __eq__(self, other: object) -> bool:
        return self.fingerprint == other.fingerprint if isinstance(other, PruneMask) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    # What it is

    @property
    def tau(self) -> float:
        """The share that was asked for."""
        return self.recipe.tau

    @property
    def rule(self) -> str | None:
        """How tau became a mask; None for a custom one."""
        return self.recipe.rule

    @property
    def scope(self) -> str | None:
        """Within what cells competed; None for a custom mask."""
        return self.recipe.scope

    @property
    def row_floor(self) -> str:
        """Whether every row keeps its best block: "keep-best" or "none"."""
        return self.recipe.row_floor

    @property
    def block_size(self) -> int:
        """Side of the square blocks that are pruned whole; 1 = single cells."""
        return self.recipe.block_size

    @property
    def layers(self) -> int:
        return self.pruned.shape[0]

    @property
    def heads(self) -> int:
        return self.pruned.shape[1]

    @property
    def query_length(self) -> int:
        """Number of query positions Q, in cells."""
        return self.allowed.shape[0]

    @property
    def key_length(self) -> int:
        """Number of key positions K, in cells."""
        return self.allowed.shape[1]

    @property
    def visible(self) -> Tensor:
        """bool [Q, K]: the structure (causality, memory) shows this key to this query."""
        return visible_cells(self.query_length, self.key_length, self.causal)

    @property
    def kept(self) -> Tensor:
        """bool [layers, heads, ceil(Q/B), ceil(K/B)]: what attention computes, not pruned and visible (in part)."""
        return ~self.pruned & block_any(self.visible, self.block_size)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the tensors, the site, causality and the block size, whatever the metadata."""
        tensors = {"pruned": self.pruned, "allowed": self.allowed}
        return fingerprint(tensors, site=self.site, causal=self.causal, block_size=self.block_size)

    def __repr__(self) -> str:
        return (
            f"PruneMask({self.kind}, {self.site}{', causal' if self.causal else ''}, layers {self.layers}, heads "
            f"{self.heads}, queries {self.query_length}, keys {self.key_length}, rule {self.rule}, tau {self.tau}, "
            f"block {self.block_size})"
        )

    def cells(self, layer: int) -> Tensor:
        """What one layer prunes, cell by cell: bool [heads, Q, K]; for ``block_size`` 1 a view of the mask itself."""
        return expand_blocks(self.pruned[layer], self.block_size, self.query_length, self.key_length)

    def slice(
        self,
        layer: int,
        query_start: int,
        query_length: int,
        key_start: int,
        key_length: int,
        beyond: str = "error",
    ) -> Tensor:
        """What one layer prunes for a run of queries and a run of keys: bool [heads, query_length, key_length].

        Parameters
        ----------
        beyond : {"error", "dense"}
            What to do where the runs leave the mask: refuse, or prune nothing there.

        Raises
        ------
        InputError
            If a run leaves the mask and ``beyond`` is "error", or starts below 0.
        """
        require_choice("beyond", beyond, ("error", "dense"))
        query_stop, key_stop = query_start + query_length, key_start + key_length
        if query_start < 0 or key_start < 0:
            raise InputError(
                f"{self.source}: expected starts of 0 or more, found query {query_start} and key {key_start}"
            )
        if beyond == "error" and (query_stop > self.query_length or key_stop > self.key_length):
            raise InputError(
                f"{self.source}: expected at most {self.query_length} queries and {self.key_length} keys, the lengths "
                f"of the mask, found a sequence that needs {query_stop} queries and {key_stop} keys"
            )
        inside = self.cells(layer)[:, query_start:query_stop, key_start:key_stop]
        missing = (0, key_length - inside.shape[2], 0, query_length - inside.shape[1])
        return torch.nn.functional.pad(inside, missing) if any(missing) else inside

    def layer(self, layer: int) -> LayerMask:
        """One layer's part, in the form that ``pruned_attention`` takes; causality is part of it.

        A view, made once: a mask is not to be changed afterwards.
        """
        if layer not in self._layers:
            pruned, lengths = self.pruned[layer], (self.query_length, self.key_length)
            self._layers[layer] = LayerMask(pruned, self.block_size, *lengths, causal=self.causal, source=self.source)
        return self._layers[layer]

    def to(self, device: torch.device | str) -> PruneMask:
        """This mask, its layers ready on a device. It is data and stays on the CPU; what computes finds its copy there.

        Without it a layer is copied at its first call.
        """
        for layer in range(self.layers):
            self.layer(layer).blocks(torch.device(device))
        return self

    def layout(self, layer: int) -> BlockLayout:
        """The blocks that one layer computes where the mask prunes blocks of 16, 32, 64 or 128.

        Raises
        ------
        InputError
            If the mask prunes single cells or blocks of another size; ``mask.layer(i).layout(size)`` is for any mask.
        """
        if self.block_size not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise InputError(f"{self.source}: expected a block_size of {sizes} for a layout, found {self.block_size}")
        return self.layer(layer).layout(self.block_size)

    def check_model(
        self,
        *,
        layers: int | None = None,
        heads: int | None = None,
        query_length: int | None = None,
        key_length: int | None = None,
        site: str | None = None,
    ) -> None:
        """Refuse a model that the mask was not made for; only what is given is compared, and it must be equal.

        Raises
        ------
        InputError
            Naming the file of the mask, what the model expects and what the mask has.
        """
        for name, expected in (
            ("site", site),
            ("layers", layers),
            ("heads", heads),
            ("query_length", query_length),
            ("key_length", key_length),
        ):
            found = getattr(self, name)
            if expected is not None and expected != found:
                raise InputError(f"{self.source}: expected {name} {expected}, that of the model, found {found}")

    # How sparse it is

    @property
    def nominal_sparsity(self) -> float:
        """The share that was asked for: tau."""
        return self.tau

    @property
    def layer_sparsity(self) -> list[float]:
        """Pruned allowed cells / allowed cells, by layer."""
        return sparsity.layer_sparsity(self.pruned, self.allowed, self.block_size)

    @property
    def effective_sparsity(self) -> float:
        """Pruned allowed cells / allowed cells over all layers and heads: the share of real attention that went."""
        return sparsity.effective_sparsity(self.pruned, self.allowed, self.block_size)

    @property
    def empty_rows(self) -> int:
        """How many rows (layer, head, query) have allowed cells and keep none of them; 0 under ``keep-best``."""
        return sparsity.empty_rows(self.pruned, self.allowed, self.block_size)

    @property
    def kernel_block(self) -> int:
        """The side of the mask's own blocks; of single cells the smallest of a kernel, which happen to be empty."""
        return self.block_size if self.block_size > 1 else BLOCK_SIZES[0]

    def block_sparsity(self, size: int | None = None) -> float:
        """Skipped blocks / blocks that hold an allowed cell, for a kernel with blocks of side ``size``.

        A block is skipped if nothing visible in it is kept. This is the share of computation that goes. By default the
        side is :attr:`kernel_block`.
        """
        size = self.kernel_block if size is None else size
        layers = (self.cells(layer) for layer in range(self.layers))
        return sparsity.block_sparsity(layers, self.visible, self.allowed, size)

    def evaluated_sparsity(self, count_QK: Tensor) -> float:
        """The pruned share of the cells that an evaluation used, each as often as it was used.

        Parameters
        ----------
        count_QK : Tensor
            int64 [<= Q, <= K], from position 0: how often one layer and head used each cell (the same for all of them).

        Raises
        ------
        InputError
            If it is longer than the mask, counts nothing, or counts cells that no query can see.
        """
        count_QK = self.checked_counts(count_QK)
        if (count_QK[~self.visible] != 0).any():
            raise InputError(f"{self.source}: expected counts of visible cells only, found some that no query can see")
        return sparsity.pruned_share(self.pruned, block_sum(count_QK, self.block_size))

    def overlap(self, other: PruneMask) -> Tensor:
        """How much of what two masks prune is the same: float64 [layers, heads], each from 0 to 1.

        The number of visible cells that both prune over the number that either prunes (intersection over union, the
        Jaccard index), head by head; 1 where neither prunes anything. Two random masks that prune a share s each have
        s / (2 - s) on average: 0.33 for a half, 0.82 for nine tenths. The masks may prune blocks of different sizes.

        Raises
        ------
        InputError
            For what is no mask, or one of another site, causality or shape.
        """
        self._require_like(other, *(name for name in _SHAPE if name != "block_size"))
        return sparsity.overlap(self.pruned, other.pruned, self.visible, self.block_size, other.block_size)

    def checked_counts(self, count_QK: Tensor) -> Tensor:
        """Counts of use as int64 [Q, K]; refused are shapes that do not fit the mask, and what counts nothing."""
        return sparsity.checked_counts(count_QK, self.query_length, self.key_length, self.source)

    # Where it is kept

    def save(self, path: str | Path) -> None:
        """Write a safetensors file (format ``attention-pruning/mask/1``), whole or not at all."""
        fields = {name: getattr(self, name) for name in _FIELDS} | {"effective_sparsity": self.effective_sparsity}
        save_tensors(path, self.FILE, {"pruned": self.pruned, "allowed": self.allowed}, fields)

    @classmethod
    def load(cls, path: str | Path) -> PruneMask:
        """Read a file written by :meth:`save`.

        Raises
        ------
        InputError
            If the file is missing, damaged, or anything but a mask.
        """
        return cls.from_stored(read_stored(path, cls.FILE))

    @classmethod
    def from_stored(cls, stored: Stored) -> PruneMask:
        """The mask that was read from a file."""
        fields = dict(stored.fields)
        recorded = fields.pop("effective_sparsity")
        known = {name: fields.pop(name) for name in RECORDED}
        if known["rule"] is not None:  # else it was not made from a pattern
            metadata = checked_metadata(fields["metadata"])
            known |= {name: metadata.get(name) for name in _IN_METADATA}
        mask = cls(**stored.tensors, **fields, recipe=MaskRecipe(**known), source=str(stored.path))
        if mask.effective_sparsity != recorded:
            raise InputError(
                f"{mask.source}: expected effective sparsity {recorded}, as its header says, found "
                f"{mask.effective_sparsity}"
            )
        return mask


def _require_recipe(recipe: object, source: str) -> None:
    if not isinstance(recipe, MaskRecipe):
        raise InputError(f"{source}: expected a MaskRecipe, found {type(recipe).__name__}")
    for name in ("tau", "block_size", "row_floor"):
        if getattr(recipe, name) is None:
            raise InputError(f"{source}: expected a recipe that says its {name}, found it left open")


def require_mask(thing: object) -> None:
    """Refuse what is no PruneMask, with the way to one.

    Raises
    ------
    InputError
    """
    if isinstance(thing, PruneMask):
        return
    hint = ""
    if isinstance(thing, AttentionPattern):
        hint = "; make.from_pattern(pattern, tau) makes one of a pattern"
    elif isinstance(thing, str | Path):
        hint = "; PruneMask.load reads a file"
    elif isinstance(thing, Tensor | np.ndarray):
        hint = "; PruneMask.from_cells makes one of bools"
    elif isinstance(thing, Mapping) and any(isinstance(value, PruneMask) for value in thing.values()):
        hint = f"; it has one mask a site, take masks[{next(iter(thing))!r}]"
    raise InputError(f"mask: expected a PruneMask, found {type(thing).__name__}{hint}")

"""PruneMask: one fixed global mask over attention, how it is made, what it prunes and how sparse it is.

Letters in names: H heads, Q queries, K keys in cells; q, k the same in blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from . import sparsity
from .errors import InputError
from .files.tensors import MetadataValue, checked_metadata, fingerprint, load_tensors, require_fields, save_tensors
from .make.controls import distance_like, random_like, window_like
from .make.rules import ROW_FLOORS, RULES, SCOPES, UNOBSERVED, parse_tau, prune_by_rule, require_choice
from .ops.layer_mask import LayerMask
from .ops.layout import BLOCK_SIZES, BlockLayout
from .pattern import AttentionPattern
from .structure import block_count, expand_blocks, require_block_size, resolve_structure, visible_cells

__all__ = ["KINDS", "MASK_FORMAT", "ROW_FLOORS", "RULES", "SCOPES", "UNOBSERVED", "PruneMask", "parse_tau"]

MASK_FORMAT = "attention-pruning/mask/1"
KINDS = ("data", "random", "window", "distance")
#: What a mask is beside its tensors, and what its file's header says.
_FIELDS = ("site", "causal", "tau", "rule", "scope", "row_floor", "block_size", "kind", "seed", "metadata")


class PruneMask:
    """One fixed global prune mask: what attention never computes, whatever the input.

    Made by :meth:`from_pattern`, :meth:`random_like`, :meth:`window_like`, :meth:`distance_like` or :meth:`load`.

    Attributes
    ----------
    pruned : Tensor
        bool [layers, heads, ceil(Q/B), ceil(K/B)] for block size B, True = pruned. :meth:`cells` and :meth:`slice` give
        it by cell. Blocks that no query can see may be True or False; it makes no difference.
    allowed : Tensor
        bool [Q, K]: the cells that the pattern saw, the denominator of every sparsity.
    site, causal
        As in AttentionPattern.
    tau : float
        The share that was asked for, alias :attr:`nominal_sparsity`.
    rule, scope, row_floor : str
        How it was made, see ``rules.prune_by_rule``. Masks of other kinds than data keep those of the mask
        they are like.
    block_size : int
        Side of the square blocks that are pruned whole; 1 = single cells.
    kind : {"data", "random", "window", "distance"}
    seed : int or None
        Of a random mask.
    metadata : dict
        What the pattern said about itself, and which pattern or mask this one was made from.
    source : str
        The file that the mask or its pattern was read from, for the beginning of error messages.
    """

    def __init__(
        self,
        pruned: Tensor,
        allowed: Tensor,
        *,
        site: str,
        causal: bool | None,
        tau: float,
        rule: str,
        scope: str,
        row_floor: str,
        block_size: int = 1,
        kind: str = "data",
        seed: int | None = None,
        metadata: Mapping[str, MetadataValue] | None = None,
        source: str = "mask",
    ) -> None:
        for name, value, choices in (
            ("rule", rule, RULES),
            ("scope", scope, SCOPES),
            ("row_floor", row_floor, ROW_FLOORS),
            ("kind", kind, KINDS),
        ):
            require_choice(name, value, choices)
        self.source = source
        self.pruned, self.allowed = pruned, allowed
        self.block_size = require_block_size(block_size)
        self._check_shapes()
        self._layers: dict[int, LayerMask] = {}
        self.site = site
        self.causal = resolve_structure(site, causal, *allowed.shape)
        self.tau = parse_tau(tau)
        self.rule, self.scope, self.row_floor = rule, scope, row_floor
        self.kind, self.seed = kind, seed
        self.metadata = checked_metadata(metadata)
        if not allowed.any() or (allowed & ~self.visible).any():
            raise InputError(
                f"{source}: expected allowed cells, all of them visible to their query, found none or others"
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

    # How it is made

    @classmethod
    def from_pattern(
        cls,
        pattern: AttentionPattern,
        tau: float | str,
        rule: str = "published",
        scope: str = "layer",
        block_size: int = 1,
        row_floor: str = "keep-best",
        unobserved: str = "keep",
        crop: bool = True,
    ) -> PruneMask:
        """Prune the lowest share ``tau`` of a pattern.

        Parameters
        ----------
        pattern : AttentionPattern
        tau : float or str
            A fraction in [0, 1]. 0 prunes nothing.
        rule, scope, row_floor, unobserved, crop
            See ``rules.prune_by_rule``. Transformer-XL takes its percentile over the whole array: ``crop=False``.
        block_size : int
            Pool the pattern over blocks of this side and prune whole blocks by the same rules.

        Raises
        ------
        InputError
            For a tau outside [0, 1], an unknown choice, a block size other than the pool of a pooled pattern, or a
            pattern without a single observation.
        """
        tau = parse_tau(tau)
        require_choice("rule", rule, RULES)
        require_choice("scope", scope, SCOPES)
        require_choice("row_floor", row_floor, ROW_FLOORS)
        require_choice("unobserved", unobserved, UNOBSERVED)
        if not pattern.allowed.any():
            raise InputError(f"{pattern.source}: expected at least one observed cell, found none")
        made_by = {"rule": rule, "scope": scope, "block_size": block_size, "row_floor": row_floor}
        pruned = prune_by_rule(
            pattern.pooled(block_size).average,
            pattern.visible,
            pattern.allowed,
            tau,
            **made_by,
            unobserved=unobserved,
            crop=crop,
        )
        made_from = {"pattern_fingerprint": pattern.fingerprint, "unobserved": unobserved, "crop": crop}
        return cls(
            pruned,
            pattern.allowed,
            site=pattern.site,
            causal=pattern.causal,
            tau=tau,
            **made_by,
            metadata=pattern.metadata | made_from,
            source=pattern.source,
        )

    # As much pruned, chosen by something else; baselines.py explains each.
    random_like = staticmethod(random_like)
    window_like = staticmethod(window_like)
    distance_like = staticmethod(distance_like)

    def with_pruned(self, pruned: Tensor, **changes: object) -> PruneMask:
        """A mask that prunes something else and is as this one otherwise, but for ``changes`` of its fields."""
        fields = {name: getattr(self, name) for name in _FIELDS} | changes
        return type(self)(pruned, self.allowed, **fields, source=self.source)

    # What it is

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
        """One layer's part, in the form that ``pruned_attention`` takes; causality is part of it. A view, made once."""
        if layer not in self._layers:
            pruned, lengths = self.pruned[layer], (self.query_length, self.key_length)
            self._layers[layer] = LayerMask(pruned, self.block_size, *lengths, causal=self.causal, source=self.source)
        return self._layers[layer]

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
        return sparsity.layer_sparsity(self)

    @property
    def effective_sparsity(self) -> float:
        """Pruned allowed cells / allowed cells over all layers and heads: the share of real attention that went."""
        return sparsity.effective_sparsity(self)

    @property
    def empty_rows(self) -> int:
        """How many rows (layer, head, query) have allowed cells and keep none of them; 0 under ``keep-best``."""
        return sparsity.empty_rows(self)

    def block_sparsity(self, size: int) -> float:
        """Skipped blocks / blocks that hold an allowed cell, for a kernel with blocks of side ``size``.

        A block is skipped if nothing visible in it is kept. This is the share of computation that goes.
        """
        return sparsity.block_sparsity(self, size)

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
        return sparsity.evaluated_sparsity(self, count_QK)

    # Where it is used and kept

    def apply(self, model, backend: str = "auto", beyond: str = "error"):
        """Prune its site of a transformers model, see ``huggingface.prune_model``; masks of other sites stay."""
        from .huggingface import model_masks, prune_model  # needs transformers, as nothing else here does

        return prune_model(model, model_masks(model) | {self.site: self}, backend, beyond)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file (format ``attention-pruning/mask/1``), whole or not at all."""
        fields = {name: getattr(self, name) for name in _FIELDS} | {"effective_sparsity": self.effective_sparsity}
        save_tensors(path, MASK_FORMAT, {"pruned": self.pruned, "allowed": self.allowed}, fields)

    @classmethod
    def load(cls, path: str | Path) -> PruneMask:
        """Read a file written by :meth:`save`.

        Raises
        ------
        InputError
            If the file is missing, truncated, or anything but a mask.
        """
        tensors, fields = load_tensors(path, MASK_FORMAT, {"pruned": torch.bool, "allowed": torch.bool})
        require_fields(path, fields, (*_FIELDS, "effective_sparsity"))
        recorded = fields.pop("effective_sparsity")
        mask = cls(**tensors, **fields, source=str(path))
        if mask.effective_sparsity != recorded:
            raise InputError(
                f"{path}: expected effective sparsity {recorded}, as its header says, found {mask.effective_sparsity}"
            )
        return mask

"""What one attention module of a transformers model prunes.

Letters in names: B batch, H heads, Q queries, S keys; q and k count blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..distance_mask import DistanceMask
from ..errors import InputError
from ..mask import PruneMask
from ..ops.layer_mask import LayerMask
from .positions import Axis, Places, from_lengths, from_mask
from .sites import AttentionStack

#: Under this name an attention module holds its AttentionSite.
SITE_ATTRIBUTE = "attention_pruning"

#: Called run by run of queries with the first of them and the probabilities [B, H, R, S] before dropout; keys beyond
#: the last one given have 0.
RowObserver = Callable[[int, Tensor], None]
#: Called with the positions of queries and keys of a call and its batch size: who observes the call.
SiteObserver = Callable[[Axis, Axis, int], RowObserver]


class Steps:
    """Where the queries of a decoder layer stand, from its self- to its cross attention.

    A cross-attention call carries no position. What is noted belongs to one call of the layer: threads that share the
    model have their own.
    """

    def __init__(self) -> None:
        self._by_thread: dict[int, Places] = {}

    @staticmethod
    def _thread() -> int:
        return 0 if torch.compiler.is_compiling() else threading.get_ident()

    def note(self, places: Places) -> None:
        self._by_thread[self._thread()] = places

    def take(self) -> Places | None:
        return self._by_thread.pop(self._thread(), None)


class AttentionSite(nn.Module):
    """What one attention module of a model prunes, as a child of that module.

    It has no parameter and no buffer: the mask is data that never changes, in no state dict, and neither ``to``,
    ``to_empty`` nor a broadcast between processes can touch it. ``save_pretrained`` writes masks to files of their own.

    Parameters
    ----------
    stack : AttentionStack
        Where it is.
    layer : int
        Its place in the stack.
    mask : PruneMask or DistanceMask, optional
        Of the whole stack.
    backend, beyond : str
        See ``prune_model``.
    steps : Steps, optional
        Shared by the self- and the cross attention of one decoder layer.

    Attributes
    ----------
    observer : callable or None
        Sees every call while a pattern is collected.
    """

    def __init__(
        self,
        stack: AttentionStack,
        layer: int,
        mask: PruneMask | DistanceMask | None = None,
        backend: str = "auto",
        beyond: str = "error",
        steps: Steps | None = None,
    ) -> None:
        super().__init__()
        self.name = stack.name.replace("*", str(layer), 1)
        self.site, self.layer = stack.site, layer
        self.cross, self.causal, self.window = stack.cross, stack.causal, stack.window
        self.mask, self.backend, self.beyond, self.steps = mask, backend, beyond, steps
        self.layer_mask: LayerMask | None = None if mask is None else mask.layer(layer)
        self.any_length = isinstance(mask, DistanceMask)
        #: Whether it prunes anything. If not, the layer is the dense layer. By distance, long sequences are pruned.
        self.prunes = self.any_length or (self.layer_mask is not None and self.layer_mask.prunes)
        self.observer: SiteObserver | None = None

    def extra_repr(self) -> str:
        return f"{self.name}, {self.mask}"

    def of_length(self, length: int) -> LayerMask | None:
        """The layer's mask; by distance one of at least this length."""
        return self.mask.layer(self.layer, length) if self.any_length else self.layer_mask

    def layer_mask_for(self, places: Places) -> LayerMask:
        """What the operator needs for a call: the layer's mask, by distance one that is long enough, and where keys are
        beyond the window one that leaves these out, too."""
        mask = self.of_length(places.key.bound)
        return mask.within(self.window)[0] if self.beyond_window(places) else mask

    def beyond_window(self, places: Places) -> bool:
        """Whether the window hides any key of a call."""
        return self.window is not None and places.key.bound > self.window and self.layer_mask is not None

    def reason_of_window(self, places: Places) -> str | None:
        """Why the window keeps a call from the operator, which takes hidden keys for pruned ones: they differ in rows
        that are left empty, uniform over what they see."""
        if not self.beyond_window(places):
            return None
        _, own_kept, none_empty = self.of_length(places.key.bound).within(self.window)
        if own_kept or (none_empty and places.padding is None):
            return None
        return "rows are left empty within the sliding window"

    def is_dense(self, queries: int, keys: int) -> bool:
        """Whether transformers' own SDPA gives the answer; a call longer than the mask still has to be looked at."""
        if self.prunes or self.observer is not None or self.steps is not None or self.backend == "reference":
            return False
        return self.mask is None or max(queries, keys) <= min(self.mask.allowed.shape)

    def places(
        self, visible: Tensor | None, queries: int, keys: int, device: torch.device, position_ids: Tensor | None
    ) -> Places:
        """Rows and columns of a call.

        Raises
        ------
        InputError
            If self-attention without causality has other keys than queries, if cross attention has no self-attention
            before it, or if a mask does not tell positions.
        """
        if not self.cross and not self.causal and queries != keys:
            raise InputError(f"{self.name}: expected as many keys as queries, found {keys} keys and {queries} queries")
        if visible is None:
            places = from_lengths(queries, keys, self.causal, device)
        else:
            places = from_mask(visible, self.causal, position_ids, self.name, self.window)
        if self.cross:
            own = self.steps.take()
            if own is None:
                raise InputError(f"{self.name}: expected self-attention before it in its layer, found none")
            both = own.offset is not None and places.offset is not None
            return Places(
                own.query,
                places.key,
                places.keys,
                own.offset if both else None,
                places.padding,
                own.reason or places.reason,
            )
        if self.steps is not None:
            self.steps.note(places)
        return places

    def covers(self, places: Places) -> bool:
        """Whether all positions of a call, padding included, lie within the mask."""
        if self.any_length:
            return True
        return places.query.bound <= self.layer_mask.query_length and places.key.bound <= self.layer_mask.key_length

    def cells(self, query: Axis, key: Axis) -> Tensor | None:
        """What is pruned at these positions: bool [H, Q, S], or [B, H, Q, S] if sequences differ; None for nothing.

        Raises
        ------
        InputError
            If a position lies beyond the mask, unless that region is to stay dense.
        """
        if self.mask is None:
            return None
        if self.any_length:
            pruned = self.mask.pruned(self.layer, query.index[..., :, None], key.index[..., None, :])
            return pruned.transpose(0, 1) if pruned.ndim == 4 else pruned
        rows, columns, size = self.mask.query_length, self.mask.key_length, self.mask.block_size
        self.check_lengths(query, key)
        if not self.prunes:
            return None
        row, column = query.index.clamp(max=rows - 1) // size, key.index.clamp(max=columns - 1) // size
        blocks = self.layer_mask.blocks(query.index.device)
        if row.ndim == 1 and column.ndim == 1:
            pruned = blocks[:, row][:, :, column]
        else:
            pruned = blocks[:, row[..., :, None], column[..., None, :]].transpose(0, 1)
        if self.beyond == "dense":
            inside = (query.index < rows)[..., :, None] & (key.index < columns)[..., None, :]
            pruned = pruned & (inside if inside.ndim == 2 else inside[:, None])
        return pruned

    def reaches(self, query: Axis, key: Axis) -> bool:
        """Whether the positions of real tokens lie within the mask; that of padding may be beyond. Looks at them."""
        return int(query.last()) < self.mask.query_length and int(key.last()) < self.mask.key_length

    def check_lengths(self, query: Axis, key: Axis) -> None:
        """Refuse, with InputError, positions beyond the mask, unless that region is to stay dense."""
        rows, columns = self.mask.query_length, self.mask.key_length
        if query.bound <= rows and key.bound <= columns:
            return
        if self.beyond == "dense" or query.index.is_meta:
            return
        expected = f"expected at most {rows} queries and {columns} keys, the lengths of the mask"
        if torch.compiler.is_compiling():  # numbers are not known yet: checked when the graph runs
            within = (query.last() < rows) & (key.last() < columns)
            torch._assert_async(within, f"{self.name}: {expected}, found a longer sequence")
            return
        queries, keys = int(query.last()) + 1, int(key.last()) + 1
        if queries > rows or keys > columns:
            raise InputError(
                f"{self.mask.source}: {expected}, found a sequence that needs {queries} queries and {keys} keys in "
                f"{self.name}; beyond='dense' leaves the rest unpruned"
            )

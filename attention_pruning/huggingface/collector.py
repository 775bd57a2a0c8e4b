"""What the observers of one site see, on its way into an accumulator.

Letters in names: B batch, H heads, Q queries, K keys, N either; R a run of queries.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..accumulate import PatternAccumulator
from ..errors import InputError
from ..files.tensors import MetadataValue
from ..layer_sums import LayerSums
from ..pattern import AttentionPattern
from ..structure import window_cells
from .attention_site import RowObserver
from .positions import Axis
from .sites import AttentionStack


@dataclass
class Observation:
    """One layer of one batch, on its way into the accumulator.

    Attributes
    ----------
    sums : LayerSums
    real_query, real_key : Tensor or None
        bool [B, N] where all sequences begin at the first place; None: all tokens are real.
    tokens : list or None
        Where they do not (padding on the left): the places of the real queries of every sequence, and of its keys.
    calls : int
        Of one module, which add to the same sums.
    """

    sums: LayerSums
    real_query: Tensor | None = None
    real_key: Tensor | None = None
    tokens: list[list[Tensor]] | None = None
    calls: int = 1

    def add(self, start: int, p_BHRK: Tensor) -> None:
        """Add the probabilities of queries from ``start`` on; keys beyond the last one given have 0."""
        if self.tokens is not None:
            self._add_by_sequence(start, p_BHRK)
            return
        queries, keys = self.sums.lengths
        p_BHRK = p_BHRK[:, :, : max(queries - start, 0), :keys]
        if p_BHRK.shape[2]:
            real_query = None if self.real_query is None else self.real_query[:, start : start + p_BHRK.shape[2]]
            real_key = None if self.real_key is None else self.real_key[:, : p_BHRK.shape[3]]
            self.sums.add(p_BHRK, real_query, real_key, start)

    def _add_by_sequence(self, start: int, p_BHRK: Tensor) -> None:
        stop, keys = start + p_BHRK.shape[2], p_BHRK.shape[3]
        for p_HRK, query, key in zip(p_BHRK, *self.tokens, strict=True):
            first, last = (int((query < bound).sum()) for bound in (start, stop))
            if first < last:  # its tokens keep their order: one run of rows
                p_HrK = p_HRK[:, query[first:last] - start]
                self.sums.add(p_HrK[None, :, :, key[key < keys]], start=first)


@dataclass
class Collector:
    """Feeds one site's accumulator.

    Attributes
    ----------
    lengths : (int, int) or None
        The longest sequences of queries and of keys; None: those of the first batch.
    asked : bool
        Whether the caller said the lengths.
    measuring : bool
        While True, a batch tells its lengths and nothing else.
    """

    stack: AttentionStack
    lengths: tuple[int, int] | None
    block_size: int
    asked: bool = field(init=False)
    measuring: bool = field(default=False, init=False)
    accumulator: PatternAccumulator | None = field(default=None, init=False)
    pending: Observation | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.asked = self.lengths is not None

    def observe(self, layer: int, query: Axis, key: Axis, batch: int) -> RowObserver:
        """What takes the probabilities of a call of one layer, run by run of its queries."""
        queries, keys = query.index.shape[-1], key.index.shape[-1]
        if self.measuring:
            self.lengths = (queries, keys)
            return lambda start, p_BHRK: None
        # ALBERT calls one module for several layers: their mean is one observation of the module.
        if self.pending is not None and self.pending.sums.layer == layer:
            self.pending.calls += 1
            return self.pending.add
        self.flush()
        if self.lengths is None:
            self.lengths = (queries, keys)
        self.pending = self._begin(layer, query, key, batch)
        return self.pending.add

    def flush(self) -> None:
        """Add the call that is waiting, at the end of a batch or when the next layer begins."""
        if self.pending is not None:
            self.ready().join(self.pending.sums, self.pending.calls)
            self.pending = None

    def _begin(self, layer: int, query: Axis, key: Axis, batch: int) -> Observation:
        accumulator = self.ready()
        real_query = in_front(query, batch, self.stack.name)
        real_key = in_front(key, batch, self.stack.name)
        # beyond the pattern there may be padding, nothing else
        queries, keys = _needed(real_query, query), _needed(real_key, key)
        if queries > accumulator.query_length or keys > accumulator.key_length:
            origin = "the lengths asked for" if self.asked else "the lengths of the first batch (lengths= changes them)"
            raise InputError(
                f"{self.stack.site}: expected at most {accumulator.query_length} queries and {accumulator.key_length} "
                f"keys, {origin}, found a batch of {queries} and {keys}"
            )
        sums = accumulator.layer_sums(layer, queries, keys)
        real_query = None if real_query is None else real_query[:, :queries]
        real_key = None if real_key is None else real_key[:, :keys]
        window = self.stack.window
        visible = None
        if window is not None and keys > window:
            visible = window_cells(torch.arange(queries)[:, None], torch.arange(keys), window)
        accumulator.count(sums, batch, real_query, real_key, visible)
        if query.index.ndim == 2 or key.index.ndim == 2:
            return Observation(sums, tokens=[_tokens(axis, batch) for axis in (query, key)])
        return Observation(sums, real_query, real_key)

    def arguments(self) -> dict[str, object]:
        """What the collectors of one site have in common in all processes."""
        facts = {name: getattr(self.stack, name) for name in ("layers", "heads", "causal")}
        return facts | {"block_size": self.block_size, "lengths": self.lengths if self.asked else None}

    def ready(self) -> PatternAccumulator:
        """The accumulator, made when it is first asked for; by then the lengths have to be known."""
        if self.accumulator is None:
            stack = self.stack
            self.accumulator = PatternAccumulator(
                stack.layers, stack.heads, *self.lengths, stack.site, stack.causal, self.block_size
            )
        return self.accumulator

    def finish(self, metadata: dict[str, MetadataValue]) -> AttentionPattern:
        """The average over all processes, those included that had no batch."""
        if self.lengths is None:
            raise InputError(f"dataloader: expected at least one batch that reaches {self.stack.name}, found none")
        accumulator = self.ready()
        accumulator.all_reduce()
        if not accumulator.sequences:
            raise InputError(f"dataloader: expected at least one batch that reaches {self.stack.name}, found none")
        return accumulator.finalize(metadata)


def in_front(axis: Axis, batch: int, name: str) -> Tensor | None:
    """Which places hold a real token once these are moved to the front: bool [B, N], None if all do.

    Raises
    ------
    InputError
        For a call with a cache, or several sequences in one row.
    """
    length = axis.index.shape[-1]
    if axis.real is None:
        if axis.index.ndim == 2 or length != axis.bound:
            raise InputError(f"{name}: expected whole sequences to collect from, found a call with a cache")
        return None
    real = axis.real.expand(batch, length)
    if axis.index.ndim == 1:
        return real
    order = (~real).long().argsort(dim=1, stable=True)
    real = real.gather(1, order)
    index = axis.index.expand(batch, length).gather(1, order)
    if ((index != torch.arange(length, device=index.device)) & real).any():
        raise InputError(f"{name}: expected one sequence a row to collect from, found packed sequences")
    return real


def _needed(real_BN: Tensor | None, axis: Axis) -> int:
    if real_BN is None:
        return axis.index.shape[-1]
    used = real_BN.any(0).nonzero()
    return int(used.max()) + 1 if len(used) else 1


def _tokens(axis: Axis, batch: int) -> list[Tensor]:
    """The places of the real tokens of every sequence."""
    length = axis.index.shape[-1]
    if axis.real is None:
        return [torch.arange(length, device=axis.index.device)] * batch
    return [real.nonzero()[:, 0] for real in axis.real.expand(batch, length)]

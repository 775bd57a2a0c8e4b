"""What the observers of one site see, on its way into an accumulator.

Letters in names: B batch, H heads, Q queries, K keys, N either.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..accumulate import PatternAccumulator
from ..errors import InputError
from ..files.tensors import MetadataValue
from ..pattern import AttentionPattern
from .positions import Axis
from .sites import AttentionStack


@dataclass
class _Call:
    """The probabilities of one layer in one batch, summed over the calls of a module that layers share."""

    layer: int
    probabilities: Tensor
    query: Axis
    key: Axis
    calls: int = 1


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
    pending: _Call | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.asked = self.lengths is not None

    def observe(self, layer: int, probabilities_BHQK: Tensor, query: Axis, key: Axis) -> None:
        if self.measuring:
            self.lengths = tuple(probabilities_BHQK.shape[2:])
            return
        # ALBERT calls one module for several layers: their mean is one observation of the module.
        if self.pending is not None and self.pending.layer == layer:
            self.pending.probabilities = self.pending.probabilities + probabilities_BHQK
            self.pending.calls += 1
            return
        self.flush()
        self.pending = _Call(layer, probabilities_BHQK, query, key)

    def flush(self) -> None:
        """Add the call that is waiting, at the end of a batch or when the next layer begins."""
        if self.pending is None:
            return
        call, self.pending = self.pending, None
        batch, _, queries, keys = call.probabilities.shape
        real_query = _aligned(self.stack, call.query, batch, queries)
        real_key = _aligned(self.stack, call.key, batch, keys)
        probabilities = call.probabilities / call.calls
        if call.query.index.ndim == 2:
            probabilities = probabilities.gather(2, real_query.order[:, None, :, None].expand_as(probabilities))
        if call.key.index.ndim == 2:
            probabilities = probabilities.gather(3, real_key.order[:, None, None, :].expand_as(probabilities))
        if self.lengths is None:
            self.lengths = (queries, keys)
        self._add(call.layer, probabilities, real_query.real, real_key.real)

    def _add(self, layer: int, probabilities: Tensor, real_query: Tensor | None, real_key: Tensor | None) -> None:
        accumulator = self._ready()
        # beyond the pattern there may be padding, nothing else
        queries = _needed(real_query, probabilities.shape[2])
        keys = _needed(real_key, probabilities.shape[3])
        if queries > accumulator.query_length or keys > accumulator.key_length:
            origin = "the lengths asked for" if self.asked else "the lengths of the first batch (lengths= changes them)"
            raise InputError(
                f"{self.stack.site}: expected at most {accumulator.query_length} queries and {accumulator.key_length} "
                f"keys, {origin}, found a batch of {queries} and {keys}"
            )
        accumulator.update(
            layer,
            probabilities[:, :, :queries, :keys],
            None if real_query is None else real_query[:, :queries],
            None if real_key is None else real_key[:, :keys],
        )

    def arguments(self) -> dict[str, object]:
        """What the collectors of one site have in common in all processes."""
        facts = {name: getattr(self.stack, name) for name in ("layers", "heads", "causal")}
        return facts | {"block_size": self.block_size, "lengths": self.lengths if self.asked else None}

    def _ready(self) -> PatternAccumulator:
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
        accumulator = self._ready()
        accumulator.all_reduce()
        if not accumulator.sequences:
            raise InputError(f"dataloader: expected at least one batch that reaches {self.stack.name}, found none")
        return accumulator.finalize(metadata)


@dataclass(frozen=True)
class _Alignment:
    """Real tokens moved to the front: where each place takes its token from, [B, N], and which places are real."""

    order: Tensor | None
    real: Tensor | None


def _aligned(stack: AttentionStack, axis: Axis, batch: int, length: int) -> _Alignment:
    if axis.real is None:
        if axis.index.ndim == 2 or axis.index.shape[0] != axis.bound:
            raise InputError(f"{stack.name}: expected whole sequences to collect from, found a call with a cache")
        return _Alignment(None, None)
    real = axis.real.expand(batch, length)
    if axis.index.ndim == 1:
        return _Alignment(None, real)
    order = (~real).long().argsort(dim=1, stable=True)
    real = real.gather(1, order)
    index = axis.index.expand(batch, length).gather(1, order)
    if ((index != torch.arange(length, device=index.device)) & real).any():
        raise InputError(f"{stack.name}: expected one sequence a row to collect from, found packed sequences")
    return _Alignment(order, real)


def _needed(real_BN: Tensor | None, length: int) -> int:
    if real_BN is None:
        return length
    used = real_BN.any(0).nonzero()
    return int(used.max()) + 1 if len(used) else 1

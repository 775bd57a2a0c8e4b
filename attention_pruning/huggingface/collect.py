"""Average what a transformers model attends to over data.

Letters in names: B batch, H heads, Q queries, K keys.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..accumulate import PatternAccumulator
from ..errors import InputError
from ..files.tensors import MetadataValue
from ..pattern import AttentionPattern
from .attention_site import SITE_ATTRIBUTE, AttentionSite, Steps
from .positions import Axis
from .prune import implementations, use_implementation
from .sites import AttentionStack, find_stacks


def collect_patterns(
    model: PreTrainedModel,
    dataloader: Iterable[Mapping[str, Tensor]],
    sites: Iterable[str] | None = None,
    *,
    lengths: int | Mapping[str, tuple[int, int]] | None = None,
    block_size: int = 1,
    metadata: Mapping[str, MetadataValue] | None = None,
) -> dict[str, AttentionPattern]:
    """One pass over data in evaluation mode, and the average attention of every site.

    Parameters
    ----------
    model : PreTrainedModel
        Left as it was found: mode, attention implementation and masks. A pruned one is observed under its masks.
    dataloader : iterable of mappings
        Batches of keyword arguments for the model, with the ``attention_mask`` that tells padding. They are moved to
        the model's device. ``labels`` of -100 tell the padding of a decoder whose mask is not given.
    sites : iterable of str, optional
        All of the model's by default.
    lengths : int or mapping, optional
        The longest sequence, or (queries, keys) by site. By default the first batch's: pad all batches to one length,
        or say it here.
    block_size : int
        Above 1, keep sums over blocks only, see ``PatternAccumulator``.
    metadata : mapping, optional
        Joins the patterns' own.

    Returns
    -------
    dict
        AttentionPattern by site. Under ``torch.distributed`` every process gets the average over all of them.

    Raises
    ------
    InputError
        If the model is not supported, a site is unknown, a batch is no mapping or longer than expected, sequences are
        packed, or there is no batch.
    """
    stacks = find_stacks(model)
    chosen = list(stacks) if sites is None else [sites] if isinstance(sites, str) else list(sites)
    for site in chosen:
        if site not in stacks:
            raise InputError(
                f"sites: expected some of {', '.join(stacks)}, those of {type(model).__name__}, found {site}"
            )
    if not isinstance(lengths, Mapping):
        lengths = dict.fromkeys(chosen, None if lengths is None else (lengths, lengths))
    collectors = {site: _Collector(stacks[site], lengths.get(site), block_size) for site in chosen}
    with _observed(model, stacks, collectors), torch.no_grad():
        for batch in dataloader:
            model(**_prepared(model, batch))
            for collector in collectors.values():
                collector.flush()
    facts = {"model": type(model).__name__}
    return {
        site: collector.finish(facts | {"attention": collector.stack.name} | dict(metadata or {}))
        for site, collector in collectors.items()
    }


def _prepared(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, object]:
    if not isinstance(batch, Mapping):
        raise InputError(
            f"dataloader: expected batches that map argument names to tensors, found {type(batch).__name__}"
        )
    batch = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    labels = batch.get("labels")
    padded_labels = model.config.is_encoder_decoder and isinstance(labels, Tensor) and labels.ndim == 2
    if padded_labels and batch.get("decoder_attention_mask") is None:
        # the model makes its decoder inputs from the labels, shifted by one: as many are real
        batch["decoder_attention_mask"] = (labels != -100).long()
    return batch


@contextmanager
def _observed(
    model: PreTrainedModel, stacks: Mapping[str, AttentionStack], collectors: Mapping[str, _Collector]
) -> Iterator[None]:
    """Observers in every module of the sites, evaluation mode, and afterwards everything as it was."""
    modes = [(module, module.training) for module in model.modules()]
    before = implementations(model)
    modules = [module for stack in stacks.values() for module in stack.modules]
    sites = [(module, module._modules.pop(SITE_ATTRIBUTE, None)) for module in modules]
    try:
        _attach_observers(stacks, collectors, {id(module): site for module, site in sites})
        model.eval()
        use_implementation(model)
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
        for module, site in sites:
            module._modules.pop(SITE_ATTRIBUTE, None)
            if site is not None:
                module.add_module(SITE_ATTRIBUTE, site)
        for module, training in modes:
            module.training = training


def _attach_observers(
    stacks: Mapping[str, AttentionStack],
    collectors: Mapping[str, _Collector],
    pruned: Mapping[int, AttentionSite | None],
) -> None:
    steps = [Steps() for _ in stacks["enc-dec"].modules] if "enc-dec" in stacks else None
    for name, stack in stacks.items():
        for layer, module in enumerate(stack.modules):
            own = pruned[id(module)]
            shared = steps[layer] if steps is not None and name in ("dec-self", "enc-dec") else None
            mask, beyond = (None, "error") if own is None else (own.mask, own.beyond)
            site = AttentionSite(stack, layer, mask, beyond=beyond, steps=shared)
            if name in collectors:
                site.observer = functools.partial(collectors[name].observe, layer)
            module.add_module(SITE_ATTRIBUTE, site)


@dataclass
class _Call:
    """The probabilities of one layer in one batch, summed over the calls of a module that layers share."""

    layer: int
    probabilities: Tensor
    query: Axis
    key: Axis
    calls: int = 1


@dataclass
class _Collector:
    """Feeds one site's accumulator."""

    stack: AttentionStack
    lengths: tuple[int, int] | None
    block_size: int
    accumulator: PatternAccumulator | None = field(default=None, init=False)
    pending: _Call | None = field(default=None, init=False)

    def observe(self, layer: int, probabilities_BHQK: Tensor, query: Axis, key: Axis) -> None:
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
        batch, heads, queries, keys = call.probabilities.shape
        real_query = _aligned(self.stack, call.query, batch, queries)
        real_key = _aligned(self.stack, call.key, batch, keys)
        probabilities = call.probabilities / call.calls
        if call.query.index.ndim == 2:
            probabilities = probabilities.gather(2, real_query.order[:, None, :, None].expand_as(probabilities))
        if call.key.index.ndim == 2:
            probabilities = probabilities.gather(3, real_key.order[:, None, None, :].expand_as(probabilities))
        if self.accumulator is None:
            wanted = self.lengths or (queries, keys)
            self.accumulator = PatternAccumulator(
                self.stack.layers, heads, *wanted, self.stack.site, self.stack.causal, self.block_size
            )
        self._add(call.layer, probabilities, real_query.real, real_key.real)

    def _add(self, layer: int, probabilities: Tensor, real_query: Tensor | None, real_key: Tensor | None) -> None:
        accumulator = self.accumulator
        # beyond the pattern there may be padding, nothing else
        queries = _needed(real_query, probabilities.shape[2])
        keys = _needed(real_key, probabilities.shape[3])
        if queries > accumulator.query_length or keys > accumulator.key_length:
            origin = (
                "the lengths asked for" if self.lengths else "the lengths of the first batch (lengths= changes them)"
            )
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

    def finish(self, metadata: dict[str, MetadataValue]) -> AttentionPattern:
        if self.accumulator is None:
            raise InputError(f"dataloader: expected at least one batch that reaches {self.stack.name}, found none")
        self.accumulator.all_reduce()
        return self.accumulator.finalize(metadata)


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

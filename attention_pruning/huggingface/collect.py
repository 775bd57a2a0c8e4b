"""Average what a transformers model attends to over data."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import InputError
from ..files.tensors import MetadataValue
from ..pattern import AttentionPattern
from ..processes import longest, process_count, together
from ..progress import count, shown
from .attention_site import SITE_ATTRIBUTE, AttentionSite, Steps
from .collector import Collector
from .prune import implementations, model_masks, use_implementation
from .resuming import PartialSums
from .sites import AttentionStack, find_stacks


def collect_patterns(
    model: PreTrainedModel,
    dataloader: Iterable[Mapping[str, Tensor]],
    sites: Iterable[str] | None = None,
    *,
    lengths: int | Mapping[str, tuple[int, int]] | None = None,
    block_size: int = 1,
    metadata: Mapping[str, MetadataValue] | None = None,
    progress: bool | None = None,
    max_batches: int | None = None,
    resume: str | Path | None = None,
    resume_every: float = 60.0,
) -> dict[str, AttentionPattern]:
    """One pass over data in evaluation mode, and the average attention of every site.

    Parameters
    ----------
    model : PreTrainedModel
        Left as it was found: mode, attention implementation and masks. A pruned one is observed under its masks, and
        its patterns say so: ``observed_under_mask`` in their metadata is the fingerprint of their site's mask,
        ``observed_under_mask_SITE`` that of another site's.
    dataloader : iterable of mappings
        Batches of keyword arguments for the model, with the ``attention_mask`` that tells padding. They are moved to
        the model's device. ``labels`` of -100 tell the padding of a decoder whose mask is not given.
    sites : iterable of str, optional
        All of the model's by default.
    lengths : int or mapping, optional
        The longest sequence, or (queries, keys) by site. By default the first batch's (of all processes', the longest):
        pad all batches to one length, or say it here.
    block_size : int
        Above 1, keep sums over blocks only, see ``PatternAccumulator``.
    metadata : mapping, optional
        Joins the patterns' own.
    progress : bool, optional
        By default a bar, where there is a terminal with tqdm; see ``progress.shown``.
    max_batches : int, optional
        Stop after so many batches (of each process).
    resume : str or Path, optional
        A .safetensors file to keep the sums in. A call that was cut short, made again with the same data in the same
        order, goes on where it was, and gives the same patterns to the bit; one with more batches adds to them. The
        file is kept: delete it when the patterns are saved. Each of several processes has a file of its own.
    resume_every : float
        Seconds between two writings of the file; 0 writes after every batch.

    Returns
    -------
    dict
        AttentionPattern by site. Under ``torch.distributed`` every process gets the average over all of them; each
        brings its part of the batches, or none.

    Raises
    ------
    InputError
        If the model is not supported, a site is unknown, a batch is no mapping or longer than expected, sequences are
        packed, there is no batch, or the file to resume is that of another collection. An error in one process ends
        all of them, after the pass of the others.
    """
    collectors = accumulated(
        model,
        dataloader,
        sites,
        lengths=lengths,
        block_size=block_size,
        progress=progress,
        max_batches=max_batches,
        resume=resume,
        resume_every=resume_every,
    )
    facts = {"model": type(model).__name__}
    return {
        site: collector.finish(
            facts | {"attention": collector.stack.name} | _masks_observed_under(model, site) | dict(metadata or {})
        )
        for site, collector in collectors.items()
    }


def accumulated(
    model: PreTrainedModel,
    dataloader: Iterable[Mapping[str, Tensor]],
    sites: Iterable[str] | None,
    *,
    lengths: int | Mapping[str, tuple[int, int]] | None,
    block_size: int,
    progress: bool | None,
    max_batches: int | None,
    resume: str | Path | None = None,
    resume_every: float = 60.0,
    after: Callable[[Mapping[str, Collector]], None] | None = None,
) -> dict[str, Collector]:
    """The pass of :func:`collect_patterns`, up to the sums of this process.

    Parameters
    ----------
    after : callable, optional
        Called with the collectors after every batch.
    """
    with together():
        if not isinstance(dataloader, Iterable):
            raise InputError(f"dataloader: expected batches to go through, found {type(dataloader).__name__}")
        if max_batches is not None and (not isinstance(max_batches, int) or max_batches < 1):
            raise InputError(f"max_batches: expected a whole number of 1 or more, found {max_batches!r}")
        stacks = find_stacks(model)
        collectors = _collectors(stacks, sites, lengths, block_size, type(model).__name__)
        batches = itertools.islice(dataloader, max_batches)
        first = list(itertools.islice(batches, 1))
        if process_count() > 1:
            _measure(model, stacks, collectors, first)
    arguments = {site: collector.arguments() for site, collector in collectors.items()}
    sizes = longest("collect_patterns", arguments, {site: one.lengths for site, one in collectors.items()})
    for site, collector in collectors.items():
        collector.lengths = sizes[site]
    total = count(dataloader) if max_batches is None else min(count(dataloader) or max_batches, max_batches)
    with together():
        partial = None
        if resume is not None:
            partial = PartialSums(resume, resume_every, model, collectors, _what(model, arguments))
        with _observed(model, stacks, collectors):
            for batch in shown(itertools.chain(first, batches), total, "collect_patterns", progress):
                if partial is None or not partial.has(batch):
                    model(**_prepared(model, batch))
                    for collector in collectors.values():
                        collector.flush()
                    if partial is not None:
                        partial.add(batch)
                if after is not None:
                    after(collectors)
        if partial is not None:
            partial.close()
    return collectors


def _collectors(
    stacks: Mapping[str, AttentionStack],
    sites: Iterable[str] | None,
    lengths: int | Mapping[str, tuple[int, int]] | None,
    block_size: int,
    title: str,
) -> dict[str, Collector]:
    chosen = list(stacks) if sites is None else [sites] if isinstance(sites, str) else list(sites)
    for site in chosen:
        if site not in stacks:
            raise InputError(f"sites: expected some of {', '.join(stacks)}, those of {title}, found {site}")
    if not isinstance(lengths, Mapping):
        lengths = dict.fromkeys(chosen, None if lengths is None else (lengths, lengths))
    return {site: Collector(stacks[site], lengths.get(site), block_size) for site in chosen}


def _measure(
    model: PreTrainedModel,
    stacks: Mapping[str, AttentionStack],
    collectors: Mapping[str, Collector],
    batches: Iterable[Mapping[str, Tensor]],
) -> None:
    """Let batches tell the lengths that the caller did not say."""
    unsaid = {site: collector for site, collector in collectors.items() if not collector.asked}
    for collector in unsaid.values():
        collector.measuring = True
    if unsaid:
        with _observed(model, stacks, unsaid):
            for batch in batches:
                model(**_prepared(model, batch))
    for collector in unsaid.values():
        collector.measuring = False


def _what(model: PreTrainedModel, arguments: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """What is collected, as flat facts."""
    facts: dict[str, object] = {"model": type(model).__name__, "sites": " ".join(arguments)}
    facts |= {f"{site} {name}": value for site, own in arguments.items() for name, value in own.items()}
    return facts | {f"{site} mask": mask.fingerprint for site, mask in model_masks(model).items()}


def _masks_observed_under(model: PreTrainedModel, site: str) -> dict[str, str]:
    own = "observed_under_mask"
    return {
        own if pruned == site else f"{own}_{pruned}": mask.fingerprint for pruned, mask in model_masks(model).items()
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
    model: PreTrainedModel, stacks: Mapping[str, AttentionStack], collectors: Mapping[str, Collector]
) -> Iterator[None]:
    """Observers in every module of the sites, evaluation mode, no gradients, and afterwards everything as it was."""
    modes = [(module, module.training) for module in model.modules()]
    before = implementations(model)
    modules = [module for stack in stacks.values() for module in stack.modules]
    sites = [(module, module._modules.pop(SITE_ATTRIBUTE, None)) for module in modules]
    try:
        _attach_observers(stacks, collectors, {id(module): site for module, site in sites})
        model.eval()
        use_implementation(model)
        with torch.no_grad():
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
    collectors: Mapping[str, Collector],
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

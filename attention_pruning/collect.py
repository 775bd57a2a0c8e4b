"""Average what any torch model attends to over data, seen through forward hooks.

For the models of transformers there is ``huggingface.collect_patterns``, which needs no hooks. Letters in names: B
batch, H heads, Q queries, K keys, N either.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .accumulate import PatternAccumulator
from .errors import InputError
from .files.tensors import MetadataValue
from .pattern import AttentionPattern
from .processes import longest, together
from .progress import count, shown

#: From the module, the positional and the keyword arguments and the output of one call to its probabilities
#: [B, H, Q, K], after the softmax and before dropout; None: this call is not looked at.
ProbabilityHook = Callable[[nn.Module, tuple, dict[str, object], object], Tensor | None]
#: Which tokens of a batch are padding, bool [B, N], True = padding: the name of an argument, or what tells it from the
#: batch (None: no padding in this one).
Padding = str | Callable[[object], Tensor | None]


def collect(
    model: nn.Module,
    hooks: Mapping[str | nn.Module, ProbabilityHook],
    batches: Iterable[object],
    *,
    site: str = "self",
    causal: bool | None = None,
    lengths: int | tuple[int, int] | None = None,
    block_size: int = 1,
    key_padding_mask: Padding | None = None,
    query_padding_mask: Padding | None = None,
    metadata: Mapping[str, MetadataValue] | None = None,
    progress: bool | None = None,
) -> AttentionPattern:
    """One pass over data in evaluation mode, without gradients, and the average attention of one site.

    Parameters
    ----------
    model : nn.Module
        Left as it was found.
    hooks : mapping
        The attention modules of the site, by name or themselves, in the order of the layers; each with a function of a
        call's (module, arguments, keyword arguments, output) that gives its probabilities, or None for no observation.
    batches : iterable
        A mapping is given to the model as keyword arguments, a tuple or list as arguments, all else as the one
        argument; tensors are moved to the model's device. The first batch runs twice: first for the sizes.
    site, causal, block_size
        See ``PatternAccumulator``.
    lengths : int or (int, int), optional
        The longest sequence, or that of queries and that of keys. By default the first batch's: pad all to one length.
    key_padding_mask, query_padding_mask : str or callable, optional
        The padding, bool [B, K] and [B, Q], True = padding: the name of an argument in the batch, or a function of the
        batch. Without the second one, queries are padded as keys are, but for site ``enc-dec``.
    metadata : mapping, optional
        Joins the pattern's own.
    progress : bool, optional
        By default a bar, where there is a terminal with tqdm; see ``progress.shown``.

    Returns
    -------
    AttentionPattern
        Under ``torch.distributed`` every process gets the average over all of them.

    Raises
    ------
    InputError
        If a hook's module is not in the model, a hook gives anything but probabilities, padding is not bool of the
        batch's shape, a batch is longer than expected, or no hook saw anything. Whatever ends one process ends all.

    Examples
    --------
    torch's own layers do not keep their probabilities, so the hook computes them again:

    >>> layer = torch.nn.TransformerEncoderLayer(d_model=16, nhead=2, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
    >>> def probabilities(attention, args, kwargs, output):
    ...     again = kwargs | {"need_weights": True, "average_attn_weights": False}
    ...     return attention.forward(*args, **again)[1]
    >>> hooks = {layer.self_attn: probabilities for layer in model.layers}
    >>> padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    >>> batches = [{"src": torch.randn(2, 5, 16), "src_key_padding_mask": padding}]
    >>> collect(model, hooks, batches, key_padding_mask="src_key_padding_mask")
    AttentionPattern(self, layers 3, heads 2, queries 5, keys 5, pool 1)
    """
    lengths = (lengths, lengths) if isinstance(lengths, int) else lengths
    with together():
        layers = _layers(model, hooks)
        rest = iter(batches)
        first: list[object] = []
        seen: list[tuple[int, ...]] = []
        with _hooked(model, layers, lambda layer, p_BHQK: seen.append(tuple(p_BHQK.shape[1:]))):
            for batch in rest:
                first.append(batch)
                _run(model, batch)
                if seen:
                    break
    arguments = {"layers": len(layers), "site": site, "causal": causal, "block_size": block_size, "lengths": lengths}
    size = longest("collect", arguments, {site: tuple(map(max, zip(*seen, strict=True))) if seen else None})[site]
    if size is None:
        raise InputError("batches: expected at least one in which hooks see probabilities, found none")
    accumulator = PatternAccumulator(len(layers), size[0], *(lengths or size[1:]), site, causal, block_size)
    with together():
        for batch in shown(itertools.chain(first, rest), count(batches), "collect", progress):
            key_padding = _padding("key_padding_mask", key_padding_mask, batch)
            query_padding = _padding("query_padding_mask", query_padding_mask, batch)
            if query_padding_mask is None and site != "enc-dec":
                query_padding = key_padding
            observe = functools.partial(_add, accumulator, query_padding, key_padding)
            with _hooked(model, layers, observe):
                _run(model, batch)
    accumulator.all_reduce()
    return accumulator.finalize({"model": type(model).__name__} | dict(metadata or {}))


def _layers(
    model: nn.Module, hooks: Mapping[str | nn.Module, ProbabilityHook]
) -> list[tuple[str, nn.Module, ProbabilityHook]]:
    if not isinstance(hooks, Mapping) or not hooks:
        raise InputError(f"hooks: expected functions by module or its name, found {hooks!r}")
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    layers = []
    for key, hook in hooks.items():
        name = names.get(key) if isinstance(key, nn.Module) else key
        if name not in modules or not callable(hook):
            found = f"a {type(key).__name__} that is none" if name is None else f"{key!r}: {hook!r}"
            raise InputError(f"hooks: expected functions by modules of {type(model).__name__}, found {found}")
        layers.append((name, modules[name], hook))
    return layers


@contextmanager
def _hooked(
    model: nn.Module,
    layers: list[tuple[str, nn.Module, ProbabilityHook]],
    observe: Callable[[int, Tensor], None],
) -> Iterator[None]:
    """Hooks in every layer, evaluation mode, no gradients, and afterwards everything as it was."""
    modes = [(module, module.training) for module in model.modules()]
    handles = []
    try:
        for layer, (name, module, hook) in enumerate(layers):
            handles.append(module.register_forward_hook(_observer(layer, name, hook, observe), with_kwargs=True))
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training


def _observer(layer: int, name: str, hook: ProbabilityHook, observe: Callable[[int, Tensor], None]) -> Callable:
    def observed(module: nn.Module, args: tuple, kwargs: dict[str, object], output: object) -> None:
        p_BHQK = hook(module, args, kwargs, output)
        if p_BHQK is None:
            return
        if not isinstance(p_BHQK, Tensor) or p_BHQK.ndim != 4:
            found = list(p_BHQK.shape) if isinstance(p_BHQK, Tensor) else type(p_BHQK).__name__
            raise InputError(
                f"{name}: expected its hook to give probabilities [batch, head, query, key] or None, found {found}"
            )
        observe(layer, p_BHQK)

    return observed


def _add(
    accumulator: PatternAccumulator,
    query_padding_BQ: Tensor | None,
    key_padding_BK: Tensor | None,
    layer: int,
    p_BHQK: Tensor,
) -> None:
    real = []
    for name, padding_BN, length in zip(
        ("query", "key"), (query_padding_BQ, key_padding_BK), p_BHQK.shape[2:], strict=True
    ):
        shape = [p_BHQK.shape[0], length]
        if padding_BN is not None and list(padding_BN.shape) != shape:
            raise InputError(f"{name}_padding_mask: expected bools of shape {shape}, found {list(padding_BN.shape)}")
        real.append(None if padding_BN is None else ~padding_BN)
    accumulator.update(layer, p_BHQK, *real)


def _run(model: nn.Module, batch: object) -> None:
    weight = next(itertools.chain(model.parameters(), model.buffers()), None)

    def moved(value: object) -> object:
        return value.to(weight.device) if isinstance(value, Tensor) and weight is not None else value

    if isinstance(batch, Mapping):
        model(**{name: moved(value) for name, value in batch.items()})
    elif isinstance(batch, tuple | list):
        model(*map(moved, batch))
    else:
        model(moved(batch))


def _padding(title: str, source: Padding | None, batch: object) -> Tensor | None:
    if isinstance(source, str):
        if not isinstance(batch, Mapping) or source not in batch:
            found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
            raise InputError(f"{title}: expected batches with {source}, found {found}")
        padding_BN = batch[source]
    else:
        padding_BN = None if source is None else source(batch)
    if padding_BN is not None and (not isinstance(padding_BN, Tensor) or padding_BN.dtype != torch.bool):
        found = padding_BN.dtype if isinstance(padding_BN, Tensor) else type(padding_BN).__name__
        raise InputError(f"{title}: expected bools [batch, length], True = padding, found {found}")
    return padding_BN

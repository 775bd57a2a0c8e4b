"""Old public names, for one version: each warns and calls what took its place.

The one module that may import everything; the package imports it last.
"""

from __future__ import annotations

import warnings

from torch import Tensor

from . import make
from .errors import InputError
from .mask import PruneMask
from .ops import BlockLayout, eager, pruned_attention
from .pattern import AttentionPattern


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} goes in the next version; use {new}", DeprecationWarning, stacklevel=3)


def _from_pattern(
    pattern: AttentionPattern,
    tau: float | str,
    rule: str = "published",
    scope: str = "layer",
    block_size: int = 1,
    row_floor: str = "keep-best",
    unobserved: str = "keep",
    crop: bool = True,
) -> PruneMask:
    _warn("PruneMask.from_pattern", "attention_pruning.make.from_pattern")
    chosen = {"rule": rule, "scope": scope, "block_size": block_size, "row_floor": row_floor}
    return make.from_pattern(pattern, tau, **chosen, unobserved=unobserved, crop=crop)


def _random_like(mask: PruneMask, seed: int, use_QK: Tensor | None = None) -> PruneMask:
    _warn("PruneMask.random_like", "attention_pruning.make.random_like")
    return make.random_like(mask, seed, use_QK)


def _window_like(mask: PruneMask, use_QK: Tensor | None = None) -> PruneMask:
    _warn("PruneMask.window_like", "attention_pruning.make.window_like")
    return make.window_like(mask, use_QK)


def _distance_like(mask: PruneMask, pattern: AttentionPattern, use_QK: Tensor | None = None) -> PruneMask:
    _warn("PruneMask.distance_like", "attention_pruning.make.distance_like")
    return make.distance_like(mask, pattern, use_QK)


def _apply(mask: PruneMask, model, backend: str = "auto", beyond: str = "error"):
    _warn("PruneMask.apply", "attention_pruning.huggingface.prune_model, with all masks that the model shall have")
    from .huggingface import model_masks, prune_model  # needs transformers

    return prune_model(model, model_masks(model) | {mask.site: mask}, backend, beyond)


def masked_attention(*tensors: Tensor, **options) -> Tensor:
    """``ops.eager.masked_attention``: for one layer of a mask ``pruned_attention`` took its place."""
    _warn("masked_attention", "attention_pruning.pruned_attention")
    return eager.masked_attention(*tensors, **options)


def block_sparse_attention(
    q_BHLD: Tensor,
    k_BHSD: Tensor,
    v_BHSD: Tensor,
    layout: BlockLayout,
    *,
    causal: bool = False,
    bias: Tensor | None = None,
    empty_rows: str = "uniform",
    **more,
) -> Tensor:
    """``pruned_attention`` under the names that it had. Rows left empty attend uniformly; they were 0 by default."""
    _warn("block_sparse_attention", "attention_pruning.pruned_attention, in which rows left empty attend uniformly")
    if empty_rows != "uniform":
        raise InputError(f"empty_rows: expected 'uniform', all that there is, found {empty_rows!r}")
    return pruned_attention(q_BHLD, k_BHSD, v_BHSD, layout, is_causal=causal, attn_bias=bias, **more)


PruneMask.from_pattern = staticmethod(_from_pattern)
# Functions of a mask, called on the class or on a mask.
PruneMask.random_like = _random_like
PruneMask.window_like = _window_like
PruneMask.distance_like = _distance_like
PruneMask.apply = _apply

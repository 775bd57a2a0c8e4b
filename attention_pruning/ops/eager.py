"""Attention under any mask at all, by all of its scores: with softmax or entmax, and open to an observer.

For what the operator does not know: sequences whose tokens stand in other rows, entmax, biases made of positions, and
whoever has to see probabilities. Letters in names: B batch, H heads, L queries, S keys, D head size.

Pruning happens *before* the normaliser (softmax or entmax): a pruned score is minus infinity, its probability is
exactly zero and no gradient passes. Three kinds of rows are told apart:

* a row with a kept visible key attends to its kept visible keys;
* a row whose visible keys are all pruned attends uniformly over its visible keys (row floor ``none``, or a
  kept key that happens to be padding in this sequence) -- never to padding;
* a row that sees nothing at all (a padded query) gives zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

NORMALIZERS = ("softmax", "entmax15")
IMPLEMENTATIONS = ("eager", "sdpa")

#: Called with the probabilities [B, H, L, S] after the normaliser and before dropout.
Observer = Callable[[Tensor], None]


@dataclass(frozen=True)
class ScoreMask:
    """A prune mask and a structural mask, ready to be applied to attention scores.

    Attributes
    ----------
    additive : Tensor
        ``0`` where a score counts and ``-inf`` elsewhere, broadcastable to [B, H, L, S].
    uniform : Tensor or None
        bool [..., L, 1]: rows whose visible keys are all pruned; their scores are replaced by a constant.
    blind : Tensor or None
        bool [..., L, 1]: rows that see no key at all; their output is zero.
    """

    additive: Tensor
    uniform: Tensor | None = None
    blind: Tensor | None = None

    @classmethod
    def build(cls, pruned: Tensor | None, visible: Tensor | None, dtype: torch.dtype = torch.float32) -> ScoreMask:
        """Combine what is pruned with what is visible.

        Parameters
        ----------
        pruned : Tensor or None
            bool, broadcastable to [B, H, L, S], True = never computed.
        visible : Tensor or None
            bool, broadcastable to [B, H, L, S], True = the structure (causality, padding) shows the key to the query.
        dtype : torch.dtype
            Of the additive mask: that of the scores.

        Raises
        ------
        ValueError
            If both are None: there is nothing to mask.
        """
        if pruned is None and visible is None:
            raise ValueError("ScoreMask.build needs a prune mask, a visibility mask, or both")
        if visible is None:
            visible = torch.ones_like(pruned)
        kept = visible if pruned is None else visible & ~pruned
        uniform = visible.any(-1, keepdim=True) & ~kept.any(-1, keepdim=True)
        blind = ~visible.any(-1, keepdim=True)
        kept = kept | (visible & uniform) | blind  # a blind row is computed over anything, then zeroed
        additive = torch.zeros(kept.shape, dtype=dtype, device=kept.device).masked_fill_(~kept, -math.inf)
        if torch.compiler.is_compiling() or kept.is_meta:  # which rows there are is not known
            return cls(additive, uniform, blind)
        return cls(additive, uniform if uniform.any() else None, blind if blind.any() else None)

    @classmethod
    def causal(cls, first: int, rows: int, keys: int, dtype: torch.dtype, device: torch.device) -> ScoreMask:
        """That of a run of ``rows`` queries, the first of which is the key of its number: each sees itself and before.

        Rows of [L, S] are made, and nothing has to be looked at.
        """
        return cls(torch.full((rows, keys), -math.inf, dtype=dtype, device=device).triu_(first + 1))

    def apply(self, q_BHLD: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries and bias such that ``q k + bias`` are the masked scores."""
        if self.uniform is not None:  # a constant row of scores: no query, no bias
            q_BHLD = q_BHLD.masked_fill(self.uniform, 0.0)
            bias = None if bias is None else bias.masked_fill(self.uniform, 0.0)
        return q_BHLD, self.additive if bias is None else bias + self.additive


def normalize(scores: Tensor, normalizer: str = "softmax") -> Tensor:
    """Turn scores into probabilities over the last dimension.

    Parameters
    ----------
    scores : Tensor
        [..., S]; every row needs at least one finite score.
    normalizer : {"softmax", "entmax15"}
        entmax 1.5 is Peters et al. (2019), as implemented by the ``entmax`` package.

    Raises
    ------
    ValueError
        For any other name.
    """
    if normalizer == "softmax":
        return scores.softmax(-1)
    if normalizer == "entmax15":
        from entmax import entmax15

        # half precision would not find the threshold
        precise = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return entmax15(precise, dim=-1).type_as(scores)
    raise ValueError(f"normalizer: expected one of {NORMALIZERS}, found {normalizer!r}")


def attend(
    q_BHLD: Tensor,
    k_BHSD: Tensor,
    v_BHSD: Tensor,
    mask: ScoreMask | None = None,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    normalizer: str = "softmax",
    observer: Observer | None = None,
    implementation: str = "eager",
    dropout: Callable[[Tensor, float], Tensor] = F.dropout,
) -> Tensor:
    """Attention under a prepared :class:`ScoreMask`; the hot path of :func:`masked_attention`.

    Parameters
    ----------
    bias : Tensor, optional
        Added to the scaled scores (a relative-position term), broadcastable to [B, H, L, S].
    scale : float, optional
        Of the query-key product; ``1 / sqrt(D)`` by default. The bias is not scaled.
    dropout_p : float
        Dropout on the probabilities; 0 outside training.
    observer : callable, optional
        Receives the probabilities [B, H, L, S] before dropout, in float32 at least, whatever the scores were computed
        in. Needs the eager implementation.
    implementation : {"eager", "sdpa"}
        "sdpa" is torch's fused kernel (softmax only); it changes speed, never meaning.
    dropout : callable
        What drops probabilities in the eager implementation.

    Returns
    -------
    Tensor
        [B, H, L, D]

    Raises
    ------
    ValueError
        For an unknown implementation or one that cannot do what is asked.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: expected one of {IMPLEMENTATIONS}, found {implementation!r}")
    if implementation == "sdpa" and (observer is not None or normalizer != "softmax"):
        raise ValueError("implementation 'sdpa' gives no probabilities and knows only softmax; use 'eager'")
    scale = 1.0 / math.sqrt(q_BHLD.size(-1)) if scale is None else scale

    if mask is not None:
        q_BHLD, bias = mask.apply(q_BHLD, bias)
    if implementation == "sdpa":
        out_BHLD = F.scaled_dot_product_attention(
            q_BHLD, k_BHSD, v_BHSD, attn_mask=bias, dropout_p=dropout_p, scale=scale
        )
    else:
        scores = torch.matmul(q_BHLD * scale, k_BHSD.transpose(-1, -2))
        if bias is not None:
            scores = scores.add_(bias)
        if observer is not None:  # half precision rounds away the tail that decides what is pruned
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        p_BHLS = normalize(scores, normalizer)
        if observer is not None:
            seen = p_BHLS if mask is None or mask.blind is None else p_BHLS.masked_fill(mask.blind, 0.0)
            observer(seen.detach())
            p_BHLS = p_BHLS.type_as(v_BHSD)
        if dropout_p > 0.0:
            p_BHLS = dropout(p_BHLS, dropout_p)
        out_BHLD = torch.matmul(p_BHLS, v_BHSD)
    if mask is not None and mask.blind is not None:
        out_BHLD = out_BHLD.masked_fill(mask.blind, 0.0)
    return out_BHLD


def masked_attention(
    q_BHLD: Tensor,
    k_BHSD: Tensor,
    v_BHSD: Tensor,
    pruned_HLS: Tensor | None = None,
    visible: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Attention under a prune mask (arXiv 2012.02030, section 3) and any visibility at all.

    Parameters
    ----------
    q_BHLD, k_BHSD, v_BHSD : Tensor
        Queries, keys and values.
    pruned_HLS : Tensor, optional
        bool, True = pruned: the cell's score is never part of the normaliser. None: dense.
    visible : Tensor, optional
        bool, broadcastable to [B, H, L, S]: causality and padding, True = visible. None: everything.
    **options
        bias, scale, dropout_p, normalizer, observer, implementation: as in :func:`attend`.

    Returns
    -------
    Tensor
        [B, H, L, D]. Rows with nothing left attend uniformly over their visible keys; rows that see nothing are 0.

    Raises
    ------
    InputError
        If a mask is not of bools, or the prune mask does not have the shape [H, L, S] of the scores.
    """
    for name, tensor in (("q", q_BHLD), ("k", k_BHSD), ("v", v_BHSD), ("pruned", pruned_HLS), ("visible", visible)):
        if not isinstance(tensor, Tensor) and not (tensor is None and name in ("pruned", "visible")):
            raise InputError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    if visible is not None and visible.dtype != torch.bool:
        raise InputError(f"visible: expected bools, True = visible, found {visible.dtype}")
    expected = (q_BHLD.size(1), q_BHLD.size(2), k_BHSD.size(2))
    if pruned_HLS is not None and (pruned_HLS.dtype != torch.bool or tuple(pruned_HLS.shape) != expected):
        raise InputError(
            f"pruned_HLS: expected bools of shape {expected} (heads, queries, keys), "
            f"found {pruned_HLS.dtype} of {tuple(pruned_HLS.shape)}"
        )
    mask = None
    if pruned_HLS is not None or visible is not None:
        mask = ScoreMask.build(pruned_HLS, visible, q_BHLD.dtype)
    return attend(q_BHLD, k_BHSD, v_BHSD, mask, **options)

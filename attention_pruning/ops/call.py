"""One call of block-sparse attention, checked: every backend starts from it.

Letters in names: B batch, H heads, L queries, S keys, D head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..structure import visible_cells
from .layout import BlockLayout


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments of ``block_sparse_attention`` with nothing left open; see there.

    Attributes
    ----------
    key_seen : Tensor or None
        bool [B, S], True = no padding.
    causal : bool
        Asked for, or part of the layout.
    dropout_seed : int
        64 bits.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layout: BlockLayout
    key_seen: Tensor | None
    dropout_p: float
    dropout_seed: int
    scale: float
    causal: bool
    bias: Tensor | None

    @classmethod
    def check(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: BlockLayout,
        *,
        key_padding_mask: Tensor | None,
        dropout_p: float,
        dropout_seed: int | None,
        scale: float | None,
        causal: bool,
        bias: Tensor | None,
    ) -> Call:
        """Refuse, with InputError, what no backend can compute."""
        _check_tensors(q, k, v)
        _check_layout(q, k, layout, causal)
        if not 0.0 <= dropout_p < 1.0:
            raise InputError(f"dropout_p: expected at least 0 and less than 1, found {dropout_p}")
        batch, _, queries, size = q.shape
        keys = k.shape[2]
        if key_padding_mask is not None:
            if key_padding_mask.dtype != torch.bool or list(key_padding_mask.shape) != [batch, keys]:
                found = f"{key_padding_mask.dtype} of {list(key_padding_mask.shape)}"
                raise InputError(f"key_padding_mask: expected bools of {[batch, keys]}, found {found}")
            _check_device("key_padding_mask", key_padding_mask, q)
        if bias is not None:
            _check_device("bias", bias, q)
            whole = [*q.shape[:3], keys]
            pairs = zip(reversed(bias.shape), reversed(whole), strict=False)
            fits = bias.ndim <= 4 and all(found in (1, expected) for found, expected in pairs)
            if not fits or not bias.is_floating_point():
                found = f"{bias.dtype} of {list(bias.shape)}"
                raise InputError(f"bias: expected floats that broadcast to {whole}, found {found}")
        if dropout_p > 0.0 and dropout_seed is None:  # of torch's generator: torch.manual_seed decides
            dropout_seed = int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64))
        return cls(
            q,
            k,
            v,
            layout,
            key_seen=None if key_padding_mask is None else ~key_padding_mask,
            dropout_p=float(dropout_p),
            dropout_seed=dropout_seed or 0,
            scale=1.0 / math.sqrt(size) if scale is None else float(scale),
            causal=causal or layout.causal,
            bias=bias,
        )

    @property
    def needs_gradient(self) -> bool:
        """Whether there will be a backward pass."""
        tensors = (self.q, self.k, self.v, self.bias)
        return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)

    @property
    def hides_nothing(self) -> bool:
        """Whether every score counts, as far as is known without a look at the padding."""
        return self.layout.keeps_everything and not self.causal and self.key_seen is None

    def kept(self) -> Tensor:
        """bool [H, L, S]: cells that the layout keeps, on the device of the queries."""
        return self.layout.cells_on(self.q.device)[:, : self.q.shape[2], : self.k.shape[2]]

    def visible(self) -> Tensor | None:
        """bool, broadcastable to [B, 1, L, S]: what causality and padding show; None for everything."""
        seen = None if self.key_seen is None else self.key_seen[:, None, None, :]
        if not self.causal:
            return seen
        past = visible_cells(self.q.shape[2], self.k.shape[2], True).to(self.q.device)
        return past if seen is None else seen & past


def _check_device(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.device != q.device:
        raise InputError(f"{name}: expected it on {q.device}, as the queries, found {tensor.device}")


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """q [B, H, L, D]; k and v [B, H, S, D] of the same dtype and device."""
    if q.ndim != 4 or not q.is_floating_point():
        raise InputError(f"q: expected floats [batch, head, query, size], found {q.dtype} of {list(q.shape)}")
    batch, heads, _, size = q.shape
    if size == 0:
        raise InputError("q: expected a head size of at least 1, found 0")
    for name, tensor in (("k", k), ("v", v)):
        expected = [batch, heads, k.shape[2] if k.ndim == 4 else "keys", size]
        if list(tensor.shape) != expected or tensor.dtype != q.dtype:
            found = f"{tensor.dtype} of {list(tensor.shape)}"
            raise InputError(f"{name}: expected {q.dtype} of {expected}, as the queries, found {found}")
        _check_device(name, tensor, q)


def _check_layout(q: Tensor, k: Tensor, layout: BlockLayout, causal: bool) -> None:
    """The sequence lies at the beginning of the layout, and causality means the same in both."""
    if not isinstance(layout, BlockLayout):
        raise InputError(f"layout: expected a BlockLayout (PruneMask.layout makes one), found {type(layout).__name__}")
    queries, keys = q.shape[2], k.shape[2]
    if layout.heads != q.shape[1]:
        raise InputError(f"layout: expected {q.shape[1]} heads, those of the queries, found {layout.heads}")
    if layout.query_length < queries or layout.key_length < keys:
        found = f"{layout.query_length} and {layout.key_length}"
        raise InputError(f"layout: expected at least {queries} queries and {keys} keys, found {found}")
    if (causal or layout.causal) and keys < queries:
        raise InputError(f"causal attention: expected at least as many keys as queries, found {keys} and {queries}")
    if layout.causal and layout.key_length - layout.query_length != keys - queries:
        expected = f"{layout.key_length - layout.query_length} keys more than queries, as the causal layout has"
        raise InputError(f"layout: expected {expected}, found {queries} queries and {keys} keys")

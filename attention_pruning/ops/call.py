"""One call of the operator, checked: every backend starts from it.

Letters in names: B batch, H heads, G heads of keys and values, L queries, S keys, D head size, E that of the values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from .layer_mask import LayerMask
from .layout import BlockLayout


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments of ``pruned_attention`` with nothing left open; see there.

    Attributes
    ----------
    causal : bool
        Asked for, or part of the mask.
    given_seed : Tensor or None
        int64 (), all 64 bits used; None to draw one, see :meth:`dropout_seed`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: LayerMask
    causal: bool
    query_offset: int
    key_padding_mask: Tensor | None
    bias: Tensor | None
    relative: tuple[Tensor, Tensor] | None
    scale: float
    dropout_p: float
    given_seed: Tensor | None

    @classmethod
    def check(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: LayerMask | BlockLayout,
        *,
        is_causal: bool = False,
        key_padding_mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        relative: tuple[Tensor, Tensor] | None = None,
        query_offset: int = 0,
        enable_gqa: bool = False,
        dropout_p: float = 0.0,
        scale: float | None = None,
        dropout_seed: Tensor | int | None = None,
    ) -> Call:
        """Refuse, with InputError, what no backend can compute."""
        for name, tensor in (("q", q), ("k", k), ("v", v), ("attn_bias", attn_bias)):
            if not isinstance(tensor, Tensor) and not (tensor is None and name == "attn_bias"):
                raise InputError(f"{name}: expected a tensor, found {type(tensor).__name__}")
        relative = (None, None) if relative is None else _as_pair(relative)
        q, k, v, attn_bias, *relative = _as_autocast(q, k, v, attn_bias, *relative)
        _check_tensors(q, k, v, enable_gqa)
        mask = _as_layer_mask(mask)
        causal = is_causal or mask.causal
        _check_lengths(q, k, mask, causal, query_offset)
        if not 0.0 <= dropout_p < 1.0:
            raise InputError(f"dropout_p: expected at least 0 and less than 1, found {dropout_p}")
        if key_padding_mask is not None:
            _check_padding(key_padding_mask, q, k)
        if attn_bias is not None:
            _check_bias(attn_bias, q, k)
        if relative[0] is not None:
            _check_relative(*relative, q, k, causal)
        return cls(
            q,
            k,
            v,
            mask,
            causal=causal,
            query_offset=query_offset,
            key_padding_mask=key_padding_mask,
            bias=attn_bias,
            relative=None if relative[0] is None else tuple(relative),
            scale=1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale),
            dropout_p=float(dropout_p),
            given_seed=None if dropout_seed is None else torch.as_tensor(dropout_seed, dtype=torch.int64),
        )

    @property
    def queries(self) -> int:
        return self.q.shape[2]

    @property
    def keys(self) -> int:
        return self.k.shape[2]

    @property
    def groups(self) -> int:
        """Query heads for each head of keys and values."""
        return self.q.shape[1] // max(1, self.k.shape[1])

    @property
    def diagonal(self) -> int:
        """The last key that the first query sees under causality."""
        return self.query_offset + self.mask.key_length - self.mask.query_length

    @property
    def needs_gradient(self) -> bool:
        """Whether there will be a backward pass."""
        tensors = (self.q, self.k, self.v, self.bias, *(self.relative or ()))
        return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)

    @property
    def rows(self) -> slice:
        """The rows of the mask that the queries stand in."""
        return slice(self.query_offset, self.query_offset + self.queries)

    def dropout_seed(self, device: torch.device | str = "cpu") -> Tensor | None:
        """What dropout is a hash of, on the device of the kernel; None without dropout. Whoever drops by it asks once:
        a seed that was not given is drawn from torch's generator of that device, which ``torch.manual_seed`` decides,
        and which others use in their own way."""
        if self.dropout_p == 0.0:
            return None
        if self.given_seed is not None:
            return self.given_seed.to(device)
        return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)

    def expanded(self) -> Call:
        """The same with as many heads of keys and values as of queries, for what knows no groups."""
        if self.groups == 1:
            return self
        k, v = (x.repeat_interleave(self.groups, 1) for x in (self.k, self.v))
        return replace(self, k=k, v=v)

    def pruned(self) -> Tensor:
        """bool [H, L, S]: cells that the mask prunes, on the device of the queries."""
        return self.mask.cells(self.q.device)[:, self.rows, : self.keys]

    def past(self) -> Tensor:
        """bool [L, S]: what causality shows."""
        query, key = (torch.arange(n, device=self.q.device) for n in (self.queries, self.keys))
        return key[None, :] <= query[:, None] + self.diagonal

    def visible(self) -> Tensor | None:
        """bool, broadcastable to [B, 1, L, S]: what causality and padding show; None for everything."""
        seen = None if self.key_padding_mask is None else ~self.key_padding_mask[:, None, None, :]
        if not self.causal:
            return seen
        return self.past() if seen is None else seen & self.past()


def _as_autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast as torch's own attention does under ``torch.autocast``: queries may come in float32, values in bfloat16."""
    kind = tensors[0].device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)

    def cast(x: Tensor | None) -> Tensor | None:
        return x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x

    return tuple(map(cast, tensors))


def _as_pair(relative: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    pair = isinstance(relative, (tuple, list)) and len(relative) == 2
    if not pair or not all(isinstance(tensor, Tensor) for tensor in relative):
        raise InputError(
            f"relative: expected two tensors, (position_q, position_keys), found {type(relative).__name__}"
            + (f" of {', '.join(type(x).__name__ for x in relative)}" if isinstance(relative, (tuple, list)) else "")
        )
    return tuple(relative)


def _as_layer_mask(mask: LayerMask | BlockLayout) -> LayerMask:
    if isinstance(mask, LayerMask):
        return mask
    if isinstance(mask, BlockLayout):
        return LayerMask.from_layout(mask)
    raise InputError(
        "mask: expected one layer of a PruneMask (mask.layer(i)) or a BlockLayout, found "
        f"{type(mask).__name__}{': a mask has one for each layer' if hasattr(mask, 'layer') else ''}"
    )


def _check_device(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.device != q.device:
        raise InputError(f"{name}: expected it on {q.device}, as the queries, found {tensor.device}")


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> None:
    """q [B, H, L, D], k [B, G, S, D], v [B, G, S, E] of the same dtype and device; G divides H."""
    if q.ndim != 4 or not q.is_floating_point():
        raise InputError(f"q: expected floats [batch, head, query, size], found {q.dtype} of {list(q.shape)}")
    batch, heads, _, size = q.shape
    if size == 0:
        raise InputError("q: expected a head size of at least 1, found 0")
    grouped = enable_gqa and k.ndim == 4 and k.shape[1] > 0 and heads % k.shape[1] == 0
    shared = k.shape[1] if grouped else heads
    keys = k.shape[2] if k.ndim == 4 else "keys"
    size_v = v.shape[3] if v.ndim == 4 and v.shape[3] > 0 else size
    for name, tensor, expected in (("k", k, [batch, shared, keys, size]), ("v", v, [batch, shared, keys, size_v])):
        if list(tensor.shape) != expected or tensor.dtype != q.dtype:
            hint = "" if enable_gqa else " (enable_gqa=True lets query heads share them)"
            found = f"{tensor.dtype} of {list(tensor.shape)}"
            raise InputError(f"{name}: expected {q.dtype} of {expected}, as the queries{hint}, found {found}")
        _check_device(name, tensor, q)


def _check_lengths(q: Tensor, k: Tensor, mask: LayerMask, causal: bool, query_offset: int) -> None:
    """The call lies within the mask, and under causality has just the keys that its queries can see."""
    queries, keys = q.shape[2], k.shape[2]
    if mask.heads != q.shape[1]:
        raise InputError(f"{mask.source}: expected {q.shape[1]} heads, those of the queries, found {mask.heads}")
    if query_offset < 0:
        raise InputError(f"query_offset: expected 0 or more, found {query_offset}")
    if mask.query_length < query_offset + queries or mask.key_length < keys:
        found = f"{mask.query_length} and {mask.key_length}"
        needed = f"{query_offset + queries} queries and {keys} keys"
        raise InputError(f"{mask.source}: expected at least {needed}, those of the call, found {found}")
    expected = query_offset + queries + mask.key_length - mask.query_length
    if causal and keys != expected:
        raise InputError(
            f"causal attention: expected {expected} keys for {queries} queries from row {query_offset} of the mask "
            f"(query_offset), found {keys}"
        )


def _check_padding(key_padding_mask: Tensor, q: Tensor, k: Tensor) -> None:
    shape = [q.shape[0], k.shape[2]]
    if not isinstance(key_padding_mask, Tensor):
        raise InputError(f"key_padding_mask: expected a tensor, found {type(key_padding_mask).__name__}")
    if key_padding_mask.dtype != torch.bool or list(key_padding_mask.shape) != shape:
        found = f"{key_padding_mask.dtype} of {list(key_padding_mask.shape)}"
        raise InputError(f"key_padding_mask: expected bools of {shape}, True = padding, found {found}")
    _check_device("key_padding_mask", key_padding_mask, q)


def _check_bias(bias: Tensor, q: Tensor, k: Tensor) -> None:
    _check_device("attn_bias", bias, q)
    whole = [*q.shape[:3], k.shape[2]]
    pairs = zip(reversed(bias.shape), reversed(whole), strict=False)
    fits = bias.ndim <= 4 and all(found in (1, expected) for found, expected in pairs)
    if not fits or not bias.is_floating_point():
        found = f"{bias.dtype} of {list(bias.shape)}"
        raise InputError(f"attn_bias: expected floats that broadcast to {whole}, found {found}")


def _check_relative(position_q: Tensor, position_keys: Tensor, q: Tensor, k: Tensor, causal: bool) -> None:
    """position_q as q, position_keys [H, S, D]; a distance is never negative, and no two heads share keys."""
    if not causal:
        raise InputError("relative: expected causal attention, whose distances are 0 and more, found another")
    if k.shape[1] != q.shape[1]:
        raise InputError(f"relative: expected {q.shape[1]} heads of keys, those of the queries, found {k.shape[1]}")
    shapes = {"position_q": list(q.shape), "position_keys": [q.shape[1], k.shape[2], q.shape[3]]}
    for (name, expected), tensor in zip(shapes.items(), (position_q, position_keys), strict=True):
        if list(tensor.shape) != expected or tensor.dtype != q.dtype:
            found = f"{tensor.dtype} of {list(tensor.shape)}"
            raise InputError(f"relative: expected {name} to be {q.dtype} of {expected}, found {found}")
        _check_device(f"relative {name}", tensor, q)

"""Dropout whose mask is cheap to draw on a CPU, where torch's own takes a tenth of a training step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = 2**16


class _Dropout(torch.autograd.Function):
    """``x * kept * scale``, of which a byte a number is remembered."""

    @staticmethod
    def forward(ctx, x: Tensor, kept: Tensor, scale: float) -> Tensor:  # noqa: D102
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _scaled(x, kept, scale)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: D102
        (kept,) = ctx.saved_tensors
        return _scaled(gradient, kept, ctx.scale), None, None


def _scaled(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    return x * kept.to(x.dtype).mul_(scale)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero a share ``p`` of the elements and scale the rest so that the mean stays.

    On a CPU one 64-bit random number decides four elements, so ``p`` is rounded to a multiple of 1/65536; the scale is
    that of the rounded share. Elsewhere this is :func:`torch.nn.functional.dropout`.

    Parameters
    ----------
    x : Tensor
        Any shape, floating.
    p : float
        In [0, 1).
    training : bool
        False returns ``x`` itself.
    """
    if not training or p == 0.0:
        return x
    dropped = round(p * _STEPS)
    if x.device.type != "cpu" or not 0 < dropped < _STEPS:
        return F.dropout(x, p)
    number = x.numel()
    random = torch.empty(-(-number // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:number]
    kept = (random >= dropped - _STEPS // 2).view(x.shape)
    return _Dropout.apply(x, kept, _STEPS / (_STEPS - dropped))

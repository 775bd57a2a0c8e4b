"""Tensors as kernels want them: last axes contiguous, results in the memory order of inputs, biases of four axes."""

from __future__ import annotations

from torch import Tensor


def rows_dense(x: Tensor) -> Tensor:
    """A tensor whose last axis is contiguous: itself, whatever its other strides, wherever possible."""
    return x if x.stride(-1) == 1 else x.contiguous()


def empty_like(x_BHLD: Tensor) -> Tensor:
    """In the order of memory that the input has: (B, L, H, D) makes the merging of heads free."""
    batch, heads, length, size = x_BHLD.shape
    if x_BHLD.stride(1) < x_BHLD.stride(2):
        return x_BHLD.new_empty(batch, length, heads, size).transpose(1, 2)
    return x_BHLD.new_empty(batch, heads, length, size)


def four_axes(bias: Tensor) -> Tensor:
    """A bias with axes of 1 in front, so that it has four."""
    return bias.reshape((1,) * (4 - bias.ndim) + tuple(bias.shape)) if bias.ndim < 4 else bias

"""The gradient of an additive bias: that of the scores, summed over the axes along which the bias is broadcast."""

import triton
import triton.language as tl

from .tile import bias_at


@triton.jit
def add_bias_gradient(
    to,
    ds_MN,
    row_M,
    key_N,
    row_stride,
    key_stride,
    real_M,
    keys,
    BY_ROW: tl.constexpr,
    BY_KEY: tl.constexpr,
):
    """Add the gradients of a tile's scores, zeros where a cell does not count, to float32 that other tiles add to.

    BY_ROW and BY_KEY tell whether the bias differs from query to query and from key to key. Where sequences or heads
    share a bias, the order of additions, and so the last digits, are not the same from run to run.
    """
    if BY_ROW and BY_KEY:
        to_MN = bias_at(to, row_M[:, None], key_N[None, :], row_stride, key_stride)
        tl.atomic_add(to_MN, ds_MN, mask=real_M[:, None] & (key_N < keys)[None, :], sem="relaxed")
    elif BY_KEY:
        tl.atomic_add(to + key_N.to(tl.int64) * key_stride, tl.sum(ds_MN, 0), mask=key_N < keys, sem="relaxed")
    elif BY_ROW:
        tl.atomic_add(to + row_M.to(tl.int64) * row_stride, tl.sum(ds_MN, 1), mask=real_M, sem="relaxed")
    else:
        tl.atomic_add(to, tl.sum(tl.sum(ds_MN, 1), 0), sem="relaxed")

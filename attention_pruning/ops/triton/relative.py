"""The relative term of Transformer-XL's scores, for the distances of kept blocks alone.

Query i and key j gain the product of the query's position with row j + L - 1 - i of the position keys (see
``ops.relative``): what the next query takes begins one row earlier. So M queries times a window of M + N rows hold the
term of a tile of N keys, each query's part shifted by one: a gather moves it into place, and gradients of scores back.
M and N are the same, so that a window is a power of two.
"""

import triton
import triton.language as tl

from .tile import load_rows


@triton.jit
def window_rows(first_query, first_key, queries, M: tl.constexpr, N: tl.constexpr):
    """int [M + N]: the rows of position keys that the queries of a tile take for its keys; one more than there are."""
    return first_key + queries - first_query - M + tl.arange(0, M + N)


@triton.jit
def load_window(position_keys, row_stride, row_W, keys, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """[M + N, WIDE], zeros beyond the rows that there are."""
    return load_rows(position_keys, row_W, row_stride, (row_W >= 0) & (row_W < keys), SIZE, WIDE)


@triton.jit
def relative_products(position_MD, window_WD, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):
    """float32 [M, N]: the term of a tile, before the scale."""
    product_MW = tl.dot(position_MD, tl.trans(window_WD), input_precision=PRECISION)
    place_MN = tl.arange(0, N)[None, :] + (M - 1 - tl.arange(0, M))[:, None]
    return tl.gather(product_MW, place_MN, 1)


@triton.jit
def spread(ds_MN, M: tl.constexpr, N: tl.constexpr):
    """[M, M + N]: gradients of a tile's scores where their rows are in the window, zeros elsewhere."""
    key_MW = tl.arange(0, M + N)[None, :] - (M - 1 - tl.arange(0, M))[:, None]
    inside_MW = (key_MW >= 0) & (key_MW < N)
    return tl.where(inside_MW, tl.gather(ds_MN, tl.where(inside_MW, key_MW, 0), 1), 0.0)


@triton.jit
def add_window_gradient(
    to, row_W, keys, ds_MW, position_MD, scale, SIZE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr
):
    """Add a tile's part to the gradient of the position keys, float32 [S, SIZE] of a head, that other tiles add to."""
    d = tl.arange(0, WIDE)
    to_WD = tl.dot(tl.trans(ds_MW).to(position_MD.dtype), position_MD, input_precision=PRECISION) * scale
    there_WD = ((row_W >= 0) & (row_W < keys))[:, None] & (d < SIZE)[None, :]
    tl.atomic_add(to + row_W[:, None] * SIZE + d[None, :], to_WD, mask=there_WD, sem="relaxed")

"""Rows that keep nothing attend uniformly to all that they see: the mean of these values, and how many there are.

The bias, dropout and the layout have no say there; causality and padding have. Nobody pays for it who has no such row.
"""

import triton
import triton.language as tl

from .tile import load_rows, load_seen


@triton.jit
def sees(row_M, key_N, seen_N, shift, M: tl.constexpr, N: tl.constexpr, CAUSAL: tl.constexpr):
    """bool [M, N]: what structure and padding show, whatever the layout keeps."""
    shown = tl.broadcast_to(seen_N[None, :], [M, N])
    if CAUSAL:
        shown = shown & (key_N[None, :] <= row_M[:, None] + shift)
    return shown


@triton.jit
def count_visible(
    row_M, padding, batch, keys, shift, M: tl.constexpr, N: tl.constexpr, CAUSAL: tl.constexpr, PADDED: tl.constexpr
):
    """float32 [M]: how many keys each row sees."""
    count_M = tl.zeros([M], tl.float32)
    for first in range(0, keys, N):
        key_N = first + tl.arange(0, N)
        shown_MN = sees(row_M, key_N, load_seen(padding, batch, key_N, keys, PADDED), shift, M, N, CAUSAL)
        count_M += tl.sum(shown_MN.to(tl.float32), 1)
    return count_M


@triton.jit
def mean_visible(
    row_M,
    v,
    v_row,
    padding,
    batch,
    keys,
    shift,
    M: tl.constexpr,
    N: tl.constexpr,
    SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    CAUSAL: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """float32 [M, WIDE]: the mean of the values that each row sees; 0 for a row that sees nothing."""
    total_MD = tl.zeros([M, WIDE], tl.float32)
    for first in range(0, keys, N):
        key_N = first + tl.arange(0, N)
        seen_N = load_seen(padding, batch, key_N, keys, PADDED)
        v_ND = load_rows(v, key_N, v_row, seen_N, SIZE, WIDE)
        shown_MN = sees(row_M, key_N, seen_N, shift, M, N, CAUSAL)
        total_MD = tl.dot(shown_MN.to(v_ND.dtype), v_ND, total_MD, input_precision=PRECISION)
    count_M = count_visible(row_M, padding, batch, keys, shift, M, N, CAUSAL, PADDED)
    return total_MD / tl.maximum(count_M, 1.0)[:, None]

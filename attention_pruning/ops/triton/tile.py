"""What all kernels do with a tile of scores: load rows, hide cells that do not count, drop probabilities.

A kernel works on tiles: M queries by N keys of one block of the layout, D numbers a head. `row` numbers the queries of
the call and `key` its keys, one along each axis of the tile, so that all of this serves tiles that lie on their side.
Scores are in base 2: 2^x is cheaper than e^x.
"""

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(start, row_M, row_stride, inside_M, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """[M, WIDE]: rows of a head of SIZE numbers, zeros beyond that and where a row is not `inside`."""
    d = tl.arange(0, WIDE)
    at = start + row_M.to(tl.int64)[:, None] * row_stride + d[None, :]
    if WIDE == SIZE:
        return tl.load(at, mask=inside_M[:, None], other=0.0)
    return tl.load(at, mask=inside_M[:, None] & (d[None, :] < SIZE), other=0.0)


@triton.jit
def store_rows(start, row_M, row_stride, inside_M, x, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """The same way back, in the number format that is there."""
    d = tl.arange(0, WIDE)
    at = start + row_M.to(tl.int64)[:, None] * row_stride + d[None, :]
    tl.store(at, x.to(start.dtype.element_ty), mask=inside_M[:, None] & (d[None, :] < SIZE))


@triton.jit
def load_seen(padding, batch, key_N, keys, PADDED: tl.constexpr):
    """bool [N]: keys of the call that are no padding."""
    seen = key_N < keys
    if PADDED:
        seen = seen & (tl.load(padding + batch.to(tl.int64) * keys + key_N, mask=seen, other=1) == 0)
    return seen


@triton.jit
def bias_at(bias, row, key, row_stride, key_stride):
    """Where the bias of each cell is."""
    return bias + row.to(tl.int64) * row_stride + key.to(tl.int64) * key_stride


@triton.jit
def finish_scores(
    product,
    row,
    key,
    seen,
    scale,
    shift,
    bias,
    bias_row,
    bias_key,
    queries,
    bits,
    part,
    row_in_block,
    key_in_block,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
    PADDED: tl.constexpr,
    BIASED: tl.constexpr,
    IN_PART: tl.constexpr,
    CUT: tl.constexpr,
):
    """Scores in base 2 from products of queries and keys, -inf where a cell does not count.

    `seen` tells which keys are no padding, in the shape of `key`. Without CUT the tile is of a block that is kept and
    visible whole: of its cells only the padding is asked for.
    """
    scores = product * (scale * LOG2_E)
    if BIASED:
        there = (row >= 0) & (row < queries) & seen
        scores += LOG2_E * tl.load(bias_at(bias, row, key, bias_row, bias_key), mask=there, other=0.0).to(tl.float32)
    if CUT or PADDED:
        counts = seen
        if CUT:
            if CAUSAL:
                counts = counts & (key <= row + shift)
            if IN_PART:  # a byte holds the bits of eight queries; a part of -1 is a block that is kept whole
                byte = (part.to(tl.int64) * BLOCK + key_in_block) * (BLOCK // 8) + row_in_block // 8
                held = tl.load(bits + byte, mask=part >= 0, other=255)
                counts = counts & (((held.to(tl.int32) >> (row_in_block % 8)) & 1) != 0)
        scores = tl.where(counts, scores, float("-inf"))
    return scores


@triton.jit
def mix(x):
    """The 32-bit mixer "lowbias32" of Chris Wellons, as in ``ops.dropout``."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def hash_rows(seed, row):
    """uint32: what dropout knows of a row; rows count over batch, heads and queries."""
    number = tl.load(seed)
    low = number.to(tl.uint32)
    high = (number >> 32).to(tl.uint32)
    return mix(mix(row.to(tl.uint32) ^ low) ^ (row >> 32).to(tl.uint32) ^ high)


@triton.jit
def stays(row_hash, key, dropout):
    """bool: cells that dropout leaves, by row hashes and keys that broadcast to the tile."""
    threshold = tl.cast(tl.cast(dropout, tl.float32) * 4294967296.0, tl.uint32)
    return mix(row_hash + key.to(tl.uint32) * 0x9E3779B9) >= threshold

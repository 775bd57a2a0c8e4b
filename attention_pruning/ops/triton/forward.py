"""Forward pass: attention over the kept blocks with an online softmax (Milakov and Gimelshein, 2018; Dao et al., 2022).

A program computes M queries of one head. It goes over the kept blocks of their row of blocks, N keys at a time: first
those that are kept and visible whole, then those whose cells have to be looked at. Letters as in ``tile``.
"""

import triton
import triton.language as tl

from .empty_rows import mean_visible
from .relative import load_window, relative_products, window_rows
from .tile import finish_scores, hash_rows, load_rows, load_seen, stays, store_rows

#: Where the running maximum begins: finite, so that a row of -inf alone gives no NaN; what lies below is hidden.
LOWEST: tl.constexpr = tl.constexpr(-1e30)


# Lengths change from call to call, heads from model to model: one compiled kernel serves all of them.
@triton.jit(do_not_specialize=["heads", "queries", "keys", "first_row", "row_blocks", "shift"])
def forward(
    q,
    k,
    v,
    out,
    log_sum,  # float32 [B, H, L], base 2; +inf for an empty row
    bias,
    position,  # of the queries, as q
    position_keys,  # [H, S, SIZE]
    padding,  # bool [B, S]
    seed,  # int64 ()
    bounds,  # int32 [H, q, 3]: where the blocks of a row begin, those that are cut, and where all end
    column,
    part,
    bits,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    out_batch,
    out_head,
    out_row,
    bias_batch,
    bias_head,
    bias_row,
    bias_key,
    position_batch,
    position_head,
    position_row,
    position_keys_head,
    position_keys_row,
    heads,
    queries,
    keys,
    first_row,  # the row of the layout that query 0 is
    row_blocks,
    shift,  # under causality query i sees key j <= i + shift
    scale,
    dropout,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CAUSAL: tl.constexpr,
    PADDED: tl.constexpr,
    BIASED: tl.constexpr,
    RELATIVE: tl.constexpr,
    IN_PART: tl.constexpr,
    DROPS: tl.constexpr,
    MAY_BE_EMPTY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = (first_row + queries + M - 1) // M - first_row // M
    tile = first_row // M + tl.program_id(0) % tiles  # of the layout
    batch = tl.program_id(0) // tiles // heads
    head = tl.program_id(0) // tiles % heads
    row_M = tile * M + tl.arange(0, M) - first_row
    row_in_block_M = tile * M % BLOCK + tl.arange(0, M)
    real_M = (row_M >= 0) & (row_M < queries)

    q += batch.to(tl.int64) * q_batch + head.to(tl.int64) * q_head
    k += batch.to(tl.int64) * k_batch + (head // GROUP).to(tl.int64) * k_head
    v += batch.to(tl.int64) * v_batch + (head // GROUP).to(tl.int64) * v_head
    out += batch.to(tl.int64) * out_batch + head.to(tl.int64) * out_head
    line = (batch * heads + head).to(tl.int64) * queries
    if BIASED:
        bias += batch.to(tl.int64) * bias_batch + head.to(tl.int64) * bias_head
    hash_M = row_M.to(tl.uint32)
    if DROPS:
        hash_M = hash_rows(seed, line + row_M)

    bounds += (head * row_blocks + tile * M // BLOCK) * 3
    begin, cut, end = tl.load(bounds), tl.load(bounds + 1), tl.load(bounds + 2)
    q_MD = load_rows(q, row_M, q_row, real_M, SIZE, WIDE)
    position_MD = q_MD
    if RELATIVE:
        position += batch.to(tl.int64) * position_batch + head.to(tl.int64) * position_head
        position_keys += head.to(tl.int64) * position_keys_head
        position_MD = load_rows(position, row_M, position_row, real_M, SIZE, WIDE)
    top_M = tl.full([M], LOWEST, tl.float32)
    total_M = tl.zeros([M], tl.float32)
    sum_MD = tl.zeros([M, WIDE], tl.float32)
    top_M, total_M, sum_MD = add_blocks(
        begin, cut, top_M, total_M, sum_MD,
        q_MD, k, v, k_row, v_row, keys, batch, padding, row_M, row_in_block_M, scale, shift, bias, bias_row, bias_key,
        position_MD, position_keys, position_keys_row, queries, column, part, bits, hash_M, dropout,
        SIZE, WIDE, BLOCK, M, N, CAUSAL, PADDED, BIASED, RELATIVE, IN_PART, DROPS, PRECISION, CUT=False,
    )  # fmt: skip
    top_M, total_M, sum_MD = add_blocks(
        cut, end, top_M, total_M, sum_MD,
        q_MD, k, v, k_row, v_row, keys, batch, padding, row_M, row_in_block_M, scale, shift, bias, bias_row, bias_key,
        position_MD, position_keys, position_keys_row, queries, column, part, bits, hash_M, dropout,
        SIZE, WIDE, BLOCK, M, N, CAUSAL, PADDED, BIASED, RELATIVE, IN_PART, DROPS, PRECISION, CUT=True,
    )  # fmt: skip

    empty_M = total_M == 0.0
    out_MD = sum_MD / (tl.where(empty_M, 1.0, total_M) * (1.0 - dropout))[:, None]
    if MAY_BE_EMPTY:  # noqa: SIM102 (known when it is compiled, unlike what follows)
        if tl.max((empty_M & real_M).to(tl.int32), 0) != 0:
            mean_MD = mean_visible(
                row_M, v, v_row, padding, batch, keys, shift, M, N, SIZE, WIDE, CAUSAL, PADDED, PRECISION
            )
            out_MD = tl.where(empty_M[:, None], mean_MD, out_MD)
    store_rows(out, row_M, out_row, real_M, out_MD, SIZE, WIDE)
    log_sum_M = tl.where(empty_M, float("inf"), top_M + tl.log2(total_M))
    tl.store(log_sum + line + row_M, log_sum_M, mask=real_M)


@triton.jit
def add_blocks(
    begin, end, top_M, total_M, sum_MD,
    q_MD, k, v, k_row, v_row, keys, batch, padding, row_M, row_in_block_M, scale, shift, bias, bias_row, bias_key,
    position_MD, position_keys, position_keys_row, queries, column, part, bits, hash_M, dropout,
    SIZE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, PADDED: tl.constexpr, BIASED: tl.constexpr, RELATIVE: tl.constexpr, IN_PART: tl.constexpr,
    DROPS: tl.constexpr, PRECISION: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """Take the blocks from `begin` to `end` into the running maximum, the sum of numerators, and that of values."""
    TILES: tl.constexpr = BLOCK // N
    for step in range(begin * TILES, end * TILES):
        first_in_block = step % TILES * N
        first_key = tl.load(column + step // TILES) * BLOCK + first_in_block
        key_N = first_key + tl.arange(0, N)
        seen_N = tl.full([N], True, tl.int1)  # a block that is not cut lies within the keys
        if CUT or PADDED:
            seen_N = load_seen(padding, batch, key_N, keys, PADDED)
        k_ND = load_rows(k, key_N, k_row, seen_N, SIZE, WIDE)
        product_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION)
        if RELATIVE:
            row_W = window_rows(tl.min(row_M, 0), first_key, queries, M, N)
            window_WD = load_window(position_keys, position_keys_row, row_W, keys, SIZE, WIDE)
            product_MN += relative_products(position_MD, window_WD, M, N, PRECISION)
        scores_MN = finish_scores(
            product_MN,
            row_M[:, None], key_N[None, :], seen_N[None, :], scale, shift, bias, bias_row, bias_key, queries,
            bits, tl.load(part + step // TILES), row_in_block_M[:, None], (first_in_block + tl.arange(0, N))[None, :],
            BLOCK, CAUSAL, PADDED, BIASED, IN_PART, CUT,
        )  # fmt: skip
        higher_M = tl.maximum(top_M, tl.max(scores_MN, 1))
        p_MN = tl.exp2(scores_MN - higher_M[:, None])
        shrink_M = tl.exp2(top_M - higher_M)
        total_M = total_M * shrink_M + tl.sum(p_MN, 1)  # the sum before dropout
        if DROPS:
            p_MN = tl.where(stays(hash_M[:, None], key_N[None, :], dropout), p_MN, 0.0)
        v_ND = load_rows(v, key_N, v_row, seen_N, SIZE, WIDE)
        sum_MD = tl.dot(p_MN.to(v_ND.dtype), v_ND, sum_MD * shrink_M[:, None], input_precision=PRECISION)
        top_M = higher_M
    return top_M, total_M, sum_MD

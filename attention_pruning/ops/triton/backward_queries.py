"""Backward pass, its first half: gradients of queries, a bias, a relative term, and what the second half needs.

Probabilities are computed again from the log-sum-exp (Dao et al., 2022, algorithm 4). A program computes M queries of
one head, over the same blocks in the same order as the forward pass. Letters as in ``tile``.
"""

import triton
import triton.language as tl

from .bias_gradient import add_bias_gradient
from .empty_rows import count_visible
from .relative import add_window_gradient, load_window, relative_products, spread, window_rows
from .tile import finish_scores, hash_rows, load_rows, load_seen, stays, store_rows


# Lengths change from call to call, heads from model to model: one compiled kernel serves all of them.
@triton.jit(do_not_specialize=["heads", "queries", "keys", "first_row", "row_blocks", "shift"])
def backward_queries(
    q,
    k,
    v,
    out,
    gradient,  # of the output
    log_sum,
    row_term,  # float32 [B, H, L], written: output times its gradient; of an empty row the share of each key it sees
    to_q,
    to_bias,  # float32, in the shape of the bias, added to
    to_position,  # as to_q
    to_position_keys,  # float32 [H, S, SIZE], added to
    bias,
    position,
    position_keys,
    padding,
    seed,
    bounds,
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
    gradient_batch,
    gradient_head,
    gradient_row,
    to_q_batch,
    to_q_head,
    to_q_row,
    bias_batch,
    bias_head,
    bias_row,
    bias_key,
    to_bias_batch,
    to_bias_head,
    to_bias_row,
    to_bias_key,
    position_batch,
    position_head,
    position_row,
    position_keys_head,
    position_keys_row,
    to_position_batch,
    to_position_head,
    to_position_row,
    heads,
    queries,
    keys,
    first_row,
    row_blocks,
    shift,
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
    BIAS_TOO: tl.constexpr,
    BIAS_BY_ROW: tl.constexpr,
    BIAS_BY_KEY: tl.constexpr,
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
    gradient += batch.to(tl.int64) * gradient_batch + head.to(tl.int64) * gradient_head
    to_q += batch.to(tl.int64) * to_q_batch + head.to(tl.int64) * to_q_head
    line = (batch * heads + head).to(tl.int64) * queries
    if BIASED:
        bias += batch.to(tl.int64) * bias_batch + head.to(tl.int64) * bias_head
    if BIAS_TOO:
        to_bias += batch.to(tl.int64) * to_bias_batch + head.to(tl.int64) * to_bias_head
    hash_M = row_M.to(tl.uint32)
    if DROPS:
        hash_M = hash_rows(seed, line + row_M)

    q_MD = load_rows(q, row_M, q_row, real_M, SIZE, WIDE)
    g_MD = load_rows(gradient, row_M, gradient_row, real_M, SIZE, WIDE)
    out_MD = load_rows(out, row_M, out_row, real_M, SIZE, WIDE)
    log_sum_M = tl.load(log_sum + line + row_M, mask=real_M, other=float("inf"))  # 2^(x - inf) = 0
    delta_M = tl.sum(out_MD.to(tl.float32) * g_MD.to(tl.float32), 1)
    term_M = delta_M
    if MAY_BE_EMPTY:
        empty_M = log_sum_M == float("inf")
        if tl.max((empty_M & real_M).to(tl.int32), 0) != 0:
            count_M = count_visible(row_M, padding, batch, keys, shift, M, N, CAUSAL, PADDED)
            term_M = tl.where(empty_M, tl.where(count_M > 0.0, 1.0 / tl.maximum(count_M, 1.0), 0.0), delta_M)
    tl.store(row_term + line + row_M, term_M, mask=real_M)

    position_MD = q_MD
    if RELATIVE:
        position += batch.to(tl.int64) * position_batch + head.to(tl.int64) * position_head
        position_keys += head.to(tl.int64) * position_keys_head
        to_position += batch.to(tl.int64) * to_position_batch + head.to(tl.int64) * to_position_head
        to_position_keys += head.to(tl.int64) * keys * SIZE
        position_MD = load_rows(position, row_M, position_row, real_M, SIZE, WIDE)
    bounds += (head * row_blocks + tile * M // BLOCK) * 3
    begin, cut, end = tl.load(bounds), tl.load(bounds + 1), tl.load(bounds + 2)
    sum_MD = tl.zeros([M, WIDE], tl.float32)
    position_sum_MD = tl.zeros([M, WIDE], tl.float32)
    sum_MD, position_sum_MD = add_blocks(
        begin, cut, sum_MD, position_sum_MD, q_MD, g_MD, log_sum_M, delta_M,
        k, v, k_row, v_row, keys, batch, padding, row_M, row_in_block_M, real_M, scale, shift, bias, bias_row, bias_key,
        to_bias, to_bias_row, to_bias_key, position_MD, position_keys, position_keys_row, to_position_keys, queries,
        column, part, bits, hash_M, dropout, SIZE, WIDE, BLOCK, M, N, CAUSAL, PADDED, BIASED, BIAS_TOO, BIAS_BY_ROW,
        BIAS_BY_KEY, RELATIVE, IN_PART, DROPS, PRECISION, CUT=False,
    )  # fmt: skip
    sum_MD, position_sum_MD = add_blocks(
        cut, end, sum_MD, position_sum_MD, q_MD, g_MD, log_sum_M, delta_M,
        k, v, k_row, v_row, keys, batch, padding, row_M, row_in_block_M, real_M, scale, shift, bias, bias_row, bias_key,
        to_bias, to_bias_row, to_bias_key, position_MD, position_keys, position_keys_row, to_position_keys, queries,
        column, part, bits, hash_M, dropout, SIZE, WIDE, BLOCK, M, N, CAUSAL, PADDED, BIASED, BIAS_TOO, BIAS_BY_ROW,
        BIAS_BY_KEY, RELATIVE, IN_PART, DROPS, PRECISION, CUT=True,
    )  # fmt: skip
    store_rows(to_q, row_M, to_q_row, real_M, sum_MD * scale, SIZE, WIDE)
    if RELATIVE:
        store_rows(to_position, row_M, to_position_row, real_M, position_sum_MD * scale, SIZE, WIDE)


@triton.jit
def add_blocks(
    begin, end, sum_MD, position_sum_MD, q_MD, g_MD, log_sum_M, delta_M,
    k, v, k_row, v_row, keys, batch, padding, row_M, row_in_block_M, real_M, scale, shift, bias, bias_row, bias_key,
    to_bias, to_bias_row, to_bias_key, position_MD, position_keys, position_keys_row, to_position_keys, queries,
    column, part, bits, hash_M, dropout,
    SIZE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, PADDED: tl.constexpr, BIASED: tl.constexpr, BIAS_TOO: tl.constexpr,
    BIAS_BY_ROW: tl.constexpr, BIAS_BY_KEY: tl.constexpr, RELATIVE: tl.constexpr, IN_PART: tl.constexpr,
    DROPS: tl.constexpr, PRECISION: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """Add what the blocks from `begin` to `end` give the queries and their positions, before the scale."""
    TILES: tl.constexpr = BLOCK // N
    for step in range(begin * TILES, end * TILES):
        first_in_block = step % TILES * N
        first_key = tl.load(column + step // TILES) * BLOCK + first_in_block
        key_N = first_key + tl.arange(0, N)
        seen_N = tl.full([N], True, tl.int1)  # a block that is not cut lies within the keys
        if CUT or PADDED:
            seen_N = load_seen(padding, batch, key_N, keys, PADDED)
        k_ND = load_rows(k, key_N, k_row, seen_N, SIZE, WIDE)
        v_ND = load_rows(v, key_N, v_row, seen_N, SIZE, WIDE)
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
        p_MN = tl.exp2(scores_MN - log_sum_M[:, None])
        dp_MN = tl.dot(g_MD, tl.trans(v_ND), input_precision=PRECISION)
        if DROPS:
            dp_MN = tl.where(stays(hash_M[:, None], key_N[None, :], dropout), dp_MN / (1.0 - dropout), 0.0)
        ds_MN = p_MN * (dp_MN - delta_M[:, None])
        if BIAS_TOO:
            add_bias_gradient(
                to_bias, ds_MN, row_M, key_N, to_bias_row, to_bias_key, real_M, keys, BIAS_BY_ROW, BIAS_BY_KEY
            )
        if RELATIVE:
            ds_MW = spread(ds_MN, M, N)
            position_sum_MD = tl.dot(ds_MW.to(window_WD.dtype), window_WD, position_sum_MD, input_precision=PRECISION)
            add_window_gradient(to_position_keys, row_W, keys, ds_MW, position_MD, scale, SIZE, WIDE, PRECISION)
        sum_MD = tl.dot(ds_MN.to(k_ND.dtype), k_ND, sum_MD, input_precision=PRECISION)
    return sum_MD, position_sum_MD

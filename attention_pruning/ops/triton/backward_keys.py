"""Backward pass, its second half: gradients of keys and values, summed over the queries that keep them.

A program computes N keys of one head of keys and values, over the heads of queries that share it and over the blocks of
their column, M queries at a time: sums stay where they are, nothing is added to by two programs. Its tiles of scores
lie on their side, [N, M], for what is computed is then the left side of the products that follow. Letters as in
``tile``.
"""

import triton
import triton.language as tl

from .empty_rows import sees
from .relative import load_window, relative_products, window_rows
from .tile import finish_scores, hash_rows, load_rows, load_seen, stays, store_rows

#: Rows that are asked at once whether any of them is empty.
AT_ONCE: tl.constexpr = tl.constexpr(1024)


# Lengths change from call to call, heads from model to model: one compiled kernel serves all of them.
@triton.jit(do_not_specialize=["heads", "queries", "keys", "first_row", "key_blocks", "shift"])
def backward_keys(
    q,
    k,
    v,
    gradient,
    log_sum,
    row_term,
    to_k,
    to_v,
    bias,
    position,
    position_keys,
    padding,
    seed,
    bounds,  # int32 [H, k, 3], of columns of blocks
    row,  # the number of each block within its column
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
    gradient_batch,
    gradient_head,
    gradient_row,
    to_k_batch,
    to_k_head,
    to_k_row,
    to_v_batch,
    to_v_head,
    to_v_row,
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
    first_row,
    key_blocks,
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
    RELATIVE: tl.constexpr,
    IN_PART: tl.constexpr,
    DROPS: tl.constexpr,
    MAY_BE_EMPTY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    kv_heads = heads // GROUP
    tiles = (keys + N - 1) // N
    tile = tl.program_id(0) % tiles
    batch = tl.program_id(0) // tiles // kv_heads
    kv_head = tl.program_id(0) // tiles % kv_heads
    key_N = tile * N + tl.arange(0, N)
    key_in_block_N = tile * N % BLOCK + tl.arange(0, N)
    real_N = key_N < keys
    seen_N = load_seen(padding, batch, key_N, keys, PADDED)

    k += batch.to(tl.int64) * k_batch + kv_head.to(tl.int64) * k_head
    v += batch.to(tl.int64) * v_batch + kv_head.to(tl.int64) * v_head
    to_k += batch.to(tl.int64) * to_k_batch + kv_head.to(tl.int64) * to_k_head
    to_v += batch.to(tl.int64) * to_v_batch + kv_head.to(tl.int64) * to_v_head
    q += batch.to(tl.int64) * q_batch
    gradient += batch.to(tl.int64) * gradient_batch
    k_ND = load_rows(k, key_N, k_row, seen_N, SIZE, WIDE)
    v_ND = load_rows(v, key_N, v_row, seen_N, SIZE, WIDE)
    sum_k_ND = tl.zeros([N, WIDE], tl.float32)
    sum_v_ND = tl.zeros([N, WIDE], tl.float32)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        q_at = q + head.to(tl.int64) * q_head
        gradient_at = gradient + head.to(tl.int64) * gradient_head
        line = (batch * heads + head).to(tl.int64) * queries
        bias_there = bias
        if BIASED:
            bias_there = bias + batch.to(tl.int64) * bias_batch + head.to(tl.int64) * bias_head
        position_at, position_keys_at = position, position_keys
        if RELATIVE:
            position_at = position + batch.to(tl.int64) * position_batch + head.to(tl.int64) * position_head
            position_keys_at = position_keys + head.to(tl.int64) * position_keys_head
        bounds_at = bounds + (head * key_blocks + tile * N // BLOCK) * 3
        begin, cut, end = tl.load(bounds_at), tl.load(bounds_at + 1), tl.load(bounds_at + 2)
        sum_k_ND, sum_v_ND = add_blocks(
            begin, cut, sum_k_ND, sum_v_ND, k_ND, v_ND,
            q_at, gradient_at, q_row, gradient_row, log_sum, row_term, line, key_N, key_in_block_N, seen_N,
            scale, shift, bias_there, bias_row, bias_key, position_at, position_keys_at, position_row,
            position_keys_row, queries, keys, first_row, row, part, bits, seed, dropout,
            SIZE, WIDE, BLOCK, M, N, CAUSAL, PADDED, BIASED, RELATIVE, IN_PART, DROPS, PRECISION, CUT=False,
        )  # fmt: skip
        sum_k_ND, sum_v_ND = add_blocks(
            cut, end, sum_k_ND, sum_v_ND, k_ND, v_ND,
            q_at, gradient_at, q_row, gradient_row, log_sum, row_term, line, key_N, key_in_block_N, seen_N,
            scale, shift, bias_there, bias_row, bias_key, position_at, position_keys_at, position_row,
            position_keys_row, queries, keys, first_row, row, part, bits, seed, dropout,
            SIZE, WIDE, BLOCK, M, N, CAUSAL, PADDED, BIASED, RELATIVE, IN_PART, DROPS, PRECISION, CUT=True,
        )  # fmt: skip
        if MAY_BE_EMPTY:
            sum_v_ND = add_empty_rows(
                sum_v_ND, gradient_at, gradient_row, log_sum, row_term, line, key_N, seen_N, queries, shift,
                SIZE, WIDE, M, N, CAUSAL, PRECISION,
            )  # fmt: skip
    store_rows(to_k, key_N, to_k_row, real_N, sum_k_ND * scale, SIZE, WIDE)
    store_rows(to_v, key_N, to_v_row, real_N, sum_v_ND, SIZE, WIDE)


@triton.jit
def add_blocks(
    begin, end, sum_k_ND, sum_v_ND, k_ND, v_ND,
    q, gradient, q_row, gradient_row, log_sum, row_term, line, key_N, key_in_block_N, seen_N,
    scale, shift, bias, bias_row, bias_key, position, position_keys, position_row,
    position_keys_row, queries, keys, first_row, row, part, bits, seed, dropout,
    SIZE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr, PADDED: tl.constexpr, BIASED: tl.constexpr, RELATIVE: tl.constexpr, IN_PART: tl.constexpr,
    DROPS: tl.constexpr, PRECISION: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """Add what the blocks from `begin` to `end` of a column give the keys, before the scale, and the values."""
    TILES: tl.constexpr = BLOCK // M
    for step in range(begin * TILES, end * TILES):
        first_in_block = step % TILES * M
        first_query = tl.load(row + step // TILES) * BLOCK + first_in_block - first_row
        row_M = first_query + tl.arange(0, M)
        real_M = (row_M >= 0) & (row_M < queries)
        q_MD = load_rows(q, row_M, q_row, real_M, SIZE, WIDE)
        g_MD = load_rows(gradient, row_M, gradient_row, real_M, SIZE, WIDE)
        log_sum_M = tl.load(log_sum + line + row_M, mask=real_M, other=float("inf"))  # 2^(x - inf) = 0
        delta_M = tl.load(row_term + line + row_M, mask=real_M, other=0.0)
        product_NM = tl.dot(k_ND, tl.trans(q_MD), input_precision=PRECISION)
        if RELATIVE:
            row_W = window_rows(first_query, tl.min(key_N, 0), queries, M, N)
            window_WD = load_window(position_keys, position_keys_row, row_W, keys, SIZE, WIDE)
            position_MD = load_rows(position, row_M, position_row, real_M, SIZE, WIDE)
            product_NM += tl.trans(relative_products(position_MD, window_WD, M, N, PRECISION))
        scores_NM = finish_scores(
            product_NM,
            row_M[None, :], key_N[:, None], seen_N[:, None], scale, shift, bias, bias_row, bias_key, queries,
            bits, tl.load(part + step // TILES), (first_in_block + tl.arange(0, M))[None, :], key_in_block_N[:, None],
            BLOCK, CAUSAL, PADDED, BIASED, IN_PART, CUT,
        )  # fmt: skip
        p_NM = tl.exp2(scores_NM - log_sum_M[None, :])
        dp_NM = tl.dot(v_ND, tl.trans(g_MD), input_precision=PRECISION)
        kept_p_NM = p_NM
        if DROPS:
            stays_NM = stays(hash_rows(seed, line + row_M)[None, :], key_N[:, None], dropout)
            kept_p_NM = tl.where(stays_NM, p_NM / (1.0 - dropout), 0.0)
            dp_NM = tl.where(stays_NM, dp_NM / (1.0 - dropout), 0.0)
        sum_v_ND = tl.dot(kept_p_NM.to(g_MD.dtype), g_MD, sum_v_ND, input_precision=PRECISION)
        ds_NM = p_NM * (dp_NM - delta_M[None, :])
        sum_k_ND = tl.dot(ds_NM.to(q_MD.dtype), q_MD, sum_k_ND, input_precision=PRECISION)
    return sum_k_ND, sum_v_ND


@triton.jit
def add_empty_rows(
    sum_v_ND, gradient, gradient_row, log_sum, row_term, line, key_N, seen_N, queries, shift,
    SIZE: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the gradients of means: each empty row gives every value that it sees the same share."""
    for begin in range(0, queries, AT_ONCE):
        row = begin + tl.arange(0, AT_ONCE)
        log_sum_R = tl.load(log_sum + line + row, mask=row < queries, other=0.0)
        if tl.max((log_sum_R == float("inf")).to(tl.int32), 0) != 0:
            for first in range(begin, tl.minimum(begin + AT_ONCE, queries), M):
                row_M = first + tl.arange(0, M)
                real_M = row_M < queries
                log_sum_M = tl.load(log_sum + line + row_M, mask=real_M, other=0.0)
                empty_M = log_sum_M == float("inf")
                share_M = tl.where(empty_M, tl.load(row_term + line + row_M, mask=real_M, other=0.0), 0.0)
                g_MD = load_rows(gradient, row_M, gradient_row, empty_M, SIZE, WIDE)
                p_MN = tl.where(sees(row_M, key_N, seen_N, shift, M, N, CAUSAL), share_M[:, None], 0.0)
                sum_v_ND = tl.dot(tl.trans(p_MN).to(g_MD.dtype), g_MD, sum_v_ND, input_precision=PRECISION)
    return sum_v_ND

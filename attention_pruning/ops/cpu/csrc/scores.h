// Scores of one block, keys down and queries across: with queries in the lanes, maxima and sums over keys are vertical.
#pragma once

#include "dropout.h"
#include "products.h"
#include "rows.h"
#include "visibility.h"

constexpr float kLog2E = 1.44269504f;

/// Queries, or gradients of their outputs, as the right side of products with keys: [size][lanes], times a factor. That
/// of queries is scale * log2 e, for 2^x is cheaper than e^x.
template <typename Element>
INLINE void transpose_queries(
    const float* rows, int64_t lanes, int64_t size, int64_t padded, float factor, float* to
) {
    transpose(rows, padded, lanes, padded, to, lanes, factor);
    prepare_right<Element>(to, size, lanes);
}

/// `to`[keys][lanes] = K Q^T for queries of `transpose_queries`, plus what is there with `accumulate`.
template <typename Element>
INLINE void block_products(
    Left k, const Visit& visit, const float* q_t, int64_t size, int64_t lanes, float* to, bool accumulate = false
) {
    const float* const rows[1] = {q_t};
    multiply_as<Element>(visit.keys, lanes, k, prepared_right<Element>(rows, size, lanes), to, lanes, accumulate);
}

/// Add the bias of a block to its scores.
inline void add_bias(
    const Problem& p, int64_t batch, int64_t head, const Queries& queries, const Visit& visit, float* scores
) {
    const int64_t* strides = p.bias_strides;
    const float* bias = p.bias + batch * strides[0] + head * strides[1] + queries.first * strides[2] +
                        visit.column * p.layout.block * strides[3];
    for (int64_t row = 0; row < visit.keys; row++)
        for (int64_t query = 0; query < queries.count; query++)
            scores[row * queries.lanes + query] += kLog2E * bias[query * strides[2] + row * strides[3]];
}

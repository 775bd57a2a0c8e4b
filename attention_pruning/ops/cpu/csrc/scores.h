// Scores of one block, keys down and queries across: with queries in the lanes, maxima and sums over keys are vertical.
#pragma once

#include "dropout.h"
#include "products.h"
#include "rows.h"
#include "visibility.h"

constexpr float kLog2E = 1.44269504f;

/// `to`[keys][block] = K Q^T for queries that are transposed and scaled already (by scale * log2 e: 2^x is cheaper).
template <typename Element>
INLINE void block_products(Left k, const Visit& visit, const float* q_t, int64_t size, int64_t block, float* to) {
    const float* const rows[1] = {q_t};
    multiply_as<Element>(visit.keys, block, k, {rows, 1, size, size, block}, to, block, false);
}

/// Add the bias of a block to its scores.
inline void add_bias(
    const Problem& p, int64_t batch, int64_t head, int64_t query_block, const Visit& visit, float* scores
) {
    const int64_t block = p.layout.block, first = query_block * block;
    const int64_t queries = std::min(block, p.queries - first);
    const float* bias = p.bias + batch * p.bias_strides[0] + head * p.bias_strides[1] + first * p.bias_strides[2] +
                        visit.column * block * p.bias_strides[3];
    for (int64_t row = 0; row < visit.keys; row++)
        for (int64_t query = 0; query < queries; query++)
            scores[row * block + query] += kLog2E * bias[query * p.bias_strides[2] + row * p.bias_strides[3]];
}

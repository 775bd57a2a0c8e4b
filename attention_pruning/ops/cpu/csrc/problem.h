// What Python hands over. Field for field the ctypes structures of attention_pruning/ops/cpu/native.py.
#pragma once

#include <cstdint>

/// [batch, head, row, D] in elements; the last axis is contiguous.
struct Array {
    void* data;
    int64_t batch_stride, head_stride, row_stride;
};

/// Kept blocks, row by row (CSR), heads one after the other.
struct Layout {
    int64_t heads, query_blocks, key_blocks, block, kept, parts;
    const int32_t* row_start;  // [heads, query_blocks + 1], into column and part
    const int32_t* column;     // [kept], rising within a row
    const int32_t* part;       // [kept], -1: the whole block; else which entry of bits says what is kept of it
    const uint8_t* bits;       // [parts, block keys, block / 8]: one bit a query, the lowest first
};

struct Problem {
    int64_t batch, heads, queries, keys, size;
    Array q, k, v, out;
    float* log_sum;  // [batch, heads, queries], base 2; +inf for a row with nothing to attend to
    Layout layout;
    const uint8_t* key_seen;  // [batch, keys], 0 = padding; or null
    int64_t causal;           // 1: key <= query + keys - queries
    const float* bias;        // or null
    int64_t bias_strides[4];  // batch, head, query, key; 0 where it is broadcast
    float scale, dropout;
    uint64_t seed;
    int64_t threads;
    int64_t bfloat16;  // 1: q, k, v, out and the gradients below are brain floats
};

struct Gradients {
    Array out, q, k, v;
    float* bias;              // gradient of the scores, to be filled wherever a block is kept; or null
    int64_t bias_strides[4];  // never 0
};

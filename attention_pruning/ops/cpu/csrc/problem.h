// What Python hands over. Field for field the ctypes structures of attention_pruning/ops/cpu/native.py.
#pragma once

#include <algorithm>
#include <cstdint>

/// Raised with every change of a structure or of its meaning; native.py refuses a library of another number.
constexpr int64_t kAbi = 4;

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
    int64_t batch, heads, kv_heads, queries, keys, size;
    Array q, k, v, out;  // k and v have kv_heads heads, each for heads / kv_heads heads of queries in a row
    Array q_position;     // as q, or null: the relative term of relative.h
    Array position_keys;  // its rows, [heads, keys, size]
    float* log_sum;      // [batch, heads, queries], base 2; +inf for a row that keeps nothing
    Layout layout;
    int64_t first_row;        // the row of the layout that query 0 is
    const uint8_t* key_seen;  // [batch, keys], 0 = padding; or null
    int64_t causal, shift;    // with causal 1, a query sees key <= query + shift
    const float* bias;        // or null
    int64_t bias_strides[4];  // batch, head, query, key; 0 where it is broadcast
    float scale, dropout;
    uint64_t seed;
    int64_t threads;
    int64_t bfloat16;  // 1: q, k, v, out and the gradients below are brain floats
};

struct Gradients {
    Array out, q, k, v;
    float* bias;              // gradient of the bias, zeros that are added to; or null
    int64_t bias_strides[4];  // 0 where it is broadcast
    Array q_position, position_keys;
};

/// What a mask keeps, by its own rows and columns, and where the keys of a cache stand in it: few_queries.h.
struct KeptKeys {
    int64_t row_blocks, row_bytes, block;  // block: side of the mask's blocks, any number; row_bytes: whole words
    const uint8_t* bits;      // [heads, row_blocks, row_bytes], one bit for a block of keys, the lowest first: 1 = kept
    const int32_t* starts;    // [batch]: the key that stands in column 0, and the query in row 0; or null for 0
    const int32_t* columns;   // [batch, kv_heads, keys]: where each key stands, -1: nowhere; or null: one after the other
    int64_t columns_strides[2];  // batch, head
};

/// Whether scores have a relative term. Attention is then causal, no heads share keys, and the last query is the last key.
inline bool is_relative(const Problem& p) { return p.q_position.data != nullptr; }

/// Heads of queries that share a head of keys and values.
inline int64_t group_size(const Problem& p) { return p.heads / p.kv_heads; }

/// How many keys a query may look at, padding included, whatever the layout keeps.
inline int64_t keys_in_reach(const Problem& p, int64_t query) {
    return p.causal ? std::clamp<int64_t>(query + p.shift + 1, 0, p.keys) : p.keys;
}

/// Queries of the call that lie in one row of blocks of the layout.
struct Queries {
    int64_t row_block;     // of the layout
    int64_t first, count;  // queries of the call
    int64_t lead;          // how far into the block the first of them is
    int64_t lanes;         // `count`, rounded up to whole vectors
};

/// One block of queries of one head.
struct Place {
    int64_t batch, head;
    Queries queries;
};

/// How many rows of blocks the queries lie in.
inline int64_t count_query_blocks(const Problem& p) {
    const int64_t block = p.layout.block;
    return (p.first_row + p.queries + block - 1) / block - p.first_row / block;
}

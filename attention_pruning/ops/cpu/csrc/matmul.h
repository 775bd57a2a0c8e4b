// The one matrix product: C = A B (or C += A B), C in registers while k runs, B read as vectors, A number by number.
#pragma once

#include <algorithm>
#include <type_traits>

#include "vector.h"

/// What a number of A and a vector of B add to a vector of C; Pairs in pairs.h is the other kind.
struct Floats {
    static INLINE Vector spread(const float* a) { return splat(*a); }
    static INLINE Vector add_product(Vector c, Vector a, Vector b) { return c + a * b; }
};

/// A[row][k] at data + row * row_stride + k * k_stride. Either order is fine, so nothing is ever transposed for it.
struct Left {
    const float* data;
    int64_t row_stride, k_stride;
    bool in_pairs = false;  // two brain floats in the place of a float (pairs.h); the strides count such places
};

/// Rows of B: some blocks of `block` rows each, the last perhaps shorter. k runs through them one after the other.
struct Right {
    const float* const* blocks;
    int64_t count, block, last;
    int64_t row_stride;
    bool in_pairs = false;  // a row holds the pairs of two rows; `block` and `last` count the latter
};

/// `rows` x `vectors` vectors of C. Both are constants, so that all of `c` lives in registers.
template <typename Numbers, int rows, int vectors>
INLINE void multiply_tile(Left a, Right b, int64_t b_column, float* to, int64_t to_stride, bool accumulate) {
    Vector c[rows][vectors];
#pragma GCC unroll 32
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) c[i][j] = accumulate ? load(to + i * to_stride + j * kLanes) : splat(0.0f);
    const float* a_k = a.data;
    for (int64_t block = 0; block < b.count; block++) {
        const float* b_row = b.blocks[block] + b_column;
        const int64_t length = block + 1 < b.count ? b.block : b.last;
        for (int64_t k = 0; k < length; k++) {
            Vector b_k[vectors];
#pragma GCC unroll 8
            for (int j = 0; j < vectors; j++) b_k[j] = load(b_row + j * kLanes);
#pragma GCC unroll 32
            for (int i = 0; i < rows; i++) {
                const Vector a_ik = Numbers::spread(a_k + i * a.row_stride);
#pragma GCC unroll 8
                for (int j = 0; j < vectors; j++) c[i][j] = Numbers::add_product(c[i][j], a_ik, b_k[j]);
            }
            a_k += a.k_stride;
            b_row += b.row_stride;
        }
    }
#pragma GCC unroll 32
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) store(to + i * to_stride + j * kLanes, c[i][j]);
}

/// All rows of C for `vectors` vectors of its columns.
template <typename Numbers, int vectors>
void multiply_columns(int64_t rows, Left a, Right b, int64_t b_column, float* to, int64_t to_stride, bool accumulate) {
    // As many accumulators as leave registers for a row of B and a number of A.
    constexpr int tall = std::min(kRegisters * 3 / 4 / vectors, 16);
    int64_t row = 0;
    const auto tile = [&](auto height) {
        const Left a_here = {a.data + row * a.row_stride, a.row_stride, a.k_stride};
        multiply_tile<Numbers, decltype(height)::value, vectors>(
            a_here, b, b_column, to + row * to_stride, to_stride, accumulate
        );
        row += height;
    };
    while (rows - row >= tall) tile(std::integral_constant<int, tall>{});
    if (tall > 8)
        while (rows - row >= 8) tile(std::integral_constant<int, 8>{});
    while (rows - row >= 4) tile(std::integral_constant<int, 4>{});
    while (rows - row >= 2) tile(std::integral_constant<int, 2>{});
    while (rows - row >= 1) tile(std::integral_constant<int, 1>{});
}

/// C[rows][columns] = A B, plus C with `accumulate`; columns are a multiple of kLanes.
template <typename Numbers>
void multiply(
    int64_t rows, int64_t columns, Left a, Right b, float* to, int64_t to_stride, bool accumulate
) {
    constexpr int wide = kRegisters == 32 ? 4 : 2;
    int64_t column = 0;
    for (; columns - column >= wide * kLanes; column += wide * kLanes)
        multiply_columns<Numbers, wide>(rows, a, b, column, to + column, to_stride, accumulate);
    if (wide > 2)
        for (; columns - column >= 2 * kLanes; column += 2 * kLanes)
            multiply_columns<Numbers, 2>(rows, a, b, column, to + column, to_stride, accumulate);
    for (; columns - column >= kLanes; column += kLanes)
        multiply_columns<Numbers, 1>(rows, a, b, column, to + column, to_stride, accumulate);
}

// The product of matmul.h where a processor multiplies pairs of brain floats and adds them to a float (AVX512_BF16):
// factors are rounded, sums are not.
//
// For bfloat16 inputs only. The one place with intrinsics beside tiles.h, for no compiler has words for either.
#pragma once

#include "matmul.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define HAS_PAIRS 1
#include <immintrin.h>
#else
#define HAS_PAIRS 0
#endif

#if HAS_PAIRS

constexpr int64_t kMostRows = 128, kMostK = 256, kMostColumns = 256;

/// Whether the processor does so.
inline bool pairs_allowed() {
    static const bool allowed = [] {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx512bf16") != 0;
    }();
    return allowed;
}

/// What a product reads: two numbers of k, rounded, in the place of a float. It is never treated as one.
struct PairSpace {
    alignas(64) float a[kMostRows * kMostK / 2];
    alignas(64) float b[kMostK / 2 * kMostColumns];
};

/// Two vectors of consecutive numbers as one of pairs.
INLINE Vector consecutive(Vector first, Vector second) {
    return (Vector)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

/// The first and the second half of 32 brain floats, lane by lane as pairs.
INLINE Vector interleave_halves(Vector halves) {
    typedef int16_t Words __attribute__((vector_size(kVectorBytes)));
    constexpr Words order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                             8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (Vector)_mm512_permutexvar_epi16((__m512i)order, (__m512i)halves);
}

/// The numbers of two vectors, lane by lane as pairs.
INLINE Vector paired(Vector low, Vector high) { return interleave_halves(consecutive(low, high)); }

/// A row of A or B, or zeros beyond the end.
INLINE Vector row_or_zero(const float* row, bool there) { return there ? load(row) : splat(0.0f); }

/// `k` consecutive numbers as pairs, then zeros.
INLINE void pack_row(const float* from, int64_t k, int64_t pairs, float* to) {
    int64_t i = 0;
    for (; i + 2 * kLanes <= k; i += 2 * kLanes)
        store(to + i / 2, consecutive(load(from + i), load(from + i + kLanes)));
    BFloat16* halves = (BFloat16*)to;
    for (; i < k; i++) from_float(from[i], halves + i);
    std::memset(halves + k, 0, (2 * pairs - k) * sizeof(BFloat16));
}

/// Two rows of brain floats as one of pairs, with zeros up to `padded`; without a second row, pairs with zeros.
INLINE void pack_rows(const BFloat16* low, const BFloat16* high, int64_t size, int64_t padded, float* to) {
    for (int64_t d = 0; d < padded; d += kLanes) {
        const int64_t count = std::min<int64_t>(size - d, kLanes);
        alignas(64) BFloat16 halves[2 * kLanes] = {};
        const auto take = [&](const BFloat16* row, BFloat16* half) {
            if (count == kLanes) return (void)std::memcpy(half, row + d, kLanes * sizeof(BFloat16));  // one load
            std::memcpy(half, row + d, count * sizeof(BFloat16));
        };
        take(low, halves);
        if (high) take(high, halves + kLanes);
        store(to + d, interleave_halves(load((const float*)halves)));
    }
}

/// B to [pairs][columns]; `to` may be B's own memory, for it is read before it is written.
inline void pack_right(Right b, int64_t columns, int64_t k, int64_t pairs, float* to) {
    const auto row = [&](int64_t i) {
        i = std::min(i, k - 1);  // beyond the end is never read
        return b.blocks[i / b.block] + i % b.block * b.row_stride;
    };
    for (int64_t pair = 0; pair < pairs; pair++) {
        const bool first = 2 * pair < k, second = 2 * pair + 1 < k;
        const float *low = row(2 * pair), *high = row(2 * pair + 1);
        for (int64_t c = 0; c < columns; c += kLanes)
            store(to + pair * columns + c, paired(row_or_zero(low + c, first), row_or_zero(high + c, second)));
    }
}

/// A pair of A and a vector of pairs of B: two products a lane, in one instruction.
struct Pairs {
    static INLINE Vector spread(const float* a) {
        uint32_t bits;
        std::memcpy(&bits, a, sizeof bits);
        return (Vector)(bits - Unsigned{});
    }
    static INLINE Vector add_product(Vector c, Vector a, Vector b) {
        return (Vector)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
    }
};

/// As `multiply`.
inline void multiply_pairs(
    int64_t rows, int64_t columns, Left a, Right b, float* to, int64_t to_stride, bool accumulate, PairSpace& space
) {
    const int64_t k = (b.count - 1) * b.block + b.last, pairs = (k + 1) / 2;
    const float* const packed[1] = {space.b};
    Right right = {packed, 1, pairs, pairs, columns};
    if (b.in_pairs)
        right = {b.blocks, b.count, b.block / 2, (b.last + 1) / 2, b.row_stride};
    else
        pack_right(b, columns, k, pairs, space.b);
    Left left = {space.a, pairs, 1};
    if (a.in_pairs) {
        left = a;
    } else if (a.k_stride == 1) {
        for (int64_t row = 0; row < rows; row++) pack_row(a.data + row * a.row_stride, k, pairs, space.a + row * pairs);
    } else {  // row_stride is 1: the columns of A are packed as the rows of B
        const float* const columns_of_a[1] = {a.data};
        const int64_t padded = round_up(rows, kLanes);
        pack_right({columns_of_a, 1, k, k, a.k_stride}, padded, k, pairs, space.a);
        left = {space.a, 1, padded};
    }
    multiply<Pairs>(rows, columns, left, right, to, to_stride, accumulate);
}

#endif

// The matrix product in the numbers of a call: what the processor is best at.
#pragma once

#include "tiles.h"

/// Whether a product reads rows of brain floats as they lie in memory.
template <typename Element>
INLINE bool reads_pairs() {
#if HAS_TILES
    if (tiles_allowed()) return false;
#endif
#if HAS_PAIRS
    return std::is_same<Element, BFloat16>::value && pairs_allowed();
#else
    return false;
#endif
}

/// Make rows that are the right side of many products what these read, in place.
template <typename Element>
INLINE void prepare_right(float* rows, int64_t count, int64_t columns) {
#if HAS_PAIRS
    if (!reads_pairs<Element>()) return;
    const float* const blocks[1] = {rows};
    pack_right({blocks, 1, count, count, columns}, columns, count, (count + 1) / 2, rows);
#endif
}

/// Such a right side.
template <typename Element>
INLINE Right prepared_right(const float* const* rows, int64_t count, int64_t columns) {
    return {rows, 1, count, count, columns, reads_pairs<Element>()};
}

/// C = A B, plus C with `accumulate`: bfloat16 in tiles or pairs where there are any, else floats.
template <typename Element>
INLINE void multiply_as(int64_t rows, int64_t columns, Left a, Right b, float* to, int64_t to_stride, bool accumulate) {
#if HAS_PAIRS
    if constexpr (std::is_same<Element, BFloat16>::value) {
        static thread_local PairSpace space;
#if HAS_TILES
        if (tiles_allowed()) return multiply_tiles(rows, columns, a, b, to, to_stride, accumulate, space);
#endif
        if (pairs_allowed()) return multiply_pairs(rows, columns, a, b, to, to_stride, accumulate, space);
    }
#endif
    multiply<Floats>(rows, columns, a, b, to, to_stride, accumulate);
}

/// Before a thread's first product.
template <typename Element>
INLINE void begin_products() {
#if HAS_TILES
    if (std::is_same<Element, BFloat16>::value && tiles_allowed()) configure_tiles();
#endif
}

/// After its last: tiles that are in use make every switch between threads slower.
template <typename Element>
INLINE void end_products() {
#if HAS_TILES
    if (std::is_same<Element, BFloat16>::value && tiles_allowed()) _tile_release();
#endif
}

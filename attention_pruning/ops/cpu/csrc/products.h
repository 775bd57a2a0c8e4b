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

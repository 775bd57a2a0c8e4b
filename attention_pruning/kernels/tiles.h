// The product of matmul.h on a processor with matrix tiles (Intel AMX): factors are rounded to bfloat16, sums are not.
//
// For bfloat16 inputs only. The one place with intrinsics, for no compiler has words for tiles.
#pragma once

#include "matmul.h"

#if defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#define HAS_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define HAS_TILES 0
#endif

#if HAS_TILES

constexpr int64_t kTile = 16;           // rows of a tile, and its columns of 4 bytes
constexpr int64_t kPairs = kTile;       // a tile holds 32 numbers of k, in pairs
constexpr int64_t kMostRows = 128, kMostK = 256, kMostColumns = 256;

/// Whether the processor has tiles and the system lets this process use them.
inline bool tiles_allowed() {
    static const bool allowed = [] {
        constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        unsigned a = 7, b = 0, c = 0, d = 0;
        // volatile: else the compiler may ask on every call, and in a virtual machine an answer takes microseconds
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        const bool there = (d >> 22 & 1) && (d >> 24 & 1);
        return there && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    }();
    return allowed;
}

/// All eight tiles as 16 rows of 64 bytes. Once for each thread that multiplies.
INLINE void configure_tiles() {
    struct {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = kTile;
    _tile_loadconfig(&config);
}

/// What a product reads, rounded: A by rows, k in pairs; B by pairs of k, so that a tile multiplies pair by pair.
struct TileSpace {
    alignas(64) uint32_t a[kMostRows * kMostK / 2];
    alignas(64) uint32_t b[kMostK / 2 * kMostColumns];
};

/// Two numbers a lane; no float, though it travels as one.
INLINE Vector paired(Vector low, Vector high) { return (Vector)(rounded(low) | rounded(high) << 16); }

/// Row `k` of A^T or B, or zeros beyond the end.
INLINE Vector row_or_zero(const float* row, bool there) { return there ? load(row) : splat(0.0f); }

/// A to [rows][pairs]. Its rows lie in memory one after the other (k_stride 1), or its columns do (row_stride 1).
inline void pack_left(Left a, int64_t rows, int64_t k, int64_t pairs, uint32_t* to) {
    const int64_t padded_rows = round_up(rows, kTile);
    if (a.k_stride == 1) {
        std::memset(to + rows * pairs, 0, (padded_rows - rows) * pairs * 4);
        for (int64_t row = 0; row < rows; row++) {
            BFloat16* halves = (BFloat16*)(to + row * pairs);
            const float* from = a.data + row * a.row_stride;
            int64_t i = 0;
            for (; i + kLanes <= k; i += kLanes) store(halves + i, load(from + i));
            for (; i < k; i++) from_float(from[i], halves + i);
            std::memset(halves + k, 0, (2 * pairs - k) * sizeof(BFloat16));
        }
        return;
    }
    for (int64_t row = 0; row < padded_rows; row += kTile)
        for (int64_t pair = 0; pair < pairs; pair += kTile) {
            Vector square[kLanes];
#pragma GCC unroll 16
            for (int64_t i = 0; i < kTile; i++) {
                const int64_t here = 2 * (pair + i);
                const float* from = a.data + here * a.k_stride + row;
                square[i] = paired(row_or_zero(from, here < k), row_or_zero(from + a.k_stride, here + 1 < k));
            }
            transpose_rows(square);
#pragma GCC unroll 16
            for (int64_t i = 0; i < kTile; i++) store((float*)to + (row + i) * pairs + pair, square[i]);
        }
}

/// B to [pairs][columns].
inline void pack_right(Right b, int64_t columns, int64_t k, int64_t pairs, uint32_t* to) {
    const auto row = [&](int64_t i) { return b.blocks[i / b.block] + i % b.block * b.row_stride; };
    for (int64_t pair = 0; pair < pairs; pair++) {
        const bool first = 2 * pair < k, second = 2 * pair + 1 < k;
        const float *low = first ? row(2 * pair) : nullptr, *high = second ? row(2 * pair + 1) : nullptr;
        for (int64_t c = 0; c < columns; c += kLanes)
            store((float*)to + pair * columns + c, paired(row_or_zero(low + c, first), row_or_zero(high + c, second)));
    }
}

/// As `multiply`. Writes whole tiles: rows up to the next multiple of 16, as garbage or zeros beyond `rows`.
inline void multiply_tiles(
    int64_t rows, int64_t columns, Left a, Right b, float* to, int64_t to_stride, bool accumulate, TileSpace& space
) {
    const int64_t k = (b.count - 1) * b.block + b.last, pairs = round_up(k, 2 * kPairs) / 2;
    pack_left(a, rows, k, pairs, space.a);
    pack_right(b, columns, k, pairs, space.b);
    const int64_t bytes = to_stride * 4, a_bytes = pairs * 4, b_bytes = columns * 4;
    for (int64_t row = 0; row < rows; row += 2 * kTile) {
        const bool two = row + kTile < rows;  // two tiles of rows share what is loaded of B
        float *top = to + row * to_stride, *bottom = top + kTile * to_stride;
        const uint32_t *a_top = space.a + row * pairs, *a_bottom = a_top + kTile * pairs;
        for (int64_t column = 0; column < columns; column += kTile) {
            if (accumulate) {
                _tile_loadd(0, top + column, bytes);
                if (two) _tile_loadd(1, bottom + column, bytes);
            } else {
                _tile_zero(0);
                _tile_zero(1);
            }
            for (int64_t pair = 0; pair < pairs; pair += kPairs) {
                _tile_loadd(2, space.b + pair * columns + column, b_bytes);
                _tile_loadd(3, a_top + pair, a_bytes);
                _tile_dpbf16ps(0, 3, 2);
                if (two) {
                    _tile_loadd(4, a_bottom + pair, a_bytes);
                    _tile_dpbf16ps(1, 4, 2);
                }
            }
            _tile_stored(0, top + column, bytes);
            if (two) _tile_stored(1, bottom + column, bytes);
        }
    }
}

#endif

/// C = A B in the numbers of a call: bfloat16 in tiles where there are any, else floats.
template <typename Element>
INLINE void multiply_as(int64_t rows, int64_t columns, Left a, Right b, float* to, int64_t to_stride, bool accumulate) {
#if HAS_TILES
    if constexpr (std::is_same<Element, BFloat16>::value) {
        if (tiles_allowed()) {
            static thread_local TileSpace space;
            return multiply_tiles(rows, columns, a, b, to, to_stride, accumulate, space);
        }
    }
#endif
    multiply(rows, columns, a, b, to, to_stride, accumulate);
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

// The product of matmul.h on a processor with matrix tiles (Intel AMX): factors are rounded to bfloat16, sums are not.
//
// For bfloat16 inputs only. What has tiles has the instructions of pairs.h, too.
#pragma once

#include "pairs.h"

#if HAS_PAIRS && defined(__AMX_BF16__) && defined(__linux__)
#define HAS_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define HAS_TILES 0
#endif

#if HAS_TILES

constexpr int64_t kTile = 16;      // rows of a tile, and its columns of 4 bytes
constexpr int64_t kPairs = kTile;  // a tile holds 32 numbers of k, in pairs

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

/// A to [rows][pairs]. Its rows lie in memory one after the other (k_stride 1), or its columns do (row_stride 1).
inline void pack_left(Left a, int64_t rows, int64_t k, int64_t pairs, float* to) {
    const int64_t padded_rows = round_up(rows, kTile);
    if (a.k_stride == 1) {
        std::memset(to + rows * pairs, 0, (padded_rows - rows) * pairs * sizeof(float));
        for (int64_t row = 0; row < rows; row++) pack_row(a.data + row * a.row_stride, k, pairs, to + row * pairs);
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
            for (int64_t i = 0; i < kTile; i++) store(to + (row + i) * pairs + pair, square[i]);
        }
}

/// As `multiply`. Writes whole tiles: rows up to the next multiple of 16, as garbage or zeros beyond `rows`.
inline void multiply_tiles(
    int64_t rows, int64_t columns, Left a, Right b, float* to, int64_t to_stride, bool accumulate, PairSpace& space
) {
    const int64_t k = (b.count - 1) * b.block + b.last, pairs = round_up(k, 2 * kPairs) / 2;
    pack_left(a, rows, k, pairs, space.a);
    pack_right(b, columns, k, pairs, space.b);
    const int64_t bytes = to_stride * 4, a_bytes = pairs * 4, b_bytes = columns * 4;
    for (int64_t row = 0; row < rows; row += 2 * kTile) {
        const bool two = row + kTile < rows;  // two tiles of rows share what is loaded of B
        float *top = to + row * to_stride, *bottom = top + kTile * to_stride;
        const float *a_top = space.a + row * pairs, *a_bottom = a_top + kTile * pairs;
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

// One vector width for each build, by the compiler's vector extensions: no intrinsics.
//
// The same source is compiled for AVX-512, AVX2 and whatever the platform guarantees; only the constants below differ.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif

/// Numbers in a vector. Every block size (16 and up) is a multiple of it.
constexpr int kLanes = kVectorBytes / 4;

typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
typedef uint32_t Unsigned __attribute__((vector_size(kVectorBytes)));

#define INLINE inline __attribute__((always_inline))

/// A brain float: the upper half of a float.
struct BFloat16 {
    uint16_t bits;
};

INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Minus, because adding zero would change the sign of -0 and so be an instruction.
INLINE Vector splat(float x) { return x - Vector{}; }

// memcpy is how C++ spells a load or store of any alignment; it compiles to one instruction.
INLINE Vector load(const float* from) {
    Vector x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(float* to, Vector x) { std::memcpy(to, &x, sizeof x); }

typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));

/// The nearest bfloat16 of each lane, ties to even, in its lower half; NaN as it comes from arithmetic stays NaN.
INLINE Unsigned rounded(Vector x) {
    const Unsigned bits = (Unsigned)x;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

INLINE Vector load(const BFloat16* from) {
    Halves x;
    std::memcpy(&x, from, sizeof x);
    return (Vector)(__builtin_convertvector(x, Unsigned) << 16);
}

INLINE void store(BFloat16* to, Vector x) {
    const Halves halves = __builtin_convertvector(rounded(x), Halves);
    std::memcpy(to, &halves, sizeof halves);
}

/// Store to a vector's own alignment past the caches, without reading what was there. Nobody needs it soon.
INLINE void stream(float* to, Vector x) {
#if defined(__AVX512F__)
    __builtin_ia32_movntps512(to, x);
#elif defined(__AVX__)
    __builtin_ia32_movntps256(to, x);
#elif defined(__SSE__)
    __builtin_ia32_movntps(to, x);
#else
    store(to, x);
#endif
}

/// The same of half as many bytes.
INLINE void stream(BFloat16* to, Vector x) {
    typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
    const Half halves = (Half)__builtin_convertvector(rounded(x), Halves);
#if defined(__AVX512F__)
    __builtin_ia32_movntps256((float*)to, halves);
#elif defined(__AVX__)
    __builtin_ia32_movntps((float*)to, halves);
#else
    std::memcpy(to, &halves, sizeof halves);
#endif
}

/// After the last stream() of a thread, before anybody else may read it.
INLINE void finish_streams() {
#if defined(__SSE__)
    __builtin_ia32_sfence();
#endif
}

INLINE Vector larger(Vector a, Vector b) { return a > b ? a : b; }

INLINE float sum(Vector x) {
    float total = 0.0f;
    for (int lane = 0; lane < kLanes; lane++) total += x[lane];
    return total;
}

/// 0, 1, 2, ... by lane.
INLINE Integers lane_numbers() {
    Integers x;
    for (int lane = 0; lane < kLanes; lane++) x[lane] = lane;
    return x;
}

/// 2^x to 2 units in the last place for x <= 127; exactly 0 below -126 (also at -inf), NaN stays NaN.
INLINE Vector exp2(Vector x) {
    // Adding 1.5 * 2^23 rounds to a whole number, and leaves it in the lowest bits of the sum.
    const Vector magic = splat(12582912.0f);
    const Vector clamped = x < splat(-126.0f) ? splat(-126.0f) : x;
    const Vector shifted = clamped + magic;
    const Vector f = clamped - (shifted - magic);
    // Minimax polynomial of 2^f for f in [-1/2, 1/2], relative error 1e-7; its constant term is 1 so that exp2(0) = 1.
    Vector p = splat(1.326472707e-03f);
    p = p * f + 9.671512649e-03f;
    p = p * f + 5.550733744e-02f;
    p = p * f + 2.402224209e-01f;
    p = p * f + 6.931469776e-01f;
    p = p * f + 1.0f;
    const Vector power = (Vector)((Integers)p + ((Integers)shifted << 23));
    return x < splat(-126.0f) ? splat(0.0f) : power;
}

#if defined(__clang__)
template <int half, int... lane>
INLINE Vector interleave_lanes(Vector a, Vector b, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, (half * kLanes / 2 + lane / 2 + lane % 2 * kLanes)...);
}
#endif

/// Interleave the lower (or, with `half` 1, the upper) halves of two vectors: a0 b0 a1 b1 ...
template <int half>
INLINE Vector interleave(Vector a, Vector b) {
#if defined(__clang__)
    return interleave_lanes<half>(a, b, std::make_integer_sequence<int, kLanes>{});
#else
    return __builtin_shuffle(a, b, lane_numbers() / 2 + lane_numbers() % 2 * kLanes + half * kLanes / 2);
#endif
}

/// Transpose a square of kLanes rows. Interleaving row i with row i + kLanes / 2 moves one bit of the row number into
/// the lane number; after log2(kLanes) rounds all bits have changed places.
INLINE void transpose_rows(Vector row[kLanes]) {
    Vector next[kLanes];
#pragma GCC unroll 4
    for (int width = 1; width < kLanes; width *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; i++) {
            next[2 * i] = interleave<0>(row[i], row[i + kLanes / 2]);
            next[2 * i + 1] = interleave<1>(row[i], row[i + kLanes / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++) row[i] = next[i];
    }
}

INLINE void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride, float factor) {
    Vector row[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) row[i] = load(from + i * from_stride) * factor;
    transpose_rows(row);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) store(to + i * to_stride, row[i]);
}

/// to[column][row] = factor * from[row][column]; rows and columns are multiples of kLanes.
inline void transpose(
    const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride, float factor
) {
    for (int64_t r = 0; r < rows; r += kLanes)
        for (int64_t c = 0; c < columns; c += kLanes)
            transpose_square(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride, factor);
}

INLINE float to_float(float x) { return x; }

INLINE float to_float(BFloat16 x) {
    const uint32_t bits = (uint32_t)x.bits << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE void from_float(float x, float* to) { *to = x; }

/// Round to the nearest brain float, ties to even; NaN stays NaN.
INLINE void from_float(float x, BFloat16* to) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    to->bits = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

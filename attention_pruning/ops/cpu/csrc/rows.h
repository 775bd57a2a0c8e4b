// Rows of q, k, v and gradients: copied into dense, padded floats where the kernel needs them so, and back.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "problem.h"
#include "products.h"

INLINE int64_t thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/// Aligned floats of one thread. Not initialised: whoever needs zeros writes them.
class Buffer {
  public:
    explicit Buffer(int64_t count) : data_((float*)std::aligned_alloc(64, round_up(count * 4 + 1, 64)), std::free) {
        if (!data_) throw std::bad_alloc();
    }
    operator float*() const { return data_.get(); }

  private:
    std::unique_ptr<float, void (*)(void*)> data_;
};

template <typename Element>
INLINE Element* head_of(const Array& array, int64_t batch, int64_t head) {
    return (Element*)array.data + batch * array.batch_stride + head * array.head_stride;
}

/// Ask for a row that is needed later. Where the heads of a row lie side by side, the rows of a head are far apart, and
/// no processor guesses where the next one is. Beyond the end of an array nothing is read: asking never faults.
template <typename Element>
INLINE void prefetch_row(const Element* row, int64_t size) {
    for (int64_t d = 0; d < size; d += 64 / (int64_t)sizeof(Element)) __builtin_prefetch(row + d, 0, 2);
}

/// How many rows are asked for before they are copied.
constexpr int64_t kRowsAhead = 8;

/// Call part(d) for what is left of `size` numbers after whole vectors, in parts of halved length: their number is the
/// type of a constant, so each is an instruction or two.
template <int length = kLanes / 2, typename Part>
INLINE void for_each_part(int64_t d, int64_t size, const Part& part) {
    if (size - d >= length) {
        part(d, std::integral_constant<int, length>{});
        d += length;
    }
    if constexpr (length > 1) for_each_part<length / 2>(d, size, part);
}

/// Copy `size` numbers and fill up to `padded`, the next whole vector, with zeros.
template <typename Element>
INLINE void copy_row(const Element* from, int64_t size, int64_t padded, float* to) {
    int64_t d = 0;
    for (; d + kLanes <= size; d += kLanes) store(to + d, load(from + d));
    if (d == padded) return;
    store(to + d, splat(0.0f));
    for_each_part(d, size, [&](int64_t at, auto length) {
        if constexpr (std::is_same<Element, float>::value)
            std::memcpy(to + at, from + at, length * sizeof(float));
        else
            for (int i = 0; i < decltype(length)::value; i++) to[at + i] = to_float(from[at + i]);
    });
}

/// `rows` rows, then zeros up to `padded_rows`. Those that lie `ahead` numbers further come next and are asked for.
template <typename Element>
void copy_rows(
    const Element* from, int64_t stride, int64_t rows, int64_t size, int64_t padded_rows, int64_t padded, float* to,
    int64_t ahead
) {
    for (int64_t r = 0; r < rows; r++) {
        prefetch_row(from + r * stride + ahead, size);
        copy_row(from + r * stride, size, padded, to + r * padded);
    }
    std::memset(to + rows * padded, 0, (padded_rows - rows) * padded * sizeof(float));
}

/// Whether rows are written past the caches: if they are whole cache lines, and more than the caches would hold until
/// somebody reads them. The kernel is bound by memory, and this saves reading each line before it is written.
inline bool should_stream(const Problem& p, const Array& to, int64_t heads, int64_t rows) {
    constexpr int64_t line = 64, caches = 4 << 20;
    const int64_t bytes = p.bfloat16 ? sizeof(BFloat16) : sizeof(float);
    const int64_t steps = bytes * (to.batch_stride | to.head_stride | to.row_stride | p.size);
    const bool whole_lines = ((intptr_t)to.data | steps) % line == 0;
    return whole_lines && p.batch * heads * rows * p.size * bytes > caches;
}

template <typename Element>
INLINE void write_row(const float* from, int64_t size, float factor, Element* to, bool streams) {
    int64_t d = 0;
    if (streams)
        for (; d + kLanes <= size; d += kLanes) stream(to + d, load(from + d) * factor);
    for (; d + kLanes <= size; d += kLanes) store(to + d, load(from + d) * factor);
    for_each_part(d, size, [&](int64_t at, auto length) {
        for (int i = 0; i < decltype(length)::value; i++) from_float(from[at + i] * factor, to + at + i);
    });
}

/// Keys or values of one head, by block: where they lie if the kernel can read them there, else a copy made of each
/// block when it is first used. Blocks that nobody keeps are never read.
template <typename Element>
class HeadRows {
  public:
    HeadRows(const Problem& p, const Array& array)
        : array_(array),
          rows_(p.keys),
          size_(p.size),
          padded_(round_up(p.size, kLanes)),
          block_(p.layout.block),
          in_pairs_(reads_pairs<Element>() && whole_pairs(array, p.size)),
          in_place_(std::is_same<Element, float>::value && size_ == padded_ && array.row_stride == size_),
          stride_(in_place_ ? array.row_stride : padded_),
          ahead_(array.row_stride == size_ ? array.head_stride : kRowsAhead * array.row_stride),
          asked_(p.layout.key_blocks),
          copied_(p.layout.key_blocks),
          copy_(in_place_ ? 0 : rows_ * padded_) {}

    /// Begin with a head; where it is the one before, copies stay.
    void start(int64_t batch, int64_t head) {
        const Element* from = head_of<const Element>(array_, batch, head);
        if (from == from_) return;
        from_ = from;
        std::fill(asked_.begin(), asked_.end(), 0);
        std::fill(copied_.begin(), copied_.end(), 0);
    }

    /// A block as the left side of a product over the size of a head.
    Left left(int64_t number) {
        if (!in_pairs_) return {floats(number), stride_, 1};
        const Element* rows = first_row(number);
        ask_ahead(number);
        return {(const float*)rows, array_.row_stride / 2, 1, true};
    }

    /// A block for the right side of a product over its rows.
    const float* block(int64_t number) { return in_pairs_ ? pairs(number) : floats(number); }

    /// Such a right side, of `count` blocks of which the last has `last` rows.
    Right right(const float* const* blocks, int64_t count, int64_t last) const {
        return {blocks, count, block_, last, stride_, in_pairs_};
    }

  private:
    /// Whether every row is whole pairs, each where a float may be.
    static bool whole_pairs(const Array& array, int64_t size) {
        const int64_t numbers = array.batch_stride | array.head_stride | array.row_stride | size;
        return numbers % 2 == 0 && (intptr_t)array.data % sizeof(float) == 0;
    }

    const Element* first_row(int64_t number) const { return from_ + number * block_ * array_.row_stride; }
    const Element* next_head(const Element* row) const { return row + array_.head_stride; }
    int64_t count(int64_t number) const { return std::min(block_, rows_ - number * block_); }

    /// The first time that a block is read in place: ask for that of the next head.
    void ask_ahead(int64_t number) {
        if (asked_[number]) return;
        for (int64_t r = 0; r < count(number); r++)
            prefetch_row(next_head(first_row(number) + r * array_.row_stride), size_);
        asked_[number] = 1;
    }

    const float* floats(int64_t number) {
        const Element* from = first_row(number);
        if (in_place_) {
            ask_ahead(number);
            return (const float*)from;
        }
        float* to = copy_ + number * block_ * padded_;
        if (!copied_[number]) {
            const int64_t rows = count(number);
            copy_rows(from, array_.row_stride, rows, size_, rows, padded_, to, ahead_);
            copied_[number] = 1;
        }
        return to;
    }

    const float* pairs(int64_t number) {
        float* to = copy_ + number * block_ * padded_;
        if (!copied_[number]) pack(first_row(number), count(number), to);
        copied_[number] = 1;
        return to;
    }

    void pack(const Element* low, int64_t rows, float* to) const {
#if HAS_PAIRS
        if constexpr (std::is_same<Element, BFloat16>::value)
            for (int64_t r = 0; r < rows; r += 2, low += 2 * array_.row_stride, to += padded_) {
                const BFloat16* high = low + array_.row_stride;
                prefetch_row(low + ahead_, size_);
                prefetch_row(high + ahead_, size_);
                pack_rows(low, r + 1 < rows ? high : nullptr, size_, padded_, to);
            }
#endif
    }

    const Array array_;
    const int64_t rows_, size_, padded_, block_;
    const bool in_pairs_, in_place_;
    const int64_t stride_, ahead_;  // numbers from a row to the one that is asked for when it is copied
    std::vector<char> asked_, copied_;
    Buffer copy_;
    const Element* from_ = nullptr;
};

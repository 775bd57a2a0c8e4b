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
#include "vector.h"

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

/// Copy `size` numbers and fill up to `padded` with zeros.
template <typename Element>
INLINE void copy_row(const Element* from, int64_t size, int64_t padded, float* to) {
    int64_t d = 0;
    for (; d + kLanes <= size; d += kLanes) store(to + d, load(from + d));
    for (; d < size; d++) to[d] = to_float(from[d]);
    for (; d < padded; d++) to[d] = 0.0f;
}

/// `rows` rows, then zeros up to `padded_rows`.
template <typename Element>
void copy_rows(
    const Element* from, int64_t stride, int64_t rows, int64_t size, int64_t padded_rows, int64_t padded, float* to
) {
    for (int64_t r = 0; r < rows; r++) copy_row(from + r * stride, size, padded, to + r * padded);
    std::memset(to + rows * padded, 0, (padded_rows - rows) * padded * sizeof(float));
}

/// Whether rows are written past the caches: if they are whole cache lines, and more than the caches would hold until
/// somebody reads them. The kernel is bound by memory, and this saves reading each line before it is written.
inline bool should_stream(const Problem& p, const Array& to, int64_t rows) {
    constexpr int64_t line = 64, caches = 4 << 20;
    const int64_t units = (int64_t)(intptr_t)to.data / 4 | to.batch_stride | to.head_stride | to.row_stride | p.size;
    const bool whole_lines = (intptr_t)to.data % 4 == 0 && units % (line / 4) == 0;
    return !p.bfloat16 && whole_lines && p.batch * p.heads * rows * p.size * 4 > caches;
}

INLINE void stream(BFloat16* to, Vector x) { store(to, x); }

template <typename Element>
INLINE void write_row(const float* from, int64_t size, float factor, Element* to, bool streams) {
    int64_t d = 0;
    if (streams)
        for (; d + kLanes <= size; d += kLanes) stream(to + d, load(from + d) * factor);
    for (; d + kLanes <= size; d += kLanes) store(to + d, load(from + d) * factor);
    for (; d < size; d++) from_float(from[d] * factor, to + d);
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
          // Rows far apart would each cost a page of address translation every time they are read.
          in_place_(std::is_same<Element, float>::value && size_ == padded_ && array.row_stride == size_),
          copied_(p.layout.key_blocks),
          copy_(in_place_ ? 0 : rows_ * padded_) {}

    void start(int64_t batch, int64_t head) {
        from_ = head_of<const Element>(array_, batch, head);
        std::fill(copied_.begin(), copied_.end(), 0);
    }

    const float* block(int64_t number) {
        const int64_t first = number * block_;
        if (in_place_) return (const float*)from_ + first * array_.row_stride;
        float* to = copy_ + first * padded_;
        if (!copied_[number]) {
            const int64_t count = std::min(block_, rows_ - first);
            copy_rows(from_ + first * array_.row_stride, array_.row_stride, count, size_, count, padded_, to);
            copied_[number] = 1;
        }
        return to;
    }

    int64_t row_stride() const { return padded_; }

  private:
    const Array array_;
    const int64_t rows_, size_, padded_, block_;
    const bool in_place_;
    std::vector<char> copied_;
    Buffer copy_;
    const Element* from_ = nullptr;
};

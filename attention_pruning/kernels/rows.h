// Rows of q, k, v and gradients: copied into dense, padded floats where the kernel needs them so, and back.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "problem.h"
#include "vector.h"

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
INLINE void copy_row(const float* from, int64_t size, int64_t padded, float* to) {
    int64_t d = 0;
    for (; d + kLanes <= size; d += kLanes) store(to + d, load(from + d));
    for (; d < size; d++) to[d] = from[d];
    for (; d < padded; d++) to[d] = 0.0f;
}

INLINE void copy_row(const BFloat16* from, int64_t size, int64_t padded, float* to) {
    for (int64_t d = 0; d < size; d++) to[d] = to_float(from[d]);
    for (int64_t d = size; d < padded; d++) to[d] = 0.0f;
}

/// `rows` rows, then zeros up to `padded_rows`.
template <typename Element>
void copy_rows(
    const Element* from, int64_t stride, int64_t rows, int64_t size, int64_t padded_rows, int64_t padded, float* to
) {
    for (int64_t r = 0; r < rows; r++) copy_row(from + r * stride, size, padded, to + r * padded);
    std::memset(to + rows * padded, 0, (padded_rows - rows) * padded * sizeof(float));
}

INLINE void write_row(const float* from, int64_t size, float factor, float* to) {
    int64_t d = 0;
    for (; d + kLanes <= size; d += kLanes) store(to + d, load(from + d) * factor);
    for (; d < size; d++) to[d] = from[d] * factor;
}

INLINE void write_row(const float* from, int64_t size, float factor, BFloat16* to) {
    for (int64_t d = 0; d < size; d++) from_float(from[d] * factor, to + d);
}

/// Keys or values of one head, by block: where they lie if the kernel can read them there, else a copy made of each
/// block when it is first used. Blocks that nobody keeps are never read.
template <typename Element>
class HeadRows {
  public:
    HeadRows(int64_t rows, int64_t size, int64_t block)
        : rows_(rows), size_(size), padded_(round_up(size, kLanes)), block_(block), copied_((rows + block - 1) / block) {}

    void start(const Element* from, int64_t stride) {
        from_ = from;
        stride_ = stride;
        // Rows far apart would each cost a page of address translation every time they are read.
        in_place_ = std::is_same<Element, float>::value && size_ == padded_ && stride == size_;
        std::fill(copied_.begin(), copied_.end(), 0);
        if (!in_place_ && !copy_) copy_ = std::make_unique<Buffer>(rows_ * padded_);
    }

    const float* block(int64_t number) {
        const int64_t first = number * block_;
        if (in_place_) return (const float*)from_ + first * stride_;
        float* to = *copy_ + first * padded_;
        if (!copied_[number]) {
            const int64_t count = std::min(block_, rows_ - first);
            copy_rows(from_ + first * stride_, stride_, count, size_, count, padded_, to);
            copied_[number] = 1;
        }
        return to;
    }

    int64_t row_stride() const { return padded_; }

  private:
    int64_t rows_, size_, padded_, block_;
    std::vector<char> copied_;
    std::unique_ptr<Buffer> copy_;
    const Element* from_ = nullptr;
    int64_t stride_ = 0;
    bool in_place_ = false;
};

// Dropout without a state: whether a cell is dropped is a hash of the seed, its row and its key.
//
// The same in forward and backward, whatever the threads; attention_pruning/ops/dropout.py computes it in torch.
#pragma once

#include "problem.h"
#include "vector.h"

/// A 32-bit mixer by Chris Wellons ("lowbias32"): every bit of the input moves about half of the output's.
template <typename Word>
INLINE Word mix(Word x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

class Dropout {
  public:
    Dropout(const Problem& p)
        : on_(p.dropout > 0.0f), seed_(p.seed), threshold_((uint32_t)((double)p.dropout * 4294967296.0)) {}

    /// Hash the rows of a block of queries; `first_row` counts over batch, heads and queries.
    void start(uint64_t first_row, int64_t count) {
        for (int64_t i = 0; on_ && i < count; i++) {
            const uint64_t row = first_row + i;
            const uint32_t low = mix((uint32_t)row ^ (uint32_t)seed_);
            row_hash_[i] = mix(low ^ (uint32_t)(row >> 32) ^ (uint32_t)(seed_ >> 32));
        }
    }

    bool on() const { return on_; }

    /// x where the cell (query `lane` and following, key) stays, 0 where it is dropped.
    INLINE Vector keep(Vector x, int64_t lane, int64_t key) const {
        Unsigned row;
        std::memcpy(&row, row_hash_ + lane, sizeof row);
        return mix(row + (uint32_t)key * 0x9e3779b9u) >= threshold_ ? x : splat(0.0f);
    }

  private:
    const bool on_;
    const uint64_t seed_;
    const uint32_t threshold_;
    uint32_t row_hash_[128] = {};
};

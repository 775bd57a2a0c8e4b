// Which cells of a block count: what the layout keeps of it, causality and padding, as one bit a query and key.
#pragma once

#include <vector>

#include "problem.h"
#include "vector.h"

/// The n-th block of queries.
inline Queries queries_of(const Problem& p, int64_t n) {
    const int64_t block = p.layout.block, row_block = p.first_row / block + n, first_row = row_block * block;
    const int64_t first = std::max<int64_t>(first_row - p.first_row, 0);
    const int64_t count = std::min(first_row + block - p.first_row, p.queries) - first;
    return {row_block, first, count, p.first_row + first - first_row, round_up(count, kLanes)};
}

/// One bit for each query of a block, of which there are at most 128.
typedef unsigned __int128 QueryBits;

/// A kept block of a row of blocks that has at least a cell to compute.
struct Visit {
    int64_t column, keys;  // block number; rows of k in it
    int32_t part;
    bool whole;  // every cell counts
};

/// What the queries of one block see.
class Visibility {
  public:
    Visibility(const Problem& p, int64_t batch, int64_t head, const Queries& queries)
        : p_(p),
          queries_(queries),
          block_(p.layout.block),
          all_(~QueryBits(0) >> (128 - queries.count)),
          row_start_(p.layout.row_start + head * (p.layout.query_blocks + 1) + queries.row_block),
          seen_(p.key_seen ? p.key_seen + batch * p.keys : nullptr) {}

    /// The blocks that they look at, in rising order.
    void visits(std::vector<Visit>& found) const {
        found.clear();
        const int64_t reach = keys_in_reach(p_, queries_.first + queries_.count - 1);
        const int64_t reach_of_all = keys_in_reach(p_, queries_.first);
        for (int32_t at = row_start_[0]; at < row_start_[1]; at++) {
            const int64_t column = p_.layout.column[at], first = column * block_;
            if (first >= reach) break;
            const int64_t keys = std::min(block_, p_.keys - first);
            const int64_t seen = count_seen(first, keys);
            if (seen == 0) continue;
            const int32_t part = p_.layout.part[at];
            found.push_back({column, keys, part, part < 0 && seen == keys && first + keys <= reach_of_all});
        }
    }

    /// Set scores [keys][lanes] of a block to `hidden` where the cell does not count.
    void hide(const Visit& visit, float hidden, float* scores) const {
        for (int64_t row = 0; row < visit.keys; row++) {
            const QueryBits bits = row_bits(visit, row);
            if (bits == all_) continue;
            for (int64_t lane = 0; lane < queries_.lanes; lane += kLanes) {
                const Integers here = ((Integers{} + (int32_t)(uint32_t)(bits >> lane)) >> lane_numbers()) & 1;
                float* at = scores + row * queries_.lanes + lane;
                store(at, here != 0 ? load(at) : splat(hidden));
            }
        }
    }

  private:
    int64_t count_seen(int64_t first, int64_t keys) const {
        if (!seen_) return keys;
        int64_t count = 0;
        for (int64_t key = first; key < first + keys; key++) count += seen_[key] != 0;
        return count;
    }

    QueryBits row_bits(const Visit& visit, int64_t row) const {
        const int64_t key = visit.column * block_ + row;
        if (seen_ && !seen_[key]) return 0;
        QueryBits bits = all_;
        if (visit.part >= 0) {
            bits = 0;
            std::memcpy(&bits, p_.layout.bits + (visit.part * block_ + row) * (block_ / 8), block_ / 8);
            bits = bits >> queries_.lead & all_;
        }
        if (p_.causal) {
            const int64_t first_to_see = key - p_.shift - queries_.first;
            if (first_to_see >= queries_.count) return 0;
            if (first_to_see > 0) bits &= all_ << first_to_see;
        }
        return bits;
    }

    const Problem& p_;
    const Queries& queries_;
    const int64_t block_;
    const QueryBits all_;
    const int32_t* row_start_;
    const uint8_t* seen_;
};

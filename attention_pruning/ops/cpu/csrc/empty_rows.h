// Rows that keep nothing: they attend uniformly to all that they see, and give 0 where they see nothing.
//
// The bias, dropout and the layout have no say there, causality and padding have.
#pragma once

#include <cmath>

#include "rows.h"
#include "visibility.h"

inline bool is_seen(const Problem& p, int64_t batch, int64_t key) {
    return !p.key_seen || p.key_seen[batch * p.keys + key] != 0;
}

/// Means of visible values, for rows of rising queries: a running sum over the keys, which nobody pays for who has no
/// empty row.
template <typename Element>
class VisibleMean {
  public:
    explicit VisibleMean(const Problem& p)
        : p_(p), padded_(round_up(p.size, kLanes)), total_(padded_), mean_(padded_) {}

    void start(int64_t batch, int64_t head) {
        batch_ = batch;
        values_ = head_of<const Element>(p_.v, batch, head / group_size(p_));
        key_ = count_ = 0;
        std::fill(total_ + 0, total_ + padded_, 0.0f);
    }

    /// Write the row of a query.
    void write(int64_t query, Element* to) {
        add_keys(std::max(key_, keys_in_reach(p_, query)));
        const float count = std::max<int64_t>(count_, 1);
        for (int64_t d = 0; d < padded_; d += kLanes) store(mean_ + d, load(total_ + d) / count);
        write_row(mean_, p_.size, 1.0f, to, false);
    }

  private:
    /// Add those up to the one before `reach`, a vector of their columns after the other.
    void add_keys(int64_t reach) {
        int64_t d = 0;
        for (; d + kLanes <= p_.size; d += kLanes) {
            Vector total = load(total_ + d);
            for_each_seen(reach, [&](const Element* row) { total += load(row + d); });
            store(total_ + d, total);
        }
        for_each_part(d, p_.size, [&](int64_t at, auto length) {
            for_each_seen(reach, [&](const Element* row) {
                for (int i = 0; i < decltype(length)::value; i++) total_[at + i] += to_float(row[at + i]);
            });
        });
        for_each_seen(reach, [&](const Element*) { count_++; });
        key_ = reach;
    }

    template <typename Body>
    INLINE void for_each_seen(int64_t reach, const Body& body) const {
        for (int64_t key = key_; key < reach; key++)
            if (is_seen(p_, batch_, key)) body(values_ + key * p_.v.row_stride);
    }

    const Problem& p_;
    const int64_t padded_;
    Buffer total_, mean_;
    const Element* values_ = nullptr;
    int64_t batch_ = 0, key_ = 0, count_ = 0;
};

/// Gradients of those means: each empty row gives every key that it sees the same. From the last key to the first, with
/// a running sum of what the rows give that see it. `add(key, sum)` takes it.
template <typename Element, typename Add>
void spread_empty_rows(
    const Problem& p, const Array& gradient, int64_t batch, int64_t head, float* sum, float* row, const Add& add
) {
    const int64_t padded = round_up(p.size, kLanes);
    const float* log_sum = p.log_sum + (batch * p.heads + head) * p.queries;
    const auto last_empty = [&](int64_t query) {
        while (query >= 0 && log_sum[query] != INFINITY) query--;
        return query;
    };
    int64_t query = last_empty(p.queries - 1);
    if (query < 0) return;
    const int64_t reach = keys_in_reach(p, query);
    int64_t count = 0;  // keys that are seen, up to the one below
    for (int64_t key = 0; key < reach; key++) count += is_seen(p, batch, key);
    std::fill(sum, sum + padded, 0.0f);
    for (int64_t key = reach - 1; key >= 0; key--) {
        for (; query >= 0 && keys_in_reach(p, query) > key; query = last_empty(query - 1)) {
            if (count == 0) continue;
            copy_row(
                head_of<const Element>(gradient, batch, head) + query * gradient.row_stride, p.size, padded, row
            );
            for (int64_t d = 0; d < padded; d += kLanes) store(sum + d, load(sum + d) + load(row + d) / (float)count);
        }
        if (!is_seen(p, batch, key)) continue;
        add(key, sum);
        count--;
    }
}

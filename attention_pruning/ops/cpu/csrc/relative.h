// The relative term of Transformer-XL's scores: q_position_i . r_d for query i, key j and their distance d = i + shift -
// j, computed for the distances of kept blocks alone.
//
// Row n of the position keys is the distance keys - 1 - n, and query i takes row j + queries - 1 - i for key j: what the
// next query takes begins one row earlier. So some queries times a window of rows, [queries][window], hold the scores of
// a block as rows of a smaller stride, and the transposition that brings queries into lanes reads them so. Backward the
// same transposition writes them so, and a gradient of scores becomes one of those products.
#pragma once

#include "rows.h"
#include "scores.h"

/// Queries that share a window of rows. Of a window's products those of its corners are in vain: fewer with fewer.
constexpr int64_t kQueriesAtOnce = 16;

/// Some queries of a block, and the rows that they take for the keys of a visit.
struct Window {
    int64_t lane, queries;  // the first of them in the block; how many, with those that only fill a vector
    int64_t keys;           // of the visit, in whole vectors
    int64_t first, width;   // rows of the position keys; the first may lie a vector before their beginning
};

template <typename Body>
INLINE void for_each_window(const Problem& p, const Queries& queries, const Visit& visit, const Body& body) {
    const int64_t keys = round_up(visit.keys, kLanes), first_key = visit.column * p.layout.block;
    for (int64_t lane = 0; lane < queries.lanes; lane += kQueriesAtOnce) {
        const int64_t count = std::min(kQueriesAtOnce, queries.lanes - lane);
        body(Window{lane, count, keys, first_key + p.queries - (queries.first + lane) - count, count + keys});
    }
}

/// Numbers of a window's products, at most.
inline int64_t window_numbers(const Problem& p) {
    return is_relative(p) ? kQueriesAtOnce * (kQueriesAtOnce + p.layout.block) : 0;
}

/// A row of floats for each distance of a head, with zeros before and after them: windows begin up to a vector early and
/// reach up to two blocks beyond the last row.
class DistanceRows {
  public:
    explicit DistanceRows(const Problem& p)
        : padded(round_up(p.size, kLanes)),
          total(is_relative(p) ? round_up(kBefore + p.keys + 2 * p.layout.block, kLanes) : 0),
          rows_(total * padded) {}

    void clear() const { std::memset(rows_, 0, total * padded * sizeof(float)); }

    /// Rows from `first` on; from -kBefore on there are `total`.
    float* rows(int64_t first) const { return rows_ + (kBefore + first) * padded; }

    static constexpr int64_t kBefore = 16;
    const int64_t padded, total;

  private:
    Buffer rows_;
};

/// The position keys of a head, as rows and, for products over the size of a head, as columns.
template <typename Element>
class PositionKeys {
  public:
    explicit PositionKeys(const Problem& p) : p_(p), rows_(p), columns_(rows_.total * rows_.padded) { rows_.clear(); }

    /// Begin with a head; where it is the one before, nothing is done.
    void start(int64_t head) {
        if (head == head_) return;
        head_ = head;
        const int64_t total = rows_.total, padded = rows_.padded;
        const Element* from = head_of<const Element>(p_.position_keys, 0, head);
        copy_rows(from, p_.position_keys.row_stride, p_.keys, p_.size, p_.keys, padded, rows_.rows(0), 0);
        transpose(rows_.rows(-DistanceRows::kBefore), padded, total, padded, columns_, total, 1.0f);
        prepare_right<Element>(columns_, p_.size, total);
    }

    const float* rows(int64_t first) const { return rows_.rows(first); }

    /// Columns from `first` on, and the right side of a product that begins there.
    const float* columns(int64_t first) const { return columns_ + DistanceRows::kBefore + first; }
    Right right(const float* const* columns) const {
        return {columns, 1, p_.size, p_.size, rows_.total, reads_pairs<Element>()};
    }

  private:
    const Problem& p_;
    const DistanceRows rows_;
    Buffer columns_;
    int64_t head_ = -1;
};

/// The position queries of a block: [lanes][padded], zeros beyond the last.
template <typename Element>
void load_positions(const Problem& p, int64_t batch, int64_t head, const Queries& queries, float* to) {
    const Array& from = p.q_position;
    const Element* rows = head_of<const Element>(from, batch, head) + queries.first * from.row_stride;
    const int64_t padded = round_up(p.size, kLanes), ahead = p.layout.block * from.row_stride;
    copy_rows(rows, from.row_stride, queries.count, p.size, queries.lanes, padded, to, ahead);
}

/// Set scores [keys][lanes] of a visit to the relative term. `products` is space for a window's.
template <typename Element>
void relative_scores(
    const Problem& p, const PositionKeys<Element>& positions, const Queries& queries, const Visit& visit,
    const float* q_position, float* products, float* scores
) {
    const int64_t padded = round_up(p.size, kLanes);
    for_each_window(p, queries, visit, [&](const Window& w) {
        const float* const columns[1] = {positions.columns(w.first)};
        const Left q = {q_position + w.lane * padded, padded, 1};
        multiply_as<Element>(w.queries, w.width, q, positions.right(columns), products, w.width, false);
        transpose(
            products + w.queries - 1, w.width - 1, w.queries, w.keys, scores + w.lane, queries.lanes, p.scale * kLog2E
        );
    });
}

/// What gradients of scores, `ds` [keys][lanes], are for the term of a visit: they are added to those of the block's
/// position queries, [lanes][padded], and of its position keys, whichever is asked for. Written into at its end,
/// `ds` keeps what counts.
template <typename Element>
void add_relative_gradients(
    const Problem& p, const PositionKeys<Element>& positions, const Queries& queries, const Visit& visit,
    const float* q_position, float* products, float* ds, float* to_queries, const DistanceRows* to_keys
) {
    const int64_t padded = round_up(p.size, kLanes), lanes = queries.lanes;
    std::memset(ds + visit.keys * lanes, 0, (round_up(visit.keys, kLanes) - visit.keys) * lanes * sizeof(float));
    for_each_window(p, queries, visit, [&](const Window& w) {
        std::memset(products, 0, w.queries * w.width * sizeof(float));  // its corners are of no cell
        transpose(ds + w.lane, lanes, w.keys, w.queries, products + w.queries - 1, w.width - 1, 1.0f);
        if (to_queries) {
            const float* const rows[1] = {positions.rows(w.first)};
            const Right keys = {rows, 1, w.width, w.width, padded};
            multiply_as<Element>(
                w.queries, padded, {products, w.width, 1}, keys, to_queries + w.lane * padded, padded, true
            );
        }
        if (to_keys) {
            const float* const rows[1] = {q_position + w.lane * padded};
            const Right q = {rows, 1, w.queries, w.queries, padded};
            multiply_as<Element>(
                w.width, padded, {products, 1, w.width}, q, to_keys->rows(w.first), padded, true
            );
        }
    });
}

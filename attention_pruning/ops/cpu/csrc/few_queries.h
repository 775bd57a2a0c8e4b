// Few queries over the keys of a cache, as a step of decoding has them: only kept keys and their values are read. Forward
// only, without dropout.
//
// The queries of the heads that share keys, kTogether at a time, go over the keys that any of them keeps if they keep
// about the same, so that each is read once; else each goes over its own. A key's product with a query is a vector of
// partial sums, and kLanes of these are added up at once, across the lanes.
#pragma once

#include <cmath>

#include "empty_rows.h"
#include "scores.h"

/// Queries that share the reading of keys: as many as leave registers for a row.
constexpr int kTogether = 4;
/// They do where that takes at most so many times the products that they need.
constexpr int64_t kProductsForSharing = 2;
/// How many keys are asked for before they are read: no processor guesses which is kept next.
constexpr int64_t kKeysAhead = 32;

/// Add up each of kLanes vectors: lane i of what is returned is the sum of row i. Each round adds the halves of two
/// vectors into one, and moves one bit of the row's number into the lane's.
INLINE Vector sum_rows(const float* rows) {
    Vector row[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) row[i] = load(rows + i * kLanes);
#pragma GCC unroll 4
    for (int width = kLanes / 2; width > 0; width /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < width; i++)
            row[i] = interleave<0>(row[i], row[i + width]) + interleave<1>(row[i], row[i + width]);
    return row[0];
}

/// Rows of keys or values as vectors. The last one overlaps the one before it where the size is no multiple of a vector.
template <typename Element, bool narrow>
struct VectorsOf {
    int64_t size, vectors;

    explicit VectorsOf(int64_t size) : size(size), vectors(round_up(size, kLanes) / kLanes) {}

    /// The column with which a vector begins.
    INLINE int64_t begin(int64_t n) const { return narrow ? 0 : std::min(n * kLanes, size - kLanes); }

    INLINE Vector read(const Element* row, int64_t n) const {
        if (!narrow) return load(row + begin(n));
        Vector x = splat(0.0f);  // of heads smaller than a vector
        for (int64_t d = 0; d < size; d++) x[d] = to_float(row[d]);
        return x;
    }

    INLINE void write(Vector x, Element* row, int64_t n) const {
        if (!narrow) return store(row + begin(n), x);
        for (int64_t d = 0; d < size; d++) from_float(x[d], row + d);
    }

    /// A row times a factor, without the columns that an earlier vector has.
    void spread(const Element* row, float factor, float* to) const {
        for (int64_t n = 0; n < vectors; n++)
            for (int64_t lane = 0; lane < kLanes; lane++) {
                const int64_t d = begin(n) + lane;
                to[n * kLanes + lane] = d >= n * kLanes && d < size ? factor * to_float(row[d]) : 0.0f;
            }
    }
};

/// A query, and what it sees.
struct Query {
    int64_t head, number;
    const uint8_t* bits;  // its row of the mask
    int64_t columns;      // it sees those below, padding included

    INLINE bool keeps(int64_t column_block) const { return bits[column_block / 8] >> (column_block % 8) & 1; }
};

template <typename Element, bool narrow>
class FewQueries {
  public:
    FewQueries(const Problem& p, const KeptKeys& kept)
        : p_(p),
          kept_(kept),
          vectors_(p.size),
          width_(vectors_.vectors * kLanes),
          room_(round_up(p.keys, kLanes)),
          keys_(p.keys + 1),
          own_(p.keys),
          keepers_(p.keys + 1),
          q_(kTogether * width_),
          scores_(kTogether * room_),
          partial_(kTogether * kLanes * kLanes),
          out_(kTogether * width_) {
        empty_.reserve(kTogether);  // so that nothing grows, and nothing can fail, while threads run
        std::memset(partial_, 0, kTogether * kLanes * kLanes * sizeof(float));
    }

    /// How many runs of queries share a head of keys.
    static int64_t runs(const Problem& p) { return (group_size(p) * p.queries + kTogether - 1) / kTogether; }

    /// One run of the queries of a head of keys.
    void run(int64_t batch, int64_t kv_head, int64_t number) {
        const int64_t group = group_size(p_), first = number * kTogether;
        count_ = std::min<int64_t>(kTogether, group * p_.queries - first);
        for (int64_t i = 0; i < count_; i++) {
            const int64_t query = (first + i) / group;
            queries_[i] = query_of(batch, kv_head * group + (first + i) % group, query);
        }
        const bool same_for_all = !kept_.starts && !kept_.columns && !p_.key_seen;
        if (!same_for_all || kv_head != kv_head_ || number != number_) find_keys(batch, kv_head);
        kv_head_ = kv_head, number_ = number;
        k_ = head_of<const Element>(p_.k, batch, kv_head), v_ = head_of<const Element>(p_.v, batch, kv_head);
        int64_t products = 0;
        for (int64_t i = 0; i < count_; i++) products += kept_by_[i];
        if (!is_relative(p_) && count_ > 1 && found_ * count_ <= kProductsForSharing * products)
            return attend(batch, kv_head, 0, count_, keys_.data(), found_);
        for (int64_t i = 0; i < count_; i++) {
            if (count_ == 1) return attend(batch, kv_head, 0, 1, keys_.data(), found_);
            int64_t own = 0;
            for (int64_t at = 0; at < found_; at++) {
                own_[own] = keys_[at];
                own += keepers_[at] >> i & 1;
            }
            attend(batch, kv_head, i, 1, own_.data(), own);
        }
    }

  private:
    Query query_of(int64_t batch, int64_t head, int64_t number) const {
        const int64_t start = kept_.starts ? kept_.starts[batch] : 0, row = p_.first_row + number - start;
        int64_t columns = kept_.columns ? kept_.row_bytes * 8 * kept_.block : p_.keys - start;
        if (p_.causal) columns = std::min(columns, number + p_.shift - start + 1);
        if (row < 0) columns = 0;  // padding before the sequence
        const int64_t row_block = std::max<int64_t>(row, 0) / kept_.block;
        const uint8_t* bits = kept_.bits + (head * kept_.row_blocks + row_block) * kept_.row_bytes;
        return {head, number, bits, std::max<int64_t>(columns, 0)};
    }

    /// List the keys that any query of the run keeps and sees, and which do.
    void find_keys(int64_t batch, int64_t kv_head) {
        int64_t columns = 0;
        found_ = 0, seen_by_all_ = INT64_MAX;
        for (int64_t i = 0; i < count_; i++) {
            kept_by_[i] = 0;
            columns = std::max(columns, queries_[i].columns);
            seen_by_all_ = std::min(seen_by_all_, queries_[i].columns);
        }
        if (kept_.columns) {
            const int32_t* places = columns_of(batch, kv_head);
            for (int64_t key = 0; key < p_.keys; key++) {
                const int32_t at = places[key];
                if (at >= 0) add(batch, key - at, at, at + 1, keepers_of((uint32_t)at / (uint32_t)kept_.block));
            }
        }
        const int64_t start = kept_.starts ? kept_.starts[batch] : 0;
        for (int64_t first = 0; !kept_.columns && first * kept_.block < columns; first += 64) {
            uint64_t any = 0, all = ~0ull;
            for (int64_t i = 0; i < count_; i++) {
                uint64_t word;
                std::memcpy(&word, queries_[i].bits + first / 8, sizeof word);
                any |= word, all &= word;
            }
            const int same = any == all ? (1 << count_) - 1 : 0;
            for (; any; any &= any - 1) {
                const int64_t block = first + __builtin_ctzll(any), begin = block * kept_.block;
                if (begin >= columns) break;
                add(batch, start, begin, std::min(begin + kept_.block, columns), same ? same : keepers_of(block));
            }
        }
        for (int64_t i = 0; i < count_; i++)
            for (int64_t at = 0; at < found_; at++) kept_by_[i] += keepers_[at] >> i & 1;
    }

    INLINE int keepers_of(int64_t column_block) const {
        int keepers = 0;
        for (int64_t i = 0; i < count_; i++)
            if (column_block < kept_.row_bytes * 8) keepers |= queries_[i].keeps(column_block) << i;
        return keepers;
    }

    /// Add the keys in columns of one block, of which those of the cache lie `start` further.
    INLINE void add(int64_t batch, int64_t start, int64_t begin, int64_t end, int keepers) {
        for (int64_t column = begin; column < end; column++) {
            int seen_by = keepers;
            if (column >= seen_by_all_)
                for (int64_t i = 0; i < count_; i++) seen_by &= ~((column >= queries_[i].columns) << i);
            keys_[found_] = start + column;
            keepers_[found_] = seen_by;
            found_ += seen_by != 0 && is_seen(p_, batch, start + column);
        }
    }

    const int32_t* columns_of(int64_t batch, int64_t kv_head) const {
        return kept_.columns + batch * kept_.columns_strides[0] + kv_head * kept_.columns_strides[1];
    }

    /// `count` queries of the run from `first` on, over the same keys.
    void attend(int64_t batch, int64_t kv_head, int64_t first, int64_t count, const int32_t* keys, int64_t found) {
        for (int64_t i = 0; i < count; i++) {
            const Query& query = queries_[first + i];
            const Element* row = head_of<const Element>(p_.q, batch, query.head) + query.number * p_.q.row_stride;
            vectors_.spread(row, p_.scale * kLog2E, q_ + i * width_);
        }
        for_count(count, [&](auto n) { products<decltype(n)::value>(k_, p_.k.row_stride, keys, found, false); });
        for (int64_t i = 0; i < count; i++) finish_scores(batch, queries_[first + i], i, first, count, keys, found);
        float totals[kTogether];
        for (int64_t i = 0; i < count; i++) totals[i] = softmax(scores_ + i * room_, found);
        for_count(count, [&](auto n) { weigh<decltype(n)::value>(keys, found); });
        for (int64_t i = 0; i < count; i++) {
            const Query& query = queries_[first + i];
            Element* to = head_of<Element>(p_.out, batch, query.head) + query.number * p_.out.row_stride;
            if (totals[i] > 0.0f)
                write(out_ + i * width_, 1.0f / totals[i], to);
            else
                empty_.push_back({query, to});
        }
        // After the others: it takes the place of their scores.
        for (const auto& [query, to] : empty_) write_mean(batch, kv_head, query, to);
        empty_.clear();
    }

    template <typename Body>
    static INLINE void for_count(int64_t count, const Body& body) {
        if (count == 1) return body(std::integral_constant<int, 1>{});
        if (count == 2) return body(std::integral_constant<int, 2>{});
        if (count == 3) return body(std::integral_constant<int, 3>{});
        body(std::integral_constant<int, kTogether>{});
    }

    /// Scores [n][room_] of queries in q_ and rows of keys, added to what is there with `more`.
    template <int n>
    void products(const Element* rows, int64_t stride, const int32_t* keys, int64_t found, bool more) const {
        if (vectors_.vectors == 1) return products_of<n, 1>(rows, stride, keys, found, more);
        if (vectors_.vectors == 2) return products_of<n, 2>(rows, stride, keys, found, more);
        if (vectors_.vectors == 4) return products_of<n, 4>(rows, stride, keys, found, more);
        products_of<n, 0>(rows, stride, keys, found, more);
    }

    /// The same for a row of `wide` vectors; 0: of any number.
    template <int n, int wide>
    void products_of(const Element* rows, int64_t stride, const int32_t* keys, int64_t found, bool more) const {
        const int64_t vectors = wide ? wide : vectors_.vectors;
        for (int64_t at = 0; at < found; at += kLanes) {
            const int64_t count = std::min<int64_t>(kLanes, found - at);
            for (int64_t j = 0; j < count; j++) {
                prefetch_row(rows + keys[std::min(at + j + kKeysAhead, found - 1)] * stride, p_.size);
                const Element* row = rows + keys[at + j] * stride;
                Vector sums[n];
#pragma GCC unroll 4
                for (int i = 0; i < n; i++) sums[i] = splat(0.0f);
#pragma GCC unroll 4
                for (int64_t d = 0; d < vectors; d++) {
                    const Vector x = vectors_.read(row, d);
#pragma GCC unroll 4
                    for (int i = 0; i < n; i++) sums[i] += x * load(q_ + i * width_ + d * kLanes);
                }
#pragma GCC unroll 4
                for (int i = 0; i < n; i++) store(partial_ + (i * kLanes + j) * kLanes, sums[i]);
            }
            for (int i = 0; i < n; i++) {
                float* to = scores_ + i * room_ + at;
                const Vector sums = sum_rows(partial_ + i * kLanes * kLanes);
                store(to, more ? load(to) + sums : sums);
            }
        }
    }

    /// The relative term, the bias, and what a query of several does not keep.
    void finish_scores(
        int64_t batch, const Query& query, int64_t i, int64_t first, int64_t count, const int32_t* keys, int64_t found
    ) {
        float* scores = scores_ + i * room_;
        if (is_relative(p_)) {  // then there is one query, whose row of the position keys is this many after the key's
            const Array &from = p_.q_position, &rows = p_.position_keys;
            const Element* row = head_of<const Element>(from, batch, query.head) + query.number * from.row_stride;
            vectors_.spread(row, p_.scale * kLog2E, q_);
            const int64_t after = p_.queries - 1 - query.number;
            const Element* position_keys = head_of<const Element>(rows, 0, query.head) + after * rows.row_stride;
            products<1>(position_keys, rows.row_stride, keys, found, true);
        }
        if (p_.bias) {
            const int64_t* strides = p_.bias_strides;
            const float* bias = p_.bias + batch * strides[0] + query.head * strides[1] + query.number * strides[2];
            for (int64_t at = 0; at < found; at++) scores[at] += kLog2E * bias[keys[at] * strides[3]];
        }
        if (count > 1 && kept_by_[first + i] < found)
            for (int64_t at = 0; at < found; at++)
                if (!(keepers_[at] >> (first + i) & 1)) scores[at] = -INFINITY;
    }

    /// Turn scores into numerators; their sum is returned, 0 where none counts.
    float softmax(float* scores, int64_t found) const {
        const int64_t whole = round_up(found, kLanes);
        std::fill(scores + found, scores + whole, -INFINITY);
        Vector top = splat(-1e30f);  // finite: scores of -inf alone must not give NaN
        for (int64_t at = 0; at < whole; at += kLanes) top = larger(load(scores + at), top);
        float highest = top[0];
        for (int lane = 1; lane < kLanes; lane++) highest = std::max(highest, top[lane]);
        Vector total = splat(0.0f);
        for (int64_t at = 0; at < whole; at += kLanes) {
            const Vector e = exp2(load(scores + at) - highest);
            store(scores + at, e);
            total += e;
        }
        return sum(total);
    }

    /// out_ [n][width_] = scores_ V, of these keys.
    template <int n>
    void weigh(const int32_t* keys, int64_t found) const {
        // As many sums as leave registers for a row: each time over the keys takes their memory anew.
        constexpr int wide = kRegisters == 32 ? (n <= 2 ? 8 : 4) : n == 1 ? 8 : n == 4 ? 2 : 4;
        int64_t d = 0;
        for (; d + wide <= vectors_.vectors; d += wide) weigh_columns<n, wide>(keys, found, d);
        if constexpr (wide > 4)
            for (; d + 4 <= vectors_.vectors; d += 4) weigh_columns<n, 4>(keys, found, d);
        if constexpr (wide > 2)
            for (; d + 2 <= vectors_.vectors; d += 2) weigh_columns<n, 2>(keys, found, d);
        for (; d < vectors_.vectors; d++) weigh_columns<n, 1>(keys, found, d);
    }

    template <int n, int wide>
    void weigh_columns(const int32_t* keys, int64_t found, int64_t d) const {
        constexpr int ways = n * wide <= 4 ? 2 : 1;  // sums of their own: an addition waits for the one before it
        Vector sums[ways][n][wide];
        for (auto& way : sums)
            for (auto& query : way)
                for (Vector& x : query) x = splat(0.0f);
        const auto add = [&](auto way, int64_t at) __attribute__((always_inline)) {
            prefetch_row(v_ + keys[std::min(at + kKeysAhead, found - 1)] * p_.v.row_stride, p_.size);
            const Element* row = v_ + keys[at] * p_.v.row_stride;
#pragma GCC unroll 8
            for (int j = 0; j < wide; j++) {
                const Vector x = vectors_.read(row, d + j);
#pragma GCC unroll 4
                for (int i = 0; i < n; i++) sums[decltype(way)::value][i][j] += x * splat(scores_[i * room_ + at]);
            }
        };
        int64_t at = 0;
        if (ways == 2)
            for (; at + 2 <= found; at += 2) {
                add(std::integral_constant<int, 0>{}, at);
                add(std::integral_constant<int, ways - 1>{}, at + 1);
            }
        for (; at < found; at++) add(std::integral_constant<int, 0>{}, at);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < wide; j++)
                store(out_ + i * width_ + (d + j) * kLanes, ways == 2 ? sums[0][i][j] + sums[ways - 1][i][j] : sums[0][i][j]);
    }

    void write(const float* from, float factor, Element* to) const {
        for (int64_t n = 0; n < vectors_.vectors; n++) vectors_.write(load(from + n * kLanes) * factor, to, n);
    }

    /// The mean of the values that a query sees; 0 if there are none.
    void write_mean(int64_t batch, int64_t kv_head, const Query& query, Element* to) {
        const int32_t* columns = kept_.columns ? columns_of(batch, kv_head) : nullptr;
        const int64_t start = kept_.starts ? kept_.starts[batch] : 0;
        int64_t seen = 0;
        for (int64_t key = columns ? 0 : start; key < p_.keys; key++) {
            const int64_t column = columns ? columns[key] : key - start;
            own_[seen] = key;
            scores_[seen] = 1.0f;
            seen += column >= 0 && column < query.columns && is_seen(p_, batch, key);
        }
        weigh<1>(own_.data(), seen);
        write(out_, 1.0f / std::max<int64_t>(seen, 1), to);
    }

    const Problem& p_;
    const KeptKeys& kept_;
    const VectorsOf<Element, narrow> vectors_;
    const int64_t width_, room_;
    std::vector<int32_t> keys_, own_;
    std::vector<uint8_t> keepers_;
    Buffer q_, scores_, partial_, out_;
    Query queries_[kTogether];
    int64_t count_ = 0, found_ = 0, seen_by_all_ = 0, kept_by_[kTogether];
    int64_t kv_head_ = -1, number_ = -1;
    const Element *k_ = nullptr, *v_ = nullptr;
    std::vector<std::pair<Query, Element*>> empty_;
};

template <typename Element, bool narrow>
void few_queries(const Problem& p, const KeptKeys& kept) {
    typedef FewQueries<Element, narrow> Space;
    const int64_t runs = Space::runs(p), tasks = p.kv_heads * runs * p.batch, threads = std::min(p.threads, tasks);
    std::vector<std::unique_ptr<Space>> spaces;  // here: an exception must not leave a thread
    for (int64_t thread = 0; thread < threads; thread++) spaces.push_back(std::make_unique<Space>(p, kept));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; task++)  // sequences one after the other: they share a list of keys
        spaces[thread_number()]->run(task % p.batch, task / (p.batch * runs), task / p.batch % runs);
}

template <typename Element>
void few_queries(const Problem& p, const KeptKeys& kept) {
    p.size < kLanes ? few_queries<Element, true>(p, kept) : few_queries<Element, false>(p, kept);
}

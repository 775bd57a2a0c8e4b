// Backward pass: probabilities are computed again from the log-sum-exp, block by block (Dao et al., 2022, algorithm 4).
#pragma once

#include "empty_rows.h"
#include "forward.h"

/// Gradients of one head of keys and values, summed up in dense rows. A block is first written, then added to.
template <typename Element>
class HeadSums {
  public:
    HeadSums(int64_t rows, int64_t size, int64_t block)
        : rows_(rows),
          size_(size),
          padded_(round_up(size, kLanes)),
          block_(block),
          begun_((rows + block - 1) / block),
          sums_(round_up(rows, 16) * padded_) {}  // a product in tiles writes 16 rows at once

    void start() { std::fill(begun_.begin(), begun_.end(), 0); }

    /// Add A B to a block.
    void add(const Visit& visit, Left a, Right b) {
        float* to = sums_ + visit.column * block_ * padded_;
        multiply_as<Element>(visit.keys, padded_, a, b, to, padded_, begun_[visit.column]);
        begun_[visit.column] = 1;
    }

    /// Add one row.
    void add_row(int64_t row, const float* x) {
        const int64_t block = row / block_, first = block * block_;
        if (!begun_[block])
            std::memset(sums_ + first * padded_, 0, std::min(block_, rows_ - first) * padded_ * sizeof(float));
        begun_[block] = 1;
        float* to = sums_ + row * padded_;
        for (int64_t d = 0; d < padded_; d += kLanes) store(to + d, load(to + d) + load(x + d));
    }

    /// Write everything, times a factor; zeros for blocks that no query kept.
    void write(float factor, Element* to, int64_t stride, bool streams) const {
        for (int64_t row = 0; row < rows_; row++) {
            if (begun_[row / block_])
                write_row(sums_ + row * padded_, size_, factor, to + row * stride, streams);
            else
                std::memset(to + row * stride, 0, size_ * sizeof(Element));
        }
    }

  private:
    int64_t rows_, size_, padded_, block_;
    std::vector<char> begun_;
    Buffer sums_;
};

/// What the queries of a head of keys and values, `group_size` heads of them, add up to.
template <typename Element>
struct KeyGradients {
    explicit KeyGradients(const Problem& p)
        : k(p.keys, p.size, p.layout.block), v(p.keys, p.size, p.layout.block), sum(round_up(p.size, kLanes)),
          row(round_up(p.size, kLanes)) {}

    void start() { k.start(), v.start(); }

    /// After all blocks of queries: what empty rows add, then everything is written.
    void finish(const Problem& p, const Gradients& to, int64_t batch, int64_t kv_head) {
        for (int64_t head = kv_head * group_size(p); head < (kv_head + 1) * group_size(p); head++)
            spread_empty_rows<Element>(p, to.out, batch, head, sum, row, [&](int64_t key, const float* x) {
                v.add_row(key, x);
            });
        const bool streams_k = should_stream(p, to.k, p.kv_heads, p.keys);
        const bool streams_v = should_stream(p, to.v, p.kv_heads, p.keys);
        k.write(p.scale, head_of<Element>(to.k, batch, kv_head), to.k.row_stride, streams_k);
        v.write(1.0f, head_of<Element>(to.v, batch, kv_head), to.v.row_stride, streams_v);
    }

    HeadSums<Element> k, v;
    Buffer sum, row;
};

/// What one thread needs to turn a block of queries into gradients of scores.
template <typename Element>
struct BackwardSpace {
    BackwardSpace(const Problem& p, const Gradients& to)
        : padded(round_up(p.size, kLanes)),
          blocks_at_once(std::max<int64_t>(1, kKeysAtOnce / p.layout.block)),
          streams_q(should_stream(p, to.q, p.heads, p.queries)),
          k(p, p.k),
          v(p, p.v),
          q_t(p.layout.block * padded),
          out(padded),
          g_t(p.layout.block * padded),
          q_sums(p.layout.block * padded),
          position_sums(is_relative(p) ? p.layout.block * padded : 0),
          positions(p),
          products(window_numbers(p)),
          log_sum(p.layout.block),
          delta(p.layout.block) {
        visits.reserve(p.layout.key_blocks);
        k_blocks.reserve(blocks_at_once);
    }

    int64_t padded, blocks_at_once;
    bool streams_q;
    HeadRows<Element> k, v;
    Buffer q_t, out, g_t, q_sums, position_sums;
    PositionKeys<Element> positions;
    Buffer products, log_sum, delta;
    std::vector<Visit> visits;
    std::vector<const float*> k_blocks;
};

/// Scores in `p_at` and dP = V dO^T in `ds_at` become dropped-out probabilities and the gradient of the scores.
///
/// With P the probabilities, M the dropout mask over 1 - dropout: dP = M (V dO^T), dS = P (dP - delta), and delta, the
/// sum of P dP over the keys, is the product of a row of dO and its output.
template <typename Element>
void score_gradients(
    const Problem& p, const Visit& visit, int64_t lanes, const BackwardSpace<Element>& space, const Dropout& dropout,
    float* probabilities, float* ds
) {
    const float raise = 1.0f / (1.0f - p.dropout);
    for (int64_t lane = 0; lane < lanes; lane += kLanes) {
        const Vector log_sum = load(space.log_sum + lane), delta = load(space.delta + lane);
        for (int64_t row = 0; row < visit.keys; row++) {
            float* p_at = probabilities + row * lanes + lane;
            float* ds_at = ds + row * lanes + lane;
            const Vector probability = exp2(load(p_at) - log_sum);
            if (!dropout.on()) {
                store(p_at, probability);
                store(ds_at, probability * (load(ds_at) - delta));
                continue;
            }
            const int64_t key = visit.column * p.layout.block + row;
            store(p_at, dropout.keep(probability * raise, lane, key));
            store(ds_at, probability * (dropout.keep(load(ds_at) * raise, lane, key) - delta));
        }
    }
}

/// Add the gradient of a block's scores to that of the bias.
inline void add_bias_gradient(
    const Problem& p, const Gradients& to, const Place& at, const Visit& visit, const float* ds
) {
    const Queries& queries = at.queries;
    const int64_t* strides = to.bias_strides;
    float* bias = to.bias + at.batch * strides[0] + at.head * strides[1] + queries.first * strides[2] +
                  visit.column * p.layout.block * strides[3];
    for (int64_t row = 0; row < visit.keys; row++)
        for (int64_t query = 0; query < queries.count; query++)
            bias[query * strides[2] + row * strides[3]] += ds[row * queries.lanes + query];
}

/// What a block of queries needs: q and dO, as they are and transposed, for products; delta and the log-sum-exp.
template <typename Element>
void load_queries(
    const Problem& p, const Gradients& to, const Place& at, BackwardSpace<Element>& space, float* q_rows, float* g_rows
) {
    const auto [batch, head, queries] = at;
    const int64_t block = p.layout.block, lanes = queries.lanes, padded = space.padded, first = queries.first;
    const Element* q = head_of<Element>(p.q, batch, head) + first * p.q.row_stride;
    const Element* g = head_of<Element>(to.out, batch, head) + first * to.out.row_stride;
    const Element* out = head_of<Element>(p.out, batch, head) + first * p.out.row_stride;
    copy_rows(q, p.q.row_stride, queries.count, p.size, lanes, padded, q_rows, block * p.q.row_stride);
    copy_rows(g, to.out.row_stride, queries.count, p.size, lanes, padded, g_rows, block * to.out.row_stride);
    transpose_queries<Element>(q_rows, lanes, p.size, padded, p.scale * kLog2E, space.q_t);
    transpose_queries<Element>(g_rows, lanes, p.size, padded, 1.0f, space.g_t);
    const float* log_sum = p.log_sum + (batch * p.heads + head) * p.queries + first;
    for (int64_t row = 0; row < lanes; row++) {
        // 2^(x - inf) = 0: beyond the end is nothing
        space.log_sum[row] = row < queries.count ? log_sum[row] : INFINITY;
        space.delta[row] = 0.0f;
        if (row >= queries.count) continue;
        prefetch_row(out + (row + block) * p.out.row_stride, p.size);
        copy_row(out + row * p.out.row_stride, p.size, padded, space.out);
        Vector product = splat(0.0f);
        for (int64_t d = 0; d < padded; d += kLanes)
            product += load(space.out + d) * load(g_rows + row * padded + d);
        space.delta[row] = sum(product);
    }
    prepare_right<Element>(q_rows, queries.count, padded);
    prepare_right<Element>(g_rows, queries.count, padded);
}

/// Where the matrices of a block of queries are, and whether those of all its visits stay or of the latest only.
struct Matrices {
    float *q, *g;       // [lanes][padded], prepared for products
    float* q_position;  // [lanes][padded], if there is a relative term
    float *p, *ds;      // [visits][keys][lanes]
    bool stay;
    int64_t square;  // numbers of a visit

    float* p_at(int64_t visit) const { return p + (stay ? visit * square : 0); }
    float* ds_at(int64_t visit) const { return ds + visit * square; }
};

/// Write the sums of a block of queries, [lanes][padded]; zeros without any.
template <typename Element>
void write_queries(const Problem& p, const Array& to, const Place& at, const float* sums, bool streams) {
    const int64_t padded = round_up(p.size, kLanes);
    Element* row = head_of<Element>(to, at.batch, at.head) + at.queries.first * to.row_stride;
    for (int64_t i = 0; i < at.queries.count; i++, row += to.row_stride) {
        if (sums)
            write_row(sums + i * padded, p.size, p.scale, row, streams);
        else
            std::memset(row, 0, p.size * sizeof(Element));
    }
}

/// The gradient of a block of queries, and `after(visit, p, ds)` for each of its visits, which has to add to the sums of
/// the position queries, `space.position_sums`.
template <typename Element, typename After>
void backward_block(
    const Problem& p, const Gradients& to, const Place& at, const std::vector<Visit>& visits, const Matrices& matrices,
    BackwardSpace<Element>& space, const After& after
) {
    const auto [batch, head, queries] = at;
    const int64_t lanes = queries.lanes, padded = space.padded;
    if (visits.empty()) {
        write_queries<Element>(p, to.q, at, nullptr, false);
        if (is_relative(p)) write_queries<Element>(p, to.q_position, at, nullptr, false);
        return;
    }
    space.k.start(batch, head / group_size(p));
    space.v.start(batch, head / group_size(p));
    const Visibility visibility(p, batch, head, queries);
    load_queries(p, to, at, space, matrices.q, matrices.g);
    if (is_relative(p)) {
        space.positions.start(head);
        load_positions<Element>(p, batch, head, queries, matrices.q_position);
        std::memset(space.position_sums, 0, lanes * padded * sizeof(float));
    }
    Dropout dropout(p);
    dropout.start((batch * p.heads + head) * p.queries + queries.first, lanes);
    for (int64_t start = 0; start < (int64_t)visits.size(); start += space.blocks_at_once) {
        const Visit* here = visits.data() + start;
        const int64_t count = std::min<int64_t>(space.blocks_at_once, visits.size() - start);
        float* const first_ds = matrices.ds_at(matrices.stay ? start : 0);
        float* ds = first_ds;
        space.k_blocks.clear();
        for (int64_t n = 0; n < count; n++, ds += matrices.square) {
            const Visit& visit = here[n];
            float* p_at = matrices.p_at(start + n);
            if (is_relative(p))
                relative_scores(p, space.positions, queries, visit, matrices.q_position, space.products, p_at);
            block_products<Element>(
                space.k.left(visit.column), visit, space.q_t, p.size, lanes, p_at, is_relative(p)
            );
            block_products<Element>(space.v.left(visit.column), visit, space.g_t, p.size, lanes, ds);
            if (p.bias) add_bias(p, batch, head, queries, visit, p_at);
            if (!visit.whole) visibility.hide(visit, -INFINITY, p_at);
            score_gradients(p, visit, lanes, space, dropout, p_at, ds);
            after(visit, p_at, ds);
            space.k_blocks.push_back(space.k.block(visit.column));
        }
        const Right keys = space.k.right(space.k_blocks.data(), count, here[count - 1].keys);
        multiply_as<Element>(queries.count, padded, {first_ds, 1, lanes}, keys, space.q_sums, padded, start > 0);
    }
    write_queries<Element>(p, to.q, at, space.q_sums, space.streams_q);
    if (is_relative(p)) write_queries<Element>(p, to.q_position, at, space.position_sums, false);
}

/// What the matrices of a block of queries and one of its visits add to the gradients of keys and values.
template <typename Element>
void add_visit(
    const Queries& queries, const Visit& visit, const Matrices& matrices, const float* p_at, const float* ds,
    int64_t padded, KeyGradients<Element>& sums
) {
    const float* const q_rows[1] = {matrices.q};
    const float* const g_rows[1] = {matrices.g};
    sums.v.add(visit, {p_at, queries.lanes, 1}, prepared_right<Element>(g_rows, queries.count, padded));
    sums.k.add(visit, {ds, queries.lanes, 1}, prepared_right<Element>(q_rows, queries.count, padded));
}

// Backward pass: probabilities are computed again from the log-sum-exp, block by block (Dao et al., 2022, algorithm 4).
#pragma once

#include "forward.h"

/// Gradients of the keys or values of one head, summed up in dense rows. A block is first written, then added to.
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

template <typename Element>
struct BackwardSpace {
    BackwardSpace(const Problem& p, const Gradients& to)
        : padded(round_up(p.size, kLanes)),
          blocks_at_once(std::max<int64_t>(1, kKeysAtOnce / p.layout.block)),
          streams_q(should_stream(p, to.q, p.queries)),
          streams_k(should_stream(p, to.k, p.keys)),
          streams_v(should_stream(p, to.v, p.keys)),
          k(p, p.k),
          v(p, p.v),
          k_sums(p.keys, p.size, p.layout.block),
          v_sums(p.keys, p.size, p.layout.block),
          q(p.layout.block * padded),
          q_t(p.layout.block * padded),
          out(padded),
          g(p.layout.block * padded),
          g_t(p.layout.block * padded),
          q_sums(p.layout.block * padded),
          p(p.layout.block * p.layout.block),
          ds(blocks_at_once * p.layout.block * p.layout.block),
          log_sum(p.layout.block),
          delta(p.layout.block) {
        visits.reserve(p.layout.key_blocks);
        k_blocks.reserve(blocks_at_once);
    }

    int64_t padded, blocks_at_once;
    bool streams_q, streams_k, streams_v;
    HeadRows<Element> k, v;
    HeadSums<Element> k_sums, v_sums;
    Buffer q, q_t, out, g, g_t, q_sums, p, ds, log_sum, delta;
    std::vector<Visit> visits;
    std::vector<const float*> k_blocks;
};

/// Scores in `p` and dP = V dO^T in `ds` become dropped-out probabilities and the gradient of the scores.
///
/// With P the probabilities, M the dropout mask over 1 - dropout: dP = M (V dO^T), dS = P (dP - delta), and delta, the
/// sum of P dP over the keys, is the product of a row of dO and its output.
template <typename Element>
void score_gradients(
    const Problem& p, const Visit& visit, BackwardSpace<Element>& space, const Dropout& dropout, float* ds
) {
    const int64_t block = p.layout.block;
    const float raise = 1.0f / (1.0f - p.dropout);
    for (int64_t lane = 0; lane < block; lane += kLanes) {
        const Vector log_sum = load(space.log_sum + lane), delta = load(space.delta + lane);
        for (int64_t row = 0; row < visit.keys; row++) {
            float* p_at = space.p + row * block + lane;
            float* ds_at = ds + row * block + lane;
            const Vector probability = exp2(load(p_at) - log_sum);
            if (!dropout.on()) {
                store(p_at, probability);
                store(ds_at, probability * (load(ds_at) - delta));
                continue;
            }
            const int64_t key = visit.column * block + row;
            store(p_at, dropout.keep(probability * raise, lane, key));
            store(ds_at, probability * (dropout.keep(load(ds_at) * raise, lane, key) - delta));
        }
    }
}

/// Copy the gradient of a block's scores out, as the gradient of the bias.
inline void write_bias_gradient(
    const Problem& p, const Gradients& to, int64_t batch, int64_t head, int64_t query_block, const Visit& visit,
    const float* ds
) {
    const int64_t block = p.layout.block, first = query_block * block;
    const int64_t queries = std::min(block, p.queries - first);
    const int64_t* strides = to.bias_strides;
    float* bias = to.bias + batch * strides[0] + head * strides[1] + first * strides[2];
    bias += visit.column * block * strides[3];
    for (int64_t row = 0; row < visit.keys; row++)
        for (int64_t query = 0; query < queries; query++)
            bias[query * strides[2] + row * strides[3]] = ds[row * block + query];
}

/// What a block of queries needs: q and dO, as they are and transposed, delta and the log-sum-exp.
template <typename Element>
void load_queries(
    const Problem& p, const Gradients& to, int64_t batch, int64_t head, int64_t first, BackwardSpace<Element>& space
) {
    const int64_t block = p.layout.block, padded = space.padded, queries = std::min(block, p.queries - first);
    const Element* q = head_of<Element>(p.q, batch, head) + first * p.q.row_stride;
    const Element* g = head_of<Element>(to.out, batch, head) + first * to.out.row_stride;
    const Element* out = head_of<Element>(p.out, batch, head) + first * p.out.row_stride;
    copy_rows(q, p.q.row_stride, queries, p.size, block, padded, space.q, block * p.q.row_stride);
    copy_rows(g, to.out.row_stride, queries, p.size, block, padded, space.g, block * to.out.row_stride);
    transpose(space.q, padded, block, padded, space.q_t, block, p.scale * kLog2E);
    transpose(space.g, padded, block, padded, space.g_t, block, 1.0f);
    const float* log_sum = p.log_sum + (batch * p.heads + head) * p.queries + first;
    for (int64_t row = 0; row < block; row++) {
        space.log_sum[row] = row < queries ? log_sum[row] : INFINITY;  // 2^(x - inf) = 0: beyond the end is nothing
        space.delta[row] = 0.0f;
        if (row >= queries) continue;
        prefetch_row(out + (row + block) * p.out.row_stride, p.size);
        copy_row(out + row * p.out.row_stride, p.size, padded, space.out);
        Vector product = splat(0.0f);
        for (int64_t d = 0; d < padded; d += kLanes) product += load(space.out + d) * load(space.g + row * padded + d);
        space.delta[row] = sum(product);
    }
}

template <typename Element>
void backward_block(
    const Problem& p, const Gradients& to, int64_t batch, int64_t head, int64_t query_block,
    BackwardSpace<Element>& space
) {
    const int64_t block = p.layout.block, first = query_block * block, padded = space.padded;
    const int64_t queries = std::min(block, p.queries - first);
    Element* q_gradient = head_of<Element>(to.q, batch, head) + first * to.q.row_stride;
    const Visibility visibility(p, batch, head);
    visibility.visits(query_block, space.visits);
    if (space.visits.empty()) {
        for (int64_t row = 0; row < queries; row++)
            std::memset(q_gradient + row * to.q.row_stride, 0, p.size * sizeof(Element));
        return;
    }
    load_queries(p, to, batch, head, first, space);
    Dropout dropout(p);
    dropout.start(((uint64_t)batch * p.heads + head) * p.queries + first, block);
    const float* const q_rows[1] = {space.q};
    const float* const g_rows[1] = {space.g};
    const Right q_right = {q_rows, 1, block, queries, padded}, g_right = {g_rows, 1, block, queries, padded};

    const int64_t visits = space.visits.size();
    for (int64_t start = 0; start < visits; start += space.blocks_at_once) {
        const Visit* here = space.visits.data() + start;
        const int64_t count = std::min(space.blocks_at_once, visits - start);
        space.k_blocks.clear();
        float* ds = space.ds;
        for (int64_t n = 0; n < count; n++, ds += block * block) {
            const Visit& visit = here[n];
            block_products<Element>(space.k.left(visit.column), visit, space.q_t, p.size, block, space.p);
            block_products<Element>(space.v.left(visit.column), visit, space.g_t, p.size, block, ds);
            if (p.bias) add_bias(p, batch, head, query_block, visit, space.p);
            if (!visit.whole) visibility.hide(visit, query_block, -INFINITY, space.p);
            score_gradients(p, visit, space, dropout, ds);
            if (to.bias) write_bias_gradient(p, to, batch, head, query_block, visit, ds);
            space.v_sums.add(visit, {space.p, block, 1}, g_right);
            space.k_sums.add(visit, {ds, block, 1}, q_right);
            space.k_blocks.push_back(space.k.block(visit.column));
        }
        const Right keys = space.k.right(space.k_blocks.data(), count, here[count - 1].keys);
        multiply_as<Element>(queries, padded, {space.ds, 1, block}, keys, space.q_sums, padded, start > 0);
    }
    for (int64_t row = 0; row < queries; row++)
        write_row(space.q_sums + row * padded, p.size, p.scale, q_gradient + row * to.q.row_stride, space.streams_q);
}

/// Heads are shared out over the threads. A head is one thread's: its sums over queries have one order, always.
template <typename Element>
void backward(const Problem& p, const Gradients& to) {
    const int64_t block = p.layout.block, blocks = (p.queries + block - 1) / block;
    std::vector<std::unique_ptr<BackwardSpace<Element>>> spaces;
    for (int64_t thread = 0; thread < p.threads; thread++)
        spaces.push_back(std::make_unique<BackwardSpace<Element>>(p, to));
#pragma omp parallel num_threads(p.threads)
    {
        BackwardSpace<Element>& space = *spaces[thread_number()];
        begin_products<Element>();
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < p.batch * p.heads; task++) {
            const int64_t batch = task / p.heads, head = task % p.heads;
            space.k.start(batch, head);
            space.v.start(batch, head);
            space.k_sums.start();
            space.v_sums.start();
            for (int64_t b = 0; b < blocks; b++) backward_block(p, to, batch, head, b, space);
            space.k_sums.write(p.scale, head_of<Element>(to.k, batch, head), to.k.row_stride, space.streams_k);
            space.v_sums.write(1.0f, head_of<Element>(to.v, batch, head), to.v.row_stride, space.streams_v);
        }
        end_products<Element>();
        finish_streams();
    }
}

// Forward pass: attention over the kept blocks with an online softmax (Milakov and Gimelshein, 2018; Dao et al., 2022).
#pragma once

#include "empty_rows.h"
#include "relative.h"

/// Keys whose scores are held at once: enough to make rescaling rare, few enough for the second cache.
constexpr int64_t kKeysAtOnce = 256;

/// What one thread needs, allocated once.
template <typename Element>
struct ForwardSpace {
    explicit ForwardSpace(const Problem& p)
        : padded(round_up(p.size, kLanes)),
          blocks_at_once(std::max<int64_t>(1, kKeysAtOnce / p.layout.block)),
          streams(should_stream(p, p.out, p.heads, p.queries)),
          k(p, p.k),
          v(p, p.v),
          q(p.layout.block * padded),
          q_t(p.layout.block * padded),
          q_position(is_relative(p) ? p.layout.block * padded : 0),
          positions(p),
          products(window_numbers(p)),
          scores(blocks_at_once * p.layout.block * p.layout.block),
          out(p.layout.block * padded),
          maximum(p.layout.block),
          total(p.layout.block),
          mean(p) {
        // So that nothing grows, and nothing can fail, while threads run.
        visits.reserve(p.layout.key_blocks);
        v_blocks.reserve(blocks_at_once);
    }

    int64_t padded, blocks_at_once;
    bool streams;
    HeadRows<Element> k, v;
    Buffer q, q_t, q_position;
    PositionKeys<Element> positions;
    Buffer products, scores, out, maximum, total;
    VisibleMean<Element> mean;
    std::vector<Visit> visits;
    std::vector<const float*> v_blocks;
};

/// Turn scores [rows][lanes] into numerators of the softmax, with running maximum and sum; rescale what `out` has.
template <typename Element>
void online_softmax(
    ForwardSpace<Element>& space, int64_t block, int64_t lanes, const Visit* visits, int64_t count, bool first,
    const Dropout& dropout
) {
    int64_t rows = 0;
    for (int64_t n = 0; n < count; n++) rows += visits[n].keys;
    for (int64_t lane = 0; lane < lanes; lane += kLanes) {
        float* scores = space.scores + lane;
        const Vector old = load(space.maximum + lane);
        Vector top = old, other = old;
        int64_t row = 0;
        for (; row + 2 <= rows; row += 2) {
            top = larger(load(scores + row * lanes), top);
            other = larger(load(scores + (row + 1) * lanes), other);
        }
        if (row < rows) top = larger(load(scores + row * lanes), top);
        top = larger(top, other);
        store(space.maximum + lane, top);
        Vector total = splat(0.0f), second = total;
        for (row = 0; row + 2 <= rows; row += 2) {
            const Vector a = exp2(load(scores + row * lanes) - top), b = exp2(load(scores + (row + 1) * lanes) - top);
            store(scores + row * lanes, a);
            store(scores + (row + 1) * lanes, b);
            total += a;
            second += b;
        }
        if (row < rows) {
            const Vector a = exp2(load(scores + row * lanes) - top);
            store(scores + row * lanes, a);
            total += a;
        }
        total += second;
        if (first) {
            store(space.total + lane, total);
            continue;
        }
        const Vector shrink = exp2(old - top);
        store(space.total + lane, load(space.total + lane) * shrink + total);
        for (int i = 0; i < kLanes; i++) {
            if (shrink[i] == 1.0f) continue;
            float* out = space.out + (lane + i) * space.padded;
            for (int64_t d = 0; d < space.padded; d += kLanes) store(out + d, load(out + d) * shrink[i]);
        }
    }
    if (!dropout.on()) return;
    float* scores = space.scores;  // the sums above are those before dropout
    for (int64_t n = 0; n < count; n++)
        for (int64_t row = 0; row < visits[n].keys; row++, scores += lanes)
            for (int64_t lane = 0; lane < lanes; lane += kLanes)
                store(scores + lane, dropout.keep(load(scores + lane), lane, visits[n].column * block + row));
}

/// One block of queries of one head.
template <typename Element>
void forward_block(
    const Problem& p, int64_t batch, int64_t head, const Queries& queries, ForwardSpace<Element>& space
) {
    const int64_t block = p.layout.block, lanes = queries.lanes, padded = space.padded;
    Element* out = head_of<Element>(p.out, batch, head) + queries.first * p.out.row_stride;
    const int64_t first_row = (batch * p.heads + head) * p.queries + queries.first;
    float* log_sum = p.log_sum + first_row;

    const Visibility visibility(p, batch, head, queries);
    visibility.visits(space.visits);
    if (space.visits.empty()) {
        for (int64_t row = 0; row < queries.count; row++) {
            space.mean.write(queries.first + row, out + row * p.out.row_stride);
            log_sum[row] = INFINITY;
        }
        return;
    }
    const Element* q = head_of<Element>(p.q, batch, head) + queries.first * p.q.row_stride;
    copy_rows(q, p.q.row_stride, queries.count, p.size, lanes, padded, space.q, block * p.q.row_stride);
    transpose_queries<Element>(space.q, lanes, p.size, padded, p.scale * kLog2E, space.q_t);
    if (is_relative(p)) load_positions<Element>(p, batch, head, queries, space.q_position);
    for (int64_t i = 0; i < lanes; i++) space.maximum[i] = -1e30f;  // finite: a row of -inf alone must not give NaN
    Dropout dropout(p);
    dropout.start(first_row, lanes);

    const int64_t visits = space.visits.size();
    for (int64_t start = 0; start < visits; start += space.blocks_at_once) {
        const Visit* here = space.visits.data() + start;
        const int64_t count = std::min(space.blocks_at_once, visits - start);
        space.v_blocks.clear();
        float* scores = space.scores;
        for (int64_t n = 0; n < count; n++, scores += block * lanes) {
            if (is_relative(p))
                relative_scores(p, space.positions, queries, here[n], space.q_position, space.products, scores);
            const Left keys = space.k.left(here[n].column);
            block_products<Element>(keys, here[n], space.q_t, p.size, lanes, scores, is_relative(p));
            if (p.bias) add_bias(p, batch, head, queries, here[n], scores);
            if (!here[n].whole) visibility.hide(here[n], -INFINITY, scores);
            space.v_blocks.push_back(space.v.block(here[n].column));
        }
        online_softmax(space, block, lanes, here, count, start == 0, dropout);
        const Right values = space.v.right(space.v_blocks.data(), count, here[count - 1].keys);
        multiply_as<Element>(queries.count, padded, {space.scores, 1, lanes}, values, space.out, padded, start > 0);
    }
    for (int64_t row = 0; row < queries.count; row++) {
        Element* to = out + row * p.out.row_stride;
        const float total = space.total[row];
        if (total == 0.0f) {
            space.mean.write(queries.first + row, to);
            log_sum[row] = INFINITY;
            continue;
        }
        write_row(space.out + row * padded, p.size, 1.0f / (total * (1.0f - p.dropout)), to, space.streams);
        log_sum[row] = space.maximum[row] + std::log2(total);
    }
}

/// Heads are shared out over the threads; where there are few of them, runs of query blocks are.
template <typename Element>
void forward(const Problem& p) {
    const int64_t blocks = count_query_blocks(p), heads = p.batch * p.heads;
    const int64_t runs = heads >= 4 * p.threads ? 1 : std::min(blocks, 4 * p.threads);
    std::vector<std::unique_ptr<ForwardSpace<Element>>> spaces;  // here: an exception must not leave a thread
    for (int64_t thread = 0; thread < p.threads; thread++)
        spaces.push_back(std::make_unique<ForwardSpace<Element>>(p));
#pragma omp parallel num_threads(p.threads)
    {
        ForwardSpace<Element>& space = *spaces[thread_number()];
        begin_products<Element>();
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < heads * runs; task++) {
            // All sequences of a head one after the other where they share position keys.
            const int64_t run = task % runs, n = task / runs, batch = is_relative(p) ? n % p.batch : n / p.heads;
            const int64_t head = is_relative(p) ? n / p.batch : n % p.heads;
            if (is_relative(p)) space.positions.start(head);
            space.k.start(batch, head / group_size(p));
            space.v.start(batch, head / group_size(p));
            space.mean.start(batch, head);
            for (int64_t b = run * blocks / runs; b < (run + 1) * blocks / runs; b++)
                forward_block(p, batch, head, queries_of(p, b), space);
        }
        end_products<Element>();
        finish_streams();
    }
}

// Backward pass: what is shared out over the threads. The order of every sum is the same however it is done.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "backward.h"

template <typename Element>
class Backward {
  public:
    Backward(const Problem& p, const Gradients& to)
        : p_(p),
          to_(to),
          padded_(round_up(p.size, kLanes)),
          blocks_(count_query_blocks(p)),
          per_unit_(blocks_ * group_size(p)),
          units_(p.batch * p.kv_heads),
          tasks_(is_relative(p) ? p.heads : units_) {
        for (int64_t thread = 0; thread < p.threads; thread++)
            spaces_.push_back(std::make_unique<BackwardSpace<Element>>(p, to));
    }

    void run() { shares_blocks() ? by_blocks() : by_units(); }

  private:
    /// Whole tasks, of a head of keys and values each, leave a sixth of the threads or more idle; or several add to the
    /// same numbers of the bias.
    bool shares_blocks() const {
        if (p_.threads == 1) return false;
        const bool bias = to_.bias && ((to_.bias_strides[0] == 0 && p_.batch > 1) ||
                                       (to_.bias_strides[1] == 0 && p_.heads > 1));
        const int64_t rounds = (tasks_ + p_.threads - 1) / p_.threads;
        return bias || (units_ * per_unit_ > tasks_ && 6 * tasks_ < 5 * rounds * p_.threads);
    }

    /// Call body(i, space) for all i < count, by all threads. Nothing in it may throw.
    template <typename Body>
    void share(int64_t count, const Body& body) {
#pragma omp parallel num_threads(p_.threads)
        {
            BackwardSpace<Element>& space = *spaces_[thread_number()];
            begin_products<Element>();
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < count; i++) body(i, space);
            end_products<Element>();
            finish_streams();
        }
    }

    /// A head of keys and values is one thread's, with all heads of queries that read it; with a relative term, whose
    /// keys are those of all sequences, that head of all of them is.
    void by_units() {
        struct Own {
            Own(const Problem& p, int64_t rows)
                : sums(p), q(rows), g(rows), q_position(is_relative(p) ? rows : 0), position_sums(p), p(p.layout.block * p.layout.block),
                  ds(std::max(kKeysAtOnce, p.layout.block) * p.layout.block) {}
            KeyGradients<Element> sums;
            Buffer q, g, q_position;
            DistanceRows position_sums;
            Buffer p, ds;
        };
        std::vector<std::unique_ptr<Own>> own;
        for (int64_t thread = 0; thread < p_.threads; thread++)
            own.push_back(std::make_unique<Own>(p_, p_.layout.block * padded_));
        const auto run_unit = [&](int64_t unit, BackwardSpace<Element>& space) {
            Own& mine = *own[thread_number()];
            mine.sums.start();
            for (int64_t n = unit * per_unit_; n < (unit + 1) * per_unit_; n++) {
                const Place at = place(n);
                Visibility(p_, at.batch, at.head, at.queries).visits(space.visits);
                const int64_t square = p_.layout.block * at.queries.lanes;
                const Matrices matrices{mine.q, mine.g, mine.q_position, mine.p, mine.ds, false, square};
                const auto after = [&](const Visit& visit, const float* p_at, float* ds) {
                    if (to_.bias) add_bias_gradient(p_, to_, at, visit, ds);
                    if (is_relative(p_))
                        add_relative(at, visit, mine.q_position, ds, space, space.position_sums, &mine.position_sums);
                    add_visit(at.queries, visit, matrices, p_at, ds, padded_, mine.sums);
                };
                backward_block(p_, to_, at, space.visits, matrices, space, after);
            }
            mine.sums.finish(p_, to_, unit / p_.kv_heads, unit % p_.kv_heads);
        };
        share(tasks_, [&](int64_t task, BackwardSpace<Element>& space) {
            const DistanceRows& sums = own[thread_number()]->position_sums;
            if (is_relative(p_)) sums.clear();
            for (int64_t unit = task; unit < units_; unit += tasks_) run_unit(unit, space);
            if (is_relative(p_)) write_positions(sums, task);
        });
    }

    /// One block of queries, and where its matrices are kept until blocks of keys have read them.
    struct Item {
        Place at;
        std::vector<Visit> visits;
        int64_t square, floats;  // of a visit; of all matrices
        Matrices matrices;
    };

    /// A block of keys that an item visits, and whose turn it is in: uses of one piece are one thread's.
    struct Use {
        int64_t item, visit, piece;
    };

    /// Blocks of queries are shared out, then blocks of keys, some of the former after the other: in between their
    /// matrices are kept, and memory is to stay small.
    void by_blocks() {
        std::vector<std::unique_ptr<KeyGradients<Element>>> sums(units_);
        std::vector<std::unique_ptr<DistanceRows>> position_sums;
        for (int64_t head = 0; is_relative(p_) && head < p_.heads; head++) {
            position_sums.push_back(std::make_unique<DistanceRows>(p_));
            position_sums[head]->clear();
        }
        int64_t finished = 0;
        for (int64_t next = 0, count = units_ * per_unit_; next < count;) {
            std::vector<Item> items = plan(next, count);
            next += items.size();
            for (int64_t unit = finished; unit * per_unit_ < next; unit++)
                if (!sums[unit]) sums[unit] = std::make_unique<KeyGradients<Element>>(p_);
            share(items.size(), [&](int64_t n, BackwardSpace<Element>& space) {
                const Item& item = items[n];
                const auto after = [&](const Visit& visit, const float*, float* ds) {
                    if (is_relative(p_))
                        add_relative(item.at, visit, nullptr, ds, space, space.position_sums, nullptr);
                };
                backward_block(p_, to_, item.at, item.visits, item.matrices, space, after);
            });
            const auto add_to_keys = [&](const Item& item, int64_t n, BackwardSpace<Element>&) {
                add_visit(item.at.queries, item.visits[n], item.matrices, item.matrices.p_at(n), item.matrices.ds_at(n),
                          padded_, *sums[unit_of(item.at)]);
            };
            share_pieces(items, add_to_keys, [&](const Item& item, int64_t n) {
                return unit_of(item.at) * p_.layout.key_blocks + item.visits[n].column;
            });
            if (to_.bias) add_to_bias(items);
            if (is_relative(p_)) add_to_positions(items, position_sums);
            const int64_t first = finished;
            finished = next / per_unit_;
            share(finished - first, [&](int64_t n, BackwardSpace<Element>&) {
                sums[first + n]->finish(p_, to_, (first + n) / p_.kv_heads, (first + n) % p_.kv_heads);
            });
            for (int64_t unit = first; unit < finished; unit++) sums[unit].reset();
        }
        share(position_sums.size(), [&](int64_t head, BackwardSpace<Element>&) {
            write_positions(*position_sums[head], head);
        });
    }

    /// Floats that are kept at once, unless these are too few blocks for the threads: what caches hold.
    static constexpr int64_t kKept = 1 << 20;

    /// The next blocks of queries.
    std::vector<Item> plan(int64_t next, int64_t count) {
        std::vector<Item> items;
        int64_t kept = 0;
        for (; next < count && (kept < kKept || (int64_t)items.size() < 2 * p_.threads); next++) {
            Item item{place(next), {}, 0, 0, {}};
            Visibility(p_, item.at.batch, item.at.head, item.at.queries).visits(item.visits);
            item.square = p_.layout.block * item.at.queries.lanes;
            const int64_t rows = is_relative(p_) ? 3 : 2;
            item.floats = rows * item.at.queries.lanes * padded_ + 2 * (int64_t)item.visits.size() * item.square;
            kept += item.floats;
            items.push_back(std::move(item));
        }
        if (kept > memory_floats_) memory_ = std::make_unique<Buffer>(memory_floats_ = kept);
        float* memory = *memory_;
        for (Item& item : items) {
            const int64_t rows = item.at.queries.lanes * padded_, all = item.visits.size() * item.square;
            float* p_at = memory + item.floats - 2 * all;
            item.matrices = {memory, memory + rows, memory + 2 * rows, p_at, p_at + all, true, item.square};
            memory += item.floats;
        }
        return items;
    }

    /// The gradient of the bias in pieces that no two threads add to.
    void add_to_bias(const std::vector<Item>& items) {
        const auto add = [&](const Item& item, int64_t n, BackwardSpace<Element>&) {
            add_bias_gradient(p_, to_, item.at, item.visits[n], item.matrices.ds_at(n));
        };
        share_pieces(items, add, [&](const Item& item, int64_t n) {
            if (to_.bias_strides[3] != 0) return item.visits[n].column;
            return to_.bias_strides[2] != 0 ? item.at.queries.row_block : 0;
        });
    }

    /// That of the position keys: windows overlap, so a head is a piece.
    void add_to_positions(
        const std::vector<Item>& items, const std::vector<std::unique_ptr<DistanceRows>>& position_sums
    ) {
        const auto add = [&](const Item& item, int64_t n, BackwardSpace<Element>& space) {
            const Matrices& matrices = item.matrices;
            add_relative(
                item.at, item.visits[n], matrices.q_position, matrices.ds_at(n), space, nullptr,
                position_sums[item.at.head].get()
            );
        };
        share_pieces(items, add, [&](const Item& item, int64_t) { return item.at.head; });
    }

    void add_relative(
        const Place& at, const Visit& visit, const float* q_position, float* ds, BackwardSpace<Element>& space,
        float* to_queries, const DistanceRows* to_keys
    ) {
        add_relative_gradients(
            p_, space.positions, at.queries, visit, q_position, space.products, ds, to_queries, to_keys
        );
    }

    void write_positions(const DistanceRows& sums, int64_t head) {
        const Array& to = to_.position_keys;
        for (int64_t row = 0; row < p_.keys; row++) {
            Element* at = head_of<Element>(to, 0, head) + row * to.row_stride;
            write_row(sums.rows(row), p_.size, p_.scale, at, false);
        }
    }

    /// Call add(item, n, space) for every visit of every item: those of a piece by one thread, in their order.
    template <typename Add, typename PieceOf>
    void share_pieces(const std::vector<Item>& items, const Add& add, const PieceOf& piece_of) {
        std::vector<Use> uses;
        for (size_t item = 0; item < items.size(); item++)
            for (size_t n = 0; n < items[item].visits.size(); n++)
                uses.push_back({(int64_t)item, (int64_t)n, piece_of(items[item], n)});
        std::stable_sort(uses.begin(), uses.end(), [](const Use& a, const Use& b) { return a.piece < b.piece; });
        std::vector<size_t> starts;
        for (size_t i = 0; i < uses.size(); i++)
            if (i == 0 || uses[i].piece != uses[i - 1].piece) starts.push_back(i);
        starts.push_back(uses.size());
        share(starts.size() - 1, [&](int64_t n, BackwardSpace<Element>& space) {
            for (size_t i = starts[n]; i < starts[n + 1]; i++) add(items[uses[i].item], uses[i].visit, space);
        });
    }

    /// The n-th block of queries over batch, heads and blocks.
    Place place(int64_t n) const {
        return {n / blocks_ / p_.heads, n / blocks_ % p_.heads, queries_of(p_, n % blocks_)};
    }

    int64_t unit_of(const Place& at) const { return at.batch * p_.kv_heads + at.head / group_size(p_); }

    const Problem& p_;
    const Gradients& to_;
    const int64_t padded_, blocks_, per_unit_, units_;  // a unit: a head of keys and values; blocks of queries of each
    const int64_t tasks_;  // every tasks_-th unit is of the same task, one thread's
    std::vector<std::unique_ptr<BackwardSpace<Element>>> spaces_;
    std::unique_ptr<Buffer> memory_;  // of all items; stays from turn to turn
    int64_t memory_floats_ = 0;
};

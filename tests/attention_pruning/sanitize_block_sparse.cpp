// Runs the kernel over small random problems in arrays of exactly their size, for the sanitizers: `make sanitize`.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernel.cpp"

static std::mt19937 generator(1);

static int64_t below(int64_t n) { return generator() % n; }

/// [batch, head, row, size] in an array that ends with its last number; half of them with the heads next to the size,
/// some with numbers between rows and heads that belong to nobody, some of what is read with one content for the batch.
struct Rows {
    std::vector<float> floats;
    std::vector<BFloat16> halves;
    Array array;

    Rows() : array{} {}
    Rows(int64_t batch, int64_t heads, int64_t rows, int64_t size, bool bfloat16, bool read_only = false) {
        const bool heads_inside = below(2);
        const int64_t inner = size + below(2) * below(9), gap = below(2) * below(9);
        if (heads_inside)
            array.head_stride = inner, array.row_stride = heads * inner + gap;
        else
            array.row_stride = inner, array.head_stride = rows * inner + gap;
        array.batch_stride = heads_inside ? rows * array.row_stride : heads * array.head_stride;
        if (read_only && below(8) == 0) array.batch_stride = 0;
        const int64_t count = (batch - 1) * array.batch_stride + (heads - 1) * array.head_stride +
                              (rows - 1) * array.row_stride + size;
        std::normal_distribution<float> normal;
        floats.resize(bfloat16 ? 0 : count);
        halves.resize(bfloat16 ? count : 0);
        for (float& x : floats) x = normal(generator);
        for (BFloat16& x : halves) from_float(normal(generator), &x);
        array.data = bfloat16 ? (void*)halves.data() : (void*)floats.data();
    }
    Rows(Rows&& other) = default;  // the arrays stay where they are
    Rows& operator=(Rows&& other) = default;
};

static bool any_empty = false, any_relative = false;

static void run_one() {
    Problem p{};
    const int64_t sides[] = {16, 32, 64, 128}, block = sides[below(4)];
    p.batch = 1 + below(2), p.kv_heads = 1 + below(2), p.size = 1 + below(70), p.bfloat16 = below(2);
    p.heads = p.kv_heads * (1 + below(3)), p.first_row = below(2) ? below(100) : 0;
    p.queries = 1 + below(150), p.keys = 1 + below(200), p.causal = below(2), p.shift = below(250) - 50;
    const bool relative = below(2);  // then no heads share keys, and the last query sees the last key
    if (relative) p.heads = p.kv_heads, p.causal = 1, p.shift = p.keys - p.queries;
    p.scale = 0.3f, p.dropout = below(2) ? 0.2f : 0.0f, p.seed = generator(), p.threads = 1 + below(3);
    const auto of_queries = [&](bool read) { return Rows(p.batch, p.heads, p.queries, p.size, p.bfloat16, read); };
    const auto of_keys = [&](bool read) { return Rows(p.batch, p.kv_heads, p.keys, p.size, p.bfloat16, read); };
    const auto of_positions = [&] { return Rows(1, p.heads, p.keys, p.size, p.bfloat16); };
    Rows q = of_queries(true), k = of_keys(true), v = of_keys(true), g = of_queries(true), out = of_queries(false),
         dq = of_queries(false), dk = of_keys(false), dv = of_keys(false);
    Rows q_position, position_keys, d_position, d_keys;
    if (relative) {
        q_position = of_queries(true), d_position = of_queries(false);
        position_keys = of_positions(), d_keys = of_positions();
    }
    p.q = q.array, p.k = k.array, p.v = v.array, p.out = out.array;
    p.q_position = q_position.array, p.position_keys = position_keys.array;
    std::vector<float> log_sum(p.batch * p.heads * p.queries);
    p.log_sum = log_sum.data();

    Layout& layout = p.layout;
    layout.heads = p.heads, layout.block = block;
    layout.query_blocks = (p.first_row + p.queries + block - 1) / block;
    layout.key_blocks = (p.keys + block - 1) / block + below(2);
    const bool empty = below(4) == 0;  // most rows keep nothing
    std::vector<int32_t> row_start, column, part;
    std::vector<uint8_t> bits;
    for (int64_t head = 0; head < p.heads; head++) {
        row_start.push_back(column.size());
        for (int64_t row = 0; row < layout.query_blocks; row++) {
            for (int64_t c = 0; c < layout.key_blocks; c++) {
                if (below(empty ? 8 : 2)) continue;
                column.push_back(c);
                part.push_back(below(3) ? -1 : layout.parts++);
            }
            row_start.push_back(column.size());
        }
    }
    for (int64_t i = 0; i < layout.parts * block * block / 8; i++) bits.push_back(generator());
    column.shrink_to_fit(), part.shrink_to_fit(), bits.shrink_to_fit(), row_start.shrink_to_fit();
    layout.kept = column.size(), layout.row_start = row_start.data(), layout.column = column.data();
    layout.part = part.data(), layout.bits = bits.data();

    std::vector<uint8_t> seen(p.batch * p.keys);
    for (uint8_t& x : seen) x = below(4) != 0;
    if (below(2)) p.key_seen = seen.data();
    // A bias of its own shape, each axis whole or broadcast.
    const int64_t whole[] = {p.batch, p.heads, p.queries, p.keys};
    int64_t strides[4], numbers = 1;
    for (int axis = 3; axis >= 0; axis--) {
        const bool broadcast = below(2);
        strides[axis] = broadcast ? 0 : numbers;
        numbers *= broadcast ? 1 : whole[axis];
    }
    std::vector<float> bias(numbers, below(8) ? 0.5f : -INFINITY), bias_gradient(numbers, 0.0f);
    Gradients to{g.array, dq.array, dk.array, dv.array, nullptr, {}, d_position.array, d_keys.array};
    if (below(2)) {
        p.bias = bias.data(), to.bias = bias_gradient.data();
        std::copy(strides, strides + 4, p.bias_strides);
        std::copy(strides, strides + 4, to.bias_strides);
    }
    if (block_sparse_forward(&p) || block_sparse_backward(&p, &to)) std::abort();
    any_relative |= relative;
    for (float x : log_sum) any_empty |= x == INFINITY;
}

/// The kernel of few queries, over keys in their order or in any, of sequences that begin anywhere.
static void run_few() {
    Problem p{};
    p.batch = 1 + below(3), p.kv_heads = 1 + below(2), p.size = 1 + below(70), p.bfloat16 = below(2);
    p.heads = p.kv_heads * (1 + below(5)), p.queries = 1 + below(9), p.keys = 1 + below(200), p.causal = below(2);
    p.first_row = below(100), p.shift = below(250) - 50, p.scale = 0.3f, p.threads = 1 + below(3);
    const bool relative = below(3) == 0, any_order = !relative && below(2), padded = !relative && below(2);
    if (relative) p.heads = p.kv_heads, p.causal = 1, p.shift = p.keys - p.queries;
    if (padded || any_order) p.causal = 1;
    Rows q(p.batch, p.heads, p.queries, p.size, p.bfloat16, true), out(p.batch, p.heads, p.queries, p.size, p.bfloat16),
        k(p.batch, p.kv_heads, p.keys, p.size, p.bfloat16, true), v(p.batch, p.kv_heads, p.keys, p.size, p.bfloat16, true);
    p.q = q.array, p.k = k.array, p.v = v.array, p.out = out.array;
    Rows q_position, position_keys;
    if (relative) {
        q_position = Rows(p.batch, p.heads, p.queries, p.size, p.bfloat16, true);
        position_keys = Rows(1, p.heads, p.keys, p.size, p.bfloat16);
        p.q_position = q_position.array, p.position_keys = position_keys.array;
    }
    const int64_t blocks[] = {1, 1, 3, 16, 48};
    KeptKeys kept{};
    kept.block = blocks[below(5)];
    kept.row_blocks = (p.first_row + p.queries + kept.block - 1) / kept.block;
    kept.row_bytes = ((p.keys + kept.block - 1) / kept.block + 63) / 64 * 8;
    const int keeps = below(3);  // nothing, much, everything
    std::vector<uint8_t> bits(p.heads * kept.row_blocks * kept.row_bytes), seen(p.batch * p.keys);
    for (uint8_t& x : bits) x = keeps == 0 ? 0 : keeps == 1 ? generator() : 255;
    for (uint8_t& x : seen) x = below(4) != 0;
    std::vector<int32_t> starts(p.batch), columns(p.batch * p.kv_heads * p.keys);
    for (int32_t& x : starts) x = below(p.first_row + p.keys);
    for (int32_t& x : columns) x = below(2 * p.keys) - 1;
    std::vector<float> bias(p.queries * p.keys, below(8) ? 0.5f : -INFINITY);
    kept.bits = bits.data();
    if (padded) kept.starts = starts.data();
    if (any_order) {
        kept.columns = columns.data();
        kept.columns_strides[0] = p.kv_heads * p.keys, kept.columns_strides[1] = p.keys;
    }
    if (below(2)) p.key_seen = seen.data();
    if (!padded && !any_order && below(2)) p.bias = bias.data(), p.bias_strides[2] = p.keys, p.bias_strides[3] = 1;
    if (block_sparse_few_queries(&p, &kept)) std::abort();
    kept.row_bytes += 1;
    if (block_sparse_few_queries(&p, &kept) != 8) std::abort();
}

/// sanitize [PROBLEMS]: so many, and five times as many of few queries, which are smaller.
int main(int count, char** values) {
    const int problems = count > 1 ? std::atoi(values[1]) : 400;
    if (problems < 100) std::abort();  // fewer may miss what is looked for below
    for (int i = 1; i <= problems; i++) {
        run_one();
        for (int few = 0; few < 5; few++) run_few();
        if (i % 1000 == 0) std::fprintf(stderr, "%d of %d\n", i, problems);
    }
    if (!any_empty || !any_relative) std::abort();
    std::printf("block_sparse: %d problems and %d of few queries, vectors of %d floats: clean\n", problems, 5 * problems,
                kLanes);
}

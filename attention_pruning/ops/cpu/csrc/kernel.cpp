// Block-sparse attention on the CPU: what the shared library offers, by plain C names for ctypes.
//
// Reading order: problem.h (what comes in), scores.h, relative.h and forward.h (the algorithm), backward.h and backward_tasks.h,
// empty_rows.h; few_queries.h (steps of decoding); beneath them vector.h (one vector width), products.h with matmul.h, pairs.h and tiles.h (the products),
// rows.h (memory), visibility.h (masks) and dropout.h.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "backward_tasks.h"
#include "few_queries.h"
#include "forward.h"

/// 0 if every number of a call stays inside its arrays, else the rule that it breaks. Before anything else is read.
static int64_t broken_rule(const Problem& p) {
    const Layout& layout = p.layout;
    const int64_t block = layout.block;
    if (block != 16 && block != 32 && block != 64 && block != 128) return 1;
    if (layout.heads != p.heads || p.kv_heads < 1 || p.heads % p.kv_heads != 0) return 2;
    if (layout.query_blocks * block < p.first_row + p.queries || layout.key_blocks * block < p.keys) return 3;
    if (is_relative(p) && (!p.causal || p.kv_heads != p.heads || p.queries + p.shift != p.keys)) return 7;
    int32_t before = 0;
    for (int64_t head = 0; head < layout.heads; head++) {
        const int32_t* start = layout.row_start + head * (layout.query_blocks + 1);
        for (int64_t row = 0; row <= layout.query_blocks; row++) {
            // A head begins where the one before it ended.
            if (start[row] < before || (row == 0 && start[row] > before) || start[row] > layout.kept) return 4;
            before = start[row];
            if (row == 0) continue;
            for (int32_t at = start[row - 1]; at < start[row]; at++) {
                const bool rises = at == start[row - 1] || layout.column[at] > layout.column[at - 1];
                if (!rises || layout.column[at] < 0 || layout.column[at] >= layout.key_blocks) return 5;
                if (layout.part[at] < -1 || layout.part[at] >= layout.parts) return 6;
            }
        }
    }
    return 0;
}

/// The same of few queries, whose layout is not read.
static int64_t broken_rule(const Problem& p, const KeptKeys& kept) {
    if (p.kv_heads < 1 || p.heads % p.kv_heads != 0) return 2;
    if (kept.block < 1 || kept.row_bytes % 8 != 0) return 8;
    if (kept.row_blocks * kept.block < p.first_row + p.queries) return 3;
    if (!kept.columns && kept.row_bytes * 8 * kept.block < p.keys) return 3;
    if (is_relative(p) && (!p.causal || p.kv_heads != p.heads || p.queries + p.shift != p.keys)) return 7;
    if (kept.columns && (is_relative(p) || p.bias)) return 8;
    if (kept.starts && (is_relative(p) || p.bias || !p.causal)) return 8;
    if (kept.starts)
        for (int64_t batch = 0; batch < p.batch; batch++)
            if (kept.starts[batch] < 0) return 8;
    return 0;
}

template <typename Run>
static int64_t guarded(int64_t rule, const Run& run) {
    if (rule) return rule;
    try {
        run();
    } catch (const std::bad_alloc&) {
        return -1;
    }
    return 0;
}

#pragma GCC visibility push(default)
extern "C" {

/// The number of this interface, and the bytes of its structures in the order of problem.h.
int64_t block_sparse_abi(int64_t sizes[5]) {
    const int64_t here[] = {sizeof(Array), sizeof(Layout), sizeof(Problem), sizeof(Gradients), sizeof(KeptKeys)};
    std::copy(here, here + 5, sizes);
    return kAbi;
}

/// What this build is: lanes of a vector.
int64_t block_sparse_lanes() { return kLanes; }

/// 2 if the processor runs the AVX-512 build, 1 for the AVX2 build, 0 for the portable one alone.
int64_t block_sparse_processor() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

/// Fill out and log_sum. 0, or the rule of the layout that is broken, or -1 when memory ran out.
int64_t block_sparse_forward(const Problem* p) {
    return guarded(broken_rule(*p), [&] { p->bfloat16 ? forward<BFloat16>(*p) : forward<float>(*p); });
}

/// Fill out, without log_sum and dropout, by the kept keys of a mask alone.
int64_t block_sparse_few_queries(const Problem* p, const KeptKeys* kept) {
    return guarded(broken_rule(*p, *kept), [&] {
        p->bfloat16 ? few_queries<BFloat16>(*p, *kept) : few_queries<float>(*p, *kept);
    });
}

/// Fill the gradients from out and log_sum.
int64_t block_sparse_backward(const Problem* p, const Gradients* to) {
    return guarded(broken_rule(*p), [&] { p->bfloat16 ? Backward<BFloat16>(*p, *to).run() : Backward<float>(*p, *to).run(); });
}
}
#pragma GCC visibility pop

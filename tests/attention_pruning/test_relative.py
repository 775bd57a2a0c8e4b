"""Laws of the relative term: every backend gives values and gradients of its definition, cell by cell, in float64."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import BlockLayout, InputError, LayerMask, PrunedAttention, pruned_attention
from attention_pruning.ops import choice
from attention_pruning.ops.attention import attend
from attention_pruning.ops.call import Call
from attention_pruning.ops.choice import Choice, kernel_layout
from attention_pruning.ops.cpu import native, op
from attention_pruning.ops.dropout import keep_mask
from attention_pruning.ops.reasons import recorded

law = settings(deadline=None, max_examples=60)
BUILDS = native.runnable_builds()
compiled = pytest.mark.skipif(not BUILDS, reason="the kernel is not compiled")


def defined(q, k, v, position_q, position_keys, bias, mask, *, query_offset, key_padding_mask, scale, dropout_p, seed):
    """Cell by cell: ``(q_i . k_j + position_q_i . r_(i - j)) * scale``, with the position of a query among the keys."""
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    position = torch.arange(queries) + query_offset + mask.key_length - mask.query_length
    distance = position[:, None] - torch.arange(keys)
    visible = (distance >= 0).expand(batch, 1, queries, keys)
    if key_padding_mask is not None:
        visible = visible & ~key_padding_mask[:, None, None]
    kept = ~mask.cells(q.device)[:, query_offset : query_offset + queries, :keys] & visible
    row_of_distance = keys - 1 - distance.clamp(min=0)
    term = (position_q[:, :, :, None] * position_keys[:, row_of_distance][None]).sum(-1)
    scores = (q @ k.mT + term) * scale + (0.0 if bias is None else bias)
    scores = scores.masked_fill(~kept, -math.inf)
    empty = (scores == -math.inf).all(-1, keepdim=True)
    p = scores.masked_fill(empty, 0.0).softmax(-1)
    if dropout_p > 0.0:
        p = p * keep_mask(seed, dropout_p, *scores.shape) / (1.0 - dropout_p)
    mean = visible.double() / visible.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(empty, mean.to(v.dtype), p) @ v


@st.composite
def problems(draw, dropout=True, blocks=(1, 16, 32, 64, 128), biased=True):
    """Tensors in float32 (q, k, v, position_q, position_keys, a bias or None), a mask, options, a gradient."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, heads, size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 7, 16, 33, 41, 64]))
    memory, longest = draw(st.sampled_from([0, 1, 16, 37, 150])), draw(st.integers(1, 150))
    offset = draw(st.integers(0, longest - 1))
    queries = draw(st.integers(1, longest - offset))
    keys, lengths = offset + queries + memory, (longest, longest + memory)
    block = draw(st.sampled_from(blocks))
    pruned = torch.rand(heads, *(-(-n // block) for n in lengths), generator=generator)
    mask = LayerMask(pruned < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])), block, *lengths, causal=True)
    if draw(st.booleans()):  # blocks of the kernel that are full of single cells, or empty
        kept = ~mask.cells(torch.device("cpu")) & (torch.rand(heads, *lengths, generator=generator) < 0.7)
        mask = LayerMask.from_layout(BlockLayout.from_cells(kept, max(16, block), causal=True))

    def tensor(*shape):  # in one of the orders of memory that models have
        if len(shape) == 4 and draw(st.booleans()):
            return torch.randn(shape[0], shape[2], shape[1], shape[3], generator=generator).transpose(1, 2)
        if len(shape) == 3 and draw(st.booleans()):
            return torch.randn(shape[1], shape[0], shape[2], generator=generator).transpose(0, 1)
        return torch.randn(*shape, generator=generator)

    here, there = (batch, heads, queries, size), (batch, heads, keys, size)
    tensors = [tensor(*here), tensor(*there), tensor(*there), tensor(*here), tensor(heads, keys, size)]
    bias = tensor(batch, 1, 1, keys) if biased and draw(st.booleans()) else None
    padding = torch.rand(batch, keys, generator=generator) < 0.4 if draw(st.booleans()) else None
    options = {
        "query_offset": offset,
        "key_padding_mask": padding,
        "scale": draw(st.sampled_from([0.3, size**-0.5])),
        "dropout_p": draw(st.sampled_from([0.0, 0.25])) if dropout else 0.0,
        "seed": draw(st.integers(-(2**63), 2**63 - 1)),
    }
    return [*tensors, bias], mask, options, tensor(*here)


def run(attention, tensors, g):
    """The output, and gradients of all tensors that there are."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
    out = attention(*leaves)
    found = torch.autograd.grad(out, [x for x in leaves if x is not None], g.to(out.dtype), allow_unused=True)
    there = [x for x in leaves if x is not None]
    return [out.detach(), *(torch.zeros_like(x) if y is None else y for x, y in zip(there, found, strict=True))]


def expected(problem, dtype=torch.float64):
    tensors, mask, options, g = problem
    wide = [None if x is None else x.to(dtype) for x in tensors]
    return run(lambda *x: defined(*x, mask, **options), wide, g)


def computed(backend, problem, dtype):
    tensors, mask, options, g = problem
    options = {("dropout_seed" if name == "seed" else name): value for name, value in options.items()}

    def attention(q, k, v, position_q, position_keys, bias):
        call = Call.check(q, k, v, mask, attn_bias=bias, relative=(position_q, position_keys), **options)
        return attend(call, Choice(backend, "asked for", kernel_layout(mask)[0] if "block" in backend else None))

    return run(attention, [None if x is None else x.to(dtype) for x in tensors], g)


def assert_close(found, wanted, tolerance):
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).abs().max() <= tolerance * (1 + other.abs().max())


@law
@given(problem=problems())
def test_the_reference_is_the_definition(problem):
    assert_close(computed("reference", problem, torch.float64), expected(problem), 1e-9)


@law
@given(problem=problems(dropout=False))
def test_torchs_attention_with_the_shifted_term_is_the_definition(problem):
    assert_close(computed("sdpa", problem, torch.float64), expected(problem), 1e-9)


@compiled
@law
@given(problem=problems(), build=st.sampled_from(BUILDS or ("none",)))
def test_every_build_of_the_kernel_is_the_definition(problem, build):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.VARIABLE, build)
        assert_close(computed("block_sparse", problem, torch.float32), expected(problem), 3e-5)


@compiled
@law
@given(problem=problems())
def test_bfloat16_sums_in_float32(problem):
    """Off by the rounding of the scores' term, outputs and gradients only: some units of 2^-8, which sums gather."""
    tensors, mask, options, g = problem
    rounded = [None if x is None else x.bfloat16() for x in tensors[:5]] + [tensors[5]]
    wide = [None if x is None else x.float() for x in rounded]
    tolerance = 0.01 * math.sqrt(max(16, g.shape[0] * g.shape[2]))
    found = computed("block_sparse", (rounded, mask, options, g), torch.bfloat16)
    assert_close(found, expected((wide, mask, options, g)), tolerance)
    assert all(x.dtype == torch.bfloat16 for x in found[:6])


@compiled
@law
@given(problem=problems(), threads=st.sampled_from([2, 3, 7]), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_threads_change_nothing(problem, threads, dtype):
    """Not a bit: position keys are those of all sequences, whose gradients are summed up in one order."""
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            found.append(computed("block_sparse", problem, dtype))
    finally:
        torch.set_num_threads(before)
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


@compiled
def test_many_blocks_of_a_long_sequence():
    """More than are kept at once where blocks are shared out: several turns, whose sums go on in the same order."""
    q, k, v, mask, relative = a_call(queries=450, memory=100, size=16, block=128, share=0.1)
    tensors, options = [q, k, v, *relative, None], {"scale": 0.3, "dropout_p": 0.0, "seed": 1, "query_offset": 0}
    problem, before = (tensors, mask, options | {"key_padding_mask": None}, torch.ones_like(q)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = computed("block_sparse", problem, torch.float32)
        torch.set_num_threads(2)
        two = computed("block_sparse", problem, torch.float32)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True))
    assert_close(one, computed("reference", problem, torch.float64), 1e-4)


@compiled
@law
@given(problem=problems(dropout=False, biased=False), data=st.data())
def test_a_call_is_its_chunks(problem, data):
    """Queries in two calls with the keys that they see, the second from where the first ended."""
    (q, k, v, position_q, position_keys, _), mask, options, _ = problem
    del options["seed"], options["dropout_p"]
    padding, offset = options.pop("key_padding_mask"), options.pop("query_offset")
    relative, chosen = (position_q, position_keys), Choice("block_sparse", "asked for", kernel_layout(mask)[0])
    whole = attend(
        Call.check(q, k, v, mask, query_offset=offset, key_padding_mask=padding, relative=relative, **options), chosen
    )
    cut = data.draw(st.integers(0, q.shape[2]))
    parts = []
    for first, last in ((0, cut), (cut, q.shape[2])):
        keys = k.shape[2] - (q.shape[2] - last)  # what the last of them sees; rows of the longest distances go
        some = (position_q[:, :, first:last], position_keys[:, k.shape[2] - keys :])
        seen = None if padding is None else padding[:, :keys]
        call = Call.check(
            q[:, :, first:last], k[:, :, :keys], v[:, :, :keys], mask, query_offset=offset + first,
            key_padding_mask=seen, relative=some, **options,
        )  # fmt: skip
        parts.append(attend(call, chosen))
    torch.testing.assert_close(torch.cat(parts, 2), whole)


@compiled
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_finds_nothing(backward, requires_grad):
    q, k, v, mask, relative = a_call()
    tensors = [x.requires_grad_(requires_grad) for x in (q, k, v, *relative)]
    layout = kernel_layout(mask)[0]
    arguments = [
        *tensors[:3], None, *tensors[3:], None, None, layout.row_start, layout.column, layout.part, layout.bits,
        layout.block_size, 4, 0, 24, 0.3, 0.0,
    ]  # fmt: skip
    operator = torch.ops.attention_pruning.block_sparse.default
    if backward:
        arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
        out, log_sum = operator(*arguments)
        operator = torch.ops.attention_pruning.block_sparse_backward.default
        arguments = [torch.ones_like(out), out, log_sum, False, *arguments]
    torch.library.opcheck(operator, tuple(arguments))


@compiled
def test_a_compiled_function_is_one_graph():
    q, k, v, mask, relative = a_call()
    tensors, layout = [x.requires_grad_() for x in (q, k, v, *relative)], kernel_layout(mask)[0]

    def attended(q, k, v, position_q, position_keys):
        options = {"causal": True, "relative": (position_q, position_keys), "scale": 0.3}
        return op.block_sparse(q, k, v, layout, **options)

    torch.compiler.reset()
    compiled_one = torch.compile(attended, backend="aot_eager", fullgraph=True)
    g = torch.ones_like(q)
    for one, other in zip(run(compiled_one, tensors, g), run(attended, tensors, g), strict=True):
        assert torch.equal(one, other)


# What is asked for and what is refused


def a_call(batch=2, heads=3, queries=40, memory=24, size=8, block=16, share=0.5):
    generator = torch.Generator().manual_seed(5)
    keys = queries + memory
    q, k, v, position_q, position_keys = (
        torch.randn(*shape, size, generator=generator)
        for shape in (*[(batch, heads, n) for n in (queries, keys, keys, queries)], (heads, keys))
    )
    blocks = (heads, -(-queries // block), -(-keys // block))
    mask = LayerMask(torch.rand(blocks, generator=generator) < share, block, queries, keys, causal=True)
    return q, k, v, mask, (position_q, position_keys)


def test_a_module_takes_the_term():
    q, k, v, mask, relative = a_call()
    found = PrunedAttention(mask, backend="reference")(q, k, v, relative=relative)
    assert torch.equal(found, pruned_attention(q, k, v, mask, relative=relative, backend="reference"))
    assert not torch.allclose(found, pruned_attention(q, k, v, mask, backend="reference"))


@compiled
@pytest.mark.parametrize(
    ("change", "factor", "backend", "reason"),
    [
        ({"share": 0.9}, 2.0, "block_sparse", "of blocks of 16 are kept$"),
        ({"share": 0.0}, 1.0, "block_sparse", "100% of blocks of 16 are kept$"),
        ({"share": 0.0}, 2.0, "sdpa", "100% of blocks of 16 are kept for 40 queries and 64 keys: measured"),
        ({"share": 0.5, "block": 1}, 1.0, "block_sparse", "100% of blocks of 16 are kept$"),
        ({"share": 0.5, "block": 1}, 2.0, "sdpa", "for 40 queries and 64 keys: measured"),
    ],
)
def test_what_computes_goes_by_the_costs_of_the_term(monkeypatch, change, factor, backend, reason):
    build = native.build()
    monkeypatch.setitem(choice.RELATIVE_COSTS, build, ({16: 0.6}, {16: 0.7}))
    monkeypatch.setitem(choice.RELATIVE_FEW_KEYS, build, {32: 3.0, 64: factor, 96: 4.0})
    q, k, v, mask, relative = a_call(**change)
    with recorded() as rows:
        found = pruned_attention(q, k, v, mask, relative=relative)
    assert rows[0].backend == backend and re.search(reason, rows[0].reason)
    torch.testing.assert_close(found, pruned_attention(q, k, v, mask, relative=relative, backend="reference"))


def test_a_gpus_kernel_refuses_the_term_with_the_reason():
    q, k, v, mask, relative = a_call()
    with pytest.raises(InputError, match="backend flex: .* flex needs scores without a relative term, found one"):
        pruned_attention(q, k, v, mask, relative=relative, backend="flex")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relative": torch.zeros(3)}, r"relative: expected two tensors, \(position_q, position_keys\), found Tensor"),
        ({"relative": (torch.zeros(3), None)}, "found tuple of Tensor, NoneType"),
        ({"position_q": torch.zeros(2, 3, 39, 8)}, r"position_q to be torch.float32 of \[2, 3, 40, 8\], found"),
        ({"position_q": torch.zeros(2, 3, 40, 8).double()}, "position_q to be torch.float32 .* torch.float64"),
        ({"position_keys": torch.zeros(3, 40, 8)}, r"position_keys to be torch.float32 of \[3, 64, 8\], found"),
        ({"position_keys": torch.zeros(3, 8, 64)}, r"position_keys .*found torch.float32 of \[3, 8, 64\]"),
        (
            {"mask": LayerMask(torch.zeros(3, 3, 4, dtype=torch.bool), 16, 40, 64)},
            "relative: expected causal attention",
        ),
        ({"k": torch.zeros(2, 1, 64, 8), "v": torch.zeros(2, 1, 64, 8)}, "relative: expected 3 heads of keys"),
    ],
)
def test_bad_terms_are_refused_in_one_line(change, message):
    q, k, v, mask, (position_q, position_keys) = a_call()
    given = {"q": q, "k": k, "v": v, "mask": mask, "position_q": position_q, "position_keys": position_keys} | change
    relative = given.get("relative", (given["position_q"], given["position_keys"]))
    with pytest.raises(InputError, match=message) as refused:
        pruned_attention(given["q"], given["k"], given["v"], given["mask"], relative=relative, enable_gqa=True)
    assert "\n" not in str(refused.value)

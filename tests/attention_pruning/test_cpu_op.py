"""Laws of the operator of the CPU kernel: every build gives values and gradients of a brute force in float64."""

from __future__ import annotations

import ctypes
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_pruning import BlockLayout, InputError
from attention_pruning.ops.cpu import native, op
from attention_pruning.ops.dropout import keep_mask
from strategies import law

BUILDS = native.runnable_builds()
compiled = pytest.mark.skipif(not BUILDS, reason="the kernel is not compiled")
OPERATOR = torch.ops.attention_pruning.block_sparse.default


def brute_force(q, k, v, layout, *, causal, query_offset, key_padding_mask, bias, scale, dropout_p, dropout_seed):
    """What ``op.block_sparse`` says it does, over all cells."""
    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    visible = torch.ones(q.shape[0], 1, queries, keys, dtype=torch.bool)
    if causal:
        shift = query_offset + layout.key_length - layout.query_length
        visible = visible & (torch.arange(keys) <= torch.arange(queries)[:, None] + shift)
    if key_padding_mask is not None:
        visible = visible & ~key_padding_mask[:, None, None]
    scores = q @ k.mT * scale + (0.0 if bias is None else bias)
    kept = layout.cells[:, query_offset : query_offset + queries, :keys]
    scores = scores.masked_fill(~(kept & visible), -math.inf)
    empty = (scores == -math.inf).all(-1, keepdim=True)
    p = scores.masked_fill(empty, 0.0).softmax(-1)
    if dropout_p > 0.0:
        p = p * keep_mask(int(dropout_seed), dropout_p, *scores.shape) / (1.0 - dropout_p)
    mean = visible / visible.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(empty, mean.to(v.dtype), p) @ v


def draw_tensor(draw, generator, batch, heads, length, size):
    """[batch, heads, length, size] in one of the orders of memory that models have."""
    orders = {"heads first": (0, 1, 2, 3), "length first": (0, 2, 1, 3), "size last but one": (0, 1, 3, 2)}
    order = orders[draw(st.sampled_from(sorted(orders)))]
    shape = (batch, heads, length, size)
    x = torch.randn([shape[i] for i in order], generator=generator)
    return x.permute([order.index(i) for i in range(4)])


@st.composite
def problems(draw, dropout=True):
    """q, k, v and a bias or None; the other arguments; a gradient of the output."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads, size = kv_heads * group, draw(st.sampled_from([1, 7, 16, 24, 33, 64]))
    block, causal = draw(st.sampled_from([16, 32, 64, 128])), draw(st.booleans())
    query_length, key_length = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    query_offset = draw(st.integers(0, query_length - 1))
    queries = draw(st.integers(1, query_length - query_offset))
    keys = draw(st.integers(1, key_length))
    kept = torch.rand(heads, query_length, key_length, generator=generator) < draw(st.sampled_from([0.05, 0.9, 1.0]))
    blocks = torch.rand(heads, -(-query_length // block), -(-key_length // block), generator=generator)
    blocks = (blocks < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))).repeat_interleave(block, 1)
    kept &= blocks.repeat_interleave(block, 2)[:, :query_length, :key_length]
    bias, whole = None, (batch, heads, queries, keys)
    if draw(st.booleans()):
        bias = torch.randn([size if draw(st.booleans()) else 1 for size in whole], generator=generator)
        bias = bias.masked_fill(
            torch.rand(bias.shape, generator=generator) < draw(st.sampled_from([0, 0.3])), -math.inf
        )
    arguments = {
        "layout": BlockLayout.from_cells(kept, block),
        "causal": causal,
        "query_offset": query_offset,
        "key_padding_mask": torch.rand(batch, keys, generator=generator) < 0.4 if draw(st.booleans()) else None,
        "scale": draw(st.sampled_from([0.3, size**-0.5])),
        "dropout_p": draw(st.sampled_from([0.0, 0.25])) if dropout else 0.0,
        "dropout_seed": torch.tensor(draw(st.integers(-(2**63), 2**63 - 1))),
    }
    sizes = ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    tensors = [draw_tensor(draw, generator, batch, count, length, size) for count, length in sizes]
    return [*tensors, bias], arguments, draw_tensor(draw, generator, batch, heads, queries, size)


#: Where the gradient of the bias is in what ``run`` gives.
BIAS = 4


def run(attention, tensors, arguments, g):
    """Output and gradients, of q, k, v and the bias if there is one."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
    out = attention(*leaves[:3], bias=leaves[3], **arguments)
    found = torch.autograd.grad(out, [x for x in leaves if x is not None], g.to(out.dtype))
    return [out.detach(), *found]


def expected(tensors, arguments, g):
    return run(brute_force, [None if x is None else x.double() for x in tensors], arguments, g)


def assert_close(found, wanted, tolerance=2e-5, cells_a_bias=1.0):
    """The gradient of a bias that is broadcast is a sum over cells, each off by a little, which may cancel."""
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert one.shape == other.shape
        terms = cells_a_bias**0.5 if number == BIAS else 1.0
        assert (one.double() - other).abs().max() <= tolerance * (terms + other.abs().max())


def cells_a_bias(tensors):
    """How many cells each number of the bias is added to."""
    query, key, _, bias = tensors
    return 1.0 if bias is None else query.shape[:3].numel() * key.shape[2] / bias.numel()


@compiled
@law
@given(problems(), st.sampled_from(BUILDS or ("none",)))
def test_values_and_gradients_are_those_of_a_brute_force(problem, build):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.VARIABLE, build)
        found, wanted = run(op.block_sparse, *problem), expected(*problem)
        assert_close(found, wanted, cells_a_bias=cells_a_bias(problem[0]))


@compiled
@law
@given(problems())
def test_bfloat16_sums_in_float32(problem):
    """Off by the rounding of outputs and gradients only: some units of 2^-8, which sums over queries gather.

    A bias has a number for every cell here: where it is broadcast, its gradient is a sum of many that are off.
    """
    (q, k, v, bias), arguments, g = problem
    bias = None if bias is None else bias.expand(*q.shape[:3], k.shape[2]).contiguous()
    rounded = [q.bfloat16(), k.bfloat16(), v.bfloat16(), bias]
    exact = [x if x is None else x.float() for x in rounded]
    tolerance = 0.01 * math.sqrt(max(16, g.shape[2] * g.shape[1]))
    found = run(op.block_sparse, rounded, arguments, g.bfloat16())
    assert_close(found, expected(exact, arguments, g.bfloat16()), tolerance)
    assert [x.dtype for x in found[:4]] == [torch.bfloat16] * 4


@compiled
@law
@given(problems(), st.sampled_from([2, 3, 7]))
def test_threads_change_nothing(problem, threads):
    """Not a bit: also where blocks are shared out and where heads add to one bias."""
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            found.append(run(op.block_sparse, *problem))
    finally:
        torch.set_num_threads(before)
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


@compiled
@law
@given(problems(dropout=False), st.data())
def test_a_call_is_its_chunks(problem, data):
    """Queries in two calls, the second from where the first ended: what decoding and chunked prefill do."""
    (q, k, v, bias), arguments, _ = problem
    if bias is not None:
        bias = bias.expand(-1, -1, q.shape[2], -1)
    whole = op.block_sparse(q, k, v, bias=bias, **arguments)
    cut = data.draw(st.integers(0, q.shape[2]))
    parts = []
    for first, last in ((0, cut), (cut, q.shape[2])):
        some = arguments | {"query_offset": arguments["query_offset"] + first}
        part_bias = None if bias is None else bias[:, :, first:last]
        parts.append(op.block_sparse(q[:, :, first:last], k, v, bias=part_bias, **some))
    torch.testing.assert_close(torch.cat(parts, 2), whole)


@compiled
def test_many_groups_of_a_long_sequence():
    """More blocks than are kept at once where blocks are shared out: several turns, and heads that end within one."""
    generator = torch.Generator().manual_seed(1)
    q, g = (torch.randn(1, 3, 2048, 16, generator=generator) for _ in range(2))
    k, v = (torch.randn(1, 1, 2048, 16, generator=generator) for _ in range(2))
    layout = BlockLayout.from_blocks(torch.rand(3, 16, 16, generator=generator) < 0.9, 128)
    arguments = {"layout": layout, "causal": False, "scale": 0.25}
    bias = torch.randn(1, 1, 1, 2048, generator=generator)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(op.block_sparse, [q, k, v, bias], arguments, g)
        torch.set_num_threads(2)
        two = run(op.block_sparse, [q, k, v, bias], arguments, g)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True))


@compiled
def test_a_bias_that_is_broadcast_takes_no_memory_for_all_cells():
    """A bias of one number a key, among 64 MB of cells."""
    code = """
import resource, torch
from attention_pruning import BlockLayout
from attention_pruning.ops.cpu import op
q, k, v = (torch.randn(1, 4, 2048, 8).requires_grad_() for _ in range(3))
bias = torch.randn(2048, requires_grad=True)
layout = BlockLayout.from_blocks(torch.eye(32, dtype=torch.bool).expand(4, 32, 32), 64)
def once(n):
    attended = op.block_sparse(q[:, :, :n], k[:, :, :n], v[:, :, :n], layout, causal=False, bias=bias[:n], scale=1.0)
    attended.sum().backward()
once(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
once(2048)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 32 * 1024  # kB


# What torch asks of an operator


def call(bias=True, padding=True, dropout=True, group=2, requires_grad=True, dtype=torch.float32, order="length first"):
    """Arguments of the operator."""
    generator = torch.Generator().manual_seed(4)

    def tensor(heads, length):
        if order == "length first":
            x = torch.randn(2, length, heads, 16, generator=generator).transpose(1, 2)
        else:
            x = torch.randn(2, heads, length, 16, generator=generator)
        return x.to(dtype).requires_grad_(requires_grad)

    q, k, v = tensor(4, 40), tensor(4 // group, 48), tensor(4 // group, 48)
    layout = BlockLayout.from_cells(torch.rand(4, 70, 70, generator=generator) < 0.3, 16)
    added = torch.randn(1, 4, 1, 48, generator=generator).requires_grad_(requires_grad)
    return [q, k, v, layout], {
        "causal": True,
        "query_offset": 5,
        "bias": added if bias else None,
        "key_padding_mask": torch.rand(2, 48, generator=generator) < 0.2 if padding else None,
        "scale": 0.25,
        "dropout_p": 0.1 if dropout else 0.0,
        "dropout_seed": torch.tensor(7) if dropout else None,
    }


CALLS = {
    "all": {},
    "inference": {"requires_grad": False},
    "plain": {"bias": False, "padding": False, "dropout": False, "group": 1, "order": "heads first"},
    "bfloat16": {"dtype": torch.bfloat16},
}


def arguments_of_the_operator(positional, options):
    """What ``op.block_sparse`` calls the operator with."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.attention_pruning, "block_sparse", lambda *given: [seen.extend(given), (None, None)][1])
        op.block_sparse(*positional, **options)
    return seen


@compiled
@pytest.mark.parametrize("chosen", CALLS.values(), ids=CALLS)
def test_opcheck_finds_nothing(chosen):
    arguments = arguments_of_the_operator(*call(**chosen))
    torch.library.opcheck(OPERATOR, tuple(arguments))
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    out, log_sum = OPERATOR(*detached)
    backward = torch.ops.attention_pruning.block_sparse_backward.default
    bias_too = detached[3] is not None
    torch.library.opcheck(backward, (torch.ones_like(out), out, log_sum, bias_too, *detached))


@compiled
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("chosen", CALLS.values(), ids=CALLS)
def test_a_compiled_function_is_one_graph(chosen, dynamic):
    (*tensors, layout), options = call(**chosen)

    def attended(q, k, v, bias):
        assert op.unsupported(q, k, v) is None and native.missing() is None
        return 3 * op.block_sparse(2 * q, k, v, layout, **options | {"bias": bias})

    def values(function):
        leaves = [
            None if x is None else x.detach().requires_grad_(x.requires_grad) for x in (*tensors, options["bias"])
        ]
        out = function(*leaves)
        if out.requires_grad:
            out.sum().backward()
        return [out.detach(), *(x.grad for x in leaves if x is not None and x.requires_grad)]

    torch.compiler.reset()
    found = values(torch.compile(attended, backend="aot_eager", fullgraph=True, dynamic=dynamic))
    for one, other in zip(found, values(attended), strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()


@compiled
def test_the_seed_of_dropout_is_drawn_inside_a_compiled_function():
    (q, k, v, layout), options = call()

    def attended(q, k, v):
        seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)
        return op.block_sparse(q, k, v, layout, **options | {"dropout_seed": seed})

    torch.compiler.reset()
    compiled_one = torch.compile(attended, backend="aot_eager", fullgraph=True)
    torch.manual_seed(1)
    first, second = compiled_one(q, k, v), compiled_one(q, k, v)
    assert not torch.equal(first, second)


@compiled
def test_a_model_is_exported_with_the_operator():
    (*tensors, layout), options = call(requires_grad=False, dropout=False)

    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return op.block_sparse(q, k, v, layout, **options)

    length = torch.export.Dim("length", min=2, max=60)
    shapes = ({2: length}, None, None)
    exported = torch.export.export(Attention(), tuple(tensors), dynamic_shapes=shapes)
    q = tensors[0][:, :, :23]
    assert "attention_pruning.block_sparse" in exported.graph_module.code
    assert torch.equal(exported.module()(q, *tensors[1:]), Attention()(q, *tensors[1:]))


def test_the_compiler_of_torch_is_not_loaded():
    code = """
import sys, torch
from attention_pruning import BlockLayout
from attention_pruning.ops.cpu import native, op
q = torch.randn(1, 1, 16, 8, requires_grad=True)
if native.runnable_builds():
    layout = BlockLayout.from_blocks(torch.ones(1, 1, 1, dtype=torch.bool), 16)
    op.block_sparse(q, q, q, layout, causal=True, scale=1.0).sum().backward()
sys.exit('torch._dynamo' in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@compiled
def test_a_second_derivative_is_refused():
    (q, k, v, layout), options = call()
    out = op.block_sparse(q, k, v, layout, **options)
    (gradient,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        gradient.sum().backward()


# What is refused


@compiled
def test_a_stale_library_is_refused():
    def answer(abi, sizes):
        def block_sparse_abi(to):
            to[:] = sizes
            return abi

        return SimpleNamespace(block_sparse_abi=block_sparse_abi)

    sizes = (ctypes.c_int64 * 5)()
    abi = native.load("portable").block_sparse_abi(sizes)
    native.refuse_stale(answer(abi, list(sizes)), "same.so")
    message = r"compiled kernel a\.so: expected interface .*, found .*; compile it again: pip install -e \."
    with pytest.raises(InputError, match=message) as refused:
        native.refuse_stale(answer(abi + 1, list(sizes)), "a.so")
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match=message):
        native.refuse_stale(answer(abi, [*sizes[:4], sizes[4] + 8]), "a.so")
    with pytest.raises(InputError, match=re.escape("found an older one")):
        native.refuse_stale(SimpleNamespace(), "a.so")


@compiled
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_offset": 31}, "layout: expected at least 71 queries and 48 keys, found 70 and 70"),
        ({"query_offset": -1}, "query_offset: expected at least 0"),
        ({"k": torch.zeros(2, 3, 48, 16), "v": torch.zeros(2, 3, 48, 16)}, "heads that divide the 4"),
        ({"k": torch.zeros(2, 2, 71, 16), "v": torch.zeros(2, 2, 71, 16)}, "at least 45 queries and 71 keys"),
        ({"v": torch.zeros(2, 2, 47, 16)}, "k and v alike"),
        ({"q": torch.zeros(3, 4, 40, 16)}, "of one batch"),
        ({"v": torch.zeros(2, 2, 48, 16, dtype=torch.bfloat16)}, "v of torch.float32, as the queries"),
        ({"key_padding_mask": torch.zeros(2, 47, dtype=torch.bool)}, "key_padding_mask: expected bools"),
        ({"key_padding_mask": torch.zeros(2, 48)}, "key_padding_mask: expected bools"),
        ({"bias": torch.zeros(3, 40, 48)}, "bias: expected floats"),
        ({"dropout_seed": None}, "dropout_seed: expected an int64 tensor"),
        ({"dropout_p": 1.0}, "dropout_p: expected"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    (q, k, v, layout), options = call(requires_grad=False)
    arguments = {"q": q, "k": k, "v": v, **options} | change
    positional = [arguments.pop(name) for name in ("q", "k", "v")]
    with pytest.raises(InputError, match=message):
        op.block_sparse(*positional, layout, **arguments)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"dtype": torch.float64}, "float32 or bfloat16, found torch.float64"),
        ({"device": "meta"}, "tensors on the CPU, found meta"),
        ({"v_size": 24}, "v with the head size of the queries, 16, found 24"),
        ({"v_dtype": torch.bfloat16}, "v of torch.float32, as the queries, found torch.bfloat16"),
        ({"size": 257}, "a head size of at most 256, found 257"),
    ],
)
def test_what_a_call_lacks_is_named(change, reason):
    kind = {"dtype": change.get("dtype", torch.float32), "device": change.get("device", "cpu")}
    size = change.get("size", 16)
    q = torch.zeros(1, 1, 4, size, **kind)
    v = torch.zeros(1, 1, 4, change.get("v_size", size), **kind | {"dtype": change.get("v_dtype", kind["dtype"])})
    assert op.unsupported(q, q, v) == reason

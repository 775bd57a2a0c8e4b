"""Laws of the Triton kernels: values and gradients of the readable reference in float64, whatever the call.

On a GPU they run compiled, elsewhere in Triton's interpreter, a thousand times slower: few and tiny examples.
``test_triton.py`` runs this file, in a process of its own, for Triton decides when it is imported how it runs.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import BlockLayout, LayerMask, pruned_attention
from attention_pruning.ops.dropout import keep_mask
from attention_pruning.ops.reasons import recorded
from attention_pruning.ops.triton import op  # noqa: F401 (registers the operators)
from attention_pruning.ops.triton.block_lists import block_lists
from attention_pruning.ops.triton.kernel_calls import _precision

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
#: On a GPU an example takes a moment, but most are compiled first, for some seconds.
law = settings(deadline=None, max_examples=15 if GPU else 20, derandomize=not GPU, database=None)
#: Of the largest number that is expected; sums of float32 in another order.
EXACT = 2e-5
HALVES = [torch.float16, *([torch.bfloat16] if GPU else [])]


def draw_tensor(generator, shape, order="heads first"):
    """[batch, heads, length, size] in one of the orders of memory that models have."""
    batch, heads, length, size = shape
    if order == "length first":
        return torch.randn(batch, length, heads, size, generator=generator).transpose(1, 2)
    if order == "slice of a projection":
        return torch.randn(batch, length, 3, heads, size, generator=generator)[:, :, 1].transpose(1, 2)
    if order == "size last but one":
        return torch.randn(batch, heads, size, length, generator=generator).transpose(2, 3)
    return torch.randn(*shape, generator=generator)


@st.composite
def problems(draw):
    """Tensors (q, k, v, a bias, positions of queries and of keys, or None), a mask, other arguments of
    ``pruned_attention``, and a gradient of its output."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    longest = 300 if GPU else 45
    batch, kv_heads, group = draw(st.sampled_from([(1, 1, 1), (1, 1, 2), (2, 1, 1), (1, 2, 1)]))
    heads, size = kv_heads * group, draw(st.sampled_from([1, 16, 41, 64, *([128, 256] if GPU else [])]))
    causal, block = draw(st.booleans()), draw(st.sampled_from([16, 32, 64, 128]))
    queries, keys = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    if causal:
        queries, keys = min(queries, keys), max(queries, keys)
    offset = draw(st.integers(0, queries - 1)) if causal else 0
    kept = torch.rand(heads, queries, keys, generator=generator) < draw(st.sampled_from([0.5, 1.0]))
    blocks = torch.rand(heads, -(-queries // block), -(-keys // block), generator=generator)
    blocks = (blocks < draw(st.sampled_from([0.0, 0.5, 1.0]))).repeat_interleave(block, 1)
    kept &= blocks.repeat_interleave(block, 2)[:, :queries, :keys]
    mask = BlockLayout.from_cells(kept, block, causal=causal and draw(st.booleans()))
    if not causal and draw(st.booleans()):  # shorter than the mask
        queries, keys = draw(st.integers(1, queries)), draw(st.integers(1, keys))
    orders = st.sampled_from(["heads first", "length first", "slice of a projection", "size last but one"])
    shapes = [(batch, heads, queries - offset, size), *[(batch, kv_heads, keys, size)] * 2]
    tensors = [draw_tensor(generator, shape, draw(orders)) for shape in shapes]
    shape = (batch, heads, queries - offset, keys)
    biases = [None, (1, 1, 1, keys), shape, (heads, shape[2], 1), (1, *shape[1:]), (1,)]
    bias = draw(st.sampled_from(biases))
    arguments = {
        "is_causal": causal,
        "query_offset": offset,
        "enable_gqa": True,
        "scale": draw(st.sampled_from([None, 0.3])),
        "dropout_p": draw(st.sampled_from([0.0, 0.25])),
        "dropout_seed": draw(st.integers(-(2**63), 2**63 - 1)),
        "key_padding_mask": torch.rand(batch, keys, generator=generator) < 0.4 if draw(st.booleans()) else None,
    }
    tensors.append(None if bias is None else torch.randn(bias, generator=generator))
    relative = [None, None]
    if causal and group == 1 and draw(st.booleans()):
        relative = [
            draw_tensor(generator, shapes[0], draw(orders)),
            torch.randn(heads, keys, size, generator=generator),
        ]
    tensors += relative
    return tensors, mask, arguments, draw_tensor(generator, shapes[0], draw(orders))


def run(backend, problem, dtype):
    """Output and gradients of what tensors there are, in float64 on the CPU."""
    tensors, mask, arguments, g = problem
    arguments = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    leaves = [None if x is None else x.detach().to(DEVICE, dtype).requires_grad_() for x in tensors]
    relative = None if leaves[4] is None else tuple(leaves[4:])
    out = pruned_attention(*leaves[:3], mask, attn_bias=leaves[3], relative=relative, backend=backend, **arguments)
    there = [x for x in leaves if x is not None]
    found = torch.autograd.grad(out, there, g.to(DEVICE, dtype), allow_unused=True)
    found = [torch.zeros_like(x) if y is None else y for x, y in zip(there, found, strict=True)]
    return [x.detach().double().cpu() for x in (out, *found)]


def assert_law(problem, dtype=torch.float32, tolerance=EXACT):
    """The kernels compute what the reference computes of the same numbers, gradients too."""
    tensors, mask, arguments, g = problem
    rounded = [None if x is None else x.to(dtype) for x in tensors]
    wanted = run("reference", (rounded, mask, arguments, g.to(dtype)), torch.float64)
    for one, other in zip(run("triton", problem, dtype), wanted, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * (1 + other.abs().max())


@law
@given(problems())
def test_values_and_gradients_are_those_of_the_reference(problem):
    assert_law(problem)


def a_problem(mask, size=16, batch=1, heads=None, kv_heads=None, relative=False, **arguments):
    """One of random numbers, as long as the mask."""
    generator = torch.Generator().manual_seed(2)
    heads = mask.heads if heads is None else heads
    here = (batch, heads, mask.query_length, size)
    there = (batch, heads if kv_heads is None else kv_heads, mask.key_length, size)
    q, k, v, g = (torch.randn(shape, generator=generator) for shape in (here, there, there, here))
    positions = [None, None]
    if relative:
        positions = [torch.randn(here, generator=generator), torch.randn(heads, *there[2:], generator=generator)]
    return [q, k, v, None, *positions], mask, {"enable_gqa": True, **arguments}, g


def random_blocks(heads, queries, keys, block, share, seed=3, **options):
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(heads, -(-queries // block), -(-keys // block), generator=generator) < share
    return BlockLayout.from_blocks(kept, block, queries, keys, **options)


def padding(batch, keys, *real):
    return torch.arange(keys) >= torch.tensor(real).expand(batch)[:, None]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_16_bits_sum_in_float32(dtype, dropout_p):
    mask = random_blocks(2, 50, 70, 32, 0.6)
    tolerance = 5e-3 if dtype == torch.float16 else 4e-2
    assert_law(a_problem(mask, 64, dropout_p=dropout_p, dropout_seed=7), dtype, tolerance)


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_larger_than_a_tile(causal):
    mask = random_blocks(1, 150, 200, 128, 0.6, causal=causal)
    assert_law(a_problem(mask))


@pytest.mark.parametrize("block", [16, 64])
def test_a_relative_term_with_memory_and_dropout(block):
    """Two sequences add to the gradient of the same position keys."""
    mask = random_blocks(1, 40, 60, block, 0.8, causal=True)
    assert_law(a_problem(mask, batch=2, relative=True, dropout_p=0.25, dropout_seed=5))


def test_sequences_whose_padding_hides_what_is_kept():
    """One head keeps nothing in a row of blocks, another only blocks that are padding in the second sequence."""
    kept = random_blocks(2, 200, 200, 32, 0.3).blocks.clone()
    kept[0, 2] = False
    kept[1, 3] = torch.arange(7) > 4
    mask = BlockLayout.from_blocks(kept, 32, 200, 200)
    assert_law(a_problem(mask, batch=2, key_padding_mask=padding(2, 200, 200, 90)))


def test_groups_of_heads_with_few_queries():
    assert_law(a_problem(random_blocks(8, 20, 60, 32, 0.6), kv_heads=2))


def checkerboard(length, block=32):
    side = torch.arange(-(-length // block))
    return BlockLayout.from_blocks((side[:, None] + side) % 2 == 0, block, length, length)


@pytest.mark.parametrize("length", [160, 384])
def test_a_checkerboard_of_small_blocks(length):
    """A mask that is coarsened to blocks of 128 keeps all of it."""
    side = torch.arange(length // 32)
    mask = BlockLayout.from_blocks(((side[:, None] + side) % 2 == 0)[None], 32)
    if length == 160 or GPU:
        return assert_law(a_problem(mask))
    (q, k, v, *_), *_ = a_problem(mask)
    found, wanted = (pruned_attention(q, k, v, mask, backend=backend) for backend in ("triton", "reference"))
    return torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("low", [-math.inf, torch.finfo(torch.float32).min], ids=["-inf", "the lowest float32"])
def test_a_bias_can_hide_all_that_is_kept(low):
    problem = a_problem(random_blocks(2, 40, 40, 32, 0.7))
    bias = torch.zeros(2, 40, 40)
    bias[1, 5] = low
    bias[0, :, 7] = low
    problem[2]["attn_bias"] = bias
    q, k, v = (x.to(DEVICE).requires_grad_() for x in problem[0][:3])
    out = pruned_attention(q, k, v, problem[1], attn_bias=bias.to(DEVICE), backend="triton")
    out.sum().backward()
    torch.testing.assert_close(out[:, 1, 5], v[:, 1].mean(1))
    wanted = pruned_attention(q, k, v, problem[1], attn_bias=bias.clamp(min=low).to(DEVICE), backend="reference")
    torch.testing.assert_close(out[:, 0], wanted[:, 0])
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_pruned_or_padding_does_not_spread(bad):
    mask = BlockLayout.from_blocks(torch.tensor([[[1, 0, 1], [0, 1, 0], [1, 0, 0]]], dtype=torch.bool), 16)
    (q, k, v, *_), *_ = a_problem(mask)
    hidden = padding(1, 48, 40)
    k[:, :, 16:32], v[:, :, 16:32] = bad, bad
    k[:, :, 40:], v[:, :, 40:] = bad, bad
    leaves = [x.to(DEVICE).requires_grad_() for x in (q, k, v)]
    out = pruned_attention(*leaves, mask, key_padding_mask=hidden.to(DEVICE), backend="triton")
    out.sum().backward()
    keep = torch.ones(48, dtype=torch.bool)
    keep[16:32] = False
    assert out[:, :, keep].isfinite().all() and not out[:, :, ~keep].isfinite().any()
    assert all(x.grad[:, :, keep].isfinite().all() for x in leaves)
    assert not leaves[1].grad[:, :, 40:].any() and not leaves[2].grad[:, :, 40:].any()


@pytest.mark.parametrize("dropout_p", [0.1, 0.7])
def test_dropped_cells_are_those_of_the_cpu_kernel(dropout_p):
    """Even attention to values of one digit each shows which cells stayed."""
    seed, shape = -1234567890123456789, (2, 2, 20, 16)
    q, k = torch.zeros(shape), torch.zeros(shape[:2] + (16, 16))
    v = torch.eye(16).expand(k.shape)
    mask = BlockLayout.from_blocks(torch.ones(2, 2, 1, dtype=torch.bool), 16, 20, 16)
    options = {"dropout_p": dropout_p, "dropout_seed": seed, "backend": "triton"}
    out = pruned_attention(*(x.to(DEVICE) for x in (q, k, v)), mask, **options)
    assert torch.equal(out.cpu() > 0, keep_mask(seed, dropout_p, 2, 2, 20, 16))


def test_the_seed_of_dropout_is_torchs():
    mask = BlockLayout.from_blocks(torch.ones(1, 2, 2, dtype=torch.bool), 16)
    q, k, v = (x.to(DEVICE) for x in a_problem(mask)[0][:3])

    def out(seed):
        torch.manual_seed(seed)
        return pruned_attention(q, k, v, mask, dropout_p=0.5, backend="triton")

    assert torch.equal(out(1), out(1)) and not torch.equal(out(1), out(2))


@pytest.mark.parametrize("shape", [(0, 2, 48, 48), (1, 0, 48, 48), (1, 2, 0, 48), (1, 2, 48, 0)])
def test_nothing_to_compute(shape):
    batch, heads, queries, keys = shape
    q, k, v = (torch.randn(batch, heads, n, 8, device=DEVICE, requires_grad=True) for n in (queries, keys, keys))
    layout = BlockLayout.from_cells(torch.ones(heads, queries, keys, dtype=torch.bool), 16)
    out = pruned_attention(q, k, v, layout, backend="triton")
    assert out.shape == q.shape and not out.any()
    out.sum().backward()
    assert all(x.grad is None or not x.grad.any() for x in (q, k, v))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_function_is_one_graph(dynamic):
    """By the operator, which calls outside of a graph pass by."""
    mask = random_blocks(1, 20, 20, 16, 0.8)
    torch.compiler.reset()

    def attended(q, k, v):
        return 3 * pruned_attention(2 * q, k, v, mask, backend="triton", dropout_p=0.2, dropout_seed=4)

    found = []
    for function in (attended, torch.compile(attended, backend="aot_eager", fullgraph=True, dynamic=dynamic)):
        leaves = [x.to(DEVICE).requires_grad_() for x in a_problem(mask)[0][:3]]
        out = function(*leaves)
        out.sum().backward()
        found.append([out, *(x.grad for x in leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_finds_nothing(requires_grad):
    layout = random_blocks(1, 20, 20, 16, 0.8)
    q, k, v, g = (x.to(DEVICE) for x in (*a_problem(layout)[0][:3], a_problem(layout)[3]))
    lists = block_lists(layout, DEVICE, True, 0, 20, 20)
    bias = torch.zeros(1, 1, 1, 20, device=DEVICE)
    *_, position, position_keys = (None if x is None else x.to(DEVICE) for x in a_problem(layout, relative=True)[0])
    tensors = [x.requires_grad_(requires_grad) for x in (q, k, v, bias)]
    arguments = [
        *tensors, position, position_keys, None, None, *lists.rows, *lists.columns, lists.bits,
        16, False, True, 0, 0, 0.3, 0.0,
    ]  # fmt: skip
    operator = torch.ops.attention_pruning.triton_attention.default
    if not requires_grad:
        out, log_sum = operator(*arguments)
        arguments = [g, out, log_sum, True, *arguments]
        operator = torch.ops.attention_pruning.triton_attention_backward.default
    torch.library.opcheck(operator, tuple(arguments))


def test_products_of_float32_are_computed_as_torch_is_told():
    number, before = torch.zeros(1, device=DEVICE), torch.get_float32_matmul_precision()
    try:
        for told, expected in {"highest": "ieee", "high": "tf32", "medium": "tf32"}.items():
            torch.set_float32_matmul_precision(told)
            assert _precision(number) == expected and _precision(number.half()) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not GPU, reason="needs a CUDA device, found none")
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_a_cuda_graph_replays_values_and_gradients(dropout_p):
    """And other dropout with every replay, for the seed is drawn on the GPU."""
    mask = random_blocks(2, 100, 100, 32, 0.6)
    leaves = [x.to(DEVICE).requires_grad_() for x in a_problem(mask)[0][:3]]
    g = a_problem(mask)[3].to(DEVICE)

    def step():
        out = pruned_attention(*leaves, mask, backend="triton", dropout_p=dropout_p)
        return [out, *torch.autograd.grad(out, leaves, g)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        leaves[0].mul_(2.0)
    graph.replay()
    once = [x.clone() for x in found]
    graph.replay()
    for one, other, eager in zip(once, found, step(), strict=True):
        assert torch.equal(one, other) == (dropout_p == 0.0)
        if dropout_p == 0.0:
            torch.testing.assert_close(one, eager)


@pytest.mark.skipif(not GPU, reason="needs a CUDA device, found none")
def test_a_function_compiled_to_reduce_overhead_gives_the_same():
    mask = random_blocks(2, 100, 100, 32, 0.6)
    q, k, v = (x.to(DEVICE) for x in a_problem(mask)[0][:3])
    torch.compiler.reset()
    attended = torch.compile(
        lambda q, k, v: 3 * pruned_attention(2 * q, k, v, mask, backend="triton"),
        mode="reduce-overhead",
        fullgraph=True,
    )
    with torch.no_grad():
        found = [attended(q, k, v).clone() for _ in range(3)]
        wanted = 3 * pruned_attention(2 * q, k, v, mask, backend="triton")
    for x in found:
        torch.testing.assert_close(x, wanted)


def test_a_whole_layer_says_what_computed_it():
    mask = LayerMask(torch.tensor([[[False, True], [True, False]]]), 16, 32, 32)
    q, k, v = (x.to(DEVICE) for x in a_problem(mask)[0][:3])
    with recorded() as rows:
        out = pruned_attention(q.transpose(1, 2).contiguous().transpose(1, 2), k, v, mask, backend="triton")
    assert [(row.backend, row.computed, row.blocks, row.block_size) for row in rows] == [("triton", 2, 4, 16)]
    torch.testing.assert_close(out, pruned_attention(q, k, v, mask, backend="reference"))


def test_calls_that_need_the_same_blocks_share_their_lists():
    layout = random_blocks(2, 100, 100, 32, 0.5)
    one, other = (block_lists(layout, DEVICE, False, 0, n, n) for n in (99, 98))
    assert one is other and block_lists(layout, DEVICE, False, 0, 96, 96) is not one
    causal = [block_lists(layout, DEVICE, True, n, 10, 10 + n) for n in (10, 80)]
    assert causal[0].rows is causal[1].rows

"""Laws of the block-sparse kernel: every build gives the values and gradients of the readable reference in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_pruning import BlockLayout, InputError, pruned_attention
from attention_pruning.ops.cpu import native
from attention_pruning.ops.dropout import keep_mask
from attention_pruning.ops.eager import masked_attention
from attention_pruning.structure import visible_cells
from strategies import law

BUILDS = native.runnable_builds()
compiled = pytest.mark.skipif(not BUILDS, reason="the kernel is not compiled")


def draw_tensor(generator, batch, heads, length, size, order, dtype=torch.float32):
    """[batch, heads, length, size] in one of the orders of memory that models have."""
    if order == "heads first":
        x = torch.randn(batch, heads, length, size, generator=generator)
    elif order == "length first":
        x = torch.randn(batch, length, heads, size, generator=generator).transpose(1, 2)
    elif order == "slice of a projection":
        x = torch.randn(batch, length, 3, heads, size, generator=generator)[:, :, 1].transpose(1, 2)
    else:  # the last axis is not contiguous
        x = torch.randn(batch, heads, size, length, generator=generator).transpose(2, 3)
    return x.to(dtype)


@st.composite
def problems(draw):
    """Arguments of ``pruned_attention`` and a gradient of its output."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, heads, size = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 7, 16, 24, 33, 64]))
    causal, block = draw(st.booleans()), draw(st.sampled_from([16, 32, 64, 128]))
    queries, keys = draw(st.integers(1, 140)), draw(st.integers(1, 140))
    if causal:
        queries, keys = min(queries, keys), max(queries, keys)
    offset = draw(st.integers(0, queries - 1)) if causal else 0
    kept = torch.rand(heads, queries, keys, generator=generator) < draw(st.sampled_from([0.1, 0.9, 1.0]))
    blocks = torch.rand(heads, -(-queries // block), -(-keys // block), generator=generator)
    blocks = (blocks < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))).repeat_interleave(block, 1)
    kept &= blocks.repeat_interleave(block, 2)[:, :queries, :keys]
    orders = st.sampled_from(["heads first", "length first", "slice of a projection", "size last but one"])
    tensors = [draw_tensor(generator, batch, heads, n, size, draw(orders)) for n in (queries, keys, keys)]
    if offset:  # the first queries were computed before; the last keys are theirs to see
        tensors[0] = tensors[0][:, :, offset:]
        queries -= offset
    arguments = {
        "mask": BlockLayout.from_cells(kept, block, causal=causal and draw(st.booleans())),
        "is_causal": causal,
        "query_offset": offset,
        "scale": draw(st.sampled_from([None, 0.3])),
        "dropout_p": draw(st.sampled_from([0.0, 0.25])),
        "dropout_seed": draw(st.integers(-(2**63), 2**63 - 1)),
        "key_padding_mask": torch.rand(batch, keys, generator=generator) < 0.3 if draw(st.booleans()) else None,
    }
    shape = draw(st.sampled_from([None, (1, 1, 1, keys), (batch, heads, queries, keys), (heads, queries, 1)]))
    bias = None if shape is None else torch.randn(shape, generator=generator)
    return [*tensors, bias], arguments, draw_tensor(generator, batch, heads, queries, size, draw(orders))


def run(tensors, arguments, g, backend):
    """Output and gradients of the tensors (q, k, v and a bias or None), all as float64."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
    out = pruned_attention(*leaves[:3], attn_bias=leaves[3], backend=backend, **arguments)
    found = torch.autograd.grad(out, [x for x in leaves if x is not None], g.to(out.dtype), allow_unused=True)
    return [x.double() for x in (out.detach(), *(torch.zeros(1) if x is None else x for x in found))]


def expected(tensors, arguments, g):
    return run([None if x is None else x.double() for x in tensors], arguments, g, "reference")


def assert_close(found, wanted, tolerance=2e-5):
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= tolerance * (1 + other.abs().max())


@compiled
@law
@given(problems(), st.sampled_from(BUILDS or ("none",)))
def test_values_and_gradients_are_those_of_the_reference(problem, build):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.VARIABLE, build)
        assert_close(run(*problem, "block_sparse"), expected(*problem))


@law
@given(problems())
def test_the_reference_is_masked_attention(problem):
    """Without dropout, which draws from elsewhere there."""
    (q, k, v, bias), arguments, _ = problem
    arguments |= {"dropout_p": 0.0}
    q, k, v = q.double(), k.double(), v.double()
    wide = None if bias is None else bias.double()
    found = pruned_attention(q, k, v, attn_bias=wide, backend="reference", **arguments)
    layout, rows = arguments["mask"], slice(arguments["query_offset"], None)
    visible = visible_cells(layout.query_length, layout.key_length, arguments["is_causal"])[rows]
    if arguments["key_padding_mask"] is not None:
        visible = visible & ~arguments["key_padding_mask"][:, None, None, :]
    pruned = ~layout.cells[:, rows]
    wanted = masked_attention(q, k, v, pruned, visible, bias=wide, scale=arguments["scale"])
    torch.testing.assert_close(found, wanted)


@compiled
@law
@given(problems())
def test_threads_change_nothing(problem):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(*problem, "block_sparse")
        torch.set_num_threads(2)
        two = run(*problem, "block_sparse")
    finally:
        torch.set_num_threads(before)
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first, second)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_is_its_parts(dtype):
    """Bit for bit, though results too large for the caches are written past them: the batch here, no part of it."""
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(8, 16, 16, generator=generator) < 0.2
    arguments = {"mask": BlockLayout.from_blocks(kept, 32)}
    *tensors, g = (draw_tensor(generator, 9, 8, 512, 64, "length first", dtype) for _ in range(4))
    whole = run([*tensors, None], arguments, g, "block_sparse")
    for i in range(9):
        part = run([*(x[i : i + 1] for x in tensors), None], arguments, g[i : i + 1], "block_sparse")
        assert all(torch.equal(some[i : i + 1], alone) for some, alone in zip(whole, part, strict=True))


@compiled
@law
@given(problems())
def test_bfloat16_sums_in_float32(problem):
    """Off by the rounding of outputs and gradients only: some units of 2^-8, which sums over queries gather."""
    tensors, arguments, g = problem
    rounded = [*(x.bfloat16() for x in tensors[:3]), None]
    exact = [x if x is None else x.float() for x in rounded]
    g = g.bfloat16()
    tolerance = 0.01 * math.sqrt(max(16, g.shape[2]))
    assert_close(run(rounded, arguments, g, "block_sparse"), expected(exact, arguments, g), tolerance)


@law
@given(problems())
def test_auto_means_the_same(problem):
    tensors, arguments, g = problem
    arguments |= {"dropout_p": 0.0}  # torch's fused attention draws its own
    assert_close(run(tensors, arguments, g, "auto"), expected(tensors, arguments, g))


def small(keys=80, heads=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, heads, n, 16, generator=generator, dtype=dtype) for n in (48, keys, keys)]


def blocks(*rows):
    """A layout of one head with blocks of 16 from rows of 0 and 1."""
    return BlockLayout.from_blocks(torch.tensor([rows], dtype=torch.bool), 16)


@compiled
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_pruned_does_not_spread(bad):
    q, k, v = (x[:, :1] for x in small(keys=48))
    layout = blocks([1, 0, 1], [0, 1, 0], [1, 0, 0])
    k[:, :, 16:32] = bad
    v[:, :, 16:32] = bad
    out = pruned_attention(q, k, v, layout, backend="block_sparse")
    assert out[:, :, :16].isfinite().all() and out[:, :, 32:].isfinite().all()
    assert not out[:, :, 16:32].isfinite().any()
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    pruned_attention(*leaves, layout, backend="block_sparse").sum().backward()
    assert leaves[0].grad[:, :, :16].isfinite().all() and leaves[1].grad[:, :, :16].isfinite().all()


@compiled
def test_nan_of_a_kept_block_is_seen():
    q, k, v = (x[:, :1] for x in small(keys=48))
    k[0, 0, 3] = math.nan
    out = pruned_attention(q, k, v, blocks([1, 0, 1], [0, 1, 0], [1, 0, 0]), backend="block_sparse")
    assert out[:, :, :16].isnan().all() and out[:, :, 16:32].isfinite().all()


@pytest.mark.parametrize("backend", ["block_sparse", "reference", "auto"])
@pytest.mark.parametrize("shape", [(0, 2, 48, 48), (1, 0, 48, 48), (1, 2, 0, 48), (1, 2, 48, 0)])
def test_nothing_to_compute(backend, shape):
    batch, heads, queries, keys = shape
    q, k, v = (torch.randn(batch, heads, n, 8, requires_grad=True) for n in (queries, keys, keys))
    layout = BlockLayout.from_cells(torch.ones(heads, queries, keys, dtype=torch.bool), 16)
    out = pruned_attention(q, k, v, layout, backend=backend)
    assert out.shape == q.shape and not out.any()
    out.sum().backward()
    assert all(x.grad is None or not x.grad.any() for x in (q, k, v))


@compiled
def test_gradcheck_in_float32():
    """Numerically, by large steps: a float32 has few digits."""
    q, k, v = (x[:, :1, :20, :3].clone().requires_grad_() for x in small(keys=20))
    layout = BlockLayout.from_blocks(torch.tensor([[[1, 1], [0, 1]]], dtype=torch.bool), 16, 20, 20)

    def attention(q, k, v):
        return pruned_attention(q, k, v, layout, dropout_p=0.2, dropout_seed=3, backend="block_sparse")

    with pytest.warns(UserWarning, match="double precision"):
        assert torch.autograd.gradcheck(attention, (q, k, v), eps=1e-2, atol=2e-3, rtol=2e-2)


def test_gradcheck_of_the_reference():
    q, k, v = (x[:, :1, :18, :2].clone().requires_grad_() for x in small(keys=18, dtype=torch.float64))
    layout = BlockLayout.from_blocks(torch.tensor([[[1, 1], [0, 0]]], dtype=torch.bool), 16, 18, 18)

    def attention(q, k, v):
        return pruned_attention(q, k, v, layout, dropout_p=0.2, dropout_seed=3, backend="reference")

    assert torch.autograd.gradcheck(attention, (q, k, v))


def test_dropout_drops_the_share_it_should():
    kept = keep_mask(seed=5, dropout_p=0.3, batch=2, heads=3, queries=64, keys=64)
    assert abs(kept.double().mean() - 0.7) < 0.02
    assert (kept.double().mean(2) - 0.7).abs().max() < 0.3 and (kept.double().mean(3) - 0.7).abs().max() < 0.3
    assert not torch.equal(kept, keep_mask(seed=6, dropout_p=0.3, batch=2, heads=3, queries=64, keys=64))


@pytest.mark.parametrize("backend", ["block_sparse", "reference"])
def test_the_seed_of_dropout_is_torchs(backend):
    q, k, v = (x[:, :1] for x in small(keys=48))
    layout = blocks([1, 1, 1], [1, 1, 0], [1, 0, 1])

    def out(seed):
        torch.manual_seed(seed)
        return pruned_attention(q, k, v, layout, dropout_p=0.5, backend=backend)

    assert torch.equal(out(1), out(1)) and not torch.equal(out(1), out(2))


@compiled
def test_the_output_has_the_memory_order_of_the_queries():
    q, k, v = (torch.randn(1, 48, 1, 16).transpose(1, 2).expand(1, 1, 48, 16) for _ in range(3))
    q2, k2, v2 = (torch.randn(1, 48, 2, 16).transpose(1, 2) for _ in range(3))
    two = BlockLayout.from_blocks(torch.ones(2, 3, 3, dtype=torch.bool), 16)
    assert pruned_attention(q2, k2, v2, two, backend="block_sparse").stride() == q2.stride()
    assert pruned_attention(q, k, v, blocks([1] * 3, [1] * 3, [1] * 3)).shape == q.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 48, 16)}, "q: expected floats"),
        ({"q": torch.zeros(1, 2, 48, 16, dtype=torch.int64)}, "q: expected floats"),
        ({"k": torch.zeros(1, 2, 80, 8)}, "k: expected"),
        ({"v": torch.zeros(1, 2, 79, 16)}, "v: expected"),
        ({"v": torch.zeros(1, 2, 80, 16, dtype=torch.float64)}, "v: expected"),
        ({"q": torch.zeros(1, 2, 48, 16).numpy()}, "q: expected a tensor, found ndarray"),
        ({"mask": "a mask"}, "mask: expected one layer of a PruneMask"),
        ({"mask": BlockLayout.from_cells(torch.ones(3, 48, 80, dtype=torch.bool), 16)}, "expected 2 heads"),
        ({"mask": BlockLayout.from_cells(torch.ones(2, 47, 80, dtype=torch.bool), 16)}, "at least 48 queries"),
        (
            {"mask": BlockLayout.from_cells(torch.ones(2, 48, 90, dtype=torch.bool), 16, causal=True)},
            "expected 90 keys",
        ),
        ({"query_offset": 1}, "at least 49 queries"),
        ({"query_offset": -1}, "query_offset: expected 0 or more"),
        ({"k": torch.zeros(1, 1, 80, 16), "v": torch.zeros(1, 1, 80, 16)}, "enable_gqa"),
        ({"key_padding_mask": torch.zeros(1, 80)}, "key_padding_mask: expected bools"),
        ({"key_padding_mask": torch.zeros(2, 80, dtype=torch.bool)}, "key_padding_mask: expected bools"),
        ({"dropout_p": 1.0}, "dropout_p: expected"),
        ({"attn_bias": torch.zeros(3, 48, 80)}, "attn_bias: expected floats"),
        ({"backend": "fast"}, "backend: expected one of"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    q, k, v = small()
    arguments = {"q": q, "k": k, "v": v, "mask": BlockLayout.from_cells(torch.ones(2, 48, 80, dtype=torch.bool), 16)}
    arguments |= change
    positional = [arguments.pop(name) for name in ("q", "k", "v", "mask")]
    with pytest.raises(InputError, match=message):
        pruned_attention(*positional, **arguments)

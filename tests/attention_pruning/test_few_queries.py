"""Laws of the kernel of few queries: every build gives, for every way in which keys and queries stand in a mask, what a
brute force in float64 gives, row by row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_pruning import InputError, LayerMask, pruned_attention
from attention_pruning.ops import choice
from attention_pruning.ops.call import Call
from attention_pruning.ops.cpu import few_queries, native
from attention_pruning.ops.reasons import recorded
from strategies import law

BUILDS = native.runnable_builds()
compiled = pytest.mark.skipif(not BUILDS, reason="the kernel is not compiled")


def brute_force(q, k, v, mask, *, causal, query_offset, starts, columns, key_padding_mask, bias, relative, scale):
    """What ``few_queries`` says it does."""
    batch, heads, queries, size = q.shape
    keys, groups = k.shape[2], heads // k.shape[1]
    cells = ~mask.cells(torch.device("cpu"))
    out = torch.zeros(batch, heads, queries, size, dtype=torch.float64)
    for b in range(batch):
        start = 0 if starts is None else int(starts[b])
        for h in range(heads):
            column = torch.arange(keys) - start if columns is None else columns[b, h // groups].long()
            for i in range(queries):
                row = query_offset + i - start
                see = column >= 0
                if causal:
                    see &= column <= row + mask.key_length - mask.query_length
                if row < 0:
                    see &= False
                if key_padding_mask is not None:
                    see &= ~key_padding_mask[b]
                keep = see.clone()
                keep[see] = cells[h, max(row, 0), column[see]]
                scores = k[b, h // groups] @ q[b, h, i] * scale
                if relative is not None:
                    nearest = torch.arange(keys) + queries - 1 - i
                    inside = nearest < keys
                    scores[inside] += relative[1][h][nearest[inside]] @ relative[0][b, h, i] * scale
                if bias is not None:
                    scores = scores + bias.expand(batch, heads, queries, keys)[b, h, i]
                keep &= scores > -1e30
                values = v[b, h // groups]
                if keep.any():
                    out[b, h, i] = scores[keep].softmax(0) @ values[keep]
                elif see.any():
                    out[b, h, i] = values[see].mean(0)
    return out


@st.composite
def problems(draw):
    """q, k, v; a mask; the other arguments."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, kv_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2, 4, 5]))
    heads, size = kv_heads * groups, draw(st.sampled_from([1, 7, 16, 24, 33, 64, 80]))
    queries, offset = draw(st.integers(1, 8)), draw(st.integers(0, 60))
    block, causal = draw(st.sampled_from([1, 1, 3, 16, 48])), draw(st.booleans())
    memory = draw(st.sampled_from([0, 9]))
    length = offset + queries + draw(st.integers(0, 20))
    keys = offset + queries + memory if causal else draw(st.integers(1, 150))
    key_length = length + memory if causal else keys
    how = (
        draw(st.sampled_from(["in order", "in order", "padded", "any order"])) if causal and not memory else "in order"
    )

    def rand(*shape):
        x = torch.randn(*shape, generator=generator)
        return x.transpose(-2, -3).contiguous().transpose(-2, -3) if draw(st.booleans()) else x

    sides = [-(-n // block) for n in (length, key_length)]
    pruned = torch.rand(heads, *sides, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.95, 1.0]))
    if draw(st.booleans()):
        pruned = pruned[:1].expand(heads, -1, -1)  # heads that agree share the reading of keys
    starts = columns = bias = relative = padding = None
    if how == "padded":
        starts = torch.randint(0, offset + queries + 1, (batch,), generator=generator).int()
    if how == "any order":
        keys = draw(st.integers(1, 90))
        order = torch.rand(batch, kv_heads, max(keys, length), generator=generator).argsort(-1)[:, :, :keys].int()
        columns = order.masked_fill((order >= length) | (torch.rand(order.shape, generator=generator) < 0.2), -1)
        starts = torch.randint(0, offset + 1, (batch,), generator=generator).int() if draw(st.booleans()) else None
    if draw(st.booleans()):
        padding = torch.rand(batch, keys, generator=generator) < draw(st.sampled_from([0.1, 0.6, 1.0]))
    if how == "in order" and draw(st.booleans()):
        shape = [draw(st.sampled_from([1, n])) for n in (batch, heads, queries, keys)]
        bias = torch.randn(shape, generator=generator)
        bias = bias.masked_fill(torch.rand(shape, generator=generator) < draw(st.sampled_from([0, 0.5, 1])), -torch.inf)
    if how == "in order" and causal and groups == 1 and draw(st.booleans()):
        relative = (rand(batch, heads, queries, size), torch.randn(heads, keys, size, generator=generator))
    return (
        (rand(batch, heads, queries, size), rand(batch, kv_heads, keys, size), rand(batch, kv_heads, keys, size)),
        LayerMask(pruned.contiguous(), block, length, key_length, causal=causal),
        {
            "causal": causal,
            "query_offset": offset,
            "starts": starts,
            "columns": columns,
            "key_padding_mask": padding,
            "bias": bias,
            "relative": relative,
            "scale": draw(st.sampled_from([0.3, size**-0.5])),
        },
    )


def cast(problem, dtype):
    tensors, mask, options = problem
    relative = options["relative"]
    relative = None if relative is None else tuple(x.to(dtype) for x in relative)
    bias = options["bias"] if options["bias"] is None else options["bias"].to(dtype)
    return [x.to(dtype) for x in tensors], mask, options | {"relative": relative, "bias": bias}


def run(attention, problem, dtype):
    tensors, mask, options = cast(problem, dtype)
    return attention(*tensors, mask, **options)


@compiled
@law
@given(problems(), st.sampled_from(BUILDS or ("none",)))
def test_values_are_those_of_a_brute_force(problem, build):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.VARIABLE, build)
        found = run(few_queries.few_queries, problem, torch.float32)
    torch.testing.assert_close(found.double(), run(brute_force, problem, torch.float64), atol=3e-5, rtol=3e-5)


@compiled
@law
@given(problems(), st.sampled_from(BUILDS or ("none",)))
def test_brain_floats_are_computed_in_floats(problem, build):
    """The inputs are rounded, as is what comes out; nothing between."""
    rounded = cast(cast(problem, torch.bfloat16), torch.float64)
    rounded[2]["bias"] = None if problem[2]["bias"] is None else problem[2]["bias"].double()
    given = cast(problem, torch.bfloat16)
    given[2]["bias"] = problem[2]["bias"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.VARIABLE, build)
        found = few_queries.few_queries(*given[0], given[1], **given[2])
    assert found.dtype == torch.bfloat16
    expected = brute_force(*rounded[0], rounded[1], **rounded[2])
    torch.testing.assert_close(found.double(), expected, atol=1e-2, rtol=1e-2)


def decoder_call(queries=1, block=1, share=0.5, requires_grad=False, **options):
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 4, queries, 16), (2, 2, 70, 16), (2, 2, 70, 16))
    q, k, v = (torch.randn(shape, generator=generator).requires_grad_(requires_grad) for shape in shapes)
    side = -(-100 // block)
    mask = LayerMask(torch.rand(4, side, side, generator=generator) < share, block, 100, 100, causal=True)
    keys = options.get("query_offset", 70 - queries) + queries
    return (q, k[:, :, :keys], v[:, :, :keys], mask), {"query_offset": keys - queries, "enable_gqa": True} | options


@compiled
@pytest.mark.parametrize("backend", ["auto", "block_sparse"])
@pytest.mark.parametrize(("queries", "block"), [(1, 1), (1, 16), (8, 1), (8, 48)])
def test_a_step_over_a_cache_reads_kept_keys_and_says_so(queries, block, backend):
    arguments, options = decoder_call(queries, block)
    with recorded() as rows:
        found = pruned_attention(*arguments, backend=backend, **options)
    kept, visible = arguments[3].kept_count
    assert (rows[0].backend, rows[0].computed, rows[0].blocks, rows[0].block_size) == (
        "block_sparse",
        kept,
        visible,
        block,
    )
    torch.testing.assert_close(found, pruned_attention(*arguments, backend="reference", **options))


@compiled
@pytest.mark.parametrize(
    ("queries", "options"),
    [(9, {}), (1, {"requires_grad": True}), (1, {"dropout_p": 0.5}), (8, {"query_offset": 0})],
    ids=["many", "gradients", "dropout", "short"],
)
def test_other_calls_go_where_they_went(queries, options):
    arguments, options = decoder_call(queries, 16, share=0.9, **options)
    requires_grad = arguments[0].requires_grad
    call = Call.check(*arguments, **options)
    assert not choice.choose(call).kept_keys and not choice.choose(call, "block_sparse").kept_keys
    if requires_grad:
        found = torch.autograd.grad(pruned_attention(*arguments, backend="block_sparse", **options).sum(), arguments[1])
        expected = torch.autograd.grad(pruned_attention(*arguments, backend="reference", **options).sum(), arguments[1])
        torch.testing.assert_close(found, expected)


@compiled
def test_a_step_is_one_graph_for_the_compiler():
    arguments, options = decoder_call()
    step = torch.compile(
        lambda q, k, v: pruned_attention(q, k, v, arguments[3], **options), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(step(*arguments[:3]), pruned_attention(*arguments, **options))


@compiled
def test_kept_blocks_are_counted_where_they_are_visible():
    pruned = torch.tensor([[[True, True], [False, True]], [[False, False], [True, False]]])
    mask = LayerMask(pruned, 16, 30, 30, causal=True)
    assert mask.kept_count == (1 + 2, 6)
    assert LayerMask(pruned, 16, 30, 30).kept_count == (1 + 3, 8)


@compiled
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_offset": 100}, "mask: expected at least 101 queries"),
        ({"query_offset": -1}, "query_offset: expected at least 0"),
        ({"starts": torch.zeros(3, dtype=torch.int32)}, r"starts: expected int32 \[2\]"),
        ({"starts": torch.zeros(2)}, r"starts: expected int32 \[2\]"),
        ({"starts": torch.tensor([-1, 0], dtype=torch.int32)}, "starts of 0 and more"),
        ({"columns": torch.zeros(2, 4, 70, dtype=torch.int32)}, r"columns: expected int32 \[2, 2, 70\]"),
        ({"columns": torch.zeros(2, 2, 70, dtype=torch.int32), "bias": torch.zeros(1, 1, 1, 1)}, "neither with a bias"),
        ({"bias": torch.zeros(3, 40, 48)}, "bias: expected floats"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    (q, k, v, mask), _ = decoder_call()
    with pytest.raises(InputError, match=message):
        few_queries.few_queries(q, k, v, mask, **{"causal": True, "query_offset": 69, "scale": 1.0} | change)

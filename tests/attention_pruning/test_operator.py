"""The operator: every backend equals the definition in float64, values and gradients, whatever the call."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import InputError, LayerMask, PrunedAttention, pruned_attention
from attention_pruning.ops import fused
from attention_pruning.ops.attention import attend
from attention_pruning.ops.call import Call
from attention_pruning.ops.choice import Choice, kernel_layout
from attention_pruning.ops.cpu import native
from attention_pruning.ops.eager import masked_attention
from attention_pruning.ops.reasons import recorded

law = settings(deadline=None, max_examples=60)
BACKENDS = ["reference", "sdpa", *(["block_sparse"] if native.runnable_builds() else [])]


def defined(q, k, v, mask, *, is_causal, key_padding_mask, attn_bias, query_offset, scale, **_):
    """Row by row from the definition, in float64."""
    batch, heads, queries, size = q.shape
    keys, groups = k.shape[2], heads // k.shape[1]
    kept = ~mask.pruned.repeat_interleave(mask.block_size, 1).repeat_interleave(mask.block_size, 2)
    kept = kept[:, query_offset : query_offset + queries, :keys]
    visible = torch.ones(batch, queries, keys, dtype=torch.bool)
    if is_causal or mask.causal:
        diagonal = query_offset + mask.key_length - mask.query_length
        visible &= torch.ones(queries, keys, dtype=torch.bool).tril(diagonal)
    if key_padding_mask is not None:
        visible &= ~key_padding_mask[:, None, :]
    out = []
    for b in range(batch):
        for h in range(heads):
            scores = q[b, h] @ k[b, h // groups].T * (1 / math.sqrt(size) if scale is None else scale)
            if attn_bias is not None:
                scores = scores + attn_bias.expand(batch, heads, queries, keys)[b, h]
            for i in range(queries):
                keep, see = kept[h, i] & visible[b, i], visible[b, i]
                values = v[b, h // groups]
                if keep.any():
                    out.append(scores[i][keep].softmax(0) @ values[keep])
                elif see.any():
                    out.append(values[see].mean(0))
                else:
                    out.append(values.sum(0) * 0)
    return torch.stack(out).view(batch, heads, queries, v.shape[-1])


@st.composite
def calls(draw, gradients=True):
    """Tensors in float64, a mask, and the options of a call."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    batch, kv_heads, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    heads, size = kv_heads * groups, draw(st.sampled_from([1, 3, 8]))
    block = draw(st.sampled_from([1, 3, 16, 32, 48]))
    causal, memory = draw(st.booleans()), draw(st.sampled_from([0, 0, 5, 20]))
    longest = draw(st.integers(1, 70))
    offset = draw(st.integers(0, longest - 1)) if causal else 0
    queries = draw(st.integers(1, longest - offset))
    if causal:
        mask_lengths, keys = (longest, longest + memory), offset + queries + memory
    else:
        keys = draw(st.integers(1, 60))
        mask_lengths = (longest, keys + memory)
    blocks = [-(-n // block) for n in mask_lengths]
    pruned = torch.rand(heads, *blocks, generator=generator) < draw(st.sampled_from([0.0, 0.4, 0.9]))
    told = causal and draw(st.booleans())  # causality as a property of the mask, or asked for
    mask = LayerMask(pruned, block, *mask_lengths, causal=causal and not told)

    def tensor(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    padding = None
    if draw(st.booleans()):
        padding = torch.rand(batch, keys, generator=generator) < draw(st.sampled_from([0.1, 0.6]))
    bias = None
    if draw(st.booleans()):
        shape = [draw(st.sampled_from([1, n])) for n in (batch, heads, queries, keys)]
        bias = tensor(*shape)
    leaves = [
        tensor(batch, heads, queries, size),
        tensor(batch, kv_heads, keys, size),
        tensor(batch, kv_heads, keys, size),
    ]
    options = {"is_causal": told, "key_padding_mask": padding, "query_offset": offset}
    return leaves, mask, options | {"scale": draw(st.sampled_from([None, 0.3]))}, bias


def computed(backend, leaves, mask, options, bias, dtype):
    """Output and gradients by one backend."""
    leaves = [x.to(dtype).requires_grad_() for x in leaves]
    bias = None if bias is None else bias.to(dtype).requires_grad_()
    if backend == "defined":
        out = defined(*leaves, mask, attn_bias=bias, **options)
    else:
        call = Call.check(*leaves, mask, attn_bias=bias, enable_gqa=True, **options)
        layout = kernel_layout(mask)[0] if backend == "block_sparse" else None
        out = attend(call, Choice(backend, "asked for", layout))
    weights = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
    found = torch.autograd.grad((out * weights).sum(), [*leaves, *([] if bias is None else [bias])], allow_unused=True)
    zeros = [torch.zeros_like(x) for x in [*leaves, *([] if bias is None else [bias])]]
    return [out.detach(), *(z if g is None else g for g, z in zip(found, zeros, strict=True))]


@pytest.mark.parametrize("backend", BACKENDS)
@law
@given(problem=calls())
def test_every_backend_is_the_definition(backend, problem):
    expected = computed("defined", *problem, torch.float64)
    dtype = torch.float32 if backend == "block_sparse" else torch.float64
    found = computed(backend, *problem, dtype)
    for one, other in zip(found, expected, strict=True):
        tolerance = 1e-4 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


@law
@given(problem=calls())
def test_padding_as_a_part_of_the_product_is_the_definition_too(problem):
    """How a GPU keeps one mask for all sequences; scores lose a finite number there, so sums are less exact."""
    expected = computed("defined", *problem, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fused, "_padding_in_product", lambda call: call.key_padding_mask is not None and call.bias is None
        )
        found = computed("sdpa", *problem, torch.float64)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def plain(dtype=torch.float32, heads=2, length=300, size=8, value_size=None):
    generator = torch.Generator().manual_seed(1)
    sizes = (size, size, value_size or size)
    return [torch.randn(1, heads, length, n, generator=generator).to(dtype) for n in sizes]


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_left_empty_are_counted_beyond_256_in_16_bits(dtype, backend):
    q, k, v = plain(dtype)
    mask = LayerMask(torch.ones(2, 300, 300, dtype=torch.bool), 1, 300, 300, causal=True)
    out = attend(Call.check(q, k, v, mask), Choice(backend, "asked for"))
    means = v.float().cumsum(2) / torch.arange(1, 301)[:, None]
    torch.testing.assert_close(out.float(), means, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("block", [1, 16])
def test_values_of_another_size_are_left_to_torch_with_the_reason(block):
    q, k, v = plain(length=160, value_size=12)
    side = 160 // block
    mask = LayerMask(torch.rand(2, side, side, generator=torch.Generator().manual_seed(2)) < 0.5, block, 160, 160)
    with recorded() as rows:
        found = pruned_attention(q, k, v, mask)
    assert rows[0].backend == "sdpa" and "head size" in rows[0].reason and found.shape == (1, 2, 160, 12)
    torch.testing.assert_close(found, pruned_attention(q, k, v, mask, backend="reference"))


def test_under_autocast_tensors_of_two_dtypes_are_cast_as_torch_casts_them():
    q, k, v = plain()
    mask = LayerMask(torch.zeros(2, 300, 300, dtype=torch.bool), 1, 300, 300)
    with torch.autocast("cpu", torch.bfloat16):
        found = pruned_attention(q, k, v.bfloat16(), mask)
        expected = F.scaled_dot_product_attention(q, k, v.bfloat16())
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    with pytest.raises(InputError, match="v: expected torch.float32"):
        pruned_attention(q, k, v.bfloat16(), mask)


def test_a_long_layout_is_made_from_its_blocks():
    """32 heads of 16384 x 16384 cells are 8.6 GB; their blocks are 2 MB, and the layout less than 20."""
    pruned = torch.rand(32, 256, 256, generator=torch.Generator().manual_seed(1)) < 0.9
    layout = LayerMask(pruned, 64, 16384, 16384, causal=True).layout(64)
    assert sum(getattr(layout, name).nbytes for name in ("row_start", "column", "part", "bits")) < 20e6
    assert torch.equal(layout.blocks, ~pruned & torch.ones(256, 256, dtype=torch.bool).tril())
    assert not len(layout.bits)


@pytest.mark.parametrize("block", [32, 48, 64, 128, 256])
def test_the_blocks_of_a_mask_are_blocks_of_the_kernel_or_several(block):
    pruned = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    mask = LayerMask(pruned, block, 3 * block, 3 * block)
    layout, _ = kernel_layout(mask)
    assert block % layout.block_size == 0 and not len(layout.bits)
    assert torch.equal(layout.cells, ~mask.cells(torch.device("cpu")))


def test_a_module_attends_under_its_mask_with_dropout_in_training_alone():
    q, k, v = plain(length=64)
    mask = LayerMask(torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.5, 16, 64, 64, causal=True)
    module = PrunedAttention(mask, dropout_p=0.5)
    assert not torch.equal(module(q, k, v), module(q, k, v))
    torch.testing.assert_close(module.eval()(q, k, v), pruned_attention(q, k, v, mask))
    assert not list(module.parameters()) and not list(module.buffers())


@pytest.mark.parametrize(("block", "causal"), [(1, True), (16, False), (16, True)])
def test_a_mask_mod_tells_flexattention_what_is_kept(block, causal):
    from torch.nn.attention.flex_attention import create_mask

    from attention_pruning.ops.flex import mask_mod

    side = 64 // block
    pruned = torch.rand(2, side, side, generator=torch.Generator().manual_seed(3)) < 0.5
    mask = LayerMask(pruned, block, 64, 64, causal=causal)
    visible = torch.ones(64, 64, dtype=torch.bool).tril(0 if causal else 64)
    told = create_mask(mask_mod(mask), 1, 2, 64, 64, device="cpu")[0]
    assert torch.equal(told, ~mask.cells(torch.device("cpu")) & visible)


@pytest.mark.parametrize("name", ["block_sparse_attention", "masked_attention"])
def test_old_names_warn_and_give_the_same(name):
    import attention_pruning

    q, k, v = plain(length=64)
    mask = LayerMask(torch.ones(2, 4, 4, dtype=torch.bool).triu(1), 16, 64, 64)
    given = mask.layout(16) if name == "block_sparse_attention" else mask.cells(torch.device("cpu"))
    with pytest.warns(DeprecationWarning, match=f"{name} goes in the next version; use attention_pruning.pruned_att"):
        found = getattr(attention_pruning, name)(q, k, v, given)
    torch.testing.assert_close(found, pruned_attention(q, k, v, mask))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visible": torch.ones(3, 3)}, "visible: expected bools, True = visible, found torch.float32"),
        ({"q": torch.zeros(1, 2, 3, 4).numpy()}, "q: expected a tensor, found ndarray"),
        ({"pruned": torch.ones(2, 3, 3)}, "pruned_HLS: expected bools"),
    ],
)
def test_attention_under_any_mask_refuses_other_types_in_one_line(change, message):
    q = torch.zeros(1, 2, 3, 4)
    arguments = {"q": q, "k": q, "v": q, "pruned": None, "visible": None} | change
    with pytest.raises(InputError, match=message):
        masked_attention(*arguments.values())


def test_torchs_attention_draws_its_own_dropout_and_nothing_before_it():
    """So a model under a mask of cells drops what it would drop if torch's attention were called by hand."""
    q, k, v = plain(length=24)
    mask = LayerMask(torch.rand(2, 24, 24, generator=torch.Generator().manual_seed(3)) < 0.5, 1, 24, 24)
    torch.manual_seed(1)
    found = pruned_attention(q, k, v, mask, dropout_p=0.3)
    torch.manual_seed(1)
    scores = mask.additive(q.device, q.dtype)[None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=scores, dropout_p=0.3)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("padded", [False, True])
def test_scores_under_a_mask_of_cells_are_not_multiplied_by_the_batch(monkeypatch, padded):
    """One mask [H, L, S] serves all sequences; with padding that holds on a GPU, where memory is short."""
    q, k, v = (x.expand(4, -1, -1, -1) for x in plain(length=24))
    mask = LayerMask(torch.rand(2, 24, 24, generator=torch.Generator().manual_seed(3)) < 0.5, 1, 24, 24, causal=True)
    padding = torch.zeros(4, 24, dtype=torch.bool)
    padding[1, 20:] = True
    shapes, attention = [], F.scaled_dot_product_attention
    monkeypatch.setattr(fused, "_padding_in_product", lambda call: call.key_padding_mask is not None)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *x, **y: shapes.append(y["attn_mask"].shape) or attention(*x, **y)
    )
    for _ in range(2):
        pruned_attention(q, k, v, mask, key_padding_mask=padding if padded else None)
    assert shapes == [(1, 2, 24, 24)] * 2


@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("backend", ["auto", "reference", *([] if native.missing() else ["block_sparse"])])
def test_a_layer_of_a_mask_is_compiled_into_one_graph(block, backend):
    generator = torch.Generator().manual_seed(3)
    mask = LayerMask(torch.rand(2, 64 // block, 64 // block, generator=generator) < 0.5, block, 64, 64)
    q, k, v = plain(length=64)

    def attended(q):
        return pruned_attention(q, k, v, mask, backend=backend)

    found = torch.compile(attended, backend="aot_eager", fullgraph=True)(q)
    torch.testing.assert_close(found, attended(q), atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()

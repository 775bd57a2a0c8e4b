"""The operator: every backend equals the definition in float64, values and gradients, whatever the call."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import LayerMask
from attention_pruning.ops.attention import attend
from attention_pruning.ops.call import Call
from attention_pruning.ops.choice import Choice, kernel_layout
from attention_pruning.ops.cpu import native

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

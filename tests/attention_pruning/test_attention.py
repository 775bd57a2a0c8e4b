"""Laws of masked attention: everything equals a loop over rows that looks only at the keys that are left."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_pruning import masked_attention
from attention_pruning.ops.eager import ScoreMask, attend, normalize
from strategies import law


def entmax15_row(scores):
    """1.5-entmax of one row: p_j = max(0, s_j / 2 - t)^2 with sum 1; t by bisection, then exactly on its support."""
    z = scores / 2
    low, high = float(z.detach().max()) - 1.0, float(z.detach().max())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float((z.detach() - middle).clamp(min=0).square().sum()) > 1 else (low, middle)
    support = z[z.detach() > low]
    n, total, squares = len(support), support.sum(), support.square().sum()
    threshold = (total - (total * total - n * (squares - 1)).clamp(min=0).sqrt()) / n
    return (z - threshold).clamp(min=0).square()


def reference(q, k, v, pruned=None, visible=None, bias=None, scale=None, normalizer="softmax"):
    """Outputs [B, H, L, D] and probabilities [B, H, L, S], row by row."""
    (batch, heads, queries, size), keys = q.shape, k.shape[2]
    shape = (batch, heads, queries, keys)
    pruned = (torch.zeros(shape, dtype=torch.bool) if pruned is None else pruned).expand(shape)
    visible = (torch.ones(shape, dtype=torch.bool) if visible is None else visible).expand(shape)
    bias = (torch.zeros(shape, dtype=q.dtype) if bias is None else bias).expand(shape)
    scale = 1 / math.sqrt(size) if scale is None else scale
    out, probabilities = [], []
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (batch, heads, queries))).tolist():
        seen = [j for j in range(keys) if visible[b, h, i, j]]
        kept = [j for j in seen if not pruned[b, h, i, j]]
        row = torch.zeros(keys, dtype=q.dtype)
        if kept:
            scores = torch.stack([q[b, h, i] @ k[b, h, j] * scale + bias[b, h, i, j] for j in kept])
            p = scores.softmax(0) if normalizer == "softmax" else entmax15_row(scores)
            row = row.index_copy(0, torch.tensor(kept), p)
        elif seen:
            row[seen] = 1 / len(seen)
        probabilities.append(row)
        out.append(row @ v[b, h])
    return torch.stack(out).view(*q.shape[:3], -1), torch.stack(probabilities).view(shape)


@st.composite
def problems(draw, dtype=torch.float64):
    """Queries, keys, values, a prune mask, a visibility, a bias and a scale, each of the last four perhaps absent."""
    batch, heads, queries, keys, size = (draw(st.integers(1, n)) for n in (3, 3, 4, 6, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def numbers(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def bools(share, *shape):
        return torch.rand(shape, generator=generator) < share

    q, k, v = numbers(batch, heads, queries, size), numbers(batch, heads, keys, size), numbers(batch, heads, keys, size)
    shares = st.sampled_from([0.0, 0.3, 0.7, 1.0])
    pruned = bools(draw(shares), heads, queries, keys) if draw(st.booleans()) else None
    shape = draw(st.sampled_from([None, (queries, keys), (batch, 1, 1, keys), (batch, 1, queries, keys)]))
    visible = None if shape is None else bools(1 - draw(shares), *shape)
    shape = draw(st.sampled_from([None, (queries, keys), (1, heads, queries, keys), (batch, heads, queries, keys)]))
    bias = None if shape is None else 3 * numbers(*shape)
    return q, k, v, pruned, visible, {"bias": bias, "scale": draw(st.sampled_from([None, 0.3, 2.0]))}


ways = st.sampled_from([("eager", "softmax"), ("sdpa", "softmax"), ("eager", "entmax15")])


@law
@given(problems(), ways)
def test_values_and_gradients_equal_a_loop_over_rows(problem, way):
    q, k, v, pruned, visible, more = problem
    leaves = [t.requires_grad_() for t in (q, k, v, more["bias"]) if t is not None]
    found = masked_attention(q, k, v, pruned, visible, **more, implementation=way[0], normalizer=way[1])
    expected, _ = reference(q, k, v, pruned, visible, **more, normalizer=way[1])
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    weight = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).view(found.shape).sin()
    found_gradients = torch.autograd.grad((found * weight).sum(), leaves, materialize_grads=True)
    expected_gradients = torch.autograd.grad(
        (expected * weight).sum(), leaves, materialize_grads=True, allow_unused=True
    )
    for found_gradient, expected_gradient in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found_gradient, expected_gradient, atol=1e-8, rtol=1e-8)


@law
@given(problems(dtype=torch.float32))
def test_sdpa_changes_speed_and_not_meaning_in_float32(problem):
    q, k, v, pruned, visible, more = problem
    eager, sdpa = (
        masked_attention(q, k, v, pruned, visible, **more, implementation=name) for name in ("eager", "sdpa")
    )
    torch.testing.assert_close(eager, sdpa, atol=2e-5, rtol=1e-4)


@law
@given(problems(), st.sampled_from(["softmax", "entmax15"]), st.sampled_from([0.0, 0.5]))
def test_the_observer_sees_the_probabilities_before_dropout(problem, normalizer, dropout_p):
    q, k, v, pruned, visible, more = problem
    seen = []
    masked_attention(q, k, v, pruned, visible, **more, normalizer=normalizer, dropout_p=dropout_p, observer=seen.append)
    _, expected = reference(q, k, v, pruned, visible, **more, normalizer=normalizer)
    torch.testing.assert_close(seen[0], expected, atol=1e-9, rtol=1e-9)
    assert not seen[0].requires_grad


@law
@given(problems(), st.sampled_from(["softmax", "entmax15"]))
def test_pruned_and_hidden_cells_have_probability_exactly_zero(problem, normalizer):
    q, k, v, pruned, visible, more = problem
    seen = []
    masked_attention(q, k, v, pruned, visible, **more, normalizer=normalizer, observer=seen.append)
    shape = seen[0].shape
    pruned = torch.zeros(shape, dtype=torch.bool) if pruned is None else pruned.expand(shape)
    visible = torch.ones(shape, dtype=torch.bool) if visible is None else visible.expand(shape)
    left = (visible & ~pruned).any(-1, keepdim=True)
    assert (seen[0][left & pruned] == 0).all() and (seen[0][~visible] == 0).all()
    sums = seen[0].sum(-1)
    torch.testing.assert_close(sums, visible.any(-1).to(sums.dtype))  # one, or zero for a row that sees nothing


@law
@given(problems(), ways)
def test_pruning_a_cell_equals_a_score_of_minus_infinity(problem, way):
    q, k, v, pruned, visible, more = problem
    shape = (*q.shape[:3], k.shape[2])
    gone = torch.zeros(shape, dtype=torch.bool) if pruned is None else pruned.expand(shape).clone()
    gone |= False if visible is None else ~visible
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if more["scale"] is None else more["scale"])
    scores = scores if more["bias"] is None else scores + more["bias"]
    rows = ~gone.all(-1)
    expected = normalize(scores.masked_fill(gone & rows[..., None], -math.inf), way[1]) @ v
    found = masked_attention(q, k, v, pruned, visible, **more, implementation=way[0], normalizer=way[1])
    torch.testing.assert_close(found[rows], expected[rows], atol=1e-9, rtol=1e-9)


@law
@given(problems(), ways, st.data())
def test_what_a_pruned_key_and_value_hold_does_not_matter(problem, way, data):
    q, k, v, pruned, visible, more = problem
    pruned = torch.zeros(q.shape[1], q.shape[2], k.shape[2], dtype=torch.bool) if pruned is None else pruned.clone()
    key = data.draw(st.integers(0, k.shape[2] - 1))
    pruned[:, :, key] = True
    shape = (*q.shape[:3], k.shape[2])
    left = (~pruned.expand(shape) & (True if visible is None else visible.expand(shape))).any(-1)
    outputs = []
    for content in (1.0, 1e6):
        k, v = k.clone(), v.clone()
        k[:, :, key], v[:, :, key] = content, -content
        outputs.append(masked_attention(q, k, v, pruned, visible, **more, implementation=way[0], normalizer=way[1]))
    assert torch.equal(outputs[0][left], outputs[1][left])


def test_a_row_with_nothing_left_ignores_padding():
    q = k = torch.randn(1, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    v = torch.tensor([[1.0, 1.0], [1000.0, 1000.0]])[None, None]
    pruned, visible = torch.tensor([[[True, False], [False, False]]]), torch.tensor([True, False])
    found = masked_attention(q, k, v, pruned, visible)
    assert torch.equal(found, torch.ones(1, 1, 2, 2))  # both rows: the only real key, pruned for the first


@pytest.mark.parametrize("normalizer", ["softmax", "entmax15"])
def test_the_observer_of_half_precision_gets_float32(normalizer):
    """What is below 6e-8 is 0 in float16: the very tail that decides what is pruned."""
    q = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(1)) * 2.5
    seen = []
    out = attend(q.half(), q.half(), q.half(), normalizer=normalizer, observer=seen.append)
    assert seen[0].dtype == torch.float32 and out.dtype == torch.float16
    if normalizer == "softmax":
        assert (seen[0] > 0).all() and (seen[0] < 2.9e-8).any()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_dropout_falls_on_probabilities_alone(implementation):
    """With the identity for values the output is the dropped probabilities."""
    generator, size, dropped = torch.Generator().manual_seed(3), 48, 0.25
    q, k = torch.randn(2, 2, 2, size, size, generator=generator, dtype=torch.float64).unbind(0)
    v, pruned = torch.eye(size, dtype=torch.float64).expand_as(k), torch.rand(2, size, size, generator=generator) < 0.5
    probabilities = masked_attention(q, k, v, pruned)
    torch.manual_seed(5)
    found = masked_attention(q, k, v, pruned, dropout_p=dropped, implementation=implementation)
    alive = found != 0
    assert not (alive & pruned).any()
    scale = found[alive] / probabilities[alive]
    torch.testing.assert_close(scale, torch.full_like(scale, 1 / (1 - dropped)), rtol=1e-4, atol=0)
    share = 1 - alive.sum() / (~pruned).expand_as(alive).sum()
    assert abs(share - dropped) < 0.03  # 4,600 cells: five standard deviations


@pytest.mark.parametrize("shape", [(2, 4, 3), (1, 3, 4), (3, 4), (1, 2, 3, 4), (2, 3, 5), (2, 1, 4)])
def test_a_mask_of_another_shape_is_refused(shape):
    q, k = torch.randn(1, 2, 3, 5), torch.randn(1, 2, 4, 5)
    with pytest.raises(ValueError) as caught:
        masked_attention(q, k, k, torch.zeros(shape, dtype=torch.bool))
    assert "(2, 3, 4)" in str(caught.value) and str(shape) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_mask_that_is_not_of_bools_is_refused(dtype):
    q = torch.randn(1, 2, 3, 5)
    with pytest.raises(ValueError, match="bool"):
        masked_attention(q, q, q, torch.zeros(2, 3, 3, dtype=dtype))


def test_what_an_implementation_cannot_do_is_refused():
    q = torch.randn(1, 1, 2, 2)
    with pytest.raises(ValueError, match="implementation.*nosuch"):
        attend(q, q, q, implementation="nosuch")
    with pytest.raises(ValueError, match="sdpa"):
        attend(q, q, q, implementation="sdpa", observer=print)
    with pytest.raises(ValueError, match="sdpa"):
        attend(q, q, q, implementation="sdpa", normalizer="entmax15")
    with pytest.raises(ValueError, match="normalizer.*sparsemax"):
        attend(q, q, q, normalizer="sparsemax")
    with pytest.raises(ValueError, match="prune mask"):
        ScoreMask.build(None, None)

"""A pruned model goes through the library's operator: the same numbers as by all scores, in evaluation and training."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train
from attention_pruning import PruneMask
from attention_pruning.make import from_pattern
from attention_pruning.ops.cpu import native
from attention_pruning.ops.layer_mask import LayerMask
from attention_pruning.ops.reasons import recorded
from mem_transformer import MemTransformerLM, ModelConfig
from tiny_xl import SHAPE, law, random_cells, random_ids, random_pattern, read_json, training_flags

LENGTHS = {"tgt_len": 32, "mem_len": 32}
needs_kernel = pytest.mark.skipif(native.missing() is not None, reason=f"the compiled kernel: {native.missing()}")


def mask_of(block: int, tau: float = 0.6, **lengths: int) -> PruneMask:
    return from_pattern(random_pattern(**{**LENGTHS, **lengths}), tau, rule="allowed", block_size=block)


def model_of(
    mask: PruneMask | None, backend: str = "auto", dtype: torch.dtype = torch.float32, **changes
) -> MemTransformerLM:
    torch.manual_seed(5)
    model = MemTransformerLM(ModelConfig(n_token=23, **{**SHAPE, **LENGTHS, **changes}), mask)
    model.initialize(init_std=0.4, proj_init_std=0.4)
    model.set_backend(backend)
    return model


def walk(model: MemTransformerLM, lengths: list[int], grad: bool) -> tuple[torch.Tensor, list[torch.Tensor], list]:
    """Losses of segments one after another, gradients of their sum, and what computed them."""
    ids, memory, losses = random_ids(2, sum(lengths) + 1), None, []
    start = 0
    with torch.set_grad_enabled(grad), recorded() as rows:
        for length in lengths:
            segment = ids[:, start : start + length], ids[:, start + 1 : start + length + 1]
            nll, memory = model(*segment, memory)
            losses.append(nll)
            start += length
    loss = torch.cat(losses, 1)
    if not grad:
        return loss.double(), [], rows
    model.zero_grad()
    loss.sum().backward()
    return loss.detach().double(), [p.grad.double() for p in model.parameters()], rows


@needs_kernel
@pytest.mark.parametrize("block", [1, 16, 32])
@pytest.mark.parametrize("grad", [False, True])
def test_the_kernel_gives_what_all_scores_give(block, grad):
    """Whole and short memories, a last segment cut short."""
    lengths = [32, 32, 32, 20]
    kernel, plain = (
        walk(model_of(mask_of(block), backend).eval(), lengths, grad) for backend in ("block_sparse", "reference")
    )
    assert {row.backend for row in kernel[2]} == {"block_sparse"} and {row.backend for row in plain[2]} == {"reference"}
    expected = walk(model_of(mask_of(block)).double().eval(), lengths, grad)  # doubles are computed by all scores
    assert {row.backend for row in expected[2]} == {"sdpa"}
    for found in (kernel, plain):
        torch.testing.assert_close(found[0], expected[0], atol=2e-5, rtol=1e-5)
        for one, other in zip(found[1], expected[1], strict=True):
            torch.testing.assert_close(one, other, atol=3e-4, rtol=1e-3)


@law
@given(
    seed=st.integers(0, 99),
    share=st.sampled_from([0.3, 0.9, 1.0]),
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    backend=st.sampled_from(["reference", *([] if native.missing() else ["block_sparse"])]),
)
def test_any_cells_at_any_lengths(seed, share, lengths, backend):
    """Rows without a kept cell among them."""
    model = model_of(None, tgt_len=8, mem_len=6).eval()
    model.set_pruned(random_cells(model, share, seed))
    expected, _, _ = walk(model.double(), lengths, False)
    model.float().set_backend(backend)
    found, _, rows = walk(model, lengths, False)
    assert {row.backend for row in rows} <= {backend}
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_a_layer_that_prunes_nothing_is_dense_to_the_bit():
    cells = torch.zeros(2, 2, 32, 64, dtype=torch.bool)
    cells[1, :, 16:, :16] = True
    model, dense = model_of(None).eval(), model_of(None).eval()
    model.set_pruned(cells)
    ids = random_ids(2, 33)
    with torch.no_grad(), recorded() as rows:
        model(ids[:, :-1], ids[:, 1:])
    assert [row.layer for row in rows] == []  # nothing is seen of the memory yet: both are dense
    cells[0, :, 16:, 32:48] = True
    model.set_pruned(cells)
    with torch.no_grad(), recorded() as rows:
        found = model(ids[:, :-1], ids[:, 1:])[0]
    assert [row.layer for row in rows] == [0]
    assert not torch.equal(found, dense(ids[:, :-1], ids[:, 1:])[0])


def test_cells_are_told_apart_into_the_largest_whole_blocks():
    for block in (16, 32, 64, 128):
        cells = (
            torch.rand(2, 256 // block, 384 // block).lt(0.5).repeat_interleave(block, 1).repeat_interleave(block, 2)
        )
        cells[:, :block, :block] = True
        cells[:, block : 2 * block, :block] = False
        found = LayerMask.from_cells(cells[:, :200, :333], causal=True)
        assert found.block_size == block and torch.equal(found.cells(torch.device("cpu")), cells[:, :200, :333])
    single = torch.rand(2, 40, 50) < 0.5
    assert LayerMask.from_cells(single).block_size == 1 and torch.equal(LayerMask.from_cells(single).pruned, single)


def without_empty_rows(cells: torch.Tensor, slots: int) -> torch.Tensor:
    """The same cells, but every query keeps its own key."""
    own = torch.arange(cells.size(2))
    cells[:, :, own, slots + own] = False
    return cells


@needs_kernel
@pytest.mark.parametrize("backend", ["block_sparse", "reference"])
@pytest.mark.parametrize("mem_len", [6, 32])  # 6: a segment is longer than what a query sees
@pytest.mark.parametrize("grad", [False, True])
def test_same_length_goes_through_the_operator(backend, mem_len, grad):
    model = model_of(None, backend, same_length=True, mem_len=mem_len).eval()
    cells = without_empty_rows(random_cells(model, 0.7, 1), mem_len)
    cells[1, :, :, :] = False  # a layer that prunes nothing is dense
    model.set_pruned(cells)
    lengths = [32, 32, 11]
    exact = copy.deepcopy(model).double()
    exact.set_backend("auto")  # doubles are computed by all scores
    expected = walk(exact, lengths, grad)
    assert {row.backend for row in expected[2]} == {"sdpa"}
    found = walk(model, lengths, grad)
    assert {(row.layer, row.backend) for row in found[2]} == {(0, backend)}
    torch.testing.assert_close(found[0], expected[0], atol=2e-5, rtol=1e-5)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, atol=3e-4, rtol=1e-3)


def test_rows_that_same_length_leaves_empty_are_computed_by_all_scores():
    """They are uniform over what they see: less than causality shows."""
    model = model_of(None, same_length=True, mem_len=6).eval()
    cells = without_empty_rows(random_cells(model, 0.7, 1), 6)
    cells[0, 1, 20, 6 + 15 :] = True  # all that query 20 sees
    model.set_pruned(cells)
    _, _, rows = walk(model, [32], False)
    assert [row.reason for row in rows if row.layer == 0] == [
        "rows are left empty, and same_length hides some of what causality shows them"
    ]
    assert all("empty" not in row.reason for row in rows if row.layer == 1)


@needs_kernel
@pytest.mark.slow
def test_training_under_blocks_follows_the_reference(words, tmp_path, run_train):
    """50 updates through the kernel: the loss curve of the readable reference, to 1e-4."""
    mask = tmp_path / "mask.safetensors"
    mask_of(16).save(mask)
    changes = {**LENGTHS, "fn": mask, "max_step": 50, "eval_interval": 50, "batch_size": 2, "lr": 0.005, "threads": 1}
    found = [
        read_json(run_train(backend, attention_backend=backend, **changes)[0] / "run.json")
        for backend in ("block_sparse", "reference")
    ]
    assert [{row["backend"] for row in each["attention"]} for each in found] == [{"block_sparse"}, {"reference"}]
    assert found[0]["valid_nll"] == pytest.approx(found[1]["valid_nll"], abs=1e-4)


def test_a_backend_without_a_pattern_is_refused(words, tmp_path, refused):
    message = refused(train.main, training_flags(words, tmp_path / "run", attention_backend="reference"))
    assert message == "--attention_backend: expected a pattern to prune by, --fn, beside it, found none"

"""What is chosen for a GPU, as far as it can be told without one: tiles that fit, and the backend that was faster."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from attention_pruning import BlockLayout, LayerMask
from attention_pruning.ops import choice, flex
from attention_pruning.ops.call import Call
from attention_pruning.ops.triton import availability

MEASURED = Path(__file__).resolve().parents[2] / "results" / "reference" / "benchmarks" / "block_sparse_gpu.csv"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
#: Shared memory that a kernel may take on the consumer cards of Ampere and later, and on an H100.
CONSUMER, H100 = 99 * 1024, 227 * 1024


def a_call(length, block, dtype, kept=1.0, gradients=False, size=64, heads=12, batch=8, **options):
    """A call of that shape whose tensors take no memory."""
    side = -(-length // block)
    blocks = torch.zeros(heads, side * side, dtype=torch.bool)
    blocks[:, : round(kept * side * side)] = True
    layout = BlockLayout.from_blocks(blocks.view(heads, side, side), block, length, length)
    q, k, v = (torch.empty((), dtype=dtype).expand(batch, heads, length, size) for _ in range(3))
    return Call.check(q.requires_grad_(gradients), k, v, layout, **options)


def forward_memory(rows, keys, stages, size, bytes_each):
    """Bytes of shared memory of a forward tile with a bias of float32.

    The queries, what is fetched ahead (keys, values and bias), and the probabilities on their way into a product.
    """
    ahead = 2 * keys * size * bytes_each + 4 * rows * keys
    return rows * size * bytes_each + (stages - 1) * ahead + rows * (keys + 8) * bytes_each


def backward_memory(rows, keys, stages, size, bytes_each):
    """The same of a backward tile, which stays at its keys: they and the values stay, queries and gradients pass by."""
    ahead = 2 * rows * size * bytes_each + 4 * rows * keys
    return 2 * keys * size * bytes_each + (stages - 1) * ahead + 2 * rows * (keys + 8) * bytes_each


def test_the_estimate_of_shared_memory_is_what_triton_asked_for():
    """As an H100 refused it, for FlexAttention's own choice: block 128, bfloat16, heads of 64."""
    assert forward_memory(128, 128, 3, 64, 2) == 247808 > H100


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("size", [16, 64, 80, 128, 192, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_with_a_bias_fit_every_card_and_divide_their_block(dtype, size, block):
    call = a_call(256, block, dtype, size=size, heads=1, batch=1, attn_bias=torch.zeros(256, 256))
    options = flex.kernel_options(call, call.mask.given_layout)
    wide, each = 1 << (size - 1).bit_length(), dtype.itemsize  # tiles are as wide as a power of two
    tiles = [value for name, value in options.items() if "_BLOCK_" in name and not name.startswith("SPARSE")]
    assert all(block % tile == 0 for tile in tiles)
    rows, keys = options["fwd_BLOCK_M"], options["fwd_BLOCK_N"]
    assert forward_memory(rows, keys, options["fwd_num_stages"], wide, each) <= CONSUMER
    if dtype == torch.bfloat16:  # of float32 they are 16 x 16 and in one stage, by FlexAttention's own choice
        for rows, keys in (("M1", "N1"), ("N2", "M2")):  # of the gradients of keys and values, and of queries
            tile = options[f"bwd_BLOCK_{rows}"], options[f"bwd_BLOCK_{keys}"]
            assert backward_memory(*tile, options["bwd_num_stages"], wide, each) <= CONSUMER


def test_without_a_bias_whole_blocks_are_left_to_flexattention():
    call = a_call(256, 128, torch.bfloat16, heads=1)
    assert flex.kernel_options(call, call.mask.given_layout) == {"FORCE_USE_FLEX_ATTENTION": True}


def measured():
    """For every shape, what auto takes at its best: milliseconds of FlexAttention and of the alternative.

    That is attention without a mask where nothing is pruned, else under a mask. What is in a mask does not change its
    time, so it was measured once for a length.
    """
    table = pd.read_csv(MEASURED)
    shape = ["dtype", "kind", "length"]
    masked = table[table["model"] == "masked"].groupby(shape)["milliseconds"].median()
    dense = table[table["model"] == "dense"].set_index([*shape, "block", "sparsity"])["milliseconds"]
    flexible = "flex" if (table["model"] == "triton").any() else "ours"
    for row in table[table["model"] == flexible].to_dict("records"):
        at = tuple(row[name] for name in shape)
        if row["sparsity"] == 0.0:
            yield row, dense[(*at, row["block"], 0.0)]
        elif at in masked:
            yield row, masked[at]


def test_auto_takes_what_was_measured_to_be_faster():
    found = []
    for row, other in measured():
        gradients = row["kind"] == "forward+backward"
        call = a_call(row["length"], row["block"], DTYPES[row["dtype"]], 1 - row["sparsity"], gradients)
        found.append(choice.why_not_flex(call) is None)
        assert found[-1] == (row["milliseconds"] < other), row["measurement"]
    assert set(found) == {True, False}


@pytest.mark.parametrize(
    ("dtype", "gradients", "kept", "pays"),
    [
        (torch.bfloat16, True, 0.99, True),
        (torch.float16, False, 0.99, True),
        (torch.float32, False, 0.99, False),
        (torch.float32, False, 0.3, True),
        (torch.float32, True, 0.3, False),
        (torch.float32, True, 0.1, True),
        (torch.float64, False, 0.1, False),
    ],
)
def test_gradients_and_precision_decide_too(dtype, gradients, kept, pays):
    assert (choice.why_not_flex(a_call(2048, 64, dtype, kept, gradients)) is None) == pays


def test_under_no_grad_there_are_no_gradients():
    call = a_call(2048, 64, torch.float32, 0.3, gradients=True)
    with torch.no_grad():
        assert choice.why_not_flex(call) is None
    assert choice.why_not_flex(call)


def test_a_mask_that_prunes_nothing_is_computed_without_it_unless_something_else_is_hidden():
    assert choice.why_not_flex(a_call(4096, 128, torch.bfloat16)) == "nothing is pruned"
    assert choice.why_not_flex(a_call(4096, 128, torch.bfloat16, is_causal=True)) is None
    padding = torch.zeros(8, 4096, dtype=torch.bool)
    assert choice.why_not_flex(a_call(4096, 128, torch.bfloat16, key_padding_mask=padding)) is None
    assert choice.why_not_flex(a_call(4096, 128, torch.bfloat16, attn_bias=torch.zeros(4096))) is None


class OnGpu:
    """The queries of a call as they look on a GPU."""

    device, dtype, shape, requires_grad = torch.device("cuda"), torch.bfloat16, torch.Size((1, 1, 64, 64)), False

    def element_size(self):
        return self.dtype.itemsize


@pytest.fixture(autouse=True)
def capable(monkeypatch):
    """The GPU that is not there is one that Triton's kernels are written for."""
    monkeypatch.setitem(availability._capable, OnGpu.device, True)


def choose_on_gpu(call):
    """What is chosen for a call as if its queries were on a GPU."""
    queries = OnGpu()
    queries.shape, queries.dtype = call.q.shape, call.q.dtype
    object.__setattr__(call, "q", queries)
    return choice.choose(call)


def test_triton_computes_what_is_pruned_with_dropout_and_padding_too(monkeypatch):
    monkeypatch.setattr(availability, "INSTALLED", True)
    padding = torch.zeros(8, 384, dtype=torch.bool)
    for options in ({}, {"dropout_p": 0.1}, {"key_padding_mask": padding}, {"is_causal": True}):
        found = choose_on_gpu(a_call(384, 64, torch.bfloat16, 0.25, **options))
        assert found.backend == "triton" and not found.refused
        assert found.reason == "25% of blocks of 64 are kept" or "is_causal" in options
        assert found.layout.block_size == 64


def test_triton_is_not_for_old_cards(monkeypatch):
    monkeypatch.setattr(availability, "INSTALLED", True)
    monkeypatch.setitem(availability._capable, OnGpu.device, False)
    call = a_call(384, 64, torch.bfloat16, 0.25)
    assert choose_on_gpu(call).backend == "sdpa"
    assert "capability 8.0 or later" in availability.refusal(call)


def test_triton_cuts_single_cells_into_blocks(monkeypatch):
    monkeypatch.setattr(availability, "INSTALLED", True)
    generator = torch.Generator().manual_seed(3)
    mask = LayerMask(torch.rand(12, 384, 384, generator=generator) < 0.5, 1, 384, 384)
    call = a_call(384, 64, torch.bfloat16)
    object.__setattr__(call, "mask", mask)
    found = choose_on_gpu(call)
    assert found.backend == "triton" and found.layout.block_size == 64 and len(found.layout.bits)


def test_triton_leaves_to_torch_what_it_is_expected_to_lose(monkeypatch):
    monkeypatch.setattr(availability, "INSTALLED", True)
    for call, reason in [
        (a_call(384, 64, torch.bfloat16), "nothing is pruned"),
        (a_call(384, 64, torch.bfloat16, 0.5, batch=1, heads=1), "few scores: expected to be faster"),
        (a_call(384, 16, torch.bfloat16, 0.5), "50% of blocks of 16 are kept: expected to be faster"),
        (a_call(384, 64, torch.float32, 0.75), "75% of blocks of 64 are kept: expected to be faster"),
    ]:
        found = choose_on_gpu(call)
        assert (found.backend, found.reason, found.refused) == ("sdpa", reason, False)


def test_what_triton_refuses_is_left_to_what_there_was_before(monkeypatch):
    """Values of another size, which FlexAttention refuses too: with a reason that names both."""
    monkeypatch.setattr(choice, "why_not_flex", lambda call: None)
    call = a_call(384, 64, torch.bfloat16, 0.5)
    object.__setattr__(call, "v", call.v[..., :32])
    reasons = {True: "triton needs values of the size of the queries", False: "Triton is not installed"}
    for installed, reason in reasons.items():
        monkeypatch.setattr(availability, "INSTALLED", installed)
        found = choose_on_gpu(call)
        assert found.backend == "sdpa" and found.refused
        assert found.reason.startswith(reason) and "flex needs values of the size of the queries" in found.reason


@pytest.mark.parametrize("pays", [True, False])
def test_flexattention_leaves_what_it_refuses_to_fused_attention(pays, monkeypatch):
    """Without Triton. Dropout, which FlexAttention has not, goes the way of what does not pay, with a warning."""
    monkeypatch.setattr(availability, "INSTALLED", False)
    monkeypatch.setattr(choice, "why_not_flex", lambda call: None if pays else "few scores")
    found = []
    for dropout_p in (0.0, 0.1):
        call = a_call(64, 64, torch.bfloat16, kept=0.0, heads=1, batch=1, dropout_p=dropout_p)
        found.append(choose_on_gpu(call))
    assert [x.backend for x in found] == ["flex" if pays else "sdpa", "sdpa"]
    assert [x.refused for x in found] == [False, pays]


def test_single_cells_are_computed_whole_without_triton_and_it_is_said(monkeypatch):
    monkeypatch.setattr(availability, "INSTALLED", False)
    monkeypatch.setattr(choice, "why_not_flex", lambda call: None)
    mask = LayerMask(torch.rand(1, 64, 64) < 0.5, 1, 64, 64)
    call = a_call(64, 64, torch.bfloat16, heads=1, batch=1)
    object.__setattr__(call, "mask", mask)
    found = choose_on_gpu(call)
    assert found.backend == "sdpa" and found.refused and "single cells" in found.reason

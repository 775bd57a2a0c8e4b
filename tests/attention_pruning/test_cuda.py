"""FlexAttention on a GPU: the reference's values and gradients, one graph for all layers, models, patterns.

Where there is no GPU, only the lists of blocks that it would be given are tested.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import transformers as tf

from attention_pruning import BlockLayout, InputError, MaskRecipe, PruneMask, pruned_attention
from attention_pruning.huggingface import collect_patterns, prune_model
from attention_pruning.ops import choice, flex
from attention_pruning.ops.call import Call
from attention_pruning.ops.triton import availability
from test_huggingface_attention import assert_same_gradients
from tiny_models import make, padded, real_outputs

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, found none")
GPU = "cuda"


@dataclass(frozen=True)
class Case:
    """One shape of attention; ``cells`` keeps single cells, so that blocks are kept in part."""

    block: int
    dtype: torch.dtype = torch.bfloat16
    size: int = 64
    queries: int = 256
    keys: int = 256
    cells: bool = False
    causal: bool = False
    padding: bool = False
    bias: str = "none"


FLOAT = torch.float32
CASES = {
    "float32, block 16, in part, padded, causal, more keys": Case(
        16, FLOAT, 32, 100, 130, cells=True, causal=True, padding=True
    ),
    "float32, block 32, whole": Case(32, FLOAT),
    "float32, block 64, causal, learned bias": Case(64, FLOAT, 32, 200, 200, causal=True, bias="learned"),
    "float32, block 128, in part, head 128": Case(128, FLOAT, 128, 200, 300, cells=True),
    "bfloat16, block 16, whole": Case(16, size=32, queries=128, keys=128, causal=True),
    "bfloat16, block 32, head 80, short queries": Case(32, size=80, queries=20, keys=77, padding=True),
    "bfloat16, block 64, padded, causal": Case(64, queries=384, keys=384, causal=True, padding=True),
    "bfloat16, block 64, in part, head 128": Case(64, size=128, queries=200, keys=333, cells=True),
    "bfloat16, block 64, head 256": Case(64, size=256, queries=128, keys=192),
    "bfloat16, block 128, padded": Case(128, queries=300, keys=300, padding=True),
    "bfloat16, block 128, bias that hides": Case(128, bias="hides"),
    "bfloat16, block 128, learned bias, head 128": Case(128, size=128, bias="learned"),
    "bfloat16, block 64, learned bias, head 256": Case(64, size=256, queries=128, keys=192, bias="learned"),
    "float16, block 64, whole": Case(64, torch.float16),
}


def layout_of(case, share=0.4, seed=3):
    """Random blocks, other ones in every head; the first rows of blocks keep nothing in head 0."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, -(-case.queries // case.block), -(-case.keys // case.block))
    blocks = torch.rand(shape, generator=generator) < share
    blocks[0, 0] = False
    layout = BlockLayout.from_blocks(blocks, case.block, case.queries, case.keys)
    if not case.cells:
        return layout
    kept = torch.rand(layout.cells.shape, generator=generator) < 0.7
    return BlockLayout.from_cells(layout.cells & kept, case.block)


def inputs_of(case, device, seed=2):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, n, 3, case.size) for n in (case.queries, case.keys, case.keys, case.queries)]
    tensors = [torch.randn(shape, generator=generator).to(case.dtype) for shape in shapes]
    return [x.transpose(1, 2).to(device) for x in tensors]  # in the order of memory that a model has


def options_of(case, device):
    options = {"is_causal": case.causal}
    if case.padding:
        options["key_padding_mask"] = torch.arange(case.keys, device=device) >= torch.tensor(
            [[case.keys], [case.keys // 3]], device=device
        )
    if case.bias != "none":
        bias = torch.randn(1, 3, case.queries, case.keys, generator=torch.Generator().manual_seed(5))
        options["attn_bias"] = (bias.masked_fill(bias > 0, -torch.inf) if case.bias == "hides" else bias).to(device)
        options["attn_bias"][:, 1, 7] = -torch.inf if case.bias == "hides" else 0.0  # a row with nothing left
    return options


def values_and_gradients(case, layout, backend, dtype=None):
    """The output and the gradients of q, k, v and a learned bias, as float32."""
    *leaves, g = (x.to(dtype or case.dtype) for x in inputs_of(case, GPU))
    leaves = [x.detach().requires_grad_() for x in leaves]
    options = options_of(case, GPU)
    if case.bias == "learned":
        leaves.append(options["attn_bias"].requires_grad_())
    out = pruned_attention(*leaves[:3], layout, backend=backend, **options)
    out.backward(g)
    return {name: x.float() for name, x in zip("oqkvb", [out.detach(), *(x.grad for x in leaves)], strict=False)}


@needs_gpu
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_reference(name):
    case = CASES[name]
    found = values_and_gradients(case, layout_of(case), "flex")
    expected = values_and_gradients(case, layout_of(case), "reference", torch.float32)
    assert found.keys() == expected.keys()
    for part, tensor in expected.items():
        scale, tolerance = float(tensor.abs().max()), 2e-5 if case.dtype == FLOAT else 2e-2
        name = f"{part}: {{}}".format
        torch.testing.assert_close(found[part] / scale, tensor / scale, atol=tolerance, rtol=0, msg=name)


@needs_gpu
@pytest.mark.parametrize("taken", ["flex", "masked"])
def test_inference_and_auto_give_the_same(taken, monkeypatch):
    """Whichever of the two "auto" takes where Triton is not installed."""
    monkeypatch.setattr(availability, "INSTALLED", False)
    monkeypatch.setitem(choice.LEAST_SCORES_GPU, 2, 0 if taken == "flex" else 2**60)
    calls, attend = [], flex.attend
    monkeypatch.setattr(flex, "attend", lambda call, layout: calls.append(call) or attend(call, layout))
    case = Case(64, queries=384, keys=384, padding=True, causal=True)
    *inputs, _ = inputs_of(case, GPU)
    with torch.no_grad():
        found = pruned_attention(*inputs, layout_of(case), **options_of(case, GPU))
        exact = (x.float() for x in inputs)
        expected = pruned_attention(*exact, layout_of(case), backend="reference", **options_of(case, GPU))
    assert len(calls) == (taken == "flex")
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=0)


@needs_gpu
def test_all_layers_share_one_graph():
    """Forward and backward, whatever the layout and the padding."""
    from torch._dynamo.utils import counters

    case = Case(64, queries=192, keys=192, padding=True)
    counters.clear()
    for seed, share in enumerate((0.2, 0.5, 0.9)):
        layout = layout_of(case, share, seed)
        found = values_and_gradients(case, layout, "flex")
        assert counters["stats"]["unique_graphs"] == 1
        expected = values_and_gradients(case, layout, "reference", torch.float32)
        torch.testing.assert_close(found["o"], expected["o"], atol=3e-2, rtol=0)


@needs_gpu
def test_memory_does_not_grow_with_the_scores():
    case = Case(128, queries=4096, keys=4096, padding=True)
    leaves = [x.requires_grad_() for x in inputs_of(case, GPU)[:3]]
    layout, options = layout_of(case), options_of(case, GPU)

    def step():
        pruned_attention(*leaves, layout, backend="flex", **options).sum().backward()

    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    scores = leaves[0].shape[0] * leaves[0].shape[1] * case.queries * case.keys
    assert torch.cuda.max_memory_allocated() - before < scores  # not even a byte for each


@needs_gpu
def test_dropout_and_small_heads_are_refused_and_left_to_others_by_auto(monkeypatch):
    monkeypatch.setattr(availability, "INSTALLED", False)
    case = Case(16, FLOAT, 8, 64, 64)
    *inputs, _ = inputs_of(case, GPU)
    with pytest.raises(InputError, match="backend flex: .* needs no dropout"):
        pruned_attention(*inputs, layout_of(case), backend="flex", dropout_p=0.1)
    with pytest.raises(InputError, match="a head size of 16 to 256 on a GPU, found 8"):
        pruned_attention(*inputs, layout_of(case), backend="flex")
    expected = pruned_attention(*inputs, layout_of(case), backend="reference")
    torch.testing.assert_close(pruned_attention(*inputs, layout_of(case)), expected, atol=2e-5, rtol=1e-4)
    many = [x[:1, :, :1].expand(500, -1, 64, -1) for x in inputs]  # dropout keeps the mean
    found = pruned_attention(*many, layout_of(case), dropout_p=0.2)
    dense = pruned_attention(*many, layout_of(case))
    torch.testing.assert_close(found.mean(0), dense.mean(0), atol=0.1, rtol=0)


def bert(backend):
    """A BERT with heads of 16, and random blocks of 16 pruned in it."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = tf.BertConfig(vocab_size=40, max_position_embeddings=64, pad_token_id=1, **shape)
    model = tf.BertForMaskedLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2)
    pruned = torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(4)) < 0.6
    pruned[0, 0] = True
    mask = PruneMask(
        pruned,
        torch.ones(48, 48, dtype=torch.bool),
        site="self",
        causal=False,
        recipe=MaskRecipe(0.6, rule="allowed", scope="layer", row_floor="none", block_size=16),
        metadata={"seed": 4},
    )
    return prune_model(model.eval(), mask, backend).to(GPU)


@needs_gpu
@pytest.mark.parametrize("real", [(48, 20, 9), (48, 48)], ids=["padded", "whole"])
def test_a_model_computes_like_the_masked_reference(real, monkeypatch):
    calls, attend = [], flex.attend
    monkeypatch.setattr(flex, "attend", lambda call, layout: calls.append(call) or attend(call, layout))
    batch = {name: value.to(GPU) for name, value in padded(real, 48).items()}
    model, reference = bert("flex"), bert("reference")
    expected = real_outputs(reference, batch).detach()
    tolerance = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(real_outputs(model, batch).detach(), expected, atol=tolerance, rtol=0)
    assert_same_gradients(model, reference, batch)
    assert len(calls) == 2 * 2  # the layers of one model, for values and for gradients


@needs_gpu
def test_patterns_collected_on_a_gpu_are_those_of_the_cpu():
    batches = [padded((7, 4, 2), 7, seed=seed) for seed in range(3)]
    found, expected = (collect_patterns(make("BERT").to(device), batches)["self"] for device in (GPU, "cpu"))
    assert torch.equal(found.count, expected.count)
    torch.testing.assert_close(found.average, expected.average, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cells", [False, True], ids=["whole", "in part"])
@pytest.mark.parametrize("own", [False, True], ids=["a layout of everything", "a causal layout"])
@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (50, 70), (33, 33)])
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_lists_of_blocks_hold_what_is_kept(queries, keys, causal, own, cells):
    """Blocks that are not listed hold no cell that counts, and those listed as whole no other."""
    case = Case(16, FLOAT, 8, queries, keys, cells=cells)
    layout = layout_of(case, 0.6)
    if own and causal:
        layout = BlockLayout.from_cells(layout.cells, 16, causal=True)
    q, k = torch.zeros(1, 3, queries, 8), torch.zeros(1, 3, keys, 8)
    call = Call.check(q, k, k, layout, is_causal=causal)
    counts = ~call.pruned() & torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries if causal else keys)
    partial, whole = flex.split_blocks(call, layout)
    assert not (partial & whole).any()
    for at in torch.cartesian_prod(*map(torch.arange, partial.shape)).tolist():
        h, i, j = at
        block = counts[h, i * 16 : (i + 1) * 16, j * 16 : (j + 1) * 16]
        assert not (whole[h, i, j] and not block.all())
        assert whole[h, i, j] or partial[h, i, j] or not block.any()
    # what FlexAttention is told about single cells is the truth about all of them
    told = flex.block_mask(call, layout).mask_mod
    h, i, j = torch.meshgrid(*map(torch.arange, (3, queries, keys)), indexing="ij")
    assert torch.equal(told(torch.tensor(0), h, i, j), counts)

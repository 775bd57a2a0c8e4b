"""Transformers models under masks of whole blocks: block-sparse attention equals the masked reference."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForMaskedLM

from attention_pruning import InputError
from attention_pruning.huggingface import collect_patterns, forward, prune_model
from attention_pruning.ops import DenseAttentionWarning, reasons
from attention_pruning.ops.cpu import native
from test_huggingface_attention import assert_same, gradients
from test_huggingface_generate import answer, full_logits
from tiny_models import MODELS, batch_for, make, padded, random_masks

compiled = pytest.mark.skipif(not native.runnable_builds(), reason="the kernel is not compiled")
TARGET, SOURCE = 29, 32
#: What makes masks of LENGTH and SOURCE_LENGTH cover these, in two blocks each way.
EXTRA = 25
NAMES = ["BERT", "DistilBERT", "ALBERT", "GPT-2", "Llama", "BART", "T5", "ViT"]


def batch_of(name, left=False):
    """Sequences of up to two blocks; one ends within the first: heads that keep only the second keep padding."""
    kind = MODELS[name].inputs
    if kind == "pixels":
        return batch_for(name)
    source = padded((SOURCE, 20, 9), SOURCE, left)
    if kind == "tokens":
        return source
    target = padded((18, TARGET, 5), TARGET, seed=1)
    return source | {"decoder_input_ids": target["input_ids"], "decoder_attention_mask": target["attention_mask"]}


def block_masks(name, share=0.6, size=16, **more):
    return random_masks(name, share, block_size=size, extra=EXTRA, **more)


@pytest.fixture
def taken(monkeypatch):
    """The calls that the compiled kernel computed."""
    calls, attend = [], forward.attend_call

    def spy(call, choice):
        if choice.backend == "block_sparse":
            calls.append(call)
        return attend(call, choice)

    monkeypatch.setattr(forward, "attend_call", spy)
    return calls


def pair(name, backend="block_sparse", **options):
    """The same pruned model twice: with a backend, and by the reference."""
    masks = block_masks(name, **options)
    return prune_model(make(name), masks, backend), prune_model(make(name), masks, "reference")


@pytest.mark.parametrize("backend", ["block_sparse", "auto"])
@pytest.mark.parametrize("name", NAMES)
def test_it_equals_the_reference_in_values_and_gradients(name, backend):
    assert_same(*pair(name, backend), batch_of(name))


@pytest.mark.parametrize("real", [(12, 20, 9), (16, 3, 0)], ids=["short batch", "an empty sequence"])
def test_padded_queries_equal_the_reference_too(real):
    model, reference = pair("BERT")
    batch = padded(real, SOURCE)
    torch.testing.assert_close(model(**batch).logits, reference(**batch).logits, atol=1e-4, rtol=1e-5)


def test_rows_whose_kept_keys_are_padding_attend_uniformly_to_real_tokens():
    masks = block_masks("BERT", share=0.0)
    masks["self"].pruned[..., 0] = True  # only keys 16 to 31 are kept
    model, batch, seen = prune_model(make("BERT"), masks, "block_sparse"), padded((SOURCE, 9), SOURCE), []
    layer = model.bert.encoder.layer[0].attention.self
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    layer.value.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(**batch)
    value, out = seen[:2]
    torch.testing.assert_close(out[1], value[1, :9].mean(0).expand(SOURCE, -1))
    assert not torch.allclose(out[0], value[0].mean(0).expand(SOURCE, -1), atol=1e-2)


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "ViT"])
def test_without_padding_and_mask(name):
    batch = batch_of(name) if name == "ViT" else {"input_ids": padded((SOURCE,) * 2, SOURCE)["input_ids"]}
    model, reference = pair(name)
    torch.testing.assert_close(model(**batch).logits, reference(**batch).logits, atol=1e-4, rtol=1e-5)


@compiled
@pytest.mark.parametrize("name", ["BERT", "Llama", "BART", "T5"])
def test_auto_takes_the_kernel_for_sparse_blocks_and_nothing_else(name, taken):
    batch = batch_of(name)
    with torch.no_grad():
        prune_model(make(name), block_masks(name, share=0.9))(**batch)
        layers = len(block_masks(name)) * 2
        assert len(taken) == layers
        assert any(call.key_padding_mask is not None for call in taken)  # padding is handed on as such
        for masks in (block_masks(name, size=1), block_masks(name, share=0.0)):
            prune_model(make(name), masks)(**batch)
        prune_model(make(name), block_masks(name, share=0.9), "reference")(**batch)
        collect_patterns(prune_model(make(name), block_masks(name, share=0.9)), [batch])
    assert len(taken) == layers


@pytest.mark.parametrize("name", ["BERT", "Llama", "BART"])
def test_left_padding_is_computed_by_cells(name, taken):
    model, reference = pair(name)
    assert_same(model, reference, batch_of(name, left=True))
    assert all(call.q.shape[2] == TARGET == call.k.shape[2] for call in taken)  # BART's decoder, padded on the right


def test_packed_sequences_are_computed_by_cells(taken):
    model, reference = pair("Llama")
    ids, positions = padded((SOURCE,), SOURCE)["input_ids"], torch.arange(SOURCE)[None] % 20
    found, expected = (m(input_ids=ids, position_ids=positions, use_cache=False).logits for m in (model, reference))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert not taken


def test_a_callers_own_mask_is_read_anew_when_it_changes(taken):
    model, reference = pair("BERT")
    batch = batch_of("BERT")
    visible = batch["attention_mask"].bool()[:, None, None, :].repeat(1, 1, SOURCE, 1)
    own = {"input_ids": batch["input_ids"], "attention_mask": visible}
    torch.testing.assert_close(model(**own).logits, model(**batch).logits)
    calls = len(taken)
    visible[:, :, :3, 5] = False  # now more than padding is hidden
    torch.testing.assert_close(model(**own).logits, reference(**own).logits, atol=1e-4, rtol=1e-5)
    assert len(taken) == calls
    additive = torch.randn(visible.shape, generator=torch.Generator().manual_seed(0)).masked_fill(~visible, -1e38)
    own["attention_mask"] = additive
    torch.testing.assert_close(model(**own).logits, reference(**own).logits, atol=1e-4, rtol=1e-5)
    with torch.inference_mode():  # where tensors do not count their changes
        own["attention_mask"] = torch.ones(3, 1, SOURCE, SOURCE, dtype=torch.bool)
        model(**own)
        own["attention_mask"][:, :, :, 20:] = False
        torch.testing.assert_close(model(**own).logits, reference(**own).logits, atol=1e-4, rtol=1e-5)


def test_a_sequence_beyond_the_mask():
    masks = {"self": random_masks("GPT-2", 0.6, block_size=16, extra=EXTRA - 8)["self"]}
    with pytest.raises(InputError, match="expected at most 24 queries and 24 keys"):
        prune_model(make("GPT-2"), masks, "block_sparse")(**batch_of("GPT-2"))
    dense_beyond = [prune_model(make("GPT-2"), masks, backend, "dense") for backend in ("block_sparse", "reference")]
    assert_same(*dense_beyond, batch_of("GPT-2"))
    models = [prune_model(make("GPT-2"), masks, backend) for backend in ("block_sparse", "reference")]
    assert_same(*models, padded((24, 7), SOURCE))  # padding has no position


@pytest.mark.parametrize("left", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BART", "T5"])
def test_generation_equals_the_full_forward_pass(name, left):
    model, reference = pair(name)
    if MODELS[name].inputs == "pairs":
        prompt = padded((SOURCE, 9), SOURCE, left)
    else:
        prompt = padded((24, 7), 24, left=True) if left else padded((24, 24), 24)
    found = answer(model, prompt)
    steps = torch.stack(found.logits, 1)
    for full in (model, reference):
        torch.testing.assert_close(steps, full_logits(full, prompt, found.sequences), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "block_sparse", "flex", "triton", "reference"])
def test_a_folder_gives_the_backend_back(backend, tmp_path):
    model = prune_model(make("BERT"), block_masks("BERT"), backend)
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert again.config.prune_config["backend"] == backend
    assert {layer.attention.self.attention_pruning.backend for layer in again.bert.encoder.layer} == {backend}
    if backend != "flex":  # which would be compiled first
        with torch.no_grad():
            assert torch.equal(again(**batch_of("BERT")).logits, model(**batch_of("BERT")).logits)


def test_a_copy_of_a_model_that_has_run():
    model, batch = pair("BERT")[0], batch_of("BERT")
    expected = model(**batch).logits
    again = copy.deepcopy(model)
    assert torch.equal(again(**batch).logits, expected)
    prune_model(again, block_masks("BERT", seed=5), "block_sparse")
    reference = prune_model(make("BERT"), block_masks("BERT", seed=5), "reference")
    torch.testing.assert_close(again(**batch).logits, reference(**batch).logits, atol=1e-4, rtol=1e-5)


def loss_curve(model, batch, steps):
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-4), []
    model.train()
    for _ in range(steps):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def test_fifty_steps_of_training_give_the_loss_curve_of_the_reference():
    curves = [loss_curve(without_dropout(model), batch_of("BERT"), 50) for model in pair("BERT")]
    assert curves[1][-1] < 0.9 * curves[1][0]
    torch.testing.assert_close(*curves, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_drops_the_same_cells_again(reentrant, taken):
    masks, batch, found = block_masks("BERT"), batch_of("BERT"), []
    for checkpointing in (False, True):
        model = prune_model(make("BERT"), masks, "block_sparse").train()
        model.enable_input_require_grads()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(3)
        found.append(gradients(model, batch))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    if native.runnable_builds():
        assert len(taken) == 2 + 4 and all(call.dropout_p == 0.1 for call in taken)


def test_a_compiled_model_computes_by_cells(taken):
    torch.compiler.reset()
    model, batch = pair("BERT")[0], batch_of("BERT")
    expected = model(**batch).logits
    calls = len(taken)
    found = torch.compile(model, backend="eager", fullgraph=True)(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-5)
    assert len(taken) == calls


def test_half_and_double_precision():
    batch = batch_of("BERT")
    for dtype, atol in ((torch.bfloat16, 0.1), (torch.float64, 1e-9)):  # the kernel has no float64
        model, reference = (part.to(dtype) for part in pair("BERT"))
        found, expected = model(**batch).logits, reference(**batch).logits
        assert found.dtype == dtype
        torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), atol=atol, rtol=0)


def test_without_a_compiler_there_is_one_warning_and_the_same_answer(monkeypatch):
    monkeypatch.setattr(native, "build", lambda: None)
    monkeypatch.delenv(native.VARIABLE, raising=False)
    monkeypatch.setattr(reasons, "_warned", set())
    model, reference = pair("BERT", share=0.9)
    with pytest.warns(DenseAttentionWarning, match="the kernel is not compiled") as warned:
        assert_same(model, reference, batch_of("BERT"))
    assert len([warning for warning in warned if "not compiled" in str(warning.message)]) == 1


@pytest.mark.parametrize("size", [1, 8, 48])
def test_a_kernel_computes_masks_of_any_block(size, taken):
    """What is no block of its own it computes in its own blocks, cell by cell where they are kept in part."""
    model, reference = pair("BERT", "block_sparse", size=size)
    assert_same(model, reference, batch_of("BERT"))
    assert taken


def test_flex_leaves_training_on_a_cpu_to_the_cells():
    assert_same(*pair("BERT", "flex"), batch_of("BERT"))


@pytest.mark.slow
def test_flex_equals_the_reference_in_inference():
    model, reference = pair("BERT", "flex")
    with torch.no_grad():
        found, expected = (part(**batch_of("BERT")).logits for part in (model, reference))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)

"""Laws of attention under masks in transformers models: dense, pruned, padded."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from attention_pruning import InputError
from attention_pruning.huggingface import find_stacks, prune_model, unprune_model
from attention_pruning.huggingface.prune import set_implementation
from tiny_models import LENGTH, MODELS, batch_for, make, padded, random_masks, real_outputs

NAMES = list(MODELS)
CAUSAL = ["GPT-2", "Llama"]


def gradients(model, batch):
    model.zero_grad()
    real_outputs(model, batch).square().mean().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same_gradients(model, reference, batch):
    expected, found = gradients(reference, batch), gradients(model, batch)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=1e-4, rtol=0, msg=name)


def assert_same(model, reference, batch):
    expected = real_outputs(reference, batch)
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(real_outputs(model, batch) / scale, expected / scale, atol=1e-5, rtol=0)
    assert_same_gradients(model, reference, batch)


class BruteForce:
    """Eager attention that prunes cell by cell in Python loops, told by the test which position a token has."""

    def __init__(self, model, masks, positions):
        self.where = {
            id(module): (stack.site, layer)
            for stack in find_stacks(model).values()
            for layer, module in enumerate(stack.modules)
        }
        self.masks, self.positions = masks, positions

    def __call__(self, module, query, key, value, mask, scaling=None, position_bias=None, **kwargs):
        site, layer = self.where[id(module)]
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if position_bias is not None:
            scores = scores + position_bias
        visible = torch.ones_like(scores, dtype=torch.bool) if mask is None else (mask == 0).expand_as(scores)
        scores = scores.masked_fill(~visible, -1e30)
        if site in self.masks:
            pruned, uniform = self.cells(site, layer, visible)
            scores = scores.masked_fill(pruned, -torch.inf)
            scores = torch.where(uniform, torch.where(visible, 0.0, -torch.inf), scores)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    def cells(self, site, layer, visible):
        """bool [B, H, Q, S]: what is pruned; bool [B, H, Q, 1]: rows that see keys but keep none."""
        rows, columns = self.positions[site]
        cells, visible = self.masks[site].cells(layer).tolist(), visible.tolist()
        pruned, uniform = [], []
        for b, sequence in enumerate(visible):
            for h, head in enumerate(sequence):
                for q, sees in enumerate(head):
                    lost = [see and cells[h][rows[b][q]][columns[b][k]] for k, see in enumerate(sees)]
                    pruned.append(lost)
                    uniform.append(any(sees) and lost == sees)
        shape = (len(visible), len(visible[0]), len(visible[0][0]), -1)
        return torch.tensor(pruned).view(shape), torch.tensor(uniform).view(shape)


def positions_of(batch):
    """Positions by site, from the attention masks: the number of real tokens before a token (padding: any)."""

    def count(mask):
        return [[max(0, int(row[: place + 1].sum()) - 1) for place in range(len(row))] for row in mask]

    if "pixel_values" in batch:
        rows = [list(range(5))] * len(batch["pixel_values"])
        return {"self": (rows, rows)}
    source = count(batch["attention_mask"])
    if "decoder_attention_mask" not in batch:
        return {"self": (source, source)}
    target = count(batch["decoder_attention_mask"])
    return {"enc-self": (source, source), "dec-self": (target, target), "enc-dec": (target, source)}


def brute_force(name, masks, batch, seed=0):
    model = make(name, seed)
    AttentionInterface.register("brute_force", BruteForce(model, masks, positions_of(batch)))
    AttentionMaskInterface.register("brute_force", eager_mask)
    set_implementation(model, "brute_force")
    return model


@pytest.mark.parametrize("name", NAMES)
def test_without_masks_it_is_sdpa_to_the_bit(name):
    batch = batch_for(name)
    expected = real_outputs(make(name, implementation="sdpa"), batch)
    assert torch.equal(real_outputs(make(name, implementation="attention_pruning"), batch), expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_a_mask_that_keeps_everything_changes_nothing(name, backend):
    batch = batch_for(name)
    model = prune_model(make(name), random_masks(name, 0.0), backend=backend)
    assert_same(model, make(name), batch)
    assert_same(model, make(name, implementation="sdpa"), batch)
    if backend == "auto":
        assert torch.equal(real_outputs(model, batch), real_outputs(make(name, implementation="sdpa"), batch))


@pytest.mark.parametrize("left", [False, True], ids=["right-padded", "left-padded"])
@pytest.mark.parametrize("name", NAMES)
def test_pruned_equals_minus_infinity_at_the_cells(name, left):
    batch, masks = batch_for(name, left), random_masks(name, 0.5)
    reference = brute_force(name, masks, batch)
    assert not torch.allclose(real_outputs(reference, batch), real_outputs(make(name), batch), atol=1e-3)
    assert_same(prune_model(make(name), masks), reference, batch)
    if not left:
        assert_same(prune_model(make(name), masks, backend="reference"), reference, batch)


@pytest.mark.parametrize("name", ["BERT", "Llama", "BART"])
def test_blocks_prune_as_their_cells_do(name):
    batch, masks = batch_for(name, left=True), random_masks(name, 0.5, block_size=3, extra=2)
    assert_same(prune_model(make(name), masks), brute_force(name, masks, batch), batch)


@pytest.mark.parametrize("sites", [["enc-self"], ["dec-self"], ["enc-dec"], ["enc-self", "enc-dec"]], ids="+".join)
def test_each_site_is_pruned_alone(sites):
    batch, masks = batch_for("BART"), random_masks("BART", 0.6, sites=sites)
    assert_same(prune_model(make("BART"), masks), brute_force("BART", masks, batch), batch)


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "ViT"])
def test_without_padding_and_mask(name):
    batch = batch_for(name) if name == "ViT" else {"input_ids": padded((LENGTH,) * 3, LENGTH)["input_ids"]}
    masks = random_masks(name, 0.5)
    expected = batch if name == "ViT" else batch | {"attention_mask": torch.ones(3, LENGTH, dtype=torch.long)}
    model = prune_model(make(name), masks)
    found, reference = model(**batch).logits, brute_force(name, masks, expected)(**batch).logits
    torch.testing.assert_close(found, reference, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["RoBERTa", "GPT-2", "Llama"])
def test_the_side_of_the_padding_does_not_matter(name):
    model = prune_model(make(name), random_masks(name, 0.5))
    right, left = batch_for(name), batch_for(name, left=True)
    if name != "RoBERTa":  # which finds its positions from the padding by itself
        for batch in (right, left):
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    torch.testing.assert_close(real_outputs(model, left), real_outputs(model, right), atol=1e-4, rtol=1e-5)


def test_packed_sequences_start_again_at_row_0():
    model = prune_model(make("Llama"), random_masks("Llama", 0.5))
    ids = padded((LENGTH,), LENGTH)["input_ids"]
    packed = model(input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2]]), use_cache=False).logits
    alone = torch.cat([model(input_ids=ids[:, :4]).logits, model(input_ids=ids[:, 4:]).logits], 1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("left", [False, True])
def test_a_row_with_nothing_left_attends_uniformly_to_real_tokens(left):
    masks = random_masks("BERT", 0.0)
    masks["self"].pruned[:] = True
    model, batch = prune_model(make("BERT"), masks), batch_for("BERT", left)
    seen = []
    layer = model.bert.encoder.layer[0].attention.self
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    layer.value.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(**batch)
    value, out = seen[:2]
    for row, mask in enumerate(batch["attention_mask"].bool()):
        torch.testing.assert_close(out[row][mask], value[row][mask].mean(0).expand(int(mask.sum()), -1))


def test_a_sequence_longer_than_the_mask_is_refused_with_both_lengths():
    model = prune_model(make("GPT-2"), random_masks("GPT-2", 0.5))
    longer = padded((LENGTH + 3,), LENGTH + 3)
    message = f"at most {LENGTH} queries and {LENGTH} keys.* needs {LENGTH + 3} queries and {LENGTH + 3} keys"
    with pytest.raises(InputError, match=message):
        model(**longer)
    model(**padded((3, LENGTH), LENGTH + 3))  # padding has no position
    model(**padded((3, LENGTH), LENGTH + 3, left=True))


@pytest.mark.parametrize("left", [False, True])
def test_the_region_beyond_stays_dense_on_request(left):
    length = LENGTH + 3
    masks, longer = random_masks("GPT-2", 0.5), random_masks("GPT-2", 0.0, extra=3)
    longer["self"].pruned[:, :, :LENGTH, :LENGTH] = masks["self"].pruned
    batch = padded((length, 4), length, left)
    model = prune_model(make("GPT-2"), masks, beyond="dense")
    assert_same(model, prune_model(make("GPT-2"), longer), batch)


def test_the_callers_own_4d_mask_is_kept():
    masks, batch = random_masks("BERT", 0.5), batch_for("BERT")
    model = prune_model(make("BERT"), masks)
    expected = real_outputs(model, batch)
    visible = batch["attention_mask"].bool()[:, None, None, :].expand(-1, 1, LENGTH, -1)
    additive = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    for own in (visible, additive):
        found = model(input_ids=batch["input_ids"], attention_mask=own).logits[batch["attention_mask"].bool()]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_switching_the_implementation_and_taking_masks_away():
    batch, dense = batch_for("BERT"), make("BERT", implementation="sdpa")
    model = prune_model(make("BERT"), random_masks("BERT", 0.5))
    pruned = real_outputs(model, batch)
    model.set_attn_implementation("sdpa")
    assert torch.equal(real_outputs(model, batch), real_outputs(dense, batch))
    model.set_attn_implementation("attention_pruning")
    assert torch.equal(real_outputs(model, batch), pruned)
    unprune_model(model)
    model.set_attn_implementation("attention_pruning")
    assert torch.equal(real_outputs(model, batch), real_outputs(dense, batch))
    assert not hasattr(model.config, "prune_config")


def test_masks_applied_one_by_one_are_masks_applied_together():
    batch, masks = batch_for("BART"), random_masks("BART", 0.5)
    together, one_by_one = prune_model(make("BART"), masks), make("BART")
    for mask in masks.values():
        assert mask.apply(one_by_one) is one_by_one
    assert torch.equal(real_outputs(one_by_one, batch), real_outputs(together, batch))


def test_a_mask_is_no_parameter_and_no_buffer():
    """So it is in no state dict, and no process sends it to another at every step."""
    model = make("BERT")
    state, buffers = set(model.state_dict()), set(dict(model.named_buffers()))
    prune_model(model, random_masks("BERT", 0.5))
    assert set(model.state_dict()) == state and set(dict(model.named_buffers())) == buffers


def test_half_precision_stays_half():
    model = prune_model(make("Llama").to(torch.bfloat16), random_masks("Llama", 0.5))
    found = real_outputs(model, batch_for("Llama"))
    assert found.dtype == torch.bfloat16 and torch.isfinite(found).all()


def test_the_library_imports_without_transformers():
    code = "import sys; sys.modules['transformers'] = None; import attention_pruning.cli"
    subprocess.run([sys.executable, "-c", code], check=True)

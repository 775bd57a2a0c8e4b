"""Models that attend within a sliding window: the window is structure, and patterns and masks live inside it."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import sdpa_mask

from attention_pruning import InputError, PruneMask, explain
from attention_pruning.huggingface import collect_patterns, find_stacks, prune_model, unprune_model
from tiny_models import PADDING, VOCABULARY, padded

WINDOW, LENGTH = 5, 14
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 16,
    "pad_token_id": PADDING,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


def mistral():
    return tf.MistralForCausalLM(tf.MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=WINDOW))


def qwen2():
    config = {"sliding_window": WINDOW, "use_sliding_window": True, "layer_types": MIXED, "num_key_value_heads": 2}
    return tf.Qwen2ForCausalLM(tf.Qwen2Config(**SHAPE, **config))


def gemma3():
    config = {"sliding_window": WINDOW, "layer_types": MIXED, "num_key_value_heads": 2, "head_dim": 4}
    return tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**SHAPE, **config))


def modernbert():
    more = {"cls_token_id": 0, "sep_token_id": 2, "local_attention": 2 * (WINDOW - 1)}
    config = tf.ModernBertConfig(**SHAPE, **more, layer_types=MIXED)
    return tf.ModernBertForMaskedLM(config)


MODELS = {"Mistral": mistral, "Qwen2": qwen2, "Gemma3": gemma3, "ModernBERT": modernbert}
SITES = {name: {"self": 1, "self-local": 2} for name in MODELS} | {"Mistral": {"self": 3}}


def make(name: str) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.5)
    model.set_attn_implementation("sdpa")
    return model.eval()


def masks_of(model: tf.PreTrainedModel, share: float, own: bool = True, length: int = LENGTH) -> dict[str, PruneMask]:
    """Random cells; with ``own`` every query keeps its own key, so that none is left without one."""
    generator, masks = torch.Generator().manual_seed(1), {}
    for site, stack in find_stacks(model).items():
        pruned = torch.rand(stack.layers, stack.heads, length, length, generator=generator) < share
        if own:
            pruned[..., torch.arange(length), torch.arange(length)] = False
        masks[site] = PruneMask.from_cells(pruned, site=site, causal=stack.causal)
    return masks


def by_definition(model: tf.PreTrainedModel, masks: dict[str, PruneMask], batch: dict) -> torch.Tensor:
    """Logits with every score computed: what is pruned is hidden, and a row left empty is even over what it sees."""
    pruned = {
        id(module): masks[site].cells(layer)
        for site, stack in find_stacks(model).items()
        for layer, module in enumerate(stack.modules)
    }

    def attention(module, query, key, value, attention_mask, scaling, **kwargs):
        groups, length = query.shape[1] // key.shape[1], query.shape[2]
        scores = (query @ repeat_kv(key, groups).mT * scaling).double()
        if attention_mask is None:
            place = torch.arange(length)
            seen = place[:, None] >= place if getattr(module, "is_causal", True) else torch.ones(length, length).bool()
        else:
            seen = attention_mask
        kept = seen & ~pruned[id(module)][:, :length, :length]
        empty = ~kept.any(-1, keepdim=True)
        scores = torch.where(empty, 0.0, scores).masked_fill(~torch.where(empty, seen, kept), -torch.inf)
        p = scores.softmax(-1).nan_to_num(0.0)
        return (p @ repeat_kv(value, groups).double()).float().transpose(1, 2).contiguous(), None

    AttentionInterface.register("by_definition", attention)
    AttentionMaskInterface.register("by_definition", sdpa_mask)
    model.set_attn_implementation("by_definition")
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("name", MODELS)
def test_layers_within_a_window_are_a_site_of_their_own(name):
    stacks = find_stacks(make(name))
    assert {site: stack.layers for site, stack in stacks.items()} == SITES[name]
    local = "self" if name == "Mistral" else "self-local"
    assert stacks[local].window == WINDOW
    assert all(stack.window is None for site, stack in stacks.items() if site != local)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_a_mask_that_prunes_nothing_is_the_dense_model(name, padding):
    batch = padded((LENGTH, LENGTH) if padding == "none" else (LENGTH, 6, 3), LENGTH, padding == "left")
    real = batch["attention_mask"].bool()
    dense = make(name)(**batch).logits[real]
    masks = masks_of(make(name), 0.0)
    found = prune_model(make(name), masks)(**batch).logits[real]
    torch.testing.assert_close(found, dense, atol=1e-5, rtol=1e-5)
    beyond = prune_model(make(name), masks, backend="reference")(**batch).logits[real]
    torch.testing.assert_close(beyond, dense, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("right", [False, True])
def test_the_model_computes_what_the_mask_keeps_within_the_window(name, own, right):
    batch = padded((LENGTH, 6, 3) if right else (LENGTH, LENGTH), LENGTH)
    real = batch["attention_mask"].bool()
    masks = masks_of(make(name), 0.6, own)
    expected = by_definition(make(name), masks, batch)[real]
    dense = make(name)(**batch).logits[real]
    assert not torch.allclose(expected, dense, atol=1e-2)
    for backend in ("auto", "block_sparse", "reference"):
        found = prune_model(make(name), masks, backend=backend)(**batch).logits[real]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_sequences_padded_on_the_left_meet_the_same_cells():
    model = prune_model(make("Mistral"), masks_of(make("Mistral"), 0.6))
    left, right = (padded((LENGTH, 6, 9), LENGTH, side) for side in (True, False))
    missing = [LENGTH - int(mask.sum()) for mask in right["attention_mask"]]
    left["input_ids"] = torch.stack([ids.roll(number) for ids, number in zip(right["input_ids"], missing, strict=True)])
    outputs = [model(**batch).logits[batch["attention_mask"].bool()] for batch in (left, right)]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)


def test_long_sequences_are_computed_by_blocks():
    model = make("Mistral")
    model.config.sliding_window = 40
    prune_model(model, masks_of(model, 0.5, length=400), backend="block_sparse")
    rows = explain(model, {"input_ids": torch.randint(0, 9, (1, 400))}, show=None)
    assert {row.backend for row in rows} == {"block_sparse"}
    assert all(row.computed < 0.5 * row.blocks for row in rows), "what the window hides is left out, too"


@pytest.mark.parametrize("name", ["Mistral", "Qwen2", "Gemma3"])
@pytest.mark.parametrize("prompt", [3, 9])
@pytest.mark.parametrize("left", [False, True])
def test_generation_beyond_the_window_equals_the_full_forward_pass(name, prompt, left):
    """The cache drops keys; what a token attends to is told by its position."""
    model = prune_model(make(name), masks_of(make(name), 0.5, length=prompt + 8))
    batch = padded((prompt, prompt - 2), prompt, True) if left else padded((prompt, prompt), prompt)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "output_logits": True}
    found = model.generate(**batch, **options, return_dict_in_generate=True)
    seen = torch.cat([batch["attention_mask"], torch.ones_like(found.sequences[:, prompt:])], 1)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    whole = model(input_ids=found.sequences, attention_mask=seen, position_ids=positions).logits[:, prompt - 1 : -1]
    torch.testing.assert_close(torch.stack(found.logits, 1), whole, atol=1e-4, rtol=1e-4)


def test_a_static_cache_of_a_window_is_refused():
    model = prune_model(make("Mistral"), masks_of(make("Mistral"), 0.5, length=20))
    with pytest.raises(InputError, match="expected a dynamic cache beyond its sliding window"):
        model.generate(**padded((3, 3), 3), max_new_tokens=8, min_new_tokens=8, cache_implementation="static")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("block_size", [1, 2])
def test_patterns_are_averages_within_the_window(name, block_size):
    model = make(name)
    batch = padded((LENGTH, 6, 3), LENGTH)
    patterns = collect_patterns(model, [batch], block_size=block_size)
    model.set_attn_implementation("eager")
    attentions = model(**batch, output_attentions=True).attentions
    real = batch["attention_mask"].bool()
    for site, stack in find_stacks(model).items():
        pattern = patterns[site]
        place = torch.arange(LENGTH)
        seen = torch.ones(LENGTH, LENGTH).tril().bool() if stack.causal else torch.ones(LENGTH, LENGTH).bool()
        if stack.window is not None:
            seen &= (place[:, None] - place).abs() < WINDOW
        cells = real[:, :, None] & real[:, None, :] & seen
        assert torch.equal(pattern.count, cells.sum(0))
        if block_size > 1:
            continue
        layers = [0, 2] if site == "self-local" else [1] if name != "Mistral" else [0, 1, 2]
        for layer, number in enumerate(layers):
            expected = (attentions[number].double() * cells[:, None]).sum(0) / cells.sum(0).clamp(min=1)
            torch.testing.assert_close(pattern.average[layer].double(), expected, atol=1e-6, rtol=1e-5)


def test_a_dense_model_comes_back():
    model = make("Gemma3")
    batch = padded((LENGTH, LENGTH), LENGTH)
    dense = model(**batch).logits
    unprune_model(prune_model(model, masks_of(model, 0.5)))
    assert torch.equal(model(**batch).logits, dense)

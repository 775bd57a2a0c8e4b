"""A transformers model under a mask by distance: any length, whole or token by token."""

from __future__ import annotations

import pytest
import torch

from attention_pruning import DistanceMask, InputError, explain
from attention_pruning.huggingface import model_masks, prune_model
from tiny_models import make, padded


def shape(name: str) -> tuple[int, int]:
    config = make(name).config
    return config.num_hidden_layers, config.num_attention_heads


def mask_of(name: str, **more) -> DistanceMask:
    """Some of five distances for each head, and two sinks."""
    kept = torch.rand(*shape(name), 5, generator=torch.Generator().manual_seed(0)) < 0.4
    return DistanceMask(kept, sinks=2, **more)


@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("block_size", [1, 2])
def test_the_model_computes_what_a_mask_of_that_length_gives(name, left, block_size):
    layers, heads = shape(name)
    kept = torch.tensor([True, False, False, True]).expand(layers, heads, 4)
    mask = DistanceMask(kept, sinks=block_size, block_size=block_size)
    for length in (7, 12):
        batch = padded((length, 4, 2), length, left)
        found = prune_model(make(name), mask)(**batch).logits
        expected = prune_model(make(name), mask.at(length))(**batch).logits
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
        dense = make(name)(**batch).logits
        assert not torch.allclose(found[real], dense[real], atol=1e-3)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("left", [False, True])
def test_generation_goes_beyond_what_was_observed(cache, left):
    mask = mask_of("Llama", observed=6)
    model, prompt = prune_model(make("Llama"), mask), padded((9, 4, 2), 9, left=True) if left else padded((9, 9), 9)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "output_logits": True}
    found = model.generate(**prompt, **options, return_dict_in_generate=True, cache_implementation=cache)
    seen = torch.cat([prompt["attention_mask"], torch.ones_like(found.sequences[:, 9:])], 1)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    whole = model(input_ids=found.sequences, attention_mask=seen, position_ids=positions).logits[:, 8:-1]
    torch.testing.assert_close(torch.stack(found.logits, 1), whole, atol=1e-4, rtol=1e-5)


def test_a_saved_model_has_its_mask_by_distance(tmp_path):
    mask = mask_of("Llama", tau=0.5)
    model = prune_model(make("Llama"), mask)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert model_masks(loaded) == {"self": mask}
    batch = padded((9, 5), 9)
    assert torch.equal(model(**batch).logits, loaded.eval()(**batch).logits)


def test_long_sequences_leave_blocks_out():
    model = prune_model(make("Llama"), mask_of("Llama"), backend="block_sparse")
    rows = explain(model, {"input_ids": torch.randint(0, 9, (1, 300))}, show=None)
    assert {row.backend for row in rows} == {"block_sparse"}
    assert all(row.computed < 0.5 * row.blocks for row in rows)


def test_a_model_that_sees_both_ways_is_refused():
    with pytest.raises(InputError, match="expected causal False, that of self in DistilBert"):
        prune_model(make("DistilBERT"), mask_of("DistilBERT"))

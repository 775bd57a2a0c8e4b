"""Generation under masks, one token at a time, equals the full forward pass: row = position."""

from __future__ import annotations

import pytest
import torch

from attention_pruning import InputError
from attention_pruning.huggingface import prune_model
from tiny_models import LENGTH, PADDING, SOURCE_LENGTH, make, padded, random_masks

NEW = 6
CACHES = ["dynamic", "static"]
#: Masks long enough for prompt and answer.
EXTRA = NEW


def prompt_for(name, left):
    if name in ("BART", "T5"):
        return padded((5, SOURCE_LENGTH, 3), SOURCE_LENGTH, left)
    return padded((LENGTH, 4, 2), LENGTH, left=True) if left else padded((LENGTH,) * 3, LENGTH)


def pruned(name):
    return prune_model(make(name), random_masks(name, 0.5, extra=EXTRA))


def full_logits(model, prompt, sequences):
    """Logits of a single forward pass over prompt and answer, at the places that predict the answer."""
    if model.config.is_encoder_decoder:
        return model(**prompt, decoder_input_ids=sequences).logits[:, :-1]
    start = prompt["input_ids"].shape[1]
    mask = torch.cat([prompt["attention_mask"], torch.ones_like(sequences[:, start:])], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    outputs = model(input_ids=sequences, attention_mask=mask, position_ids=positions)
    return outputs.logits[:, start - 1 : -1]


def answer(model, prompt, **options):
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False} | options
    return model.generate(**prompt, **options, return_dict_in_generate=True, output_logits=True, output_scores=True)


@pytest.mark.parametrize("left", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BART", "T5"])
def test_greedy_generation_equals_the_full_forward_pass(name, cache, left):
    model, prompt = pruned(name), prompt_for(name, left)
    found = answer(model, prompt, cache_implementation=cache)
    steps = torch.stack(found.logits, 1)
    expected = full_logits(model, prompt, found.sequences)
    torch.testing.assert_close(steps, expected, atol=1e-4, rtol=1e-5)
    dense = full_logits(make(name), prompt, found.sequences)
    assert not torch.allclose(steps, dense, atol=1e-2)
    again = answer(model, prompt, use_cache=False)
    assert torch.equal(again.sequences, found.sequences)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BART"])
def test_beam_search_scores_are_those_of_the_full_forward_pass(name, cache):
    model, prompt = pruned(name), prompt_for(name, left=True)
    beams = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "early_stopping": False}
    found = answer(model, prompt, cache_implementation=cache, **beams)
    repeated = {name: value.repeat_interleave(2, 0) for name, value in prompt.items()}
    logits = full_logits(model, repeated, found.sequences)
    tokens = found.sequences[:, -logits.shape[1] :, None]
    scores = logits.log_softmax(-1).gather(2, tokens).sum((1, 2))
    torch.testing.assert_close(found.sequences_scores, scores, atol=1e-3, rtol=1e-4)
    again = answer(model, prompt, use_cache=False, **beams)
    assert torch.equal(again.sequences, found.sequences)


@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_left_padding_does_not_change_an_answer(name):
    model, batch = pruned(name), prompt_for(name, left=True)
    together = answer(model, batch).sequences[:, -NEW:]
    for row, mask in enumerate(batch["attention_mask"].bool()):
        alone = {"input_ids": batch["input_ids"][row : row + 1, mask], "attention_mask": torch.ones(1, int(mask.sum()))}
        assert torch.equal(answer(model, alone).sequences[0, -NEW:], together[row])


def test_a_prompt_in_pieces_equals_the_prompt_at_once():
    model, prompt = pruned("Llama"), prompt_for("Llama", left=True)
    positions = (prompt["attention_mask"].cumsum(1) - 1).clamp(min=0)
    first = model(
        input_ids=prompt["input_ids"][:, :4],
        attention_mask=prompt["attention_mask"][:, :4],
        position_ids=positions[:, :4],
    )
    rest = model(
        input_ids=prompt["input_ids"][:, 4:],
        attention_mask=prompt["attention_mask"],
        position_ids=positions[:, 4:],
        past_key_values=first.past_key_values,
    )
    whole = model(**prompt, position_ids=positions)
    torch.testing.assert_close(rest.logits, whole.logits[:, 4:], atol=1e-4, rtol=1e-5)


def test_an_answer_that_outgrows_the_mask_is_refused():
    model = prune_model(make("GPT-2"), random_masks("GPT-2", 0.5, extra=2))
    with pytest.raises(InputError, match=f"at most {LENGTH + 2} queries and {LENGTH + 2} keys.* needs {LENGTH + 3}"):
        answer(model, prompt_for("GPT-2", left=False))
    short = {"input_ids": torch.tensor([[PADDING] * 5 + [7, 8]]), "attention_mask": torch.tensor([[0] * 5 + [1, 1]])}
    assert answer(model, short).sequences.shape == (1, LENGTH + NEW)


def test_cross_attention_without_self_attention_before_it_is_refused():
    model = pruned("BART")
    layer = model.model.decoder.layers[0]
    with pytest.raises(InputError, match="expected self-attention before it in its layer"):
        layer.encoder_attn(torch.zeros(1, 2, 16), key_value_states=torch.zeros(1, 3, 16))

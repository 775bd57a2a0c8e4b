"""A PrunedCache holds what later rows of the mask need, no more, and changes no number."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from attention_pruning import InputError, MaskRecipe, PruneMask
from attention_pruning.huggingface import PrunedCache, cache, find_stacks, prune_model, unprune_model
from attention_pruning.ops.cpu import native
from attention_pruning.structure import expand_blocks, visible_cells
from test_huggingface_generate import NEW, answer, full_logits
from tiny_models import logits_in_pieces, make, padded

PROMPT = 14
LENGTH = PROMPT + NEW


def windows(name, window=5, block=1, empty=None, seed=0):
    """Random cells within a window, without a key that is kept for good: [2 layers, 4 heads]; ``empty``: a row that
    keeps nothing in one head."""
    generator = torch.Generator().manual_seed(seed)
    side = -(-LENGTH // block)
    pruned = torch.rand(2, 4, side, side, generator=generator) < 0.4
    pruned |= torch.ones(side, side, dtype=torch.bool).tril(-window)
    pruned[:, :, torch.arange(side), torch.arange(side)] = False
    if empty is not None:
        pruned[0, 3, empty] = True
    recipe = MaskRecipe(0.5, rule="allowed", scope="layer", row_floor="none", block_size=block)
    return PruneMask(pruned, visible_cells(LENGTH, LENGTH, True), site="self", causal=True, recipe=recipe)


def pruned(name, **options):
    return prune_model(make(name), windows(name, **options))


def prompt(left):
    return padded((PROMPT, 9, 2), PROMPT, left=True) if left else padded((PROMPT,) * 3, PROMPT)


def needed(model, layer, rows, kv_heads):
    """Columns that rows of a layer need, for each head of keys, by the definition."""
    mask = find_stacks(model)["self"].modules[layer].attention_pruning.layer_mask
    cells = ~expand_blocks(mask.pruned, mask.block_size, LENGTH, LENGTH) & visible_cells(LENGTH, LENGTH, True)
    cells = torch.where(cells.any(-1, keepdim=True), cells, visible_cells(LENGTH, LENGTH, True))
    return cells[:, rows].any(1).unflatten(0, (kv_heads, -1)).any(1)


@pytest.fixture(params=[0, 1, 32])
def room(request, monkeypatch):
    monkeypatch.setattr(cache, "ROOM", request.param)
    return request.param


@pytest.mark.parametrize("left", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
@pytest.mark.parametrize("options", [{}, {"block": 3}, {"empty": PROMPT + 3}], ids=["cells", "blocks", "empty"])
def test_greedy_generation_equals_the_full_forward_pass(name, left, options, room):
    model, batch = pruned(name, **options), prompt(left)
    held = PrunedCache(model)
    found = answer(model, batch, past_key_values=held)
    torch.testing.assert_close(
        torch.stack(found.logits, 1), full_logits(model, batch, found.sequences), atol=1e-4, rtol=1e-5
    )
    assert torch.equal(answer(model, batch, use_cache=False).sequences, found.sequences)
    if room == 0 and not left:
        kept = held.layers[0].held_columns
        kv_heads = kept.shape[1]
        expected = needed(model, 0, slice(LENGTH - 1, None), kv_heads)[:, : LENGTH - 1]
        for columns, wanted in zip(kept[0], expected, strict=True):
            assert set(columns[columns >= 0].tolist()) == set(wanted.nonzero().flatten().tolist())
        assert held.layers[0].keys.shape[2] == expected.sum(1).max() < LENGTH - 1


@pytest.mark.parametrize("options", [{"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True}])
@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_beams_and_samples_are_those_of_a_cache_that_holds_all(name, options, room):
    model, batch = pruned(name), prompt(left=True)
    answers = []
    for held in (None, PrunedCache(model)):
        torch.manual_seed(1)
        answers.append(answer(model, batch, past_key_values=held, **options))
    assert torch.equal(answers[0].sequences, answers[1].sequences)
    for one, other in zip(answers[0].logits, answers[1].logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["fastest", "none"])
@pytest.mark.parametrize("pieces", [(1, 13), (5, 9), (12, 2)])
def test_a_prompt_in_pieces_equals_the_prompt_at_once(pieces, kernel, room, monkeypatch):
    if kernel == "none":
        monkeypatch.setenv(native.VARIABLE, "none")
    model, batch = pruned("Llama"), prompt(left=True)
    found, positions = logits_in_pieces(model, batch, pieces, PrunedCache(model))
    with torch.no_grad():
        whole = model(**batch, position_ids=positions).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], whole[real], atol=1e-4, rtol=1e-5)


def test_padding_on_the_right_of_a_prompt_is_never_held(room):
    model, batch = pruned("Llama"), padded((PROMPT, 9, 2), PROMPT)
    found = answer(model, batch, past_key_values=PrunedCache(model))
    assert torch.equal(found.sequences, answer(model, batch).sequences)


def test_memory_is_freed_and_said(monkeypatch):
    monkeypatch.setattr(cache, "ROOM", 0)
    model = pruned("Llama", window=2, block=3)
    held, counts = PrunedCache(model), []
    batch = prompt(left=False)
    with torch.no_grad():
        model(**batch, past_key_values=held)
        for _ in range(NEW - 1):
            counts.append([layer.keys.shape[2] for layer in held.layers])
            model(torch.zeros(3, 1, dtype=torch.long), past_key_values=held)
    told = held.keys_needed()[:, PROMPT - 1 : LENGTH - 2]
    assert torch.equal(told, torch.tensor(counts).T)
    for layer in range(2):
        expected = [needed(model, layer, slice(row + 1, None), 2)[:, : row + 1].sum(1).max() for row in range(LENGTH)]
        assert held.keys_needed()[layer].tolist() == expected
    assert held.get_seq_length() == LENGTH - 1
    numbers = sum(x.numel() for layer in held.layers for x in (layer.keys, layer.values, layer.columns))
    assert held.nbytes == 4 * numbers < 4 * 2 * 2 * 3 * 2 * 4 * (LENGTH - 1)
    assert "2 query heads share each" in held.describe() and "empty" not in held.describe()


def test_what_cannot_be_dropped_is_said():
    model = pruned("GPT-2", empty=LENGTH - 1)
    text = PrunedCache(model).describe()
    assert f"layer 0: needs at most {LENGTH - 1} keys of {LENGTH}; rows left empty" in text and "share" not in text
    unpruned = windows("GPT-2")
    unpruned.pruned[1] = False
    held = PrunedCache(prune_model(make("GPT-2"), PruneMask.from_cells(unpruned.pruned, site="self", causal=True)))
    assert "layer 1: prunes nothing, holds all keys" in held.describe()
    assert held.keys_needed()[1].tolist() == list(range(1, LENGTH + 1))


def test_sequences_are_taken_and_repeated_and_a_cache_begins_anew():
    model, batch = pruned("Llama"), prompt(left=True)
    held = PrunedCache(model)
    with torch.no_grad():
        first = model(**batch, past_key_values=held).logits
        for layer in held.layers:
            layer.batch_repeat_interleave(2)
            layer.batch_select_indices(torch.tensor([1, 4]))
        layer = held.layers[0]
        assert len(layer.keys) == len(layer.columns) == len(layer.next_row_B) == 2
        assert layer.next_row_B.tolist() == [PROMPT, 2]
        held.reset()
        assert held.get_seq_length() == held.nbytes == 0
        torch.testing.assert_close(model(**batch, past_key_values=held).logits, first)


def test_calls_that_it_cannot_serve_are_refused():
    with pytest.raises(InputError, match="expected a decoder with masks"):
        PrunedCache(make("Llama"))
    with pytest.raises(InputError, match="expected a decoder with masks"):
        PrunedCache(make("BERT"))
    with pytest.raises(InputError, match="beyond='dense'"):
        PrunedCache(prune_model(make("Llama"), windows("Llama"), beyond="dense"))
    model, batch = pruned("Llama"), prompt(left=False)
    with pytest.raises(InputError, match="expected no gradients"):
        model(**batch, past_key_values=PrunedCache(model))
    with torch.no_grad():
        held = PrunedCache(model)
        model(**batch, past_key_values=held)
        with pytest.raises(InputError, match="found a crop"):
            held.crop(-1)
        bias = torch.randn(3, 1, 1, PROMPT + 1)
        with pytest.raises(InputError, match="padding and the future alone"):
            model(batch["input_ids"][:, :1], attention_mask=bias, past_key_values=held)
        held = PrunedCache(model)
        prune_model(model, windows("Llama", seed=1))
        with pytest.raises(InputError, match="expected the masks that it was made for"):
            model(**batch, past_key_values=held)
        held = PrunedCache(model)
        with pytest.raises(InputError, match=f"at most {LENGTH} queries"):
            answer(model, batch, past_key_values=held, max_new_tokens=NEW + 2, min_new_tokens=NEW + 2)
        held = PrunedCache(model)
        unprune_model(model)
        with pytest.raises(InputError, match="expected the attention implementation"):
            model(**batch, past_key_values=held)


def test_windows_are_refused():
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 8}
    config = MistralConfig(vocab_size=40, **shape, num_key_value_heads=2, sliding_window=5)
    with pytest.raises(InputError, match="expected a model without a sliding window, found one of 5"):
        PrunedCache(MistralForCausalLM(config))

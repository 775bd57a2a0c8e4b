"""A PrunedCache under masks by distance: as under the same cells, at any length, in memory that does not grow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import DistanceMask, InputError, PruneMask, distance_mask
from attention_pruning.huggingface import PrunedCache, cache, held_keys, prune_model
from attention_pruning.huggingface.last_rows import FOREVER, last_rows, last_rows_by_distance
from attention_pruning.ops.cpu import native
from test_huggingface_generate import answer, full_logits
from tiny_models import logits_in_pieces, make, padded

PROMPT, NEW = 14, 16
LENGTH = PROMPT + NEW


def bands(block=1, sinks=2, seed=0) -> DistanceMask:
    """Some of five distances, and first positions, for [2 layers, 4 heads]; pairs of heads differ in their longest."""
    kept = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(seed)) < 0.5
    kept[..., 0] = True
    kept[:, :2, 3:] = False
    return DistanceMask(kept, sinks=sinks * block, block_size=block)


MASKS = {"cells": {}, "blocks": {"block": 2}, "no sinks": {"sinks": 0}, "blocks, no sinks": {"block": 3, "sinks": 0}}


def prompt(left):
    return padded((PROMPT, 9, 2), PROMPT, left=True) if left else padded((PROMPT,) * 3, PROMPT)


@pytest.fixture(params=[0, 5])
def room(request, monkeypatch):
    monkeypatch.setattr(cache, "ROOM", request.param)
    monkeypatch.setattr(distance_mask, "SHORTEST", 1)  # so that rows which are not numbered anew need longer masks
    return request.param


def told_by_cells(mask, batch, sequences, name="Llama"):
    """Logits of the answer by one forward pass under the mask's cells, computed by the definition."""
    model = prune_model(make(name), mask.at(sequences.shape[1]), backend="reference")
    return full_logits(model, batch, sequences)


@pytest.mark.parametrize("left", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
def test_greedy_generation_equals_the_full_forward_pass(name, options, left, room):
    mask, batch = bands(**options), prompt(left)
    model = prune_model(make(name), mask)
    held = PrunedCache(model)
    found = answer(model, batch, past_key_values=held, max_new_tokens=NEW, min_new_tokens=NEW)
    expected = told_by_cells(mask, batch, found.sequences, name)
    torch.testing.assert_close(torch.stack(found.logits, 1), expected, atol=1e-4, rtol=1e-5)


def positions_held(layer):
    """What each head of each sequence holds, as positions."""
    base = layer.base if isinstance(layer.base, int) else layer.base[:, None, None]
    return torch.where(layer.held_columns < layer.distances.sinks, layer.held_columns, layer.held_columns + base)


@pytest.mark.parametrize("left", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
def test_it_holds_what_later_rows_keep_and_no_more(options, left, monkeypatch):
    monkeypatch.setattr(cache, "ROOM", 0)
    mask, batch = bands(**options), prompt(left)
    model = prune_model(make("Llama"), mask)
    held = PrunedCache(model)
    found = answer(model, batch, past_key_values=held, max_new_tokens=NEW, min_new_tokens=NEW)
    assert found.sequences.shape[1] == LENGTH
    for number, layer in enumerate(held.layers):
        positions = positions_held(layer)
        for sequence, padding in enumerate((batch["attention_mask"] == 0).sum(1).tolist()):
            row = LENGTH - padding - 1  # the one that comes next
            later = torch.arange(row, row + mask.span + 1)[:, None]
            kept = ~mask.pruned(number, later, torch.arange(row))
            for group, wanted in enumerate(kept.any(1).unflatten(0, (2, 2)).any(1)):
                stays = positions[sequence, group][positions[sequence, group] >= 0].tolist()
                assert sorted(stays) == wanted.nonzero().flatten().tolist()


@pytest.mark.parametrize("options", [{"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True}])
def test_beams_and_samples_are_those_of_a_cache_that_holds_all(options, room):
    model, batch = prune_model(make("Llama"), bands()), prompt(left=True)
    answers = []
    for held in (None, PrunedCache(model)):
        torch.manual_seed(1)
        answers.append(answer(model, batch, past_key_values=held, max_new_tokens=NEW, min_new_tokens=NEW, **options))
    assert torch.equal(answers[0].sequences, answers[1].sequences)
    for one, other in zip(answers[0].logits, answers[1].logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["fastest", "none"])
@pytest.mark.parametrize("left", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("pieces", [(1, 13, 20), (5, 3, 1, 25)])
def test_texts_in_pieces_equal_the_text_at_once(pieces, left, kernel, room, monkeypatch):
    if kernel == "none":
        monkeypatch.setenv(native.VARIABLE, "none")
    mask, length = bands(block=2), sum(pieces)
    batch = padded((length, 20, 3), length, left=left)
    model = prune_model(make("Llama"), mask)
    logits, positions = logits_in_pieces(model, batch, pieces, PrunedCache(model))
    with torch.no_grad():
        whole = prune_model(make("Llama"), mask.at(length), backend="reference")
        expected = whole(**batch, position_ids=positions).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], atol=1e-4, rtol=1e-5)


def test_memory_does_not_grow_with_the_length(room):
    mask, batch = bands(block=2), prompt(left=True)
    model = prune_model(make("Llama"), mask)
    held, bytes_held = PrunedCache(model), []
    seen = batch["attention_mask"]
    with torch.no_grad():
        model(**batch, past_key_values=held)
        for _ in range(200):
            seen = torch.cat([seen, torch.ones(3, 1, dtype=torch.long)], 1)
            positions = seen.sum(1, keepdim=True) - 1
            model(torch.zeros(3, 1, dtype=torch.long), seen, positions, past_key_values=held)
            bytes_held.append(held.nbytes)
    a_key = 3 * 2 * (4 * 2 * 4 + 4)  # of three sequences, two heads, size 4: a key, its value and its column
    bound = a_key * int((held.keys_needed().amax(1) + max(room, 1)).sum())
    assert max(bytes_held) <= bound
    assert max(bytes_held[150:]) == max(bytes_held[50:150])
    assert held.get_seq_length() == PROMPT + 200
    most = mask.repeating + mask.block_size + max(room, 1)
    lengths = {length for _, length in mask._layers} - {256}  # that without a length; all are powers of two
    assert max(lengths) <= max(2 * most, 16)
    assert held.layers[0].next_row_B.max() <= most


def test_what_is_needed_is_told_of_any_length():
    mask = bands(block=2)
    held = PrunedCache(prune_model(make("Llama"), mask))
    assert held.get_max_length() == -1
    by_cells = PrunedCache(prune_model(make("Llama"), mask.at(60)))
    assert torch.equal(held.keys_needed(60 - mask.span), by_cells.keys_needed(60 - mask.span))
    assert torch.equal(held.keys_needed().amax(1), held.keys_needed(500).amax(1))
    assert int(held.keys_needed()[0].max()) < mask.sinks + mask.span
    first = held.describe().splitlines()[1]
    assert first.startswith(f"layer 0: needs at most {int(held.keys_needed()[0].max())} keys at any length; 2 query")
    with pytest.raises(InputError, match="length: expected 1 or more, found 0"):
        held.keys_needed(0)
    with pytest.raises(InputError, match="length: expected 1 to 60, the rows of the mask, found 61"):
        by_cells.keys_needed(61)


def test_nothing_lies_beyond_a_mask_without_a_length():
    model = prune_model(make("Llama"), bands(), beyond="dense")
    assert PrunedCache(model).get_max_length() == -1


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 999), st.integers(1, 6), st.integers(0, 2), st.integers(1, 3), st.sampled_from([1, 2, 4]))
def test_the_last_rows_are_those_of_the_cells(seed, distances, sinks, block, kv_heads):
    kept = torch.rand(1, 4, distances, generator=torch.Generator().manual_seed(seed)) < 0.3
    kept[..., 0] |= sinks == 0
    mask = DistanceMask(kept, sinks=sinks * block, block_size=block)
    columns = torch.arange(20)
    length = len(columns) + mask.span
    cells: PruneMask = mask.at(length)
    expected = last_rows(cells.layer(0), kv_heads).table_GK[:, : len(columns)]
    found = last_rows_by_distance(mask, 0, kv_heads).of(columns.expand(1, kv_heads, -1))[0]
    assert (found[:, : mask.sinks] == FOREVER).all() and (expected[:, : mask.sinks] == length - 1).all()
    found, expected = found[:, mask.sinks :], expected[:, mask.sinks :]
    never = found < columns[mask.sinks :]  # no row that sees it
    assert torch.equal(never, expected < columns[mask.sinks :])
    assert torch.equal(found.masked_fill(never, -1), expected.masked_fill(never, -1))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("left", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
def test_steps_over_a_whole_cache_need_no_long_mask(options, left, kind, monkeypatch):
    monkeypatch.setattr(held_keys, "LONG", 1)
    monkeypatch.setattr(distance_mask, "SHORTEST", 1)
    mask, batch = bands(**options), prompt(left)
    model = prune_model(make("Llama"), mask)
    lengths = []
    layer = DistanceMask.layer
    monkeypatch.setattr(DistanceMask, "layer", lambda *a: lengths.append(a[2] if len(a) > 2 else 0) or layer(*a))
    found = answer(model, batch, cache_implementation=kind, max_new_tokens=40, min_new_tokens=40)
    expected = told_by_cells(mask, batch, found.sequences)
    torch.testing.assert_close(torch.stack(found.logits, 1), expected, atol=1e-4, rtol=1e-5)
    steps = lengths[-mask.layers * 39 :]
    assert max(steps) <= max(mask.repeating + mask.block_size + 1, PROMPT + 1)

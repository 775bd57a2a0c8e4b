"""Perplexity by position and pass keys, against loops over tokens and against generation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from attention_pruning import InputError
from attention_pruning.huggingface.long_context import passkey, perplexity_by_position, prompt
from attention_pruning.huggingface.plots import plot_passkey, plot_perplexity
from tiny_models import make, padded


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("width", [1, 4, 100])
def test_perplexity_by_position_equals_a_loop_over_tokens(left, width):
    model = make("Llama").train()
    batches = [padded((12, 5, 2), 12, left), padded((7, 1), 7, left, seed=3)]
    expected: dict[int, list[float]] = {}
    for batch in batches:
        for ids, real in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
            tokens = ids[real]
            with torch.no_grad():
                scores = model.eval()(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
            for place in range(1, len(tokens)):
                expected.setdefault(place // width, []).append(-float(scores[place - 1, tokens[place]]))
    model.train()
    rows = perplexity_by_position(model, batches, width)
    assert model.training
    assert [row["tokens"] for row in rows] == [len(losses) for _, losses in sorted(expected.items())]
    for row, (stretch, losses) in zip(rows, sorted(expected.items()), strict=True):
        assert (row["first"], row["last"]) == (max(1, stretch * width), (stretch + 1) * width - 1)
        assert row["nll"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
        assert row["perplexity"] == pytest.approx(math.exp(row["nll"]))


def test_what_has_no_positions_is_refused():
    model = make("Llama")
    with pytest.raises(InputError, match="width: expected a whole number of at least 1, found 0"):
        perplexity_by_position(model, [padded((5,), 5)], 0)
    with pytest.raises(InputError, match="batches: expected mappings with input_ids"):
        perplexity_by_position(model, [{"labels": torch.ones(1, 3)}])
    with pytest.raises(InputError, match="expected sequences of at least 2 tokens"):
        perplexity_by_position(model, [padded((1,), 1)])


def encode(text: str) -> list[int]:
    """A byte a token."""
    return list(text.encode())


class Reader(nn.Module):
    """Knows where the key is told, if that is among its last ``span`` tokens, and says it."""

    def __init__(self, span: int) -> None:
        super().__init__()
        self.span, self.device = span, torch.device("cpu")

    def forward(self, input_ids, attention_mask):
        text = bytes(input_ids[0].tolist()).decode()
        logits = torch.zeros(1, len(text), 256)
        seen = text[: -len(" 12345")][-self.span :]
        if "The pass key is " in seen[: seen.rindex("What")]:
            key = seen.split("The pass key is ")[1][:5]
            for place, letter in enumerate(f" {key}"):
                logits[0, len(text) - 7 + place, ord(letter)] = 1.0
        return CausalLMOutput(logits=logits)


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_a_prompt_has_its_length_and_the_key_at_its_depth(depth):
    ids, answer = prompt(encode, "54321", 400, depth)
    text = bytes(ids).decode()
    assert len(ids) == 400 and answer == 6 and text.endswith("What is the pass key? The pass key is 54321")
    needle = "The pass key is 54321. Remember it. 54321 is the pass key. "
    room = 400 - len(needle) - len("What is the pass key? The pass key is 54321")
    assert text.index(needle) == round(depth * room)


def test_a_reader_finds_what_is_in_its_reach():
    rows = passkey(Reader(500), encode, [300, 1000], [0.0, 1.0], trials=3)
    found = {(row["length"], row["depth"]): row["found"] for row in rows}
    assert found == {(300, 0.0): 1.0, (300, 1.0): 1.0, (1000, 0.0): 0.0, (1000, 1.0): 1.0}
    assert {row["trials"] for row in rows} == {3}


def test_the_answer_is_what_greedy_generation_gives():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=128, max_position_embeddings=512, **shape)).eval()
    ids, answer = prompt(encode, "54321", 160, 0.5)
    given = torch.tensor([ids[:-answer]])
    said = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=answer, do_sample=False, eos_token_id=None
    )
    own = said[0, -answer:].tolist()
    for expected, right in ((own, True), ([(own[0] + 1) % 128, *own[1:]], False)):
        from attention_pruning.huggingface.long_context import _says

        assert _says(model, [*ids[:-answer], *expected], answer) == right


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials: expected at least 1"),
        ({"depths": [1.5]}, "depths: expected numbers between 0 and 1, found 1.5"),
        ({"lengths": [50]}, "length: expected room for needle, question and answer, 102 tokens, found 50"),
    ],
)
def test_a_test_that_cannot_be_is_refused(changes, message):
    arguments = {"lengths": [300], "depths": [0.5], "trials": 1} | changes
    with pytest.raises(InputError, match=message):
        passkey(Reader(10), encode, **arguments)


def test_figures_are_pictures(tmp_path):
    rows = perplexity_by_position(make("Llama"), [padded((12,), 12)], 4)
    plot_perplexity({"dense": rows, "pruned": rows}, tmp_path / "positions.png")
    plot_passkey(passkey(Reader(500), encode, [300, 1000], trials=2), tmp_path / "keys.png")
    for name in ("positions.png", "keys.png"):
        assert min(Image.open(tmp_path / name).size) > 300


def test_the_spread_of_several_seeds_is_drawn_as_a_band(tmp_path):
    rows = [{"first": 1, "last": 4, "perplexity": 9.0}, {"first": 5, "last": 8, "perplexity": 8.0}]
    spread = [{**row, "lowest": row["perplexity"] - 1, "highest": row["perplexity"] + 3} for row in rows]
    shown = []
    for name, found in {"one": rows, "several": spread}.items():
        plot_perplexity({"dense": found}, tmp_path / f"{name}.png")
        shown.append(np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")))
    one, several = ((np.ptp(picture, axis=2) > 20).sum() for picture in shown)  # coloured pixels
    assert several > 3 * one

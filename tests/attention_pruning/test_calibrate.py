"""Shares by head within a budget of loss: what is measured, what is chosen, and that the model is left alone."""

from __future__ import annotations

import csv
import itertools

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import AttentionPattern, InputError, PruneMask
from attention_pruning.cli import main
from attention_pruning.huggingface import calibrate, collect_patterns, model_masks, prune_model
from attention_pruning.huggingface.calibrate import _loss
from attention_pruning.make import from_pattern, within_budget
from attention_pruning.make.within_budget import _Search
from tiny_models import make, padded

pytestmark = pytest.mark.slow

TAUS = (0.5, 1.0)


def batches(seed: int = 0) -> list[dict[str, torch.Tensor]]:
    found = [padded((12, 12, 9), 12, seed=seed), padded((12, 7), 12, seed=seed + 1)]
    return [batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)} for batch in found]


@pytest.fixture(scope="module")
def model():
    return make("Llama", implementation="sdpa")


@pytest.fixture(scope="module")
def patterns(model):
    return collect_patterns(model, batches())


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.5, 100.0])
def test_the_loss_rises_by_no_more_than_the_budget(model, patterns, budget):
    found = calibrate(model, batches(), budget, patterns=patterns, taus=TAUS)
    assert model_masks(model) == {} and model.config._attn_implementation == "sdpa" and not model.training
    assert found.dense_loss == _loss(model, batches())
    assert found.loss <= found.dense_loss + budget
    pruned = prune_model(make("Llama"), found.masks)
    assert _loss(pruned, batches()) == pytest.approx(found.loss, abs=1e-5)
    mask = found.masks["self"]
    assert mask.kind == "custom" and mask.rule is None and mask.metadata["made_by"] == "calibrate"
    for layer, head in itertools.product(range(mask.layers), range(mask.heads)):
        tau = float(found.taus["self"][layer, head])
        expected = from_pattern(patterns["self"], tau, rule="allowed", scope="head") if tau else None
        wanted = torch.zeros_like(mask.pruned[layer, head]) if expected is None else expected.pruned[layer, head]
        assert torch.equal(mask.pruned[layer, head], wanted)
    if budget == 100.0:
        assert (found.taus["self"] == 1.0).all()
    assert len(found.rows()) == mask.layers * mask.heads


def test_more_budget_prunes_no_less(model, patterns):
    sizes = [
        calibrate(model, batches(), budget, patterns=patterns, taus=TAUS).masks["self"].effective_sparsity
        for budget in (0.01, 0.1, 1.0)
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_the_price_of_a_head_is_what_pruning_it_alone_costs(model, patterns):
    found = calibrate(model, batches(), 0.1, patterns=patterns, taus=TAUS)
    mask = from_pattern(patterns["self"], 1.0, rule="allowed", scope="head")
    alone = torch.zeros_like(mask.pruned)
    alone[1, 2] = mask.pruned[1, 2]
    expected = _loss(prune_model(make("Llama"), mask.with_pruned(alone)), batches()) - found.dense_loss
    assert float(found.rises["self"][1, 2, 1]) == pytest.approx(expected, abs=1e-5)
    row = next(row for row in found.rows() if (row["layer"], row["head"]) == (1, 2))
    assert row["tau"] == float(found.taus["self"][1, 2])


def test_what_is_never_used_is_no_gain():
    """Two heads of one price: the one whose pruned cells are used goes, the budget does not reach for both."""
    count = torch.tensor([[5, 1], [5, 5]])
    average = torch.tensor([[[[0.9, 0.1], [0.5, 0.5]], [[0.9, 0.1], [0.4, 0.6]]]])
    pattern = AttentionPattern(average, count, "enc-self")

    def loss_under(masks):
        return float(sum(mask.pruned.any((-2, -1)).sum() for mask in masks.values()))

    found = within_budget(loss_under, {"enc-self": pattern}, 1.0, taus=(0.25, 0.5))
    gone = found.masks["enc-self"].pruned[0]
    assert found.loss == 1.0 and found.taus["enc-self"].tolist() in ([[0.5, 0.0]], [[0.0, 0.5]])
    assert int((gone * count).sum()) == 6
    with pytest.raises(InputError, match="loss: expected a finite number, found nan dense"):
        within_budget(lambda masks: float("nan"), {"enc-self": pattern}, 1.0)
    with pytest.raises(InputError, match="patterns: expected at least one, found none"):
        within_budget(loss_under, {}, 1.0)


def test_every_site_of_an_encoder_and_decoder_takes_part():
    model = make("BART")
    batch = {"input_ids": torch.randint(3, 20, (2, 7)), "labels": torch.randint(3, 20, (2, 6))}
    found = calibrate(model, [batch], 0.3, taus=TAUS)
    assert set(found.masks) == {"enc-self", "dec-self", "enc-dec"} and found.loss <= found.dense_loss + 0.3
    assert {row["site"] for row in found.rows()} == set(found.masks)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_chosen_keeps_to_what_is_allowed(data):
    """And leaves no step that would fit."""
    heads, shares = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    cells = torch.tensor([sorted(data.draw(st.sets(st.integers(1, 50), min_size=shares, max_size=shares)))
                          for _ in range(heads)])  # fmt: skip
    prices = st.lists(st.integers(-3, 20), min_size=shares, max_size=shares)
    rises = torch.tensor([data.draw(prices) for _ in range(heads)], dtype=torch.float64)
    allowed = data.draw(st.integers(0, 40))
    search = _Search(cells, rises)
    chosen = search.within(float(allowed))
    cost = [0.0 if not share else max(0.0, float(rises[head, share - 1])) for head, share in enumerate(chosen)]
    assert sum(cost) <= allowed
    assert search.use_of(chosen) == sum(int(cells[h, s - 1]) for h, s in enumerate(chosen) if s)
    for head, share in enumerate(chosen):
        for larger in range(share + 1, shares + 1):
            step = max(0.0, max(0.0, float(rises[head, larger - 1])) - cost[head])
            assert sum(cost) + step > allowed


def test_the_cheapest_cells_go_first():
    search = _Search(torch.tensor([[10, 20], [10, 20]]), torch.tensor([[1.0, 5.0], [0.5, 1.0]], dtype=torch.float64))
    assert search.within(0.4) == [0, 0]
    assert search.within(1.0) == [0, 2]
    assert search.within(2.0) == [1, 2]
    assert search.within(6.0) == [2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": -1}, "budget: expected a rise of the loss of at least 0, found -1"),
        ({"taus": (0.0,)}, "taus: expected a share above 0"),
        ({"taus": (2,)}, "tau: expected a fraction"),
        ({"batches": []}, "batches: expected at least one"),
        ({"batches": [padded((5,), 5)]}, "expected labels, for which LlamaForCausalLM gives a loss"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(model, patterns, changes, message):
    arguments = {"batches": batches(), "budget": 0.1, "patterns": patterns, "taus": TAUS} | changes
    with pytest.raises(InputError, match=message):
        calibrate(model, arguments.pop("batches"), arguments.pop("budget"), **arguments)
    assert model_masks(model) == {} and model.config._attn_implementation == "sdpa"


def test_a_pruned_model_is_refused(patterns):
    pruned = prune_model(make("Llama"), patterns, tau=0.5)
    with pytest.raises(InputError, match="expected a dense model to calibrate, found a pruned one"):
        calibrate(pruned, batches(), 0.1, patterns=patterns)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model with its tokenizer in the folder model, and text.txt."""
    monkeypatch.chdir(tmp_path)
    words = ["[PAD]", "[UNK]", *(f"w{number}" for number in range(18))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    make("Llama").save_pretrained("model")
    tf.BertTokenizerFast(vocab_file="vocab.txt", do_lower_case=True).save_pretrained("model")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 18, (200,), generator=generator).tolist()
    (tmp_path / "text.txt").write_text(" ".join(f"w{number}" for number in ids))
    return tmp_path


def test_the_command_writes_a_mask_and_a_table(folder, capsys):
    flags = ["--budget", "0.2", "--length", "12", "--windows", "8", "--batch-size", "2", "--taus", "0.5", "1"]
    assert main(["calibrate", "model", "text.txt", "-o", "m.safetensors", *flags]) == 0
    mask = PruneMask.load("m.safetensors")
    assert mask.kind == "custom" and mask.query_length == 12 and mask.effective_sparsity > 0
    assert f"effective sparsity {mask.effective_sparsity:.4f}" in capsys.readouterr().out
    with (folder / "m.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == mask.layers * mask.heads and {row["tau"] for row in rows} <= {"0.0", "0.5", "1.0"}
    prune_model(make("Llama"), mask)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("nowhere text.txt --budget 1 -o m.safetensors", "nowhere: expected a causal language model"),
        ("model none.txt --budget 1 -o m.safetensors", "none.txt: expected a file of text in UTF-8"),
        ("model text.txt --budget 1 -o m.npy", "m.npy: expected the name of a .safetensors file"),
        ("model text.txt --budget 1 --length 150 -o m.safetensors", "expected at least 2 windows of 150 tokens"),
        ("model text.txt --budget 1 --windows 1 -o m.safetensors", "--windows: expected at least 2, found 1"),
        ("model text.txt --budget -1 --length 12 -o m.safetensors", "budget: expected a rise of the loss"),
    ],
)
def test_the_command_refuses_in_one_line_and_writes_nothing(folder, capsys, command, message):
    assert main(["calibrate", *command.split()]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error
    assert not list(folder.glob("m.*"))

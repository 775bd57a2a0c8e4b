"""Masks are compared on trained models: as sparse as one another, on one model that comes back as it was."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from pattern_data import overlap, patterns_of  # noqa: E402
from trained_models import comparison  # noqa: E402
from trained_models.interface import TrainedModel, one_of  # noqa: E402
from without_training import as_sparse, compare, masks_to_compare, used_share  # noqa: E402

from attention_pruning import AttentionPattern, InputError  # noqa: E402
from attention_pruning.make import from_pattern  # noqa: E402
from reproduction.documents.comparisons import budgets_table, memories_table, observed_table  # noqa: E402

LENGTH = 12


def pattern(seed: int, causal: bool, memory: int = 0) -> AttentionPattern:
    generator = torch.Generator().manual_seed(seed)
    average = torch.rand(2, 3, LENGTH, LENGTH + memory, generator=generator)
    count = torch.arange(LENGTH, 0, -1)[:, None].minimum(torch.arange(LENGTH + memory, 0, -1)) * 5
    if causal:
        average, count = average.tril(memory), count.tril(memory)
    return AttentionPattern(average / average.sum(-1, keepdim=True), count, "dec-self" if causal else "enc-self")


class Weights(TrainedModel):
    """Its loss is what the masks take of one weight for each site, beside how far it is from where training leads."""

    name, unit, batch_count = "weights", "nats", 30

    def __init__(self, *_: object) -> None:
        self.model, self.masks = nn.Linear(1, 1, bias=False), {}
        nn.init.constant_(self.model.weight, 0.5)
        self.remember()

    def patterns(self, batches=None):
        seed = 0 if batches is None else batches.stop
        return {"enc-self": pattern(seed, False), "dec-self": pattern(seed, True)}

    def shifted_patterns(self):
        return {"enc-self": pattern(7, False), "dec-self": pattern(7, True)}

    def prune(self, masks):
        self.masks = dict(masks)

    def loss(self, part):
        gone = sum(mask.effective_sparsity for mask in self.masks.values())
        return float((self.model.weight.detach() - 1).abs()) + gone + (0.01 if part == "test" else 0.0)

    def training_losses(self, seed):
        while True:
            yield (self.model.weight - 1).square().sum()


def test_masks_that_are_compared_prune_as_much_of_what_is_used():
    patterns = Weights().patterns()
    found = {site: from_pattern(one, 0.6, rule="allowed", scope="head") for site, one in patterns.items()}
    share = used_share(found, patterns)
    by_hand = sum(int((found[site].pruned * one.count).sum()) for site, one in patterns.items())
    assert share == pytest.approx(by_hand / sum(6 * int(one.count.sum()) for one in patterns.values()))
    kinds = dict(masks_to_compare(found, patterns, seed=3))
    assert list(kinds) == [
        "within budget", "tau by layer", "tau by head", "window", "window, first position", "random",
    ]  # fmt: skip
    for masks in kinds.values():
        assert used_share(masks, patterns) == pytest.approx(share, abs=0.02)
    assert {kind for kind, masks in kinds.items() if not masks["enc-self"].pruned[..., 0].any()} >= {
        "window, first position"
    }


def test_memory_slots_are_no_first_positions():
    patterns = {"dec-self": pattern(1, True, memory=4)}
    found = as_sparse(0.5, patterns, "layer")
    assert used_share(found, patterns) == pytest.approx(0.5, abs=0.02)
    assert "window, first position" not in dict(masks_to_compare(found, patterns, seed=3))


def test_the_model_is_the_dense_one_again_after_every_mask():
    choice = comparison.Choice("", "", steps=20, lr=0.01)
    model = Weights()
    rows = list(compare(comparison.Judge(model, 1, choice)))
    assert model.model.weight.item() == 0.5 and model.masks == {}
    assert len({row["dense"] for row in rows}) == 1 and rows[0]["dense"] == pytest.approx(0.51)
    assert len({row["dense_tuned"] for row in rows}) == 1 and rows[0]["dense_tuned"] < rows[0]["dense"]
    for row in rows:
        # fine-tuning does the same for all, and the masks stay
        assert row["loss_tuned"] - row["dense_tuned"] == pytest.approx(row["loss"] - row["dense"])
        if row["mask"] == "within budget":
            assert row["loss"] - row["dense"] <= row["budget"] + 1e-9 and row["sparsity"] >= 0
    table = budgets_table(pd.DataFrame(rows))
    assert table.count("\n") == 2 + len(rows) and "| weights (nats) | 0.02 |" in table


def test_what_was_observed_is_compared_with_all_of_the_data():
    observed = list(patterns_of(Weights()))
    assert [name for name, *_ in observed] == [
        "first 1", "first 10", "first half", "second half", "out-of-distribution", "all",
    ]  # fmt: skip
    masks = {site: from_pattern(one, 0.5, rule="allowed") for site, one in observed[-1][2].items()}
    assert overlap(masks, masks, 0.5)["overlap"] == 1.0
    others = {site: from_pattern(one, 0.5, rule="allowed") for site, one in observed[0][2].items()}
    found = overlap(masks, others, 0.5)
    assert found["lowest"] <= found["overlap"] < 1.0 and found["by_chance"] == pytest.approx(1 / 3, abs=0.02)


def test_the_table_grows_by_the_models_that_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "MODELS", {"weights": comparison.Choice("weights", "Weights", 2, 0.01)})
    monkeypatch.setitem(sys.modules, "trained_models.weights", sys.modules[__name__])

    def command(*seeds: str) -> list[dict[str, str]]:
        arguments = ["prog", "--run", str(tmp_path), "--out", str(tmp_path), "--seeds", *seeds]
        monkeypatch.setattr(sys, "argv", arguments)
        comparison.run_comparison("text", "table", ("tau",), lambda judge: iter([judge.row({}, tau=0.5)]))
        with (tmp_path / "table.csv").open() as file:
            return list(csv.DictReader(file))

    assert [row["seed"] for row in command("1")] == ["1"]
    assert [row["seed"] for row in command("1", "2")] == ["1", "2"]
    assert capsys.readouterr().out.count("weights, seed") == 2
    with pytest.raises(InputError, match="expected one \\*.csv, found 0"):
        one_of(tmp_path / "none", "*.csv")


def test_tables_show_every_seed():
    same = {"model": "m", "unit": "nats", "tau": 0.5, "data": "first 1", "sequences": 8, "by_chance": 0.3, "dense": 1.0}
    rows = [
        same | {"seed": seed, "overlap": 0.25 * seed, "loss": 1.0 + seed, "dense_tuned": 1.0, "loss_tuned": 1.5}
        for seed in (1, 2)
    ]
    assert observed_table(pd.DataFrame(rows)).splitlines()[-1] == (
        "| m (nats) | 0.5 | first 1 batch | 8 | 0.25, 0.50 | 0.30 | +1.000, +2.000 | +0.500, +0.500 |"
    )
    memories = pd.DataFrame(
        [("dense", 1, 0.0, 64, None, 40.0), ("by distance", 1, 0.9, 64, 0.91, 41.0)],
        columns=["model", "seed", "tau", "memory", "sparsity", "perplexity"],
    )
    assert memories_table(memories).splitlines()[2:] == [
        "| dense | 40.0 |",
        "| by distance, tau 0.9 | 41.0 (91.0% pruned) |",
    ]

"""How much masks from little data agree: the same as masks of patterns that were collected apart."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
import torch

from attention_pruning import InputError
from attention_pruning.cli.agreement_plot import plot_agreement
from attention_pruning.huggingface import collect_patterns, mask_agreement
from attention_pruning.make import from_pattern
from tiny_models import LENGTH, SOURCE_LENGTH, batch_for, make

pytestmark = pytest.mark.slow

LENGTHS = {"enc-self": (SOURCE_LENGTH, SOURCE_LENGTH), "dec-self": (LENGTH, LENGTH), "enc-dec": (LENGTH, SOURCE_LENGTH)}


@pytest.mark.parametrize(("name", "block_size"), [("BART", 1), ("Llama", 2)])
def test_agreement_is_the_overlap_of_masks_collected_apart(name, block_size):
    model, data = make(name), [batch_for(name, seed=seed) for seed in range(7)]
    options = {"block_size": block_size, "lengths": LENGTHS if name == "BART" else None}

    def masks(batches, tau):
        patterns = collect_patterns(model, batches, **options)
        return {site: from_pattern(one, tau, rule="allowed", block_size=block_size) for site, one in patterns.items()}

    found = mask_agreement(model, data, batches=(1, 2, 5, 100), taus=(0.5, 0.9), rule="allowed", **options)
    expected = []
    for tau in (0.5, 0.9):
        whole = masks(data, tau)
        for number in (1, 2, 3, 5):  # half of the data joins
            own = masks(data[:number], tau)
            pairs = {"others": masks(data[number : 2 * number], tau), "all": whole}
            for site, mask in own.items():
                for what, other in pairs.items():
                    if what == "all" or 2 * number <= len(data):
                        overlap = mask.overlap(other[site])
                        expected.append(
                            (site, tau, number, 3 * number, what, float(overlap.mean()), float(overlap.min()))
                        )
    assert {(*key, one.overlap, one.lowest) for key, one in ((astuple(one)[:5], one) for one in found)} == set(expected)
    assert all(0 < one.by_chance < 1 for one in found)
    assert torch.tensor([one.overlap for one in found]).unique().numel() > 3


def test_a_figure_is_drawn(tmp_path):
    data = [batch_for("Llama", seed=seed) for seed in range(4)]
    found = mask_agreement(make("Llama"), iter(data), batches=(1, 2))
    assert [(one.batches, one.compared_with) for one in found] == 2 * [
        (1, "others"),
        (1, "all"),
        (2, "others"),
        (2, "all"),
    ]
    plot_agreement(found + [replace(one, site="enc-self") for one in found], tmp_path / "agreement.png")
    assert (tmp_path / "agreement.png").stat().st_size > 5000
    with pytest.raises(InputError, match="expected the name of a .png, .pdf or .svg file, found .txt"):
        plot_agreement(found, tmp_path / "agreement.txt")
    with pytest.raises(InputError, match="expected agreements of masks to draw, found none"):
        plot_agreement([], tmp_path / "agreement.png")


@pytest.mark.parametrize("batches", [(), (0,), (1.5,)])
def test_numbers_that_are_none_are_refused(batches):
    with pytest.raises(InputError, match="batches: expected whole numbers of 1 or more, found"):
        mask_agreement(make("BERT"), [batch_for("BERT")], batches=batches)

"""The figure of sites: every choice of sites a line, against tau and against what the test sentences lost."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from attention_pruning import InputError
from reproduction.analysis.figures.command import main
from reproduction.analysis.figures.sites import SITES, caption, draw, lines_of
from reproduction.analysis.table import COLUMNS, write_csv

TAUS, SEEDS = (0.4, 0.8), (1, 2)
COST = {"all": 9.0, "enc-self": 2.0, "dec-self": 1.0, "enc-dec": 5.0}


def made_up() -> pd.DataFrame:
    """BLEU falls with tau, by another amount for each choice of sites."""
    common = {"config": "quick", "experiment": "translation", "dataset": "bible", "split": "test", "metric": "bleu"}
    rows = []
    for seed in SEEDS:
        shares = dict.fromkeys(("effective_sparsity", "evaluated_sparsity", "block_sparsity"), 0.0)
        labels = {"variant": "dense", "sites": "all", "tau": 0.0, "seed": seed, "value": 20.0 + seed}
        rows.append(common | labels | shares)
        for tau in TAUS:
            masked = {"rule": "published", "block_size": 1, "tau": tau, "seed": seed}
            shares = {"effective_sparsity": tau, "evaluated_sparsity": tau / 2, "block_sparsity": 0.0}
            for sites, cost in COST.items():
                value = {"variant": "data", "sites": sites, "value": 20 + seed - cost * tau}
                rows.append(common | masked | shares | value)
            for variant in ("random", "window"):
                rows.append(common | masked | shares | {"variant": variant, "sites": "all", "value": 8.0 + seed})
    rows.append(common | {"variant": "copy", "value": 5.0})
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seed": "Int64", "block_size": "Int64"})


def test_every_choice_of_sites_is_a_line_from_the_dense_model_through_its_means() -> None:
    by_tau, by_use = draw(made_up()).axes
    assert by_tau.get_ylabel().startswith("BLEU (test), higher")
    for axes, x in ((by_tau, [0, 40, 80]), (by_use, [0, 20, 40])):
        lines = {line.get_label(): line for line in axes.lines}
        for sites, cost in COST.items():
            found = lines[SITES[sites]["label"]]
            assert list(found.get_xdata()) == pytest.approx(x)
            assert list(found.get_ydata()) == pytest.approx([21.5, *(21.5 - cost * tau for tau in TAUS)])
    labels = {line.get_label() for line in by_use.lines}
    assert {"random, all three sites", "fixed window, all three sites"} <= labels
    assert "random, all three sites" not in {line.get_label() for line in by_tau.lines}


def test_the_command_writes_the_picture_and_its_caption(tmp_path: Path) -> None:
    write_csv(made_up(), tmp_path / "sites.csv")
    assert (
        main(["translation_sites", "--metrics", str(tmp_path / "sites.csv"), "--out", str(tmp_path / "sites.png")]) == 0
    )
    with Image.open(tmp_path / "sites.png") as picture:
        picture.load()
        assert picture.size == (1880, 920)
    text = (tmp_path / "sites.md").read_text()
    assert text == caption(made_up())
    assert "encoder-decoder attention at tau 0.8 -4.00 (-4.00, -4.00; 2 seeds), evaluated sparsity 40%" in text
    assert "Dense 21.5" in text


def test_sites_are_compared_on_the_seeds_that_all_models_have() -> None:
    table = made_up()
    lacking = table[~((table["variant"] == "window") & (table["seed"] == 2))]
    assert all(set(rows["seed"]) == {1} for _, _, rows in lines_of(lacking))
    (by_tau, _) = draw(lacking).axes
    assert {line.get_ydata()[0] for line in by_tau.lines} == {21.0} and "seed 1, which all" in caption(lacking)


def test_a_table_without_single_sites_and_another_ending_are_refused(tmp_path: Path) -> None:
    table = made_up()
    with pytest.raises(InputError, match="expected translation models that prune one site alone"):
        lines_of(table[(table["sites"] == "all") | table["sites"].isna()])
    with pytest.raises(InputError, match="expected a .png file"):
        main(["translation_sites", "--metrics", str(tmp_path / "sites.csv"), "--out", str(tmp_path / "sites.pdf")])

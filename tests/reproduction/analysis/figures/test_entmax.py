"""The figure of softmax and entmax: lines, own zeros and bars of each site, and a caption that says what was found."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from attention_pruning import InputError
from reproduction.analysis.figures.command import main
from reproduction.analysis.figures.entmax import SITES, STYLES, caption, differences, draw, summary, values
from reproduction.analysis.table import COLUMNS, write_csv

TAUS, SEEDS = (0.4, 0.8), (1, 2, 3)
OWN = {"enc-self": 0.5, "dec-self": 0.2, "enc-dec": 0.8}
#: What entmax makes zero of the cells that a mask leaves, over all sites; the mask takes half of tau.
OWN_OF_ALL = 0.6


def made_up(taus: tuple[float, ...] = TAUS) -> pd.DataFrame:
    """BLEU falls with tau, twice as fast with entmax, which starts higher."""
    common = {"config": "quick", "experiment": "translation", "dataset": "bible", "sites": "all"}
    rows = []
    for seed in SEEDS:
        for name, (dense, sparse) in {"softmax": ("dense", "data"), "entmax": ("entmax-dense", "entmax-data")}.items():
            cost, start = (10, 22) if name == "entmax" else (5, 20)
            for tau in (0.0, *taus):
                labels = common | {"variant": sparse if tau else dense, "tau": tau, "seed": seed}
                labels |= {"effective_sparsity": tau, "evaluated_sparsity": tau / 2, "block_sparsity": 0.0}
                labels |= {"rule": "published", "block_size": 1} if tau else {}
                found = {("test", "bleu"): start + seed - cost * tau, ("test", "chrf"): 40.0}
                for site, own in {"": OWN_OF_ALL, **{f"_{site}": own for site, own in OWN.items()}}.items():
                    own = own if name == "entmax" else 0.0
                    shares = {"pruned": tau / 2, "kept_zeros": own, "zeros": tau / 2 + own * (1 - tau / 2)}
                    found |= {("test", f"{share}{site}@checkpoint"): value for share, value in shares.items()}
                rows += [labels | {"split": s, "metric": m, "value": value} for (s, m), value in found.items()]
    rows.append(common | {"sites": None, "variant": "copy", "split": "test", "metric": "bleu", "value": 5.0})
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seed": "Int64", "block_size": "Int64"})


def test_each_normaliser_is_a_line_through_the_means_from_its_own_dense_model_on() -> None:
    by_tau, by_use, _ = draw(made_up()).axes
    for axes, x in ((by_tau, [0, 40, 80]), (by_use, [0, 20, 40])):
        lines = {line.get_label(): line for line in axes.lines}
        for name, cost, start in (("softmax", 5, 22), ("entmax", 10, 24)):
            found = lines[STYLES[name]["label"]]
            assert list(found.get_xdata()) == pytest.approx(x)
            assert list(found.get_ydata()) == pytest.approx([start - cost * tau for tau in (0, *TAUS)])
    assert by_tau.get_ylabel().startswith("BLEU (test), higher")
    (own,) = (line for line in by_use.lines if line.get_label() == "exact zeros of unpruned entmax")
    assert list(own.get_xdata()) == pytest.approx([60, 60])
    assert len(by_tau.lines) == 2


def test_a_bar_is_what_the_mask_took_and_on_top_what_entmax_made_zero() -> None:
    bars = [patch for patch in draw(made_up()).axes[2].patches]
    heights = [patch.get_height() for patch in bars]
    masked, own = heights[0::2], heights[1::2]
    shares = [(share, tau) for share in (OWN_OF_ALL, *OWN.values()) for tau in (0, *TAUS)]
    assert masked == pytest.approx([50 * tau for _, tau in shares])
    assert own == pytest.approx([100 * share * (1 - tau / 2) for share, tau in shares])
    assert [patch.get_y() for patch in bars[1::2]] == pytest.approx(masked)


def test_the_summary_takes_the_mean_over_seeds() -> None:
    found = summary(values(made_up()))
    assert list(found["normaliser"]) == ["softmax"] * 3 + ["entmax"] * 3 and list(found["tau"]) == [0, *TAUS] * 2
    assert list(found["mean"]) == pytest.approx([22, 20, 18, 24, 20, 16]) and set(found["seeds"]) == {3}
    assert list(found["zeros_enc-dec"])[3:] == pytest.approx([0.8, 0.84, 0.88])
    gaps = differences(values(made_up()))
    assert list(gaps) == [0, *TAUS] and [gap.mean for gap in gaps.values()] == pytest.approx([2, 0, -2])


def test_normalisers_are_compared_on_the_seeds_that_all_models_have() -> None:
    table = made_up()
    lacking = table[~((table["variant"] == "entmax-data") & (table["tau"] == 0.8) & (table["seed"] == 3))]
    found = values(lacking)
    assert set(found["seed"]) == {1, 2} and set(summary(found)["seeds"]) == {2}
    assert "seeds 1, 2 (dots" in caption(lacking) and "dense +2.00 (+2.00, +2.00; 2 seeds)" in caption(lacking)


def test_the_command_writes_the_picture_and_its_caption(tmp_path: Path) -> None:
    write_csv(made_up(), tmp_path / "entmax.csv")
    assert (
        main(["entmax_comparison", "--metrics", str(tmp_path / "entmax.csv"), "--out", str(tmp_path / "entmax.png")])
        == 0
    )
    with Image.open(tmp_path / "entmax.png") as picture:
        picture.load()
        assert picture.size == (1880, 1520)
    text = (tmp_path / "entmax.md").read_text()
    assert text == caption(made_up())
    for found in (
        "dense, softmax 22.0 (21.0 to 23.0) (chrF 40.0, evaluated sparsity 0%) and entmax 1.5 24.0",
        "at tau 0.8, softmax 18.0",
        "Entmax minus softmax: dense +2.00 (95% CI +2.00 to +2.00; 3 seeds); at tau 0.4 +0.00",
        "Unpruned, entmax zeroes 60.0% (encoder self-attention 50.0%, decoder self-attention 20.0%",
        "At tau 0.8 76.0% of the allowed cells are zero, and of those that the mask leaves 60.0%.",
        "With softmax at most 0% of the cells that a mask leaves are zero, by underflow.",
    ):
        assert found in text, found


def test_softmax_that_underflows_is_said_to() -> None:
    table = made_up()
    table.loc[(table["variant"] == "data") & (table["metric"] == "kept_zeros@checkpoint"), "value"] = 0.0004
    assert "With softmax at most 0.04% of the cells that a mask leaves are zero" in caption(table)


def test_dense_models_alone_can_be_compared() -> None:
    table = made_up(taus=())
    assert [len(line.get_xdata()) for line in draw(table).axes[0].lines] == [1, 1]
    assert "rule: none" in caption(table) and "tau" not in caption(table).partition("Below")[2]


def test_a_table_that_lacks_something_and_another_ending_are_refused(tmp_path: Path) -> None:
    table = made_up()
    with pytest.raises(InputError, match="expected a dense translation model with entmax in the table, found none"):
        values(table[table["variant"] != "entmax-dense"])
    uncounted = (table["metric"] == "zeros_dec-self@checkpoint") & (table["tau"] == 0.4) & (table["seed"] == 2)
    with pytest.raises(InputError, match="expected zeros_dec-self@checkpoint on test of data, tau 0.4, seed 2 in"):
        values(table[~(uncounted & (table["variant"] == "data"))])
    with pytest.raises(InputError, match="expected a .png file"):
        main(["entmax_comparison", "--metrics", str(tmp_path / "entmax.csv"), "--out", str(tmp_path / "entmax.pdf")])
    assert set(SITES) == set(OWN)

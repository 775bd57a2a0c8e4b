"""Controls beside data-informed masks: lines by evaluated sparsity, differences seed by seed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from attention_pruning import InputError
from reproduction.analysis.figures.command import main
from reproduction.analysis.figures.controls import caption, differences, draw
from reproduction.analysis.figures.style import STYLES
from reproduction.analysis.table import COLUMNS, write_csv

#: Perplexity of each variant, seed and tau; seed 1 prefers the data by more than seed 2.
VALUES = {
    ("data", 0.8): {1: 50.0, 2: 54.0},
    ("random", 0.8): {1: 60.0, 2: 58.0},
    ("window", 0.8): {1: 51.0, 2: 53.0},
    ("data", 0.5): {1: 49.0, 2: 50.0},
}


def made_up(experiment: str = "language_modelling", metric: str = "perplexity") -> pd.DataFrame:
    common = {"config": "quick", "experiment": experiment, "dataset": "d", "split": "test", "metric": metric}
    common |= {"sites": "all" if experiment == "translation" else "self", "effective_sparsity": 0.0}
    common["block_sparsity"] = 0.0
    rows = [
        common | {"variant": "dense", "tau": 0.0, "evaluated_sparsity": 0.0, "seed": seed, "value": 45.0 + seed}
        for seed in (1, 2)
    ]
    for (variant, tau), values in VALUES.items():
        for seed, value in values.items():
            share = tau / 2 + (0.1 if variant == "random" else 0.0) + 0.01 * seed
            labels = {"variant": variant, "rule": "published", "block_size": 1, "tau": tau, "seed": seed}
            rows.append(common | labels | {"evaluated_sparsity": share, "value": value})
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seed": "Int64", "block_size": "Int64"})


def test_differences_are_taken_seed_by_seed_where_both_were_trained() -> None:
    table = differences(made_up())
    assert table["against"].tolist() == ["random", "window"] and table["tau"].tolist() == [0.8, 0.8]
    against_random, against_window = table.to_dict("records")
    assert (against_random["difference"], against_random["low"], against_random["high"]) == (-7.0, -10.0, -4.0)
    assert (against_random["data"], against_random["control"]) == (52.0, 59.0)
    assert against_random["data_better"] == against_random["seeds"] == 2
    assert against_random["data_evaluated"] == pytest.approx(0.415)
    assert against_random["control_evaluated"] == pytest.approx(0.515)
    assert (against_window["difference"], against_window["data_better"]) == (0.0, 1)


def test_higher_is_better_where_the_metric_says_so() -> None:
    table = differences(made_up("translation", "bleu"))
    assert table["data_better"].tolist() == [0, 1] and set(table["better"]) == {"higher"}


def test_seeds_without_a_partner_do_not_count() -> None:
    table = made_up()
    lonely = table[~((table["variant"] == "random") & (table["seed"] == 2))]
    found = differences(lonely).iloc[0]
    assert (found["seeds"], found["difference"], found["low"], found["high"]) == (1, -10.0, -10.0, -10.0)
    assert "tau 0.8, random -10.00 (1 seed), evaluated sparsity 41% and 51%" in caption(lonely)
    # a panel has one set of seeds, so that means of different seeds never stand side by side
    assert "tau 0.8, fixed window -1.00 (1 seed)" in caption(lonely) and "lower is better, seed 1." in caption(lonely)
    (axes,) = draw(lonely).axes
    assert axes.get_title().endswith(", seed 1")
    data = next(line for line in axes.lines if line.get_label() == STYLES["data"]["label"])
    assert list(data.get_ydata()) == pytest.approx([46.0, 49.0, 50.0])
    without = table[table["variant"].isin(["dense", "data"])]
    assert differences(without).empty and "no control was trained" in caption(without)


def test_three_seeds_have_an_interval() -> None:
    table = made_up()
    third = table[(table["seed"] == 2)].assign(seed=3)
    found = differences(pd.concat([table, third], ignore_index=True)).iloc[0]
    # differences -10, -4, -4: standard deviation 3.464, standard error 2, and 4.303 of them
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((-6 - 8.605, -6 + 8.605), abs=1e-3)
    assert differences(table)[["ci_low", "ci_high"]].isna().all().all()


def test_lines_run_from_dense_through_the_means_of_both_axes() -> None:
    (axes,) = draw(made_up()).axes
    lines = {line.get_label(): line for line in axes.lines}
    data = lines[STYLES["data"]["label"]]
    assert list(data.get_xdata()) == pytest.approx([0, 26.5, 41.5])
    assert list(data.get_ydata()) == pytest.approx([46.5, 49.5, 52.0])
    assert list(lines[STYLES["random"]["label"]].get_xdata()) == pytest.approx([0, 51.5])
    dots = {tuple(map(float, point)) for collection in axes.collections for point in collection.get_offsets()}
    assert len(dots) == 2 * (1 + len(VALUES))


def test_the_legend_of_a_single_panel_is_not_cut_off() -> None:
    figure = draw(made_up())
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0 and legend.x1 <= figure.bbox.x1


def test_the_command_writes_picture_caption_and_table(tmp_path: Path) -> None:
    table = pd.concat([made_up(), made_up("translation", "bleu")], ignore_index=True)
    write_csv(table, tmp_path / "metrics.csv")
    flags = ["--metrics", str(tmp_path / "metrics.csv"), "--out", str(tmp_path / "controls.png")]
    assert main(["controls", *flags]) == 0
    with Image.open(tmp_path / "controls.png") as picture:
        picture.load()
        assert picture.size == (1760, 860)
    text = (tmp_path / "controls.md").read_text()
    assert text == caption(table)
    assert "tau 0.8, random -7.00 (-10.00, -4.00; 2 seeds), evaluated sparsity 42% and 52%" in text
    assert not any(word in text for word in ("better in", "MORE", "NOT"))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "controls.csv"), differences(table))
    with pytest.raises(InputError, match="expected a .png file"):
        main(["controls", "--metrics", str(tmp_path / "metrics.csv"), "--out", str(tmp_path / "controls.pdf")])

"""Rules, scopes and controls of masks: a line each, compared seed by seed, and said as the numbers have it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from attention_pruning import InputError
from reproduction.analysis.curves import PANELS
from reproduction.analysis.figures.captions import NAMES
from reproduction.analysis.figures.command import main
from reproduction.analysis.figures.masks import caption, draw, markdown, panels_by_tau, summary
from reproduction.analysis.table import COLUMNS, write_csv

#: Variant -> rule, scope, evaluated sparsity, and the perplexity of seeds 1 and 2; dense has 46 and 47.
MASKS = {
    "distance": ("published", "layer", 0.73, (45.5, 47.0)),
    "allowed-head": ("allowed", "head", 0.80, (45.5, 46.75)),
    "data": ("published", "layer", 0.73, (45.0, 46.5)),
    "published-row": ("published", "row", 0.74, (48.0, 49.0)),
    "random": ("published", "layer", 0.73, (55.0, 57.0)),
}
PANEL = PANELS[0]


def made_up(masks: dict[str, tuple] = MASKS, tau: float = 0.8, experiment: str = "language_modelling") -> pd.DataFrame:
    panel = next(panel for panel in PANELS if panel.experiment == experiment)
    common = {"config": "quick", "experiment": experiment, "dataset": "d", "split": "test", "metric": panel.metric}
    common |= {"sites": "all" if experiment == "translation" else "self", "block_sparsity": 0.0}
    rows = []
    for seed in (1, 2):
        nothing = {"effective_sparsity": 0.0, "evaluated_sparsity": 0.0}
        rows.append(common | nothing | {"variant": "dense", "tau": 0.0, "seed": seed, "value": 45.0 + seed})
    for variant, (rule, scope, share, values) in masks.items():
        for seed, value in enumerate(values, start=1):
            labels = {"variant": variant, "rule": rule, "scope": scope, "block_size": 1, "tau": tau, "seed": seed}
            shares = {"effective_sparsity": share, "evaluated_sparsity": share}
            rows.append(common | labels | shares | {"value": value})
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seed": "Int64", "block_size": "Int64"})


def of_tau(table: pd.DataFrame, tau: float = 0.8) -> pd.DataFrame:
    """The masks of a tau."""
    return summary(dict(panels_by_tau(table, PANEL))[tau])


def test_every_mask_is_a_line_informed_ones_first() -> None:
    lines = of_tau(made_up())
    assert lines["variant"].tolist() == ["data", "published-row", "allowed-head", "random", "distance"]
    names = ["published by layer", "published by row", "allowed by head", NAMES["random"], NAMES["distance"]]
    assert lines["name"].tolist() == names
    assert lines["mean"].tolist() == [45.75, 48.5, 46.125, 56.0, 46.25]
    assert lines["evaluated"].tolist() == pytest.approx([73, 74, 80, 73, 73])
    assert [found.values for found in lines["minus_dense"]] == [(-1, -0.5), (2, 2), (-0.5, -0.25), (9, 10), (-0.5, 0)]
    own = [found and found.values for found in lines["own_minus"]]
    assert own == [None, (-3.0, -2.5), (-0.5, -0.25), (-10.0, -10.5), (-0.5, -0.5)]


def test_further_controls_are_lines_and_what_is_trained_longer_has_no_tau(tmp_path: Path) -> None:
    further = {
        "window-sinks": ("published", "layer", 0.73, (46.0, 47.5)),
        "other-seed": ("published", "layer", 0.73, (45.5, 47.0)),
        "dropout": (None, None, 0.0, (90.0, 91.0)),
    }
    longer = made_up({"dense-longer": (None, None, 0.0, (44.0, 46.0))}, tau=0.0).query("variant != 'dense'")
    table = pd.concat([made_up(MASKS | further), longer], ignore_index=True)
    lines = of_tau(table).set_index("variant")
    assert lines.index.tolist()[-4:] == ["window-sinks", "other-seed", "dropout", "dense-longer"]
    assert lines.loc["dense-longer", "minus_dense"].values == (-2.0, -1.0)
    assert lines.loc["dense-longer", "name"] == "dense, twice as long"
    assert lines.loc["window-sinks", "own_minus"].values == (-1.0, -1.0)
    shown = markdown(table)
    assert "| dense, twice as long | 0% | 0.0% | 0.0% | 45.00 (44.00 to 46.00) |" in shown
    assert "| attention dropout | 80% | 0.0% | 0.0% |" in shown
    write_csv(table, tmp_path / "mask_comparison.csv")
    flags = ["--metrics", str(tmp_path / "mask_comparison.csv"), "--out", str(tmp_path / "out.png")]
    assert main(["mask_comparison", *flags]) == 0
    # an arrow stands for dropout, which is far off
    (axes,) = draw(table).axes
    low, high = axes.get_xlim()
    assert high < 20 and any("\u2192" in text.get_text() and "+44" in text.get_text() for text in axes.texts)


def test_a_panel_has_the_seeds_that_all_of_its_masks_have() -> None:
    """A third seed of some masks must not move them against masks of two."""
    table = made_up()
    more = table[table["variant"].isin(["dense", "data", "distance"]) & (table["seed"] == 1)].assign(seed=3, value=1.0)
    both = pd.concat([table, more], ignore_index=True)
    pd.testing.assert_frame_equal(of_tau(both), of_tau(table))
    assert markdown(both) == markdown(table) and caption(both) == caption(table)
    without = both[~both["variant"].isin(["random", "published-row", "allowed-head"])]
    assert of_tau(without)["seeds"].tolist() == [3, 3] and "seeds 1, 2, 3" in caption(without)
    with pytest.raises(InputError, match="expected a seed that all of .*random have, found none"):
        draw(table[(table["variant"] == "random") | (table["seed"] == 1)].query("variant != 'random' or seed == 2"))


def test_the_caption_states_differences_and_seeds_and_judges_nothing() -> None:
    text = caption(made_up())
    assert "At tau 0.8, seeds 1, 2: dense 46.50 (46.00 to 47.00). Minus dense: published by layer -0.75 (-1.00" in text
    assert "Published by layer minus another: published by row -2.75 (-3.00, -2.50; 2 seeds); allowed by head" in text
    assert not any(word in text for word in ("MORE", "best", "worst", "matter", "better in", "verdict"))
    higher = caption(made_up({"data": MASKS["data"]}, experiment="translation"))
    assert "BLEU on the test split" in higher and "minus another" not in higher
    table = made_up()
    assert "published by row -3.00 (1 seed)" in caption(table[table["seed"] == 1])


def test_every_seed_is_a_dot_and_every_mask_says_what_it_took() -> None:
    table = pd.concat([made_up(), made_up(tau=0.9).query("variant != 'dense'"), made_up(experiment="translation")])
    figure = draw(table.reset_index(drop=True))
    titles = [axes.get_title() for axes in figure.axes]
    shown = [(PANEL, 80), (PANELS[1], 80), (PANEL, 90)]
    assert titles[:3] == [f"{panel.title}, \u03c4 {tau}%, seeds 1, 2" for panel, tau in shown]
    assert titles[3] == "" and not figure.axes[3].axison  # translation has one tau
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == of_tau(table)["name"].tolist()
    (taken,) = axes.child_axes
    assert [label.get_text() for label in taken.get_yticklabels()] == ["73%", "74%", "80%", "73%", "73%"]
    x = sorted(float(point[0]) for collection in axes.collections for point in collection.get_offsets())
    differences = of_tau(made_up())["minus_dense"]
    assert x == sorted([value for found in differences for value in (*found.values, found.mean)])


def test_random_masks_that_are_far_off_do_not_squeeze_the_others() -> None:
    (axes,) = draw(made_up()).axes
    low, high = axes.get_xlim()
    assert low < -1.0 and 2.0 < high < 3.0
    assert [text.get_text() for text in axes.texts] == ["+9.50 \u2192"]
    (axes,) = draw(made_up(MASKS | {"random": ("published", "layer", 0.73, (49.0, 50.0))})).axes
    assert axes.get_xlim()[1] > 3.0 and not axes.texts


def test_the_table_has_every_line_of_the_figure() -> None:
    lines = markdown(made_up()).splitlines()
    assert lines[2] == "| dense | 0% | 0.0% | 0.0% | 46.50 (46.00 to 47.00) | | | 2 |"
    assert lines[3].endswith("| 73.0% | 73.0% | 45.75 (45.00 to 46.50) | -0.75 (-1.00, -0.50; 2 seeds) |  | 2 |")
    assert lines[4].endswith(
        "| 48.50 (48.00 to 49.00) | +2.00 (+2.00, +2.00; 2 seeds) | -2.75 (-3.00, -2.50; 2 seeds) | 2 |"
    )
    assert len(lines) == 3 + len(MASKS)


def test_the_command_writes_the_picture_and_its_caption(tmp_path: Path) -> None:
    write_csv(made_up(), tmp_path / "masks.csv")
    assert (
        main(["mask_comparison", "--metrics", str(tmp_path / "masks.csv"), "--out", str(tmp_path / "masks.png")]) == 0
    )
    with Image.open(tmp_path / "masks.png") as picture:
        picture.load()
        assert picture.size == (1080, 560)
    assert (tmp_path / "masks.md").read_text() == caption(made_up())
    with pytest.raises(InputError, match="expected data-informed masks of language_modelling in the table, found none"):
        draw(made_up({"random": MASKS["random"]}))

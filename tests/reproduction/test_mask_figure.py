"""Rules, scopes and controls of masks: a line each, compared seed by seed, and said as the numbers have it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from attention_pruning import InputError
from reproduction.captions import NAMES
from reproduction.curves import PANELS
from reproduction.mask_figure import caption, draw, gap, main, markdown, summary
from reproduction.results import COLUMNS, write_csv

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


def test_every_mask_is_a_line_informed_ones_first() -> None:
    lines = summary(made_up(), PANEL)
    assert lines["variant"].tolist() == ["data", "published-row", "allowed-head", "random", "distance"]
    names = ["published by layer", "published by row", "allowed by head", NAMES["random"], NAMES["distance"]]
    assert lines["name"].tolist() == names
    assert lines["mean"].tolist() == [45.75, 48.5, 46.125, 56.0, 46.25]
    assert lines["evaluated"].tolist() == pytest.approx([73, 74, 80, 73, 73])
    data = lines["gap"].iloc[0]
    assert data == (-0.75, -1.0, -0.5, 2, 2)
    assert [found.better for found in lines["gap"]] == [2, 0, 2, 0, 1]  # an equal value is not a better one


def test_differences_are_of_the_seeds_that_both_have() -> None:
    rows = made_up()
    one, other = (rows[rows["variant"] == name] for name in ("data", "random"))
    assert gap(one, other, PANEL) == (-10.25, -10.5, -10.0, 2, 2)
    assert gap(one, other[other["seed"] == 1], PANEL) == (-10.0, -10.0, -10.0, 1, 1)
    with pytest.raises(InputError, match="expected data and random of the same seed, found none"):
        gap(one[one["seed"] == 2], other[other["seed"] == 1], PANEL)


def test_the_caption_says_what_differs_by_more_than_seeds_do() -> None:
    text = caption(made_up())
    assert (
        "of 3 rules and scopes the best is published by layer, 45.75 (45.00 to 46.50), the worst published by row"
        in text
    )
    assert "they differ by -2.75 (seeds -3.00 to -2.50), MORE than the seeds of one rule and scope do, 1.50" in text
    assert "They took from 73% to 80% of the attention" in text
    close = made_up(MASKS | {"published-row": ("published", "row", 0.73, (46.5, 47.0))})
    text = caption(close[close["variant"] != "allowed-head"])
    assert "they differ by -1.00 (seeds -1.50 to -0.50), no more than the seeds" in text and "They took" not in text


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (
            (45.5, 47.0),
            "by distance -0.50 (seeds -0.50 to -0.50, better in 2 of 2). In every seed more than the distance",
        ),
        ((48.0, 49.0), "minus by distance -2.75 (seeds -3.00 to -2.50, better in 2 of 2). So MORE than the distance"),
        ((45.5, 46.0), "Seeds do not agree on whether more than the distance matters."),
        ((45.0, 46.0), "In no seed did more than the distance matter."),
        ((45.5,), "by distance -0.50 (one seed). One seed does not tell whether more than the distance matters."),
    ],
)
def test_the_caption_says_whether_more_than_the_distance_matters(values: tuple[float, ...], verdict: str) -> None:
    text = caption(made_up(MASKS | {"distance": ("published", "layer", 0.73, values)}))
    assert (
        verdict in text and "published by layer minus random -10.25 (seeds -10.50 to -10.00, better in 2 of 2)" in text
    )


def test_the_caption_says_which_masks_help() -> None:
    found = caption(made_up()).partition("Better than the dense model of the same seed ")[2]
    assert found == (
        "in every seed with published by layer -0.75, allowed by head -0.38; in some seeds with by distance -0.25; "
        "in no seed with published by row +2.00, random +9.50.\n"
    )
    higher = caption(made_up({"data": MASKS["data"]}, experiment="translation"))
    assert "BLEU on the test split" in higher and "in no seed with published by layer -0.75." in higher
    assert "published by layer reaches 45.75 (45.00 to 46.50); no other rule or scope was trained." in higher


def test_one_seed_has_no_spread() -> None:
    table = made_up()
    text = caption(table[table["seed"] == 1])
    assert "their difference, -3.00, is that of one seed" in text and "MORE" not in text and "(one seed)" in text


def test_every_seed_is_a_dot_and_every_mask_says_what_it_took() -> None:
    table = pd.concat([made_up(), made_up(tau=0.9).query("variant != 'dense'"), made_up(experiment="translation")])
    figure = draw(table.reset_index(drop=True))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == [f"{PANEL.title}, \u03c4 80%", f"{PANELS[1].title}, \u03c4 80%", f"{PANEL.title}, \u03c4 90%"]
    assert titles[3] == "" and not figure.axes[3].axison  # translation has one tau
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == summary(table, PANEL)["name"].tolist()[:5]
    (taken,) = axes.child_axes
    assert [label.get_text() for label in taken.get_yticklabels()] == ["73%", "74%", "80%", "73%", "73%"]
    x = sorted(float(point[0]) for collection in axes.collections for point in collection.get_offsets())
    singles = [value for *_, values in MASKS.values() for value in values]
    assert x == sorted([*singles, *summary(made_up(), PANEL)["mean"]])


def test_random_masks_that_are_far_off_do_not_squeeze_the_others() -> None:
    (axes,) = draw(made_up()).axes
    low, high = axes.get_xlim()
    assert low < 45.0 and 49.0 < high < 50.0
    assert [text.get_text() for text in axes.texts] == ["56.00 \u2192"]
    (axes,) = draw(made_up(MASKS | {"random": ("published", "layer", 0.73, (49.0, 50.0))})).axes
    assert axes.get_xlim()[1] > 50.0 and not axes.texts


def test_the_table_has_every_line_of_the_figure() -> None:
    lines = markdown(made_up()).splitlines()
    assert lines[2] == "| dense | 0% | 0.0% | 0.0% | 46.50 (46.00 to 47.00) | | 2 |"
    wanted = (
        "| published by layer | 80% | 73.0% | 73.0% | 45.75 (45.00 to 46.50) | -0.75 (seeds -1.00 to -0.50, better in 2"
    )
    assert lines[3].startswith(wanted) and len(lines) == 3 + len(MASKS)


def test_the_command_writes_the_picture_and_its_caption(tmp_path: Path) -> None:
    write_csv(made_up(), tmp_path / "masks.csv")
    assert main(["--metrics", str(tmp_path / "masks.csv"), "--out", str(tmp_path / "masks.png")]) == 0
    with Image.open(tmp_path / "masks.png") as picture:
        picture.load()
        assert picture.size == (1080, 560)
    assert (tmp_path / "masks.md").read_text() == caption(made_up())
    with pytest.raises(InputError, match="expected data-informed masks of language_modelling in the table, found none"):
        draw(made_up({"random": MASKS["random"]}))

"""The figure as a picture and as numbers: what is drawn is what the table says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from PIL import Image

from attention_pruning import InputError
from reproduction.analysis.curves import ACCURACY, PANELS, baselines, changes, curve, numbers, select
from reproduction.analysis.figures.captions import caption, table_text
from reproduction.analysis.figures.quality import draw, main
from reproduction.analysis.figures.style import STYLES, save
from reproduction.analysis.paper import REFERENCE, published, read_reference
from reproduction.analysis.table import COLUMNS, write_csv

PANEL, TRANSLATION, GLUE = PANELS
SEEDS = (1, 2, 3)
TAUS = {"dense": (0.0,), "data": (0.2, 0.4, 0.6, 0.8, 0.9), "random": (0.8, 0.9), "window": (0.8, 0.9)}
TAUS["distance"] = TAUS["window"]
WORSE = {"dense": 0.0, "data": 3.0, "random": 9.0, "window": 5.0, "distance": 4.0}


def made_up(bigram: float | None = 70.5, seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    """A table as a finished experiment leaves it, both splits, and a metric that no panel shows."""
    common = {"config": "quick", "experiment": "language_modelling", "dataset": "bible-bbe"}
    rows = []
    for variant, taus in TAUS.items():
        for tau in taus:
            for seed in seeds:
                mask = (
                    {"rule": None, "block_size": None} if variant == "dense" else {"rule": "published", "block_size": 1}
                )
                value = 60 + WORSE[variant] * tau**2 + 0.3 * seed + 0.1 * ((seed * 7 + int(tau * 10)) % 3)
                labels = common | mask | {"variant": variant, "sites": "self", "tau": tau, "seed": seed}
                shares = {
                    "effective_sparsity": tau**2 + 0.001 * seed,
                    "evaluated_sparsity": tau / 2,
                    "block_sparsity": 0,
                }
                for split, shift in (("valid", 5.0), ("test", 0.0)):
                    rows.append(labels | shares | {"split": split, "metric": "perplexity", "value": value + shift})
                    rows.append(labels | shares | {"split": split, "metric": "nll", "value": np.log(value + shift)})
    if bigram is not None:
        rows.append(common | {"variant": "kneser-ney", "split": "test", "metric": "perplexity", "value": bigram})
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seed": "Int64", "block_size": "Int64"})


def with_other_experiments(table: pd.DataFrame) -> pd.DataFrame:
    """The same beside translation, one site pruned alone included, and two tasks of GLUE."""
    test = table[(table["split"] == "test") & (table["metric"] == "perplexity")]
    models, counted = test[test["variant"] != "kneser-ney"], test[test["variant"] == "kneser-ney"]
    parts = [table]
    for sites, shift in (("all", 0.0), ("enc-dec", -40.0)):
        rows = models if sites == "all" else models[models["variant"] == "data"]
        labels = {"experiment": "translation", "dataset": "bible-wyc-bbe", "metric": "bleu", "sites": sites}
        parts.append(rows.assign(value=90 - rows["value"] + shift, **labels))
    labels |= {"variant": "copy", "sites": None, "value": 5}
    parts.append(counted.assign(**labels))
    for task, shift in (("A", 0.0), ("B", 10.0)):
        labels = {"experiment": "glue", "dataset": task, "split": "validation", "metric": "glue_score"}
        parts.append(models.assign(value=140 - models["value"] + shift, **labels))
        parts.append(counted.assign(value=50 + shift, variant="majority", **labels))
    return pd.concat(parts, ignore_index=True)


def drawn(table: pd.DataFrame) -> tuple[Axes, Axes]:
    main_axes, side_axes = draw(table, read_reference(REFERENCE)).axes
    return main_axes, side_axes


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Points of every line in the legend, by its label."""
    handles, labels = axes.get_legend_handles_labels()
    found = {}
    for handle, label in zip(handles, labels, strict=True):
        found[label] = tuple(list(map(float, data)) for data in handle.get_data())
    return found


def values(table: pd.DataFrame, variant: str, tau: float) -> list[float]:
    rows = table[(table["split"] == "test") & (table["metric"] == "perplexity") & (table["variant"] == variant)]
    return rows.loc[rows["tau"] == tau, "value"].tolist()


def test_the_lines_are_the_means_over_seeds_and_start_at_dense() -> None:
    table = made_up()
    found = lines(drawn(table)[0])
    assert set(found) == {STYLES[variant]["label"] for variant in TAUS} | {"Kneser-Ney bigram"}
    for variant, taus in TAUS.items():
        points = [(variant, tau) for tau in taus]
        if variant == "data":
            points.insert(0, ("dense", 0.0))
        x, y = found[STYLES[variant]["label"]]
        assert x == pytest.approx([100 * tau for _, tau in points], abs=1e-12)
        assert y == pytest.approx([np.mean(values(table, *point)) for point in points], rel=1e-12)


def test_every_seed_is_a_dot() -> None:
    table = made_up()
    dots = np.concatenate(
        [np.asarray(dots.get_offsets()) for dots in drawn(table)[0].collections if dots.get_offsets().any()]
    )
    expected = [
        (100 * tau, value) for variant, taus in TAUS.items() for tau in taus for value in values(table, variant, tau)
    ]
    found = {(round(float(x), 6), round(float(y), 9)) for x, y in dots}
    assert {(round(x, 6), round(y, 9)) for x, y in expected} <= found


def test_the_spread_is_from_the_lowest_to_the_highest_seed() -> None:
    table = made_up()
    for variant, taus in TAUS.items():
        summary = curve(select(table, PANEL), variant)
        assert summary["percent"].tolist() == pytest.approx([100 * tau for tau in taus])
        assert summary["low"].tolist() == [min(values(table, variant, tau)) for tau in taus]
        assert summary["high"].tolist() == [max(values(table, variant, tau)) for tau in taus]
        assert summary["seeds"].tolist() == [len(SEEDS)] * len(taus)


def test_title_axes_limits_and_ticks_are_as_in_the_paper() -> None:
    axes, side = drawn(made_up())
    assert axes.get_title() == "(a) Language modelling"
    assert axes.get_ylabel().startswith("Perplexity")
    for one in (axes, side):
        assert one.get_xlabel().startswith("Attention pruned")
        assert one.get_xlim()[0] < 0 and one.get_xlim()[1] == 100
        assert one.get_xticks().tolist() == [0, 20, 40, 60, 80, 100]
    low, high = axes.get_ylim()
    everything = [value for variant, taus in TAUS.items() for tau in taus for value in values(made_up(), variant, tau)]
    assert low < min(everything) and high > max(everything)


def test_the_upper_axis_has_the_mean_effective_sparsity_of_each_tau() -> None:
    (axes, _), table = drawn(made_up()), made_up()
    (top,) = axes.child_axes
    line = curve(select(table, PANEL), "data")
    assert top.get_xticks().tolist() == [0, *line["percent"]]
    assert [text.get_text() for text in top.get_xticklabels()] == [
        "0",
        *(f"{value:.0f}" for value in line["effective"]),
    ]


def test_the_bigram_is_drawn_where_it_is_near_and_left_out_where_it_is_far() -> None:
    def heights(bigram: float | None) -> list[float]:
        colour = STYLES["baseline"]["color"]
        found = [line.get_ydata() for line in drawn(made_up(bigram))[0].lines if line.get_color() == colour]
        return [data[0] for data in found if len(data)]

    assert heights(70.0) == [70.0]
    assert heights(500.0) == []
    assert heights(None) == []
    assert drawn(made_up(500.0))[0].get_ylim() == drawn(made_up(None))[0].get_ylim()
    # a floor that is better than the models must not go in silence
    for value, label in ((500.0, "Kneser-Ney bigram 500.0 (above)"), (20.0, "Kneser-Ney bigram 20.0 (below)")):
        assert label in lines(drawn(made_up(value))[0])


def test_every_floor_of_counting_is_drawn() -> None:
    table = made_up(bigram=70.0)
    longer = table[table["variant"] == "kneser-ney"].assign(variant="kneser-ney-5", value=68.0)
    both = pd.concat([table, longer], ignore_index=True)
    found = lines(drawn(both)[0])
    assert found["Kneser-Ney bigram"][1][0] == 70 and found["Kneser-Ney 5-gram"][1][0] == 68
    styles = {line.get_linestyle() for line in drawn(both)[0].lines if line.get_label().startswith("Kneser-Ney")}
    assert len(styles) == 2
    assert "; Kneser-Ney bigram 70.0; Kneser-Ney 5-gram 68.0." in caption(both, [PANEL])
    assert "Kneser-Ney 5-gram" in table_text(both, [PANEL])


def test_the_companion_shows_changes_of_each_seed_and_the_published_ones() -> None:
    table = made_up()
    found = lines(drawn(table)[1])
    (x, y), (paper_x, paper_y) = found["here, bible-bbe"], found["published, WikiText-103"]
    dense = values(table, "dense", 0.0)
    expected = [
        np.mean([100 * (value / start - 1) for value, start in zip(values(table, "data", tau), dense, strict=True)])
        for tau in TAUS["data"]
    ]
    assert x == pytest.approx([0, *(100 * tau for tau in TAUS["data"])])
    assert y == pytest.approx([0, *expected], abs=1e-9)
    assert paper_x == [0, 20, 40, 60, 80]
    assert paper_y == pytest.approx([0, 0, 0.2318, 1.7014, 3.9740], abs=1e-3)


def test_the_published_numbers_name_their_source() -> None:
    reference = read_reference(REFERENCE)
    assert reference["source"].str.len().gt(0).all()
    assert published(reference, PANEL)["value"].tolist() == [24.157, 24.157, 24.213, 24.568, 25.117]


def test_the_file_is_a_picture_of_the_right_size_and_not_blank(tmp_path: Path) -> None:
    write_csv(made_up(), tmp_path / "metrics.csv")
    out = tmp_path / "figure.png"
    assert main(["--metrics", str(tmp_path / "metrics.csv"), "--out", str(out)]) == 0
    with Image.open(out) as picture:
        picture.load()
        assert picture.format == "PNG" and picture.size == (1800, 920)
        pixels = np.asarray(picture.convert("RGB"))
    for half in (pixels[:, :900], pixels[:, 900:]):
        share = (half < 250).any(axis=2).mean()
        assert 0.02 < share < 0.5
    # Nothing is cut off: the margin is white all around.
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edge == 255).all()
    colours = {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}
    for style in STYLES.values():
        assert tuple(bytes.fromhex(style["color"][1:])) in colours


def test_the_same_numbers_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(draw(made_up(), read_reference(REFERENCE)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    save(draw(made_up(bigram=69.0), read_reference(REFERENCE)), tmp_path / "c.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize("seeds", [(1,), SEEDS])
def test_the_caption_says_what_is_shown(seeds: tuple[int, ...]) -> None:
    text = caption(made_up(bigram=74.25, seeds=seeds), [PANEL])
    for part in (
        "quick",
        "bible-bbe",
        "test split",
        "rule: published",
        "; Kneser-Ney bigram 74.2.",
    ):
        assert part in text
    assert f"seeds {', '.join(map(str, seeds))};" in text
    assert "lowest and the highest seed, not standard errors" in text
    assert "better than" not in caption(made_up(bigram=50.0), [PANEL])
    contrast = "Data-informed minus random at tau 90%: -4.86 ("
    assert contrast + ("1 seed)" if len(seeds) == 1 else "95% CI -4.86 to -4.86; 3 seeds)") in text
    assert "Kneser-Ney" not in caption(made_up(bigram=None), [PANEL])


def test_the_printed_table_has_the_numbers_of_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = made_up()
    write_csv(table, tmp_path / "metrics.csv")
    assert main(["--metrics", str(tmp_path / "metrics.csv"), "--table"]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == table_text(table, [PANEL])
    for line in numbers(table, PANEL).itertuples():
        assert any(
            f"{line.percent:.0f}%" in row and f"{line.mean:.2f}" in row and f"{line.high:.2f}" in row
            for row in printed.splitlines()
        )


def test_a_seed_without_a_dense_model_is_refused() -> None:
    table = made_up()
    lost = table[(table["variant"] != "dense") | (table["seed"] != 2)]
    with pytest.raises(InputError, match="expected a dense model of each seed, found none of seed 2"):
        changes(select(lost, PANEL), "percent")
    with pytest.raises(InputError, match="of the dense model, found only data, distance, kneser-ney, random, window"):
        draw(table[table["variant"] != "dense"], read_reference(REFERENCE))


def test_controls_of_one_seed_are_drawn_without_a_spread_and_the_caption_says_so() -> None:
    table = made_up()
    one = table[~table["variant"].isin(["random", "window", "distance"]) | (table["seed"] == 2)]
    assert "Data-informed minus random at tau 90%: -4.86 (1 seed)" in caption(one, [PANEL])
    # A single tau has a bar for its spread, several have a band; the dense model of three seeds keeps its bar.
    for kept, bars in ((one[one["variant"].ne("random") | one["tau"].eq(0.9)], 1), (table[table["tau"] != 0.8], 4)):
        assert len(drawn(kept)[0].containers) == bars
    assert lines(drawn(one)[0])[STYLES["random"]["label"]][1] == [values(one, "random", tau)[0] for tau in (0.8, 0.9)]
    assert "; seeds 1, 2, 3 (controls: 2); rule" in caption(one, [PANEL])
    assert "(controls" not in caption(table, [PANEL])


def test_a_table_that_no_panel_can_show_is_refused(tmp_path: Path) -> None:
    table = made_up()
    with pytest.raises(InputError, match="expected runs of language_modelling, .*glue in the table, found squad"):
        draw(table.assign(experiment="squad"), read_reference(REFERENCE))
    with pytest.raises(InputError, match="of one dataset, found bible-bbe, wikitext-2"):
        draw(pd.concat([table, table.assign(dataset="wikitext-2")]), read_reference(REFERENCE))
    with pytest.raises(InputError, match="expected perplexity on test .*, found no such row"):
        draw(table[table["split"] == "valid"], read_reference(REFERENCE))


def test_bad_input_to_the_command_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    write_csv(made_up(), tmp_path / "metrics.csv")
    metrics, out = ["--metrics", str(tmp_path / "metrics.csv")], ["--out", str(tmp_path / "figure.png")]
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n")
    for arguments, message in [
        (metrics, "expected --out, a picture to write, or --table, found neither"),
        ([*metrics, "--out", "figure.jpg"], "expected a .png file, found figure.jpg"),
        (["--metrics", str(tmp_path / "none.csv"), *out], "none.csv: expected a table of metrics, found no such file"),
        ([*metrics, *out, "--reference", str(tmp_path / "foreign.csv")], "foreign.csv: expected the columns panel,"),
        ([*metrics, *out, "--reference", str(tmp_path / "none.csv")], "expected the published numbers, found no such"),
    ]:
        with pytest.raises(InputError, match=message):
            main(arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign.csv", "metrics.csv"]


def test_every_experiment_is_a_panel_above_its_companion(tmp_path: Path) -> None:
    table = with_other_experiments(made_up())
    write_csv(table, tmp_path / "metrics.csv")
    assert main(["--metrics", str(tmp_path / "metrics.csv"), "--out", str(tmp_path / "figure.png")]) == 0
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.size == (2760, 1520)
    axes = draw(table, read_reference(REFERENCE)).axes
    assert [one.get_title() for one in axes[:3]] == [panel.title for panel in PANELS]
    assert [one.get_title() for one in axes[3:]] == ["Change from dense"] * 3
    text = (tmp_path / "figure.md").read_text()
    assert all(panel.title in text for panel in PANELS) and "; copied source 5.0." in text


def test_a_translation_panel_shows_the_models_that_prune_every_site() -> None:
    table = with_other_experiments(made_up())
    rows = select(table, TRANSLATION)
    assert set(rows["sites"].dropna()) == {"all"} and baselines(rows) == {"copy": 5}
    own = select(table, PANEL)
    assert curve(rows, "data")["mean"].tolist() == pytest.approx((90 - curve(own, "data")["mean"]).tolist())


def test_the_glue_panel_shows_the_mean_over_tasks_seed_by_seed() -> None:
    table = with_other_experiments(made_up())
    rows = select(table, GLUE)
    assert set(rows["dataset"]) == {"mean of 2 tasks"} and baselines(rows) == {"majority": 55}
    one = table[(table["experiment"] == "glue") & (table["dataset"] == "A") & (table["variant"] == "data")]
    found, alone = (part.set_index(["tau", "seed"])["value"] for part in (rows[rows["variant"] == "data"], one))
    assert found.to_dict() == pytest.approx({key: value + 5 for key, value in alone.items()})
    lost = table[~((table["dataset"] == "B") & (table["variant"] == "random") & (table["seed"] == 2))]
    with pytest.raises(InputError, match=r"expected random, tau 0.8, seed 2 on each of A, B, found none on B"):
        select(lost, GLUE)


def test_accuracy_is_the_mean_over_the_tasks_that_have_one_each_the_mean_of_its_splits() -> None:
    table = with_other_experiments(made_up())
    of_task = table[(table["dataset"] == "B") & table["seed"].notna()].assign(metric="accuracy")
    matched, other = (of_task.assign(split=f"validation_{name}") for name in ("matched", "mismatched"))
    third = of_task.assign(dataset="C", value=0.9)
    more = [matched.assign(value=0.5), other.assign(value=0.7), third]
    rows = select(pd.concat([table, *more], ignore_index=True), ACCURACY)
    assert set(rows["dataset"]) == {"mean of 2 tasks"} and not rows.duplicated(["variant", "tau", "seed"]).any()
    assert rows["value"].tolist() == pytest.approx([75.0] * len(rows)), "the mean of 60 and 90, in percent"

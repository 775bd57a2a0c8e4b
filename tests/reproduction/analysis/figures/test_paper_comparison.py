"""Ours beside the paper's: the same changes as in the figure, and what differs, from the configurations."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from attention_pruning import InputError
from reproduction.analysis.curves import ACCURACY, PANELS, changes, select
from reproduction.analysis.figures.paper_comparison import SCALES, caption, comparison, draw, main, read_configuration
from reproduction.analysis.paper import REFERENCE, published, read_reference
from reproduction.analysis.table import COLUMNS, write_csv

ROOT = Path(__file__).parents[4]
QUICK, PAPER = ROOT / "config" / "quick.yaml", ROOT / "config" / "paper.yaml"
SHARES = ("effective_sparsity", "evaluated_sparsity", "block_sparsity")


def made_up() -> pd.DataFrame:
    """Each experiment's value is 50 when dense, and 2 seed tau less when pruned."""
    rows = []
    for panel in (*PANELS, ACCURACY):
        common = {"config": "quick", "experiment": panel.experiment, "dataset": "d", "split": panel.split}
        common |= {"metric": panel.metric, "sites": panel.sites or "self"}
        for seed in (1, 2):
            dense = {"variant": "dense", "tau": 0.0, "seed": seed, "value": 50.0 / panel.scale}
            rows.append(common | dense | dict.fromkeys(SHARES, 0.0))
            for tau in (0.4, 0.9):
                labels = {"variant": "data", "rule": "published", "block_size": 1, "tau": tau, "seed": seed}
                rows.append(
                    common | labels | dict.fromkeys(SHARES, tau / 2) | {"value": (50 - 2 * seed * tau) / panel.scale}
                )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seed": "Int64", "block_size": "Int64"})


def test_the_table_joins_both_at_every_tau_of_either() -> None:
    table = comparison(made_up(), read_reference(REFERENCE))
    for panel in PANELS:
        rows = table[table["experiment"] == panel.experiment].set_index("percent")
        assert list(rows.index) == [0, 20, 40, 60, 80, 90]
        # two points of the dense model's 50 are four percent of it
        of_seeds = [-2.4, -3.2, -1.6] if panel.unit == "percent" else [-1.2, -1.6, -0.8]
        assert rows.loc[40, ["change", "low", "high", "effective"]].tolist() == pytest.approx([*of_seeds, 20])
        paper = published(read_reference(REFERENCE), panel).set_index("percent")["change"]
        assert rows["published_change"].dropna().to_dict() == pytest.approx(paper.to_dict())
        assert rows["change"].isna().tolist() == [False, True, False, True, True, False]


def test_accuracy_stands_beside_the_published_accuracy_and_points_beside_points() -> None:
    """The published curve of panel (c) is a mean accuracy; a GLUE score has correlations in it."""
    table = made_up()
    table.loc[table["metric"] == "glue_score", "value"] *= 0.01
    found = comparison(table, read_reference(REFERENCE)).query("experiment == 'glue'").set_index("percent")
    assert set(found["metric"]) == {"accuracy"} and set(found["unit"]) == {"points"}
    assert found.loc[[0, 40, 80], "published_change"].tolist() == pytest.approx([0, -2.46, -10.68])
    assert found.loc[40, "change"] == pytest.approx(-1.2)
    axes = draw(table, read_reference(REFERENCE)).axes[2]
    assert axes.get_ylabel() == "Change of accuracy from dense (points)\nhigher is better"
    # a score near zero has a change in points, and no percent of next to nothing
    near = select(table, PANELS[2])
    near = near.assign(value=near["value"].where(near["tau"] > 0, 0.001))
    assert changes(near, "points").query("tau > 0")["value"].abs().max() < 1


def test_tasks_without_an_accuracy_have_the_published_curve_alone() -> None:
    table = made_up().query("metric != 'accuracy'")
    text = caption(table, read_reference(REFERENCE), read_configuration(QUICK), read_configuration(PAPER))
    assert "Here accuracy was measured on no dataset." in text
    assert [line.get_label() for line in draw(table, read_reference(REFERENCE)).axes[2].lines][1:] == [
        "published, GLUE average"
    ]


def test_the_upper_axis_is_the_effective_sparsity_at_each_tau() -> None:
    axes = draw(made_up(), read_reference(REFERENCE)).axes
    assert [one.get_title() for one in axes] == [panel.title for panel in PANELS]
    for one, panel in zip(axes, PANELS, strict=True):
        (top,) = one.child_axes
        assert [label.get_text() for label in top.get_xticklabels()] == ["0", "20", "45"]
        assert panel.better in one.get_ylabel()
        assert len(one.get_legend().get_texts()) == 2


def test_the_caption_states_differences_of_data_scale_and_rule_from_the_configurations() -> None:
    quick, paper = read_configuration(QUICK), read_configuration(PAPER)
    text = caption(made_up(), read_reference(REFERENCE), quick, paper)
    for experiment, scale in SCALES.items():
        assert scale(quick[experiment]) in text and scale(paper[experiment]) in text
        assert scale(quick[experiment]) != scale(paper[experiment])
    model = paper["language_modelling"]["model"]
    assert f"{model['n_layer']} layers of width {model['d_model']}" in text
    assert "rule published" in text and "WikiText-103" in text and "seeds 1, 2" in text
    assert "40%: -2.4% here" in text and "90%" not in text  # the paper has no 90
    translation = paper["translation"]["training"]
    assert f"at most {translation['max_tokens'] * translation['update_freq']} tokens" in text


def test_the_command_writes_picture_caption_and_table(tmp_path: Path) -> None:
    write_csv(made_up(), tmp_path / "metrics.csv")
    flags = ["--metrics", str(tmp_path / "metrics.csv"), "--configuration", str(QUICK), "--published", str(PAPER)]
    assert main([*flags, "--out", str(tmp_path / "paper.png")]) == 0
    assert (tmp_path / "paper.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "paper.csv")) == 18
    assert "configuration quick beside the paper" in (tmp_path / "paper.md").read_text()
    with pytest.raises(InputError, match="expected a .png file"):
        main([*flags, "--out", str(tmp_path / "paper.svg")])


def test_what_is_no_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a configuration, found no such file"):
        read_configuration(tmp_path / "none.yaml")
    for ending, text, message in (
        ("yaml", "[1, 2", "expected YAML"),
        ("json", "name: quick", "expected JSON"),
        ("json", "[1]", "found no glue"),
    ):
        own = tmp_path / f"own.{ending}"
        own.write_text(text)
        with pytest.raises(InputError, match=message):
            read_configuration(own)
    incomplete = yaml.safe_load(QUICK.read_text())
    del incomplete["translation"]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(incomplete))
    with pytest.raises(InputError, match="found no translation"):
        read_configuration(tmp_path / "own.yaml")

"""The figure of tasks: each by itself, and the same numbers as a table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from attention_pruning import InputError
from reproduction.analysis.curves import curve, select
from reproduction.analysis.figures.command import main
from reproduction.analysis.figures.tasks import draw, task_numbers, task_panels
from reproduction.analysis.table import COLUMNS, write_csv

TASKS = {"A": 60.0, "B": 70.0, "C": 80.0, "D": 90.0}


def made_up(tasks: dict[str, float] = TASKS) -> pd.DataFrame:
    """Every task loses ten points a unit of tau."""
    rows = []
    for task, best in tasks.items():
        common = {"config": "quick", "experiment": "glue", "dataset": task, "split": "validation"}
        common |= {"metric": "glue_score"}
        shares = dict.fromkeys(("effective_sparsity", "evaluated_sparsity", "block_sparsity"), 0.0)
        for seed in (1, 2):
            for tau in (0.0, 0.5):
                mask = {"variant": "data", "rule": "published", "block_size": 1} if tau else {"variant": "dense"}
                labels = {"sites": "self", "tau": tau, "seed": seed, "value": best - 10 * tau + seed}
                rows.append(common | mask | labels | shares)
        rows.append(common | {"variant": "majority", "value": 50.0})
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seed": "Int64", "block_size": "Int64"})


def test_every_task_is_a_panel_with_its_own_curve() -> None:
    axes = draw(made_up()).axes
    assert [one.get_title() for one in axes if one.axison] == list(TASKS)
    assert len(axes) == 6 and sum(one.axison for one in axes) == 4
    for (panel, part), best in zip(task_panels(made_up()), TASKS.values(), strict=True):
        assert curve(select(part, panel), "data")["mean"].tolist() == [best - 5 + 1.5]


def test_the_table_has_what_is_drawn() -> None:
    found = task_numbers(made_up())
    assert list(found)[:2] == ["task", "variant"]
    assert found.groupby("task").size().to_dict() == dict.fromkeys(TASKS, 3)
    row = found[(found["task"] == "B") & (found["variant"] == "data")].iloc[0]
    assert (row["percent"], row["mean"], row["low"], row["high"], row["seeds"]) == (50, 66.5, 66, 67, 2)
    assert row["change"] == -5, "in points: Matthews correlation may be near zero"
    assert found[found["variant"] == "majority"]["mean"].tolist() == [50.0] * 4


def test_the_command_writes_picture_caption_and_table(tmp_path: Path) -> None:
    write_csv(made_up({"A": 60.0, "B": 70.0}), tmp_path / "metrics.csv")
    flags = ["--metrics", str(tmp_path / "metrics.csv"), "--out", str(tmp_path / "tasks.png")]
    assert main(["glue_tasks", *flags]) == 0
    with Image.open(tmp_path / "tasks.png") as picture:
        picture.load()
        assert picture.size == (1840, 860)
    assert pd.read_csv(tmp_path / "tasks.csv")["task"].tolist() == ["A"] * 3 + ["B"] * 3
    text = (tmp_path / "tasks.md").read_text()
    assert (
        "A: GLUE score on the validation split of A" in text
        and "Dense 61.5 (61.0 to 62.0); majority class 50.0." in text
    )


def test_a_table_without_tasks_and_another_ending_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected runs of glue in the table, found squad"):
        draw(made_up().assign(experiment="squad"))
    with pytest.raises(InputError, match="expected a .png file"):
        main(["glue_tasks", "--metrics", str(tmp_path / "metrics.csv"), "--out", str(tmp_path / "tasks.svg")])

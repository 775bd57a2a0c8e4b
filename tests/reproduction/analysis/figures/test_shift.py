"""The table of models in and out of distribution: its numbers by brute force, at one tau that was chosen before."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from attention_pruning import InputError
from reproduction.analysis.figures.shift import (
    COLUMNS,
    as_markdown,
    chosen_taus,
    main,
    pair_table,
    pairs,
    read_table,
    tabulate,
)
from reproduction.analysis.table import collect, write_csv
from reproduction.documents import blocks as documents
from reproduction.runs.metrics import write_metrics

SEEDS, TAUS = (1, 2), (0.5, 0.9)
#: Score at tau and seed, in and out of distribution: out, pruning costs twice as many percent.
IN = {(tau, seed): 100.0 * (1 + 0.1 * tau) + seed for tau in (0.0, *TAUS) for seed in SEEDS}
OUT = {(tau, seed): 500.0 * (1 + 0.2 * tau) + seed for tau in (0.0, *TAUS) for seed in SEEDS}
GLUE = {"experiment": "glue", "metric": "glue_score", "split": "validation", "floor": (50.0, 50.0)}


def write_models(
    folder: Path,
    inside: dict[tuple[float, int], float] = IN,
    outside: dict[tuple[float, int], float] = OUT,
    floor: tuple[float, float] | None = (150.0, 900.0),
    experiment: str = "language_modelling",
    metric: str = "perplexity",
    split: str = "test",
) -> list[Path]:
    """Metrics of every model in and out of distribution, and of a baseline."""
    same = {"config": "quick", "experiment": experiment, "dataset": f"home-{experiment}"}
    files = []
    for (tau, seed), value in inside.items():
        labels = same | {"variant": "data" if tau else "dense", "sites": "self", "tau": tau, "seed": seed}
        labels |= {"rule": "published", "block_size": 1} if tau else {}
        for name, score, used in (("metrics", value, tau / 2), ("metrics@far", outside[tau, seed], tau / 4)):
            path = folder / experiment / f"{tau}" / f"{seed}" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            shares = {"effective_sparsity": tau, "evaluated_sparsity": used, "block_sparsity": 0.0}
            write_metrics(path, labels, {split: {metric: score, "seconds": 1.0}}, **shares)
            files.append(path)
    for name, score, unknown in (("metrics", 0, 0.02), ("metrics@far", 1, 0.25)) if floor else ():
        variant = {"language_modelling": "kneser-ney", "translation": "copy", "glue": "majority"}[experiment]
        path = folder / experiment / variant / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        extra = {"unknown_share": unknown} if experiment == "language_modelling" else {}
        write_metrics(path, same | {"variant": variant}, {split: {metric: floor[score], **extra}})
        files.append(path)
    return files


def test_every_row_is_one_model_and_seed_by_brute_force(tmp_path: Path) -> None:
    table = tabulate(collect(write_models(tmp_path)))
    assert tuple(table.columns) == COLUMNS
    assert table["variant"].tolist() == ["kneser-ney", "dense", "dense", "data", "data", "data", "data"]
    floor = table.iloc[0]
    assert (floor["value_in"], floor["value_out"], floor["evaluated_on"]) == (150.0, 900.0, "far")
    for row in table.iloc[1:].to_dict("records"):
        key = row["tau"], row["seed"]
        assert (row["value_in"], row["value_out"]) == (IN[key], OUT[key])
        changes = [math.log(scores[key]) - math.log(scores[0.0, key[1]]) for scores in (IN, OUT)]
        assert [row["minus_dense_in"], row["minus_dense_out"]] == pytest.approx(changes)
        assert row["out_minus_in"] == pytest.approx(changes[1] - changes[0]) and row["unit"] == "nats"
        assert (row["evaluated_in"], row["evaluated_out"]) == (key[0] / 2, key[0] / 4)
        assert (row["unknown_in"], row["unknown_out"], row["chosen_tau"]) == (0.02, 0.25, 0.9)


def test_scores_differ_in_points_even_from_a_dense_model_that_scores_nothing(tmp_path: Path) -> None:
    outside = {(tau, seed): value * (0 if tau == 0 else 1) for (tau, seed), value in OUT.items()}
    table = tabulate(collect(write_models(tmp_path, outside=outside, **GLUE)))
    row = table[(table["tau"] == 0.9) & (table["seed"] == 1)].iloc[0]
    points = (IN[0.9, 1] - IN[0.0, 1], OUT[0.9, 1])
    assert (row["minus_dense_in"], row["minus_dense_out"]) == pytest.approx(points) and row["unit"] == "points"
    assert row["out_minus_in"] == pytest.approx(points[1] - points[0])


def test_one_tau_is_chosen_before_and_others_are_not_contrasted(tmp_path: Path) -> None:
    runs = collect(write_models(tmp_path))
    assert chosen_taus(runs, {}) == {"language_modelling": 0.9}
    assert chosen_taus(runs, {"language_modelling": 0.5, "squad": 0.9}) == {"language_modelling": 0.5}
    ((panel, rows),) = pairs(tabulate(runs, {"language_modelling": 0.5}))
    shown = pair_table(panel, rows)
    assert "| data-informed | 50% |" in shown and "90%" not in shown
    with pytest.raises(
        InputError, match="--tau: expected a tau of language_modelling with every seed, 0.5, 0.9, found"
    ):
        tabulate(runs, {"language_modelling": 0.7})
    # the highest that has all seeds, not the highest
    lacking = runs[~((runs["tau"] == 0.9) & (runs["seed"] == 2))]
    assert chosen_taus(lacking, {}) == {"language_modelling": 0.5}
    with pytest.raises(InputError, match="with every seed, 0.5, found 0.9"):
        tabulate(lacking, {"language_modelling": 0.9})


def test_differences_are_paired_and_three_seeds_have_an_interval(tmp_path: Path) -> None:
    inside = {(tau, seed): 60.0 + 10 * seed + tau * seed for tau in (0.0, 1.0) for seed in (1, 2, 3)}
    outside = {key: 10.0 for key in inside}
    ((panel, rows),) = pairs(tabulate(collect(write_models(tmp_path, inside, outside, **GLUE))))
    line = pair_table(panel, rows).splitlines()[-1]
    # 1, 2 and 3 points in distribution, none out of it; scores of seeds are ten points apart
    assert "| +2.00 (95% CI -0.48 to +4.48; 3 seeds) | +0.00 (95% CI +0.00 to +0.00; 3 seeds) |" in line
    assert line.endswith("| -2.00 (95% CI -4.48 to +0.48; 3 seeds) |")


def test_a_pair_is_shown_on_the_seeds_that_all_of_its_models_have(tmp_path: Path) -> None:
    runs = collect(write_models(tmp_path))
    control = runs[(runs["variant"] == "data") & (runs["tau"] == 0.9) & (runs["seed"] == 1)].assign(variant="random")
    ((panel, rows),) = pairs(tabulate(pd.concat([runs, control], ignore_index=True)))
    dense, data, random = pair_table(panel, rows).splitlines()[-3:]
    assert all("(1 seed)" in line for line in (data, random)) and "| 101.00 | 501.00 |" in dense


def test_the_command_writes_the_table_that_documents_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_models(tmp_path / "runs") + write_models(tmp_path / "runs", **GLUE)
    out = tmp_path / "quick" / "ood_table.md"
    command = ["--metrics", *map(str, files), "--out", str(out), "--config-name", "quick", "--tau", "glue=0.5"]
    assert main(command) == 0
    table = read_table(out.with_suffix(".csv"))
    pd.testing.assert_frame_equal(table, tabulate(collect(files), {"glue": 0.5}), check_dtype=False)
    text = out.read_text()
    assert text == as_markdown(table)
    assert "chosen in advance: language_modelling 0.9, glue 0.5." in text
    assert "home-language_modelling, evaluated on far (unknown tokens: 2.0% in, 25.0% out)" in text
    assert "| Kneser-Ney bigram | | | | 150.00 | 900.00 | | | |" in text
    assert "| dense | 0% | 0.0% | 0.0% | 101.50 (101.00 to 102.00) | 501.50 (501.00 to 502.00) |  |  |  |" in text
    for word in ("hurts", "NOT", "agree", "chance", "worse", "cannot be told"):
        assert word not in text, "the table states, and judges nothing"
    monkeypatch.setattr(documents, "REFERENCE", tmp_path)
    block = documents.ood_block("quick")
    assert all(line in block for line in text.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("tau", ["0.9", "poetry=0.9", "glue=", "glue=90%", "=0.9"])
def test_a_tau_without_its_experiment_is_refused(tmp_path: Path, tau: str) -> None:
    files = write_models(tmp_path)
    with pytest.raises(InputError, match="--tau: expected EXPERIMENT=TAU, of language_modelling, translation, glue"):
        main(["--metrics", *map(str, files), "--out", str(tmp_path / "ood.md"), "--tau", tau])


def test_what_is_incomplete_is_refused(tmp_path: Path) -> None:
    files = write_models(tmp_path)
    with pytest.raises(InputError, match="expected metrics@NAME.json of models evaluated out of distribution, found"):
        tabulate(collect([file for file in files if "@" not in file.name]))
    lacking = [file for file in files if not (file.name == "metrics@far.json" and "0.9" in str(file.parent))]
    with pytest.raises(InputError, match="expected data, tau 0.9, seed 1 in and out of distribution, found it in dist"):
        tabulate(collect(lacking))
    with pytest.raises(InputError, match="expected a name that ends in .md"):
        main(["--metrics", str(files[0]), "--out", str(tmp_path / "table.csv")])
    with pytest.raises(InputError, match="found no such file"):
        read_table(tmp_path / "none.csv")
    write_csv(pd.DataFrame({"a": [1]}), tmp_path / "other.csv")
    with pytest.raises(InputError, match="expected the columns config,experiment,trained_on"):
        read_table(tmp_path / "other.csv")
    assert json.loads(files[0].read_text())["variant"] == "dense"

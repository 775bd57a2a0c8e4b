"""The table of models at home and away: its numbers by brute force, and what it concludes from them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from attention_pruning import InputError
from reproduction import documents
from reproduction.metrics import write_metrics
from reproduction.ood_table import COLUMNS, all_found, as_markdown, main, pairs, read_table, tabulate, verdict
from reproduction.results import collect, write_csv

SEEDS, TAUS = (1, 2), (0.5, 0.9)
#: Score at tau and seed, at home and away: away, pruning costs twice as many percent.
HOME = {(tau, seed): 100.0 * (1 + 0.1 * tau) + seed for tau in (0.0, *TAUS) for seed in SEEDS}
AWAY = {(tau, seed): 500.0 * (1 + 0.2 * tau) + seed for tau in (0.0, *TAUS) for seed in SEEDS}


def write_models(
    folder: Path,
    home: dict[tuple[float, int], float] = HOME,
    away: dict[tuple[float, int], float] = AWAY,
    floor: tuple[float, float] | None = (150.0, 900.0),
    experiment: str = "language_modelling",
    metric: str = "perplexity",
    split: str = "test",
) -> list[Path]:
    """Metrics of every model at home and away, and of a baseline."""
    same = {"config": "quick", "experiment": experiment, "dataset": f"home-{experiment}"}
    files = []
    for (tau, seed), value in home.items():
        labels = same | {"variant": "data" if tau else "dense", "sites": "self", "tau": tau, "seed": seed}
        labels |= {"rule": "published", "block_size": 1} if tau else {}
        for name, score, used in (("metrics", value, tau / 2), ("metrics@far", away[tau, seed], tau / 4)):
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


def test_every_number_is_the_mean_over_seeds_by_brute_force(tmp_path: Path) -> None:
    table = tabulate(collect(write_models(tmp_path)))
    assert tuple(table.columns) == COLUMNS
    assert table["variant"].tolist() == ["kneser-ney", "dense", "data", "data"]
    floor = table.iloc[0]
    assert (floor["home_mean"], floor["away_mean"], floor["away"]) == (150.0, 900.0, "far")
    for tau in (0.0, *TAUS):
        row = table[table["tau"] == tau].iloc[0]
        for place, scores in (("home", HOME), ("away", AWAY)):
            of_tau = [scores[tau, seed] for seed in SEEDS]
            assert [row[f"{place}_{what}"] for what in ("mean", "low", "high")] == pytest.approx(
                [sum(of_tau) / 2, min(of_tau), max(of_tau)]
            )
            changes = [100 * (scores[tau, seed] / scores[0.0, seed] - 1) for seed in SEEDS]
            assert row[f"change_{place}"] == pytest.approx(sum(changes) / 2)
        worse = [
            100 * (AWAY[tau, seed] / AWAY[0.0, seed]) - 100 * (HOME[tau, seed] / HOME[0.0, seed]) for seed in SEEDS
        ]
        assert [row[f"worse_away_{what}"] for what in ("mean", "low", "high")] == pytest.approx(
            [sum(worse) / 2, min(worse), max(worse)]
        )
        assert (row["evaluated_home"], row["evaluated_away"], row["seeds"]) == (tau / 2, tau / 4, 2)
        assert (row["unknown_home"], row["unknown_away"]) == (0.02, 0.25)


@pytest.mark.parametrize(("floor", "found"), [(50.0, "home"), (51.5, "untold"), (53.0, "untold")])
def test_no_telling_unless_every_seed_beats_the_commonest_class(tmp_path: Path, floor: float, found: str) -> None:
    home = {(tau, seed): 80.0 - 10 * tau + seed for tau, seed in HOME}
    away = {(tau, seed): 50.0 - tau + seed for tau, seed in HOME}
    of_rows = {"experiment": "glue", "metric": "glue_score", "split": "validation"}
    assert verdict_of(tmp_path, home=home, away=away, floor=(60.0, floor), **of_rows) == found


def verdict_of(folder: Path, **how: object) -> str:
    ((panel, rows),) = pairs(tabulate(collect(write_models(folder, **how))))
    return verdict(panel, rows)


def test_pruning_hurts_more_where_all_seeds_say_so(tmp_path: Path) -> None:
    assert verdict_of(tmp_path / "a") == "away"
    assert verdict_of(tmp_path / "b", home=AWAY, away=HOME) == "home"
    # the same loss of percent; seeds of two minds; more at one tau and less at the other
    same = {key: 3 * value for key, value in HOME.items()}
    assert verdict_of(tmp_path / "c", away=same) == "unclear"
    split = {
        (tau, seed): value * (1.1 if seed == 1 and tau else 0.9 if tau else 1) for (tau, seed), value in HOME.items()
    }
    assert verdict_of(tmp_path / "d", away=split) == "unclear"
    mixed = {(tau, seed): value * {0.0: 1, 0.5: 1.1, 0.9: 0.9}[tau] for (tau, seed), value in HOME.items()}
    assert verdict_of(tmp_path / "e", away=mixed) == "mixed"
    # a dense model that is no better than counting words can still get worse
    assert verdict_of(tmp_path / "f", floor=(150.0, 400.0)) == "away"
    doubtful = all_found(tabulate(collect(write_models(tmp_path / "g", floor=(150.0, 400.0)))))
    assert "beats what needs no attention in: home-language_modelling to far." in doubtful
    assert "beats" not in all_found(tabulate(collect(write_models(tmp_path / "h"))))
    one = {key: value for key, value in HOME.items() if key[1] == 1}
    assert "One seed only: home-" in all_found(tabulate(collect(write_models(tmp_path / "i", home=one))))


def test_a_higher_score_is_better_where_it_is(tmp_path: Path) -> None:
    glue = {"experiment": "glue", "metric": "glue_score", "split": "validation", "floor": (50.0, 50.0)}
    assert verdict_of(tmp_path / "a", **glue) == "home"
    assert verdict_of(tmp_path / "b", **glue | {"floor": None}) == "home"
    # below chance nothing falls
    assert verdict_of(tmp_path / "c", **glue | {"floor": (50.0, 900.0)}) == "untold"


def test_nothing_is_told_from_a_dense_model_that_scores_nothing(tmp_path: Path) -> None:
    away = {(tau, seed): value * (0 if tau == 0 else 1) for (tau, seed), value in AWAY.items()}
    how = {"experiment": "glue", "metric": "glue_score", "split": "validation", "floor": None}
    table = tabulate(collect(write_models(tmp_path, away=away, **how)))
    assert table["worse_away_mean"].isna().all() and table["change_home"].notna().all()
    assert "What pruning costs such a model there cannot be told." in as_markdown(table)


def test_the_command_writes_the_table_that_documents_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_models(tmp_path / "runs")
    glue = {"experiment": "glue", "metric": "glue_score", "split": "validation", "floor": (50.0, 50.0)}
    files += write_models(tmp_path / "runs", **glue)
    out = tmp_path / "quick" / "ood_table.md"
    assert main(["--metrics", *map(str, files), "--out", str(out), "--config-name", "quick"]) == 0
    table = read_table(out.with_suffix(".csv"))
    pd.testing.assert_frame_equal(table, tabulate(collect(files)), check_dtype=False)
    text = out.read_text()
    assert text == as_markdown(table)
    answer = "Of 2 pairs, data-informed pruning hurts more away in 1 (home-language_modelling to far); less away in 1 ("
    assert answer in all_found(table) and answer in text and answer in capsys.readouterr().out
    assert "| Kneser-Ney bigram | | | | 150.00 | 900.00 | | | | |" in text
    assert (
        "| dense | 0% | 0.0% | 0.0% | 101.50 (101.00 to 102.00) | 501.50 (501.00 to 502.00) | +0.0% | +0.0% |  | 2 |"
        in text
    )
    assert "Unknown to the vocabulary: 2.0% of the tokens at home and 25.0% away." in text
    assert "It costs more away at 50%, 90% (2 seeds agree by chance in 50% of rows)." in text
    monkeypatch.setattr(documents, "REFERENCE", tmp_path)
    block = documents.ood_block("quick")
    assert answer in block and all(line in block for line in text.splitlines() if line.startswith("|"))


def test_what_is_incomplete_is_refused(tmp_path: Path) -> None:
    files = write_models(tmp_path)
    with pytest.raises(InputError, match="expected metrics@NAME.json of models evaluated away from home, found none"):
        tabulate(collect([file for file in files if "@" not in file.name]))
    lacking = [file for file in files if not (file.name == "metrics@far.json" and "0.9" in str(file.parent))]
    with pytest.raises(InputError, match="home-language_modelling and far: expected data, tau 0.9, seed 1 at both"):
        tabulate(collect(lacking))
    with pytest.raises(InputError, match="expected a name that ends in .md"):
        main(["--metrics", str(files[0]), "--out", str(tmp_path / "table.csv")])
    with pytest.raises(InputError, match="found no such file"):
        read_table(tmp_path / "none.csv")
    write_csv(pd.DataFrame({"a": [1]}), tmp_path / "other.csv")
    with pytest.raises(InputError, match="expected the columns config,experiment,home"):
        read_table(tmp_path / "other.csv")
    assert json.loads(files[0].read_text())["variant"] == "dense"

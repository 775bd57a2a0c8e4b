"""Scores by length, and the table and figure of models of fewer pairs."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from PIL import Image

from attention_pruning import InputError
from reproduction.analysis.figures import pairs as pairs_figure
from reproduction.analysis.figures.command import main
from reproduction.analysis.table import COLUMNS, read_run
from reproduction.runs.metrics import write_metrics
from reproduction.scores import length_scores
from reproduction.scores.bleu import score


def test_sentences_are_grouped_by_the_words_of_the_source():
    sources = [" ".join("w" * number) for number in (1, 10, 11, 20, 21, 300)]
    assert length_scores.groups(sources, (10, 20)) == {"1-10": [0, 1], "11-20": [2, 3], "21+": [4, 5]}
    assert length_scores.groups(sources[:2], (10, 20)) == {"1-10": [0, 1]}
    for wrong in ((), (0, 5), (20, 10), (10, 10)):
        with pytest.raises(InputError, match="--lengths: expected whole numbers that ascend"):
            length_scores.groups(sources, wrong)


@pytest.fixture
def run(tmp_path):
    """The files of a scored model: six translations, one of them wrong."""
    references = ["the cat sat on the mat", "a dog ran home to me"] * 2 + ["it is very long indeed to be sure"] * 2
    hypotheses = [*references[:5], "it is quite another thing to say so"]
    sources = ["ein wort"] * 4 + ["viele worte stehen hier"] * 2
    for name, lines in (("hyp", hypotheses), ("src", sources), ("ref", references)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    labels = {"config": "german", "experiment": "translation", "dataset": "bible-de-en", "variant": "data"}
    labels |= {"sites": "all", "rule": "published", "block_size": 1, "tau": 0.6, "seed": 1}
    sparsities = {"effective_sparsity": 0.5, "evaluated_sparsity": 0.3, "block_sparsity": 0.0}
    write_metrics(tmp_path / "metrics.json", labels, {"test": {"bleu": 1.0}}, **sparsities)
    return tmp_path, hypotheses, references


def test_each_group_is_scored_by_itself_under_the_labels_of_the_run(run):
    folder, hypotheses, references = run
    out = folder / "metrics@length.json"
    files = [f"--{flag}={folder / name}" for flag, name in (("hypotheses", "hyp"), ("sources", "src"))]
    files += [f"--references={folder / 'ref'}", f"--metrics={folder / 'metrics.json'}", f"--out={out}"]
    assert length_scores.main([*files, "--lengths", "3"]) == 0
    found = {row["metric"]: row["value"] for row in read_run(out)}
    assert found["bleu_1-3@length"] == pytest.approx(100)
    assert found["bleu_4+@length"] == pytest.approx(score(hypotheses[4:], references[4:])[0]["bleu"])
    assert (found["sentences_1-3@length"], found["sentences_4+@length"]) == (4, 2)
    whole, parts = (json.loads((folder / name).read_text()) for name in ("metrics.json", out.name))
    assert {**whole, "metrics": None} == {**parts, "metrics": None}
    (folder / "src").write_text("eins\n")
    with pytest.raises(InputError, match="sources: expected 6, one for each reference, found 1"):
        length_scores.main(files)
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match=r"metrics\.json: expected the metrics of one split of a run"):
        length_scores.main(files)


def table(seeds=(1, 2)) -> pd.DataFrame:
    """Dense models of 12, 9 and 6 BLEU by share of the pairs; each mask adds its tau, and half of it in long ones."""
    rows = []
    known = {"config": "german", "experiment": "translation", "split": "test", "sites": "all", "block_size": 1}
    for share, bleu in (("", 12.0), ("-0.5", 9.0), ("-0.25", 6.0)):
        for variant, tau in (("dense", 0.0), ("data", 0.6), ("data", 0.9)):
            for seed in seeds:
                one = known | {"dataset": f"bible-de-en{share}", "variant": variant, "tau": tau, "seed": seed}
                one |= {"effective_sparsity": tau, "evaluated_sparsity": tau / 2}
                metrics = {"bleu": bleu + tau + seed, "bleu_1-10@length": bleu + tau, "bleu_11+@length": bleu + tau / 2}
                metrics |= {"sentences_1-10@length": 7, "sentences_11+@length": 5}
                rows += [one | {"metric": metric, "value": value} for metric, value in metrics.items()]
    copied = {"config": "german", "experiment": "translation", "split": "test", "dataset": "bible-de-en"}
    rows.append(copied | {"variant": "copy", "metric": "bleu", "value": 0.1})
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype({"seed": "Int64"})


def test_models_are_compared_with_the_dense_one_of_as_many_pairs():
    shares = pairs_figure.compared(table())
    assert list(shares) == [1.0, 0.5, 0.25]
    for rows in shares.values():
        found = pairs_figure.differences(rows)
        assert {tau: difference.mean for tau, difference in found.items()} == pytest.approx({0.6: 0.6, 0.9: 0.9})
    by_length = pairs_figure.by_length(table())
    assert list(by_length) == ["1-10", "11+"] and set(by_length["11+"]["sentences"]) == {5}
    assert pairs_figure.differences(by_length["11+"])[0.9].mean == pytest.approx(0.45)


def test_a_seed_that_a_model_lacks_is_left_out_for_its_share_alone():
    rows = table()
    lacking = (rows["dataset"] == "bible-de-en-0.5") & (rows["tau"] == 0.9) & (rows["seed"] == 2)
    shares = pairs_figure.compared(rows[~lacking])
    assert [sorted(set(part["seed"])) for part in shares.values()] == [[1, 2], [1], [1, 2]]
    with pytest.raises(InputError, match="expected translation models trained on all pairs"):
        pairs_figure.compared(rows[rows["dataset"] != "bible-de-en"])


def test_the_table_and_the_caption_say_data_seeds_and_numbers(tmp_path):
    shown = pairs_figure.markdown(table())
    assert "| 25% | 90% | 90.0% | 45.0% | 8.40 (7.90 to 8.90) | +0.90 (+0.90, +0.90; 2 seeds) | 2 |" in shown
    assert "| copied source | | | | 0.10 | | |" in shown
    assert "| 11+ | 5 | 12.00 (12.00 to 12.00) | +0.30 (+0.30, +0.30; 2 seeds) |" in shown
    told = pairs_figure.caption(table())
    assert "Copied source: 0.1." in told and "50% of the pairs, seeds 1, 2: dense 10.5 (10.0 to 11.0)." in told
    file = tmp_path / "pairs_comparison.csv"
    table().to_csv(file, index=False)
    assert main(["pairs_comparison", "--metrics", str(file), "--out", str(tmp_path / "out.png")]) == 0
    assert Image.open(tmp_path / "out.png").size[0] > 800 and (tmp_path / "out.md").read_text() == told

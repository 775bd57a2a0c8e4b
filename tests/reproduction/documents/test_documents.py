"""Numbers in documents are those of committed results."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from test_entmax import made_up as made_up_entmax
from test_mask_figure import made_up as made_up_masks
from test_sites import made_up as made_up_sites
from test_tasks import made_up as made_up_tasks

from attention_pruning import InputError
from reproduction.analysis.figures.captions import NAMES
from reproduction.analysis.figures.entmax import summary, values
from reproduction.analysis.figures.masks import markdown
from reproduction.analysis.table import read_csv, write_csv
from reproduction.documents import blocks as documents
from reproduction.documents.blocks import REFERENCE, REPOSITORY, filled, main, results_block
from reproduction.runs.metrics import SPARSITIES, write_metrics

METRICS = {"exact_match": 0.0, "f1": 10.0, "eval_seconds": 5.0}


def test_every_block_of_every_document_is_up_to_date():
    assert main(["--check"]) == 0


def words_of(page: Path) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def test_the_readme_opens_with_the_real_benchmarks_beside_the_paper():
    text = words_of(Path("README.md"))
    opening = text[: text.index("## Prune")]
    assert "(results/reference/small/ap_figure.png)" in opening and documents.overview_block("small") in opening
    assert "](docs/results.md)" in opening and documents.speed_block("quick") in text


def test_the_readme_and_the_results_stay_short():
    assert len(words_of(Path("README.md")).split()) < 800
    assert len(words_of(Path("docs/results.md")).split()) < 2500


def test_the_results_open_with_what_agrees_and_show_the_reference_figure_and_its_numbers():
    text = words_of(Path("docs/results.md"))
    first = text[: text.index("\n## ")]
    assert "| agrees |" in first and "**no**" in first and len(first.split()) < 350
    pages = {"small": text, "quick": words_of(Path("docs/results_quick.md"))}
    for config, page in pages.items():
        assert f"(../results/reference/{config}/ap_figure.png)" in page and results_block(config) in page
    for folder in REFERENCE.glob("*/metrics.csv"):
        assert {path.name for path in folder.parent.iterdir()} >= {"ap_figure.png", "ap_figure.md"}


def test_changes_in_the_prose_of_the_results_are_those_of_its_tables():
    text = words_of(Path("docs/results.md"))
    block, change = re.compile(r"<!-- numbers .*?<!-- end numbers -->", re.DOTALL), re.compile(r"[+-]\d+\.\d%")
    tables, prose = (set(change.findall(part)) for part in ("".join(block.findall(text)), block.sub("", text)))
    assert "-18.1%" in prose and prose <= tables, prose - tables


def test_the_overview_pairs_every_mask_with_the_dense_model_of_its_seed():
    table = read_csv(REFERENCE / "small" / "metrics.csv")
    chosen = table[(table["metric"] == "perplexity") & (table["split"] == "test") & table["tau"].isin([0, 0.8])]
    scores = chosen.set_index(["variant", "seed"])["value"]
    lines = documents.overview_block("small").splitlines()
    heads, cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], lines[2]))
    found = dict(zip(heads, cells, strict=True))
    for variant in ("data", "random", "window"):
        seeds = scores[variant].index
        change = sum(scores[variant, seed] - scores["dense", seed] for seed in seeds) / len(seeds)
        assert found[NAMES[variant]] == f"{change:+.1f} ({len(seeds)})"
    paper = pd.read_csv(REPOSITORY / "reproduction" / "analysis" / "paper_reference.csv")
    paper = paper[paper["panel"] == "language_modelling"].set_index("percent_pruned")["value"]
    assert found["published"] == f"{paper[80] - paper[0]:+.1f} from {paper[0]:.1f}"
    assert found["by distance"].endswith(f"({scores['dense'].size})")


def test_the_table_of_speed_stands_beside_the_published_one():
    lines = documents.speed_block("quick").splitlines()
    assert lines[2].startswith(
        "| published, GPU, evaluation | 81.0/88.6 | 79.6/87.3 | 95.4 | 86.4 | 1.10 | 6.85 | 5.00 |"
    )
    table = pd.read_csv(REFERENCE / "quick" / "efficiency_table.csv")
    rows = table[(table["source"] == "measured") & (table["step"] == "training")].set_index("percentage")
    here = [cell.strip() for cell in lines[4].strip("|").split("|")]
    assert here[5] == f"{rows['speedup'][90]:.2f}" and float(here[3]) == pytest.approx(rows["seconds"][0], rel=0.01)


def test_means_in_the_table_are_those_of_the_csv():
    table = read_csv(REFERENCE / "quick" / "metrics.csv")
    chosen = table[(table["metric"] == "perplexity") & (table["split"] == "test")]
    means = chosen.groupby(["variant", "tau"], dropna=False)["value"].mean()
    first = results_block("quick").split("\n\n")[0]
    cells = [[cell.strip() for cell in line.split("|")] for line in first.splitlines()[2:]]
    expected = {
        (NAMES[variant], f"{100 * tau:.0f}%"): value for (variant, tau), value in means.items() if variant in NAMES
    }
    found = {(row[1], row[2]): float(row[5].split()[0]) for row in cells if row[1] in NAMES.values()}
    assert found == {key: pytest.approx(value, abs=0.00501) for key, value in expected.items()}


def test_changes_stand_beside_the_published_ones():
    table = read_csv(REFERENCE / "quick" / "metrics.csv")
    paper = pd.read_csv(REPOSITORY / "reproduction" / "analysis" / "paper_reference.csv")
    paper = paper[paper["panel"] == "translation"].set_index("percent_pruned")["value"]
    rows = table[(table["metric"] == "bleu") & (table["split"] == "test") & (table["sites"] == "all")]
    scores = rows.set_index(["variant", "tau", "seed"])["value"]
    changes = [100 * (scores["data", 0.6, seed] / scores["dense", 0, seed] - 1) for seed in (1, 2)]
    found = next(line for line in documents.paper_block("quick").splitlines() if "BLEU | 60%" in line)
    here, seeds, there = (cell.strip() for cell in found.split("|")[4:7])
    assert here == f"{sum(changes) / 2:+.1f}% ({min(changes):+.1f} to {max(changes):+.1f})" and seeds == "2"
    assert there == f"{100 * (paper[60] / paper[0] - 1):+.1f}%"


def test_the_entmax_block_shows_the_summary_of_its_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "REFERENCE", tmp_path)
    table = made_up_entmax()
    write_csv(table, tmp_path / "quick" / "entmax_comparison.csv")
    expected = summary(values(table))
    lines = documents.entmax_block("quick").splitlines()[2:]
    assert len(lines) == len(expected)
    for line, row in zip(lines, expected.itertuples(), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == [row.normaliser, f"{100 * row.tau:.0f}%"]
        assert float(cells[3].split()[0]) == pytest.approx(row.mean, abs=0.0051)
        shares = [100 * row.zeros, 100 * row.kept_zeros]
        assert [float(cell.rstrip("%")) for cell in cells[4:6]] == pytest.approx(shares, abs=0.051)


def test_the_block_of_masks_is_the_table_of_their_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "REFERENCE", tmp_path)
    (tmp_path / "quick").mkdir()
    write_csv(made_up_masks(), tmp_path / "quick" / "mask_comparison.csv")
    assert documents.masks_block("quick") == markdown(made_up_masks())


def test_blocks_of_sites_tasks_and_questions_show_means_of_their_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "REFERENCE", tmp_path)
    folder = tmp_path / "quick"
    folder.mkdir()
    write_csv(made_up_sites(), folder / "translation_sites.csv")
    write_csv(made_up_tasks({"A": 60.0}), folder / "metrics.csv")
    block = documents.sites_block("quick")
    assert "| dense, all three sites | 0% | 0.0% | 21.50 (21.00 to 22.00) |  | 2 |" in block
    site = "| encoder-decoder attention | 80% | 40.0% | 17.50 (17.00 to 18.00) | -4.00 (-4.00, -4.00; 2 seeds) | 2 |"
    assert site in block
    assert "| A | tau | effective |" in documents.tasks_block("quick")
    assert "| data-informed | 50% | 0.0% | 0.0% | 56.50 (56.00 to 57.00) |" in documents.tasks_block("quick")
    rows = made_up_tasks({"bible-qa": 60.0})
    rows = rows[rows["variant"] != "majority"].assign(experiment="squad").replace({"tau": {0.5: 0.9}})
    parts = [rows.assign(metric=metric, value=rows["value"] + shift) for metric, shift in METRICS.items()]
    write_csv(pd.concat(parts), folder / "squad.csv")
    dense, data = documents.questions_block("quick").splitlines()[2:]
    assert dense == "| dense | 0% | 0.0% | 61.5 (61.0 to 62.0) | 71.5 (71.0 to 72.0) |  |  | 2 |"
    minus = "-5.0 (-5.0, -5.0; 2 seeds) | -1.3"
    assert data == f"| data-informed | 90% | 0.0% | 56.5 (56.0 to 57.0) | 66.5 (66.0 to 67.0) | {minus} | 2 |"


def test_the_efficiency_block_shows_the_table_that_was_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "REFERENCE", tmp_path)
    with pytest.raises(InputError, match="expected the efficiency table, found no such file"):
        documents.efficiency_block("quick")
    (tmp_path / "quick").mkdir()
    row = {"source": "measured", "percentage": 90.0, "block_sparsity": 0.889}
    row |= {"exact_match": 24.5, "f1": 39.41, "seeds": 1}
    row |= {"seconds": 0.458, "memory_gb": 0.73, "speedup": 1.23, "ceiling": 1.24, "of_ceiling": 0.992}
    rows = [row | {"step": "inference"}, row | {"step": "training", "seconds": 12.5, "exact_match": None, "f1": None}]
    write_csv(pd.DataFrame(rows), tmp_path / "quick" / "efficiency_table.csv")
    inference, training = documents.efficiency_block("quick").split("A step of training:")
    assert inference.startswith("Inference:")
    assert "| 90 | 88.9 | 24.50/39.41 | 0.458 | 0.73 | 1.23 | 1.24 | 99.2 |" in inference
    assert "| 90 | 88.9 |  | 12.50 | 0.73 | 1.23 | 1.24 | 99.2 |" in training


def test_speedups_have_a_row_for_each_shape_and_a_column_for_each_sparsity(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "REFERENCE", tmp_path)
    with pytest.raises(InputError, match="some.csv: expected the results of a benchmark, found no such file"):
        documents.BLOCKS["speedups"]("some")
    shape = {"kind": "forward", "dtype": "bf16", "length": 1024, "block": 64}
    made = {"rounds": 7, "date": "2026-01-02", "torch": "2", "machine": "a card"}
    numbers = ["model", "sparsity", "milliseconds", "times_dense", "times_masked", "memory_mb"]
    rows = [
        ("dense", 0.0, 2.0, 1.0, None, 10),
        ("ours", 0.0, 4.0, 0.5, None, 11),
        ("dense", 0.9, 2.0, 1.0, 2.0, 10),
        ("masked", 0.9, 4.0, 0.5, 1.0, 90),
        ("ours", 0.9, 1.0, 2.0, 4.0, 11),
    ]
    table = [shape | made | dict(zip(numbers, row, strict=True)) for row in rows]
    table += [row | {"length": 256} for row in table[:2]]
    (tmp_path / "benchmarks").mkdir()
    pd.DataFrame(table).to_csv(tmp_path / "benchmarks" / "some.csv")
    block = documents.BLOCKS["speedups"]("some")
    assert "| shape | dense, ms | 0% | 90% | 90%, times masked | MB, dense | MB, masked | MB, ours |" in block
    assert "| bf16, L 256, block 64, forward | 2.000 | 0.50 |  |  | 10 |  | 11 |" in block
    assert "| bf16, L 1024, block 64, forward | 2.000 | 0.50 | 2.00 | 4.00 | 10 | 90 | 11 |" in block
    assert block.endswith("Measured 2026-01-02 with torch 2 on a card, 7 rounds.\n")


def test_the_kernel_has_a_row_for_each_shape_timed_in_both_dtypes(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "REFERENCE", tmp_path)
    made = {"block": 32, "rounds": 7, "date": "2026-01-02", "torch": "2", "machine": "a processor", "threads": 1}
    columns = ["length", "sparsity", "causal", "model", "times_dense"]
    rows = [
        (512, 0.9, False, "ours", 8.0),
        (512, 0.9, False, "ours bf16", 9.0),
        (384, 0.9, False, "dense", 1.0),
        (384, 0.9, False, "ours", 6.0),
        (384, 0.9, False, "ours bf16", 7.0),
        (1024, 0.9, True, "ours", 99.0),
        (1024, 0.9, True, "ours bf16", 99.0),
        (1024, 0.5, False, "ours", 98.0),
    ]
    forward = pd.DataFrame(rows, columns=columns).assign(kind="forward", **made)
    both = forward.assign(kind="both", times_dense=forward["times_dense"] + 0.3)
    (tmp_path / "benchmarks").mkdir()
    pd.concat([forward, both]).to_csv(tmp_path / "benchmarks" / "some.csv")
    assert documents.BLOCKS["kernel"]("some").splitlines() == [
        "| length | block | blocks skipped | forward | forward, bfloat16 | both | both, bfloat16 |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        "| 384 | 32 | 90% | 6.0 | 7.0 | 6.3 | 7.3 |",
        "| 512 | 32 | 90% | 8.0 | 9.0 | 8.3 | 9.3 |",
        "",
        "Measured 2026-01-02 with torch 2 on a processor, 1 thread(s), 7 rounds.",
    ]


def test_scores_are_those_of_the_test_set_or_else_of_the_validation_set(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "REFERENCE", tmp_path)
    labels = {"config": "c", "experiment": "glue", "dataset": "d", "variant": "dense", "sites": "self", "tau": 0}
    sparsities = dict.fromkeys(SPARSITIES, 0.125)
    splits = {"validation": {"accuracy": 0.71239, "glue_score": 71.239, "loss": 0.5, "eval_seconds": 3.0}}
    path, labels = tmp_path / "runs" / "dense.json", labels | {"seed": 1}
    write_metrics(path, labels, splits, **sparsities)
    heads, _, row = documents.scores_block("runs").splitlines()
    assert heads.startswith("| run | accuracy | glue score | loss | effective sparsity (%) |")
    assert row == "| dense | 0.712 | 71.2 | 0.500 | 12.5 | 12.5 | 12.5 |"
    write_metrics(path, labels, splits | {"test": {"bleu": 22.5}}, **sparsities)
    assert documents.scores_block("runs").splitlines()[2] == "| dense | 22.5 | 12.5 | 12.5 | 12.5 |"
    write_metrics(path.with_name("dense, copied.json"), labels | {"variant": "copy"}, {"test": {"bleu": 0.1}})
    assert documents.scores_block("runs").splitlines()[3] == "| dense, copied | 0.1 |  |  |  |"


@pytest.mark.parametrize("change", ["number", "block", "end"])
def test_a_stale_or_unknown_block_is_refused(tmp_path, monkeypatch, change):
    page = tmp_path / "README.md"
    text = filled("<!-- numbers results quick -->\n<!-- end numbers -->\n", page)
    changes = {"number": ("|---|", "|--- |"), "block": ("results", "nothing"), "end": ("<!-- end numbers -->", "")}
    page.write_text(text.replace(*changes[change], 1))
    monkeypatch.setattr(documents, "documents", lambda: [page])
    monkeypatch.setattr(documents, "REPOSITORY", tmp_path)
    before = page.read_text()
    with pytest.raises(InputError, match="README.md"):
        main(["--check"])
    assert page.read_text() == before
    if change == "number":
        main([])
        assert page.read_text() == text and Path(page).parent == tmp_path

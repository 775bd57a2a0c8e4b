"""The whole workflow, from text to figure, on the smoke configuration, outside the checkout."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from attention_pruning import PruneMask
from reproduction.analysis.figures.shift import read_table
from reproduction.analysis.table import COLUMNS, read_csv
from smoke_runs import (
    CONFIG,
    CONTROL_TAUS,
    EXPERIMENT,
    LM,
    MT,
    ROOT,
    RUNS,
    SEEDS,
    SQUAD_MODELS,
    TASKS,
    command,
    models,
    runs,
    snakemake,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the workflow has run."""
    folder = tmp_path_factory.mktemp("smoke")
    # At once: models that are evaluated out of distribution would be trained again if that were asked for later.
    found = snakemake(folder, "figure", "ood_table")
    assert found.returncode == 0, found.stdout
    return folder


def leaves(folder: Path, *names: str) -> None:
    for name in names:
        assert (folder / name).stat().st_size > 0, f"{folder}/{name}"


def test_every_model_leaves_its_record_and_its_log(finished: Path) -> None:
    for (variant, _, _), run in RUNS.items():
        folder = finished / run
        leaves(folder, "model.safetensors", "metrics.json", "run.json", "train.log", "evaluate.log")
        of_attention = "pattern" if variant == "dense" else "mask"
        leaves(folder, *(f"{of_attention}{ending}" for ending in (".safetensors", ".log")))
        # Finished training needs no checkpoint.
        assert not (folder / "training").exists()


def test_every_translation_model_leaves_its_masks_its_translations_and_its_scores(finished: Path) -> None:
    for (variant, _, _), run in runs("translation", MT).items():
        folder = finished / run
        leaves(folder, "checkpoint.pt", "run.json", "translations/generate-test.txt", "metrics.json", "train.log")
        of_attention = "pattern" if variant == "dense" else "mask"
        leaves(folder, *(f"{of_attention}-{site}.safetensors" for site in ("enc-self", "dec-self", "enc-dec")))
        assert "tok:13a" in json.loads((folder / "metrics.run.json").read_text())["signatures"]["bleu"]
        assert not (folder / "training").exists() and not (folder / "avg_attn_probabilities").exists()


def test_every_fine_tuned_model_leaves_its_measurement_and_not_its_weights(finished: Path) -> None:
    for task in TASKS:
        for (variant, _, _), run in runs("glue", task).items():
            folder = finished / run
            leaves(folder, "metrics.json", "run.json", "finetune.log")
            leaves(folder, "pattern.safetensors" if variant == "dense" else "mask.safetensors")
            assert not (folder / "training").exists() and not (folder / "model").exists()


def test_jobs_use_the_threads_of_the_configuration_and_no_more(finished: Path) -> None:
    records = list(finished.rglob("*run.json"))
    assert len(records) >= len(RUNS) + len(SEEDS)
    for record in records:
        assert json.loads(record.read_text())["host"]["threads"] == 1, record


def test_the_table_is_tidy_and_complete(finished: Path) -> None:
    table = read_csv(finished / "results" / "smoke" / "metrics.csv")
    assert tuple(table.columns) == COLUMNS
    assert not table.duplicated([column for column in COLUMNS if column != "value"]).any()
    measured = [("language_modelling", LM, "perplexity", ("valid", "test")), ("translation", MT, "bleu", ("test",))]
    measured += [("glue", task, "glue_score", ("validation",)) for task in TASKS]
    for experiment, dataset, metric, splits in measured:
        rows = table[(table["experiment"] == experiment) & (table["dataset"] == dataset) & (table["metric"] == metric)]
        assert set(rows["split"]) == set(splits)
        for split, part in rows.groupby("split"):
            models_of_split = part[part["seed"].notna()]
            found = {(row.variant, row.tau, row.seed) for row in models_of_split.itertuples()}
            assert found == set(runs(experiment, dataset)), split
            baseline = part[part["seed"].isna()]
            ngrams = ["kneser-ney", "kneser-ney-5"]
            wanted = {"language_modelling": ngrams, "translation": ["copy"], "glue": ["majority"]}[experiment]
            assert baseline["variant"].tolist() == wanted
    perplexity = table[table["metric"] == "perplexity"]["value"]
    assert ((perplexity > 1) & (perplexity < 10_000)).all()
    second = table[table["metric"] == "perplexity@8-24"]
    assert set(second["variant"]) == {"dense"} and len(second) == 2 * len(SEEDS)


def test_the_table_says_what_the_runs_say(finished: Path) -> None:
    table = read_csv(finished / "results" / "smoke" / "metrics.csv")
    for (variant, tau, seed), run in [*RUNS.items(), *runs("translation", MT).items()]:
        metrics = json.loads((finished / run / "metrics.json").read_text())
        rows = table[(table["variant"] == variant) & (table["tau"] == tau) & (table["seed"] == seed)]
        rows = rows[~rows["metric"].str.contains("@") & (rows["dataset"] == metrics["dataset"])]
        found = {(row.split, row.metric): row.value for row in rows.itertuples()}
        assert found == {(split, k): v for split, values in metrics["metrics"].items() for k, v in values.items()}
        assert set(rows["effective_sparsity"]) == {metrics["effective_sparsity"]}


def test_controls_are_equal_in_what_the_configuration_says(finished: Path) -> None:
    table = read_csv(finished / "results" / "smoke" / "metrics.csv")
    for experiment in ("language_modelling", "translation", "glue"):
        column = CONFIG[experiment]["pruning"].get("controls_equal", "effective_sparsity")
        # Counts are those of the training text, so that on the test text both are equal within what texts differ by.
        within = 1e-3 if column == "effective_sparsity" else 0.05
        masked = table[(table["experiment"] == experiment) & table["rule"].notna()]
        masked = masked[masked["tau"].isin(CONFIG[experiment]["pruning"]["control_taus"])]
        for _, rows in masked.groupby(["dataset", "tau", "seed"]):
            assert set(rows["variant"]) > {"data"}
            assert rows[column].max() - rows[column].min() < within, experiment


def test_masks_prune_what_they_promise(finished: Path) -> None:
    for seed in SEEDS:
        for tau in CONTROL_TAUS:
            masks = {
                kind: PruneMask.load(finished / EXPERIMENT / kind / f"tau{tau:g}" / f"seed{seed}" / "mask.safetensors")
                for kind in ("data", "random", "window")
            }
            counts = {kind: [int(layer.sum()) for layer in mask.pruned] for kind, mask in masks.items()}
            assert counts["data"] == counts["random"] == counts["window"]
            assert len({mask.fingerprint for mask in masks.values()}) == 3


def test_the_figure_is_a_picture_of_these_numbers(finished: Path) -> None:
    chosen, own = finished / "results" / "ap_figure.png", finished / "results" / "smoke" / "ap_figure.png"
    assert chosen.read_bytes() == own.read_bytes()
    with Image.open(chosen) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == (2760, 1520)
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    # One number a colour: rows are found to be equal far more slowly.
    colours = set(np.unique(pixels @ np.array([2**16, 2**8, 1])).tolist())
    # Data-informed, random, window, published: each has left its own pure colour.
    for wanted in ("#0072B2", "#D55E00", "#009E73", "#A34B7F"):
        assert int(wanted[1:], 16) in colours, wanted
    share = (pixels < 250).any(axis=1).mean()
    assert 0.02 < share < 0.5
    caption = (finished / "results" / "ap_figure.md").read_text()
    for word in (
        "configuration smoke",
        "Kneser-Ney bigram",
        "Kneser-Ney 5-gram",
        "copied source",
        "majority class",
        *TASKS,
    ):
        assert word in caption
    leaves(finished / "results" / "smoke", "glue_tasks.png", "glue_tasks.csv", "glue_tasks.md")


def test_every_model_is_in_the_table_of_models_out_of_distribution(finished: Path) -> None:
    table = read_table(finished / "results" / "smoke" / "ood_table.csv")
    names = CONFIG["out_of_distribution"]["names"]
    places = {(LM, names["language_modelling"]), (MT, names["translation"])}
    places |= {(task, names[task]) for task in TASKS} | {(CONFIG["squad"]["dataset"]["name"], names["squad"])}
    assert set(zip(table["trained_on"], table["evaluated_on"], strict=True)) == places
    for (experiment, home, away), rows in table.groupby(["experiment", "trained_on", "evaluated_on"]):
        kept = rows[rows["tau"].notna()]
        chosen, seeds = SQUAD_MODELS if experiment == "squad" else models(experiment), CONFIG[experiment]["seeds"]
        wanted = {(variant, tau, seed) for variant, tau in chosen for seed in seeds}
        assert set(zip(kept["variant"], kept["tau"], kept["seed"], strict=True)) == wanted
        assert kept[["value_in", "value_out", "evaluated_out", "out_minus_in"]].notna().all().all(), experiment
        assert len(rows) - len(kept) == {"squad": 0, "language_modelling": 2}.get(experiment, 1)
        assert set(rows["chosen_tau"]) == {max(CONFIG[experiment]["pruning"]["taus"])}
        # each value is that of the metrics beside the model's own
        for row in kept[kept["variant"] == "dense"].to_dict("records"):
            folder = finished / "runs" / "smoke" / experiment / home / "dense" / "tau0" / f"seed{row['seed']}"
            metrics = json.loads((folder / f"metrics@{away}.json").read_text())["metrics"]
            assert row["value_out"] == pytest.approx(metrics[row["split"]][row["metric"]])
    assert table.loc[table["experiment"] == "language_modelling", "unknown_out"].between(0.01, 0.9).all()
    text = (finished / "results" / "smoke" / "ood_table.md").read_text()
    assert text.count("\n## ") == len(places)


def test_a_second_run_has_nothing_to_do(finished: Path) -> None:
    found = snakemake(finished)
    assert found.returncode == 0
    assert "Nothing to be done" in found.stdout


def test_another_figure_is_chosen_without_training_again(finished: Path) -> None:
    found = snakemake(finished, "--dry-run", "--forcerun", "choose")
    jobs = dict(line.split() for line in found.stdout.splitlines() if len(line.split()) == 2)
    assert jobs.get("choose") == "1" and not any("train" in job or "tune" in job for job in jobs)


def test_the_report_is_one_file_with_everything_in_it_and_asks_for_nothing_else(finished: Path) -> None:
    found = snakemake(finished, "everything")
    assert found.returncode == 0, found.stdout
    trained = [line for line in found.stdout.splitlines() if "Train" in line or "Fine-tune" in line]
    assert not trained
    # A report trains nothing, even if numbers that were made on request are gone: their table is still there.
    gone = next((finished / "runs" / "smoke").rglob("metrics@bible-*.json"))
    gone.rename(gone.with_suffix(".gone"))
    drawing = (ROOT / "Makefile").read_text().split("DRAWING :=")[1].split("\n\n")[0].replace("\\", " ").split()
    found = snakemake(finished, "shown", "--allowed-rules", *drawing)
    assert found.returncode == 0 and "Nothing to be done" in found.stdout, found.stdout
    # No proxy answers here: whatever Snakemake would fetch, it would fail to.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        command(finished, "shown", "--report", "results/report.html"),
        capture_output=True,
        text=True,
        env=os.environ | nowhere,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    gone.with_suffix(".gone").rename(gone)
    html = (finished / "results" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=", html.partition("<script")[0])
    assert not re.search(r"<script[^>]*\bsrc=", html)
    shown = json.loads(re.search(r"var results = (\{.*\});\n", html)[1])
    folder = finished / "results" / "smoke"
    figures = ("ap_figure", "glue_tasks", "controls", "pattern_gallery", "structural_zeros")
    assert {f"results/smoke/{name}.png" for name in figures} <= set(shown)
    tables = [f"{name}.csv" for name in ("metrics", "runs", "software", "ood_table", *figures)]
    pages = ["language_modelling", "translation-enc-self", "translation-dec-self", "translation-enc-dec", "glue"]
    pages = [f"explore/{page}.html" for page in pages]
    assert {f"results/smoke/{name}" for name in [*tables, "configuration.json", *pages]} <= set(shown)
    for path, entry in shown.items():
        assert entry["caption"].strip() and set(entry["labels"]) == {"what", "as"}, path
        content = (finished / path).read_bytes()
        assert base64.b64decode(entry["data_uri"].partition("base64,")[2]) == content, path
    configuration = json.loads((folder / "configuration.json").read_text())
    assert configuration["language_modelling"]["training"]["max_step"] == 30
    assert configuration["language_modelling"]["training"]["optim"] == "adam"  # a default


def test_rules_scopes_and_controls_are_compared_on_request_and_then_shown(finished: Path) -> None:
    found = snakemake(finished, "mask_comparison")
    assert found.returncode == 0, found.stdout
    folder = finished / "results" / "smoke"
    leaves(folder, "mask_comparison.png", "mask_comparison.md")
    table = read_csv(folder / "mask_comparison.csv")
    own = CONFIG["translation"]["mask_comparison"]
    bleu = table[table["metric"] == "bleu"]
    # What the experiment does anyhow is not trained again under another name.
    assert set(bleu["variant"]) == {"dense", "data", "published-head", *own["controls"]}
    understood = table[table["metric"] == "glue_score"]
    assert set(understood["variant"]) == {"dense", "data", "window-sinks"}
    assert set(understood["dataset"]) == set(TASKS)
    perplexity = table[(table["metric"] == "perplexity") & (table["split"] == "test")]
    made = perplexity[perplexity["rule"].notna()].groupby("variant")[["rule", "scope"]].agg(set)
    assert made.loc["allowed-row"].tolist() == [{"allowed"}, {"row"}]
    assert made.loc["distance"].tolist() == made.loc["data"].tolist() == [{"published"}, {"layer"}]
    for seed in SEEDS:
        (tau,) = CONFIG["language_modelling"]["mask_comparison"]["taus"]
        masks = {
            kind: PruneMask.load(finished / EXPERIMENT / kind / f"tau{tau:g}" / f"seed{seed}" / "mask.safetensors")
            for kind in ("data", "distance", "allowed-row", "shuffled-heads", "other-seed")
        }
        assert masks["shuffled-heads"].layer_sparsity == masks["data"].layer_sparsity
        assert masks["shuffled-heads"] != masks["data"] != masks["other-seed"]
        assert masks["distance"].kind == "distance"
        assert masks["distance"].layer_sparsity == masks["data"].layer_sparsity
        assert (masks["allowed-row"].rule, masks["allowed-row"].scope) == ("allowed", "row")
    shown = snakemake(finished, "everything", "--dry-run")
    assert shown.returncode == 0 and "Nothing to be done" in shown.stdout
    # Neither the figure's models nor their scores were made anew.
    again = snakemake(finished, "--dry-run")
    assert "Nothing to be done" in again.stdout


def test_models_of_fewer_pairs_are_compared_on_request(finished: Path) -> None:
    found = snakemake(finished, "pairs_comparison")
    assert found.returncode == 0, found.stdout
    folder = finished / "results" / "smoke"
    leaves(folder, "pairs_comparison.png", "pairs_comparison.md")
    table = read_csv(folder / "pairs_comparison.csv")
    models = table[table["metric"] == "bleu"].groupby(["dataset", "variant", "tau"]).size()
    wanted = {(name, *model) for name in (MT, f"{MT}-0.5") for model in (("dense", 0.0), ("data", 0.5))}
    assert set(models.index) == wanted
    numbers = table[table["metric"].str.startswith("sentences_")].groupby(["dataset", "variant", "tau"])["value"].sum()
    assert set(numbers) == {CONFIG["translation"]["dataset"]["bible_pairs"]["max_eval_pairs"]}
    pairs = {name: json.loads((finished / runs_of(name) / "pairs.json").read_text()) for name in (MT, f"{MT}-0.5")}
    assert pairs[f"{MT}-0.5"]["pairs"]["train"] * 2 == pairs[MT]["pairs"]["train"] == 400
    again = snakemake(finished, "--dry-run")
    assert "Nothing to be done" in again.stdout


def runs_of(dataset: str) -> Path:
    """Where the prepared pairs are."""
    return Path("runs") / "smoke" / "translation" / dataset / "pairs"


def test_the_table_has_no_empty_column(finished: Path) -> None:
    table = pd.read_csv(finished / "results" / "smoke" / "metrics.csv")
    assert table.notna().any().all()

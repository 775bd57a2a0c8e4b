"""Data of a user's own: files and data sets by name, and the model's parts from other places."""

from __future__ import annotations

import csv
import json
import random
import sys

import pytest
from transformers import AutoConfig

from reproduction.data.tasks.glue import find_task, load_task
from reproduction.data.tasks.squad import load_squad
from run_flags import parse_flags
from run_glue import DataArguments
from tiny_bert import read_metrics, save_model, save_tokenizer, sentence, write_squad

pytestmark = pytest.mark.slow

OWN = {"task_name": None, "data_dir": None}
STEPS = {"do_train": True, "do_eval": True, "max_steps": 3}


def write_rows(path, rows):
    """Rows as a file's ending says."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl"])
def test_files_with_the_rows_of_a_task_give_what_the_task_gives(run, data_dir, tmp_path, ending):
    splits, files = load_task(find_task("MRPC"), data_dir), {}
    for split, rows in splits.items():
        rows = [{name: row[name] for name in ("idx", "sentence1", "sentence2", "label")} for row in rows]
        if split == "test":
            rows = [{name: row[name] for name in ("idx", "sentence1", "sentence2")} for row in rows]
        files[f"{split}_file"] = write_rows(tmp_path / f"{split}.{ending}", rows)
    expected = run("glue", "task", do_predict=True, **STEPS)
    found = run("glue", "files", do_predict=True, **STEPS, **OWN, **files)
    accuracies = [read_metrics(folder)["metrics"]["validation"]["accuracy"] for folder in (found, expected)]
    assert accuracies[0] == accuracies[1]
    assert (found / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    config = AutoConfig.from_pretrained(found)
    assert config.id2label == {0: "0", 1: "1"}
    names = find_task("MRPC").labels
    lines = (found / "predict_results.txt").read_text().splitlines()
    named = (expected / "predict_results_mrpc.txt").read_text().splitlines()
    assert len(lines) == 11 and lines[0] == named[0] == "index\tprediction"
    assert [names[int(line.split("\t")[1])] for line in lines[1:]] == [line.split("\t")[1] for line in named[1:]]
    assert json.loads((found / "run.json").read_text())["data"]["train"] == f"train.{ending}, 40 rows"

    # evaluated alone, the classes are the model's
    files = {"validation_file": files["validation_file"]}
    again = run("glue", "again", do_eval=True, model_name_or_path=found, **OWN, **files)
    assert read_metrics(again) == read_metrics(found)


def own_rows(count, **columns):
    rng = random.Random(3)
    return [{"text": sentence(rng)} | {name: value(i) for name, value in columns.items()} for i in range(count)]


def test_classes_by_name_and_a_single_text_of_words_that_look_like_nothing(run, tmp_path):
    rows = own_rows(12, label=lambda i: ("red", "green", "blue")[i % 3])
    rows[0]["text"], rows[1]["text"] = "null", "NA"
    files = {name: write_rows(tmp_path / f"{name}.csv", rows) for name in ("train_file", "validation_file")}
    folder = run("glue", "out", ignore_mismatched_sizes=True, **STEPS, **OWN, **files)
    config = AutoConfig.from_pretrained(folder)
    assert config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert set(read_metrics(folder)["metrics"]["validation"]) >= {"accuracy", "loss", "glue_score"}


def test_numbers_are_regression(run, tmp_path):
    rows = own_rows(12, label=lambda i: i / 4)
    files = {f"{split}_file": write_rows(tmp_path / f"{split}.csv", rows) for split in ("train", "validation", "test")}
    folder = run("glue", "out", ignore_mismatched_sizes=True, do_predict=True, **STEPS, **OWN, **files)
    assert AutoConfig.from_pretrained(folder).problem_type == "regression"
    assert set(read_metrics(folder)["metrics"]["validation"]) >= {"pearson", "spearman", "loss"}
    shown = [line.split("\t")[1] for line in (folder / "predict_results.txt").read_text().splitlines()[1:]]
    assert len(shown) == 12 and all(len(value.split(".")[1]) == 3 for value in shown)


def test_a_data_set_by_name_may_be_a_folder(run, data_dir, tmp_path):
    (tmp_path / "set").mkdir()
    for split in ("train", "validation"):
        rows = load_task(find_task("MRPC"), data_dir)[split]
        write_rows(tmp_path / "set" / f"{split}.csv", [dict(row) for row in rows])
    expected = run("glue", "task", **STEPS)
    found = run("glue", "named", dataset_name=tmp_path / "set", **STEPS, **OWN)
    assert (found / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


@pytest.mark.parametrize("form", ["published", "field.json", "rows.jsonl", "rows.csv"])
def test_questions_in_files_give_what_squad_gives(run, data_dir, tmp_path, form):
    files = {}
    for split, published in (("train", "train-v1.1.json"), ("validation", "dev-v1.1.json")):
        rows = [dict(row) for row in load_squad(data_dir)[split]]
        path = tmp_path / f"{split}-{form}"
        if form == "published":
            path = data_dir / "squad" / published
        elif form == "field.json":
            path.write_text(json.dumps({"version": "mine", "data": rows}))
        elif form == "rows.csv":
            write_rows(path, [row | {"answers": json.dumps(row["answers"])} for row in rows])
        else:
            write_rows(path, rows)
        files[f"{split}_file"] = path
    expected = run("squad", "squad", **STEPS)
    found = run("squad", "files", data_dir=None, **STEPS, **files)
    assert read_metrics(found) == read_metrics(expected)
    assert (found / "predictions.json").read_bytes() == (expected / "predictions.json").read_bytes()


def test_a_test_file_of_questions_is_answered(run, tmp_path, data_dir):
    rows = [{name: row[name] for name in ("id", "question", "context")} for row in load_squad(data_dir)["validation"]]
    unanswered = write_rows(tmp_path / "test.jsonl", rows)
    answered = data_dir / "squad" / "dev-v1.1.json"
    folder = run(
        "squad", "out", do_eval=True, do_predict=True, data_dir=None, validation_file=answered, test_file=unanswered
    )
    assert (folder / "predict_predictions.json").read_bytes() == (folder / "predictions.json").read_bytes()
    results = json.loads((folder / "predict_results.json").read_text())
    assert "predict_f1" not in results and results["predict_samples"] > len(rows)
    assert json.loads((folder / "predict_nbest_predictions.json").read_text()).keys() == {row["id"] for row in rows}
    folder = run(
        "squad", "scored", do_eval=True, do_predict=True, data_dir=None, validation_file=answered, test_file=answered
    )
    results = json.loads((folder / "all_results.json").read_text())
    assert results["predict_f1"] == results["eval_f1"]


def test_questions_without_an_answer_are_squad_2(run, refused, tmp_path):
    write_squad(tmp_path / "data", train=6, dev=6, version="v2.0")
    file = {"validation_file": tmp_path / "data" / "squad" / "dev-v2.0.json", "data_dir": None}
    message = refused("squad", do_eval=True, **file)
    assert message.startswith(
        f"{file['validation_file']}: expected an answer to question dev0, found none (SQuAD 2.0?)"
    )
    folder = run("squad", "out", do_eval=True, version_2_with_negative=True, **file)
    assert "no_answer_f1" in read_metrics(folder)["metrics"]["validation"]


BAD = [
    ("glue", {"task_name": None}, "--task_name: expected a task, or instead of it --dataset_name or", None),
    ("glue", {"train_file": "ROWS.csv"}, "--dataset_name or --train_file and the like, found both", None),
    (
        "glue",
        OWN | {"dataset_name": "no/such"},
        "--dataset_name: expected no/such on the Hugging Face hub or in its",
        None,
    ),
    (
        "glue",
        OWN | {"dataset_name": "a/b", "test_file": "x.csv"},
        "expected no other source of data beside it, found",
        None,
    ),
    (
        "glue",
        OWN | {"dataset_config_name": "b", "train_file": "x.csv"},
        "--dataset_config_name: expected --dataset_n",
        None,
    ),
    ("glue", OWN | {"train_file": "none.csv"}, "--train_file: expected a file, found none at none.csv", None),
    (
        "glue",
        OWN | {"train_file": "ROWS.txt"},
        "--train_file: expected a name in .csv .tsv .json .jsonl, found",
        "text",
    ),
    ("glue", OWN | {"train_file": "ROWS.csv"}, "expected a column label, found text", "text\nba\n"),
    ("glue", OWN | {"train_file": "ROWS.csv"}, "expected a column of text, found n, label", "n,label\n1,2\n"),
    ("glue", OWN | {"train_file": "ROWS.csv"}, "expected rows of csv, found: ", "text,label\nba,1\nba,1,2,3\n"),
    ("glue", OWN | {"train_file": "ROWS.json"}, "expected rows of json, found: ", "[{"),
    (
        "glue",
        OWN | {"train_file": "ROWS.json"},
        "expected text in every row of text",
        '[{"text": null, "label": 1}, {"text": "ba", "label": 0}]',
    ),
    ("glue", OWN | {"validation_file": "ROWS.csv"}, "label, found 'x'", "text,label\nba,x\n"),
    ("squad", {"train_file": "ROWS.csv"}, "expected a column context, found id, question", "id,question\n1,ba\n"),
    ("squad", {"train_file": "ROWS.csv"}, "as answers of question 1", "id,question,context,answers\n1,ba,be,be\n"),
    (
        "squad",
        {"train_file": "ROWS.json"},
        "expected answer 'be' of question 1 at character 1, found 'a'",
        '[{"id": 1, "question": "ba", "context": "ba", "answers": {"text": ["be"], "answer_start": [1]}}]',
    ),
    ("squad", {"do_predict": True}, "--do_predict: expected --do_eval, since SQuAD's test set is not public", None),
]


@pytest.mark.parametrize(
    ("script", "changes", "message", "content"), BAD, ids=[str(number) for number in range(len(BAD))]
)
def test_bad_data_of_ones_own(refused, tmp_path, monkeypatch, script, changes, message, content):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    step = "do_eval" if "validation_file" in changes else "do_train"
    for flag, value in list(changes.items()):
        if str(value).startswith("ROWS"):
            changes = changes | {flag: tmp_path / value}
            (tmp_path / value).write_text(content or "text,label\nba,1\n")
    assert message in refused(script, **{step: True} | changes)


def test_tokenizer_and_configuration_may_come_from_elsewhere(run, model_folder, tmp_path):
    bare = save_model(tmp_path / "bare")
    save_tokenizer(tmp_path / "tokenizer")
    for path in bare.glob("token*"):
        path.unlink()
    (tmp_path / "config").mkdir()
    (bare / "config.json").rename(tmp_path / "config" / "config.json")
    parts = {"tokenizer_name": tmp_path / "tokenizer", "config_name": tmp_path / "config"}
    whole = run("glue", "whole", do_eval=True)
    found = run("glue", "parts", do_eval=True, model_name_or_path=bare, **parts)
    assert read_metrics(found) == read_metrics(whole)


def test_hub_flags_reach_the_hub_and_the_token_no_record(run, command, monkeypatch):
    asked = []
    monkeypatch.setattr("encoders.find_model", lambda name: asked.append(name) or name)
    line = [*command("glue", "out", do_eval=True, token="secret", cache_dir="cache"), "--hub_token=hidden"]
    flags = parse_flags("", DataArguments, line)
    assert flags.model.hub == {"token": "secret", "cache_dir": "cache"}
    monkeypatch.setattr(sys, "argv", ["run_glue.py", *line])
    folder = run("glue", "out", do_eval=True, token="secret", hub_token="hidden")
    assert asked
    for path in folder.rglob("*.json"):
        assert "secret" not in path.read_text() and "hidden" not in path.read_text(), path

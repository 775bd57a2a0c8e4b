"""Damaged corpora, parallel text, tasks of GLUE, questions and configurations of data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention_pruning import InputError
from mutations import answer, as_json, chosen, damaged, damaged_json, damaged_text, fuzzed, written
from reproduction.analysis.table import read_run
from reproduction.data.language.corpus import Corpus, write_corpus
from reproduction.data.shifted.questions import adversarial
from reproduction.data.shifted.tasks import hans, home_description, paws
from reproduction.data.tasks.glue import TASKS, load_task
from reproduction.data.tasks.squad import as_dataset, read_questions
from reproduction.data.translation.multi30k import local_pairs
from reproduction.data.translation.parallel_text import read_description
from reproduction.runs.folder import RECIPE_FILE
from reproduction.runs.folder import _read as read_recipe

TEXT = "one two  three\n\n two <unk> é\n x\n"
LINES = [["a", "b"], ["c"], [], ["a", "é"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpora") / "words"
    corpus = write_corpus(folder, "words", {split: LINES for split in ("train", "valid", "test")})
    return corpus, {file.name: file.read_bytes() for file in folder.iterdir()}


@fuzzed()
@given(st.data())
def test_prepared_corpora(folder, prepared, data):
    corpus, files = prepared
    description = damaged_json(json.loads(files["corpus.json"]))
    changes = {name: damaged(content) for name, content in files.items()} | {"corpus.json": description}
    place = folder / "prepared"
    place.mkdir(exist_ok=True)
    name, content = data.draw(chosen(changes))
    for each, whole in (files | {name: content}).items():
        written(place / each, whole)
    found = answer(Corpus.load, place)
    if found is not None:  # its text is that of its fingerprint
        assert found.vocabulary == corpus.vocabulary and found.fingerprint == corpus.fingerprint
        assert all(np.array_equal(found.ids[split], ids) for split, ids in corpus.ids.items())
        answer(found.with_test, "other", LINES, {})


@fuzzed()
@given(st.data(), st.sampled_from(["word", "character"]), st.integers(1, 3))
def test_raw_text(folder, data, level, min_count):
    place = folder / "raw"
    place.mkdir(exist_ok=True)
    for split in ("train", "valid", "test"):
        written(place / f"{split}.txt", data.draw(damaged_text(TEXT)) if data.draw(st.booleans()) else TEXT.encode())
    found = answer(Corpus.load, place, level, min_count)
    if found is not None:
        assert all(ids.min() >= 0 and ids.max() < len(found.vocabulary) for ids in found.ids.values())
        found.save(folder / "saved")
        assert Corpus.load(folder / "saved").fingerprint == found.fingerprint


@fuzzed()
@given(st.data())
def test_parallel_text(folder, data):
    (folder / "multi30k").mkdir(exist_ok=True)
    texts = {"de": "ein Haus\nzwei\r\ndrei\n", "en": "a house\ntwo\r\nthree\n"}
    name, content = data.draw(chosen({language: damaged_text(text) for language, text in texts.items()}))
    for language, text in texts.items():
        written(folder / "multi30k" / f"val.{language}", content if language == name else text.encode())
    found = answer(local_pairs, folder, "val")
    if found is not None:  # no line was moved against the others
        assert all(len(pair) == 2 and "\n" not in "".join(pair) for pair in found)
        assert len(found) == content.decode().removesuffix("\n").count("\n") + 1


def test_a_carriage_return_within_a_line_is_no_new_line(folder):
    (folder / "multi30k").mkdir(exist_ok=True)
    written(folder / "multi30k" / "val.de", b"ein\rHaus\nzwei\n")
    written(folder / "multi30k" / "val.en", b"a house\ntw\ro\n")
    assert local_pairs(folder, "val") == [("ein\rHaus", "a house"), ("zwei", "tw\ro")]


def test_a_list_without_a_line_is_refused(folder):
    (folder / "hans").mkdir(exist_ok=True)
    written(folder / "hans" / "hans_eval_30000.tsv", b"\n")
    with pytest.raises(InputError, match="expected lines of 4 fields"):
        hans(folder)


GLUE = {
    "CoLA": ("train.tsv", "gj04\t1\t\tA sentence.\ngj05\t0\t*\tSentence a.\n"),
    "SST-2": ("train.tsv", "sentence\tlabel\ngood\t1\nbad\t0\n"),
    "MRPC": ("train.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\ta b\ta b\n0\t3\t4\ta\tb\n"),
    "STS-B": ("train.tsv", "sentence1\tsentence2\tscore\na\tb\t1.5\na\ta\t5.000\n"),
    "RTE": ("dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n"),
}


@fuzzed()
@given(st.data())
def test_tasks_of_glue(folder, data):
    name = data.draw(st.sampled_from(sorted(GLUE)))
    file, text = GLUE[name]
    (folder / "glue" / name).mkdir(exist_ok=True, parents=True)
    written(folder / "glue" / name / file, data.draw(damaged_text(text)))
    found = answer(load_task, TASKS[name], folder)
    for rows in (found or {}).values():
        labels = np.array(rows["label"][:])
        assert np.isfinite(labels).all()
        assert TASKS[name].labels is None or ((labels >= 0) & (labels < len(TASKS[name].labels))).all()


@fuzzed()
@given(damaged_text("gold_label\tsentence1\tsentence2\theuristic\nentailment\ta\tb\tc\nnon-entailment\td\te\tf\n"))
def test_hans_and_paws(folder, content):
    for name in ("hans/hans_eval_30000.tsv", "paws/dev.tsv"):
        (folder / name).parent.mkdir(exist_ok=True)
        written(folder / name, content.replace(b"entailment", b"1") if "paws" in name else content)
    for read in (hans, paws):
        assert all(row.label in (0, 1) for row in answer(read, folder) or [])


def question(number: int) -> dict:
    answers = [{"text": "two", "answer_start": 4}]
    return {"id": f"q{number}", "question": "what?", "answers": answers if number else answers * 2}


PARAGRAPH = {"context": "one two", "qas": [question(number) for number in range(3)]}
SQUAD = {"version": "1.1", "data": [{"title": "t", "paragraphs": [PARAGRAPH]}]}
LINE = {"title": "", "context": "one two", **question(1), "answers": {"text": ["two"], "answer_start": [4]}}


def check_questions(rows: list[dict]) -> None:
    """What was read is as it says, and a data set can be made of it."""
    for row in rows:
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert start >= 0 and row["context"][start : start + len(text)] == text
    assert len(as_dataset(rows, "train", "")) == len(rows)


@fuzzed()
@given(damaged_json(SQUAD), st.booleans())
def test_questions_of_squad(folder, content, version2):
    found = answer(read_questions, written(folder / "train-v1.1.json", content), version2)
    if found is not None:
        check_questions(found)


@fuzzed()
@given(damaged_json(LINE))
def test_adversarial_questions(folder, content):
    found = answer(adversarial, written(folder / "questions.jsonl", content), None, 0)
    if found is not None:
        answer(read_questions, written(folder / "dev-v1.1.json", found[0].encode()))


HOME = {"books": {"train": ["a"], "valid": ["b"], "test": ["c"]}, "max_words": 20, "seed": 1}
PAIRS = {"languages": ["de", "en"], "subwords": {"kind": "x"}, "pairs": {"train": 3}, "name": "x", "fingerprint": "ab"}


@fuzzed()
@given(damaged_json(HOME), damaged_json(PAIRS))
def test_descriptions_of_data(folder, home, pairs):
    written(folder / "home.json", home)
    written(folder / "pairs.json", pairs)
    found = answer(home_description, folder, "home.json", "bible")
    if found is not None:
        assert isinstance(found["books"]["valid"], list) and isinstance(found["seed"] + found["max_words"], int)
    found = answer(read_description, folder)
    if found is not None:
        assert "-".join(found["languages"]) and isinstance(found["subwords"], dict)


METRICS = {
    **{"config": "quick", "experiment": "glue", "dataset": "MRPC", "variant": "data", "sites": "self"},
    **{"rule": "published", "scope": "layer", "block_size": 1, "tau": 0.5, "seed": 1},
    **{"effective_sparsity": 0.5, "evaluated_sparsity": 0.4, "block_sparsity": 0.1},
    "metrics": {"validation": {"accuracy": 0.75}},
}


def test_whole_metrics_are_read(folder):
    assert [row["value"] for row in read_run(written(folder / "metrics.json", as_json(METRICS)))] == [0.75]


@fuzzed()
@given(damaged_json(METRICS), damaged_json({"format": "x", "recipe": {"arguments": {"seed": 1}}}))
def test_metrics_and_recipes(folder, metrics, recipe):
    for row in answer(read_run, written(folder / "metrics.json", metrics)) or []:
        assert np.isfinite(row["value"])
    written(folder / RECIPE_FILE, recipe)
    answer(read_recipe, folder)

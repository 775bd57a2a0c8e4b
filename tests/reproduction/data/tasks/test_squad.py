"""SQuAD's JSON becomes the rows that the hub has."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import pytest

from attention_pruning import InputError
from reproduction.data.tasks import squad
from reproduction.data.tasks.squad import load_squad

RIGHT = {"text": "Paris", "answer_start": 13}
ANSWER = {"text": "Paris", "answer_start": 12}


def article(*answers: dict, **more: object) -> dict:
    question = {"id": "q1", "question": "Where?", "answers": list(answers), **more}
    return {"title": "France", "paragraphs": [{"context": "They live in Paris.", "qas": [question]}]}


def write(file: Path, *articles: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"version": "1.1", "data": list(articles)}))


@pytest.mark.parametrize("folder", ["squad", "."])
def test_both_layouts_give_the_hubs_columns(tmp_path: Path, folder: str) -> None:
    answers = ({"text": "Paris", "answer_start": 13}, {"text": "in Paris", "answer_start": 10})
    write(tmp_path / folder / "train-v1.1.json", article(answers[0]), article(answers[0], id="q2"))
    write(tmp_path / folder / "train-v1.1-subset.json", article(answers[0]))
    write(tmp_path / folder / "dev-v1.1.json", article(*answers))
    loaded = load_squad(tmp_path)
    assert {split: part.num_rows for split, part in loaded.items()} == {"train": 2, "validation": 1}
    assert loaded["validation"][0] == {
        "id": "q1",
        "title": "France",
        "context": "They live in Paris.",
        "question": "Where?",
        "answers": {"text": ["Paris", "in Paris"], "answer_start": [13, 10]},
    }
    assert loaded["train"].info.description == "train-v1.1.json, 2 questions"


def test_a_subset_is_never_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train-v1.1-subset.json", article({"text": "Paris", "answer_start": 13}))
    loaded = load_squad(tmp_path)
    assert list(loaded) == ["train"]
    note = "1 questions, a part of the published set"
    assert note in caplog.text and loaded["train"].info.description == f"train-v1.1-subset.json, {note}"


def test_the_second_version_has_questions_without_answers(tmp_path: Path) -> None:
    unanswerable = article(is_impossible=True, plausible_answers=[ANSWER])
    write(tmp_path / "dev-v2.0.json", unanswerable)
    assert load_squad(tmp_path, version2=True)["validation"]["answers"][0] == {"text": [], "answer_start": []}
    (tmp_path / "dev-v2.0.json").rename(tmp_path / "dev-v1.1.json")
    with pytest.raises(InputError, match="expected an answer to question q1, found none"):
        load_squad(tmp_path)
    with pytest.raises(InputError, match="expected train-v2.0.json, .*found none of them"):
        load_squad(tmp_path, version2=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected SQuAD's JSON, found something else"),
        ("[" * 100_000, "found values nested too deep"),
        (json.dumps({"data": [article(RIGHT), article(RIGHT)]}), "ids of their own, found two of 'q1'"),
        (json.dumps({"data": [article(ANSWER | {"answer_start": -6})]}), "character's number .* found -6"),
        ("[]", "expected SQuAD's JSON, found: TypeError"),
        (json.dumps({"data": [{"title": "x"}]}), "expected SQuAD's JSON, found: KeyError 'paragraphs'"),
        (json.dumps({"data": [article(ANSWER)]}), "answer 'Paris' of question q1 at character 12, found ' Pari'"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dev-v1.1.json").write_text(text)
    with pytest.raises(InputError, match=f"dev-v1.1.json: .*{message}") as caught:
        load_squad(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version2", [False, True])
def test_the_hub_is_asked_for_a_pinned_revision(monkeypatch: pytest.MonkeyPatch, version2: bool) -> None:
    asked: list = []

    def load_dataset(path: str, name: str, *, revision: str) -> datasets.DatasetDict:
        asked.extend([path, name, revision])
        return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"id": ["q1"]})})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load_squad(None, version2)
    assert tuple(asked) == squad.HUB["v2.0" if version2 else "v1.1"] and len(asked[2]) == 40
    assert loaded["train"].info.description == " ".join(asked)


def test_the_published_files_are_read_to_the_last_question() -> None:
    data_dir = os.environ.get("AP_DATA_DIR")
    if not data_dir or not (Path(data_dir) / "squad").is_dir():
        pytest.skip("AP_DATA_DIR is not set, or has no squad/")
    loaded = load_squad(data_dir)
    sizes = {split: part.num_rows for split, part in loaded.items()}
    assert sizes["validation"] == 10_570
    subset = "subset" in loaded["train"].info.description
    assert sizes["train"] == (11_877 if subset else 87_599)
    assert len(set(loaded["validation"]["id"])) == 10_570

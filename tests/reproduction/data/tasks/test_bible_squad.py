"""The stand-in for SQuAD: every answer is the asked verse, in a passage of its book, and books are held out."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import InputError
from reproduction.data.language.bible import book_of, verses
from reproduction.data.tasks import bible_squad
from reproduction.data.tasks.bible_glue import words
from reproduction.data.tasks.bible_squad import passages
from reproduction.data.tasks.squad import load_squad

laws = settings(deadline=None, max_examples=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions") / "squad"
    assert bible_squad.main(["--out", str(folder), "--max-train", "301", "--max-eval", "90"]) == 0
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> datasets.DatasetDict:
    return load_squad(folder)


def test_the_loader_reads_as_many_questions_as_were_asked_for(folder: Path, loaded: datasets.DatasetDict) -> None:
    assert {split: part.num_rows for split, part in loaded.items()} == {"train": 301, "validation": 90}
    description = json.loads((folder / "questions.json").read_text())
    assert description["questions"] == {"train-v1.1.json": 301, "dev-v1.1.json": 90}
    assert (folder / "run.json").is_file()


def test_the_question_is_a_verse_and_its_answer_the_verse_in_the_other_version(
    folder: Path, loaded: datasets.DatasetDict
) -> None:
    asked, answering = dict(verses("kjv")), dict(verses("bbe"))
    books = json.loads((folder / "questions.json").read_text())["books"]
    held_out = {"train": books["train"], "validation": [*books["valid"], *books["test"]]}
    for split, part in loaded.items():
        assert len(set(part["id"])) == part.num_rows
        for row in part:
            verse_id, (text,) = int(row["id"]), row["answers"]["text"]
            assert row["question"] == asked[verse_id] and text == answering[verse_id]
            assert row["context"].count(text) == 1
            assert book_of(verse_id) in held_out[split] and row["title"] == f"Book {book_of(verse_id)}"
            assert 5 <= len(words(text)) <= 20 and 150 <= len(words(row["context"])) <= 300


LENGTHS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 12)), max_size=40).map(
    lambda rows: sorted(rows, key=lambda row: row[0])
)


@given(LENGTHS, st.integers(4, 30))
@laws
def test_passages_are_consecutive_verses_of_one_book(rows: list[tuple[int, int]], size: int) -> None:
    text = [(1_000_000 * book + i, "", "w " * length) for i, (book, length) in enumerate(rows)]
    found = list(passages(text, size))
    kept = [verse for passage in found for verse in passage]
    assert kept == [verse for verse in text if verse in kept]
    for passage in found:
        places = [text.index(verse) for verse in passage]
        assert places == list(range(places[0], places[0] + len(places)))
        assert len({book_of(verse[0]) for verse in passage}) == 1
        length = sum(len(words(verse[2])) for verse in passage)
        assert length <= size or len(passage) == 1
        following = text[places[-1] + 1 : places[-1] + 2]
        if following and book_of(following[0][0]) == book_of(passage[0][0]):
            assert length + len(words(following[0][2])) > size
        else:
            assert length >= size / 2
    for book in {row[0] for row in rows}:
        left = [verse for verse in text if book_of(verse[0]) == book and verse not in kept]
        assert sum(len(words(verse[2])) for verse in left) < size / 2


def test_passages_without_a_verse_to_ask_for_are_refused() -> None:
    with pytest.raises(InputError, match="--max-words: expected a limit that leaves questions in both files"):
        bible_squad.draw([[(1_001_001, "a", "b")]], lambda sentence: False, 4, None, Random(0))


def test_same_seed_same_bytes(tmp_path: Path, folder: Path) -> None:
    bible_squad.prepare(tmp_path / "a", max_train=301, max_eval=90)
    for file in bible_squad.FILES:
        assert (tmp_path / "a" / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--versions", "web", "web"], "--versions: expected two different ones"),
        (["--max-train", "0"], "--max-train: expected at least 2, found 0"),
        (["--passage-words", "30"], "--passage-words: expected at least 40, found 30"),
        (["--questions", "0"], "--questions: expected at least 1, found 0"),
        (["--max-words", "1"], "--max-words: expected at least 5, found 1"),
    ],
)
def test_bad_flags_leave_nothing_behind(tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bible_squad.main(["--out", str(tmp_path / "c"), *flags])
    assert not list(tmp_path.iterdir())

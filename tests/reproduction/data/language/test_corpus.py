"""Laws of prepared corpora: counts against brute force, round trips, and refusals."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning.errors import InputError
from reproduction.data.language import corpus as corpus_module
from reproduction.data.language.corpus import Corpus, encode, write_corpus
from reproduction.data.language.encoding import END_OF_LINE, UNKNOWN
from reproduction.data.language.raw_text import RAW_LAYOUTS, SPLITS

WORDS = st.sampled_from(["a", "b", "cc", "dd", "É", "<unk>", "it's", "7"])
LINES = st.lists(st.lists(WORDS, max_size=5), min_size=1, max_size=8).filter(any)
TEXTS = st.fixed_dictionaries(dict.fromkeys(SPLITS, LINES))
SMALL = {"train": [["b", "a", "b"], [], ["c"]], "valid": [["a", "z"]], "test": [["c"], ["b"]]}
laws = settings(deadline=None, max_examples=60)


@given(TEXTS, st.integers(1, 3), st.booleans())
@laws
def test_encoding_equals_brute_force(texts: dict, min_count: int, eos: bool) -> None:
    corpus = encode("t", texts, min_count=min_count, eos=eos)
    counts = Counter(word for line in texts["train"] for word in line if word != UNKNOWN)
    kept = sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))
    specials = [END_OF_LINE, UNKNOWN] if eos else [UNKNOWN]
    assert corpus.vocabulary == specials + kept
    for split in SPLITS:
        stream = [word for line in texts[split] for word in line + [END_OF_LINE] * eos]
        expected = [word if word in corpus.vocabulary else UNKNOWN for word in stream]
        assert [corpus.vocabulary[i] for i in corpus.split(split)] == expected
        assert corpus.description["tokens"][split] == len(stream)
        assert corpus.description["unknown"][split] == expected.count(UNKNOWN)
        assert corpus.description["characters"][split] == len("".join(" ".join(line) + "\n" for line in texts[split]))


@given(TEXTS)
@laws
def test_other_splits_add_nothing_to_the_vocabulary(texts: dict) -> None:
    alone = encode("t", {**texts, "valid": [["new"]], "test": [["newer"]]})
    assert encode("t", texts).vocabulary == alone.vocabulary
    assert not {"new", "newer"} & set(alone.vocabulary)


@given(TEXTS)
@laws
def test_generators_give_the_same_corpus(texts: dict) -> None:
    streamed = encode("t", {split: (line for line in lines) for split, lines in texts.items()})
    assert streamed.description == encode("t", texts).description


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("position", [0, 1])
def test_one_other_token_changes_the_fingerprint(split: str, position: int) -> None:
    texts = {name: [["a", "b", "a", "b"]] for name in SPLITS}
    changed = {**texts, split: [["a", "b", "a", "b"]]}
    changed[split][0][position] = "ab".replace("ab"[position], "")
    assert encode("t", changed).fingerprint != encode("t", texts).fingerprint


@given(TEXTS, st.data())
@laws
def test_another_order_of_ids_is_the_same_text(texts: dict, data: st.DataObject) -> None:
    corpus = encode("t", texts)
    other = corpus.reordered(data.draw(st.permutations(corpus.vocabulary)))
    for split in SPLITS:
        assert [other.vocabulary[i] for i in other.split(split)] == [corpus.vocabulary[i] for i in corpus.split(split)]
    assert other.reordered(corpus.vocabulary).fingerprint == corpus.fingerprint
    assert other.description["fingerprint"] == other.fingerprint


@pytest.mark.parametrize("change", [lambda v: v[1:], lambda v: [*v, "new"], lambda v: [*v, v[0]]])
def test_another_vocabulary_is_no_other_order(change: Callable) -> None:
    corpus = encode("t", SMALL)
    with pytest.raises(InputError, match=r"^theirs: expected the \d+ symbols of t, found"):
        corpus.reordered(change(corpus.vocabulary), "theirs")


def test_a_token_moved_to_the_next_split_changes_the_fingerprint() -> None:
    one = encode("t", {"train": [["a"]], "valid": [["a", "a"]], "test": [["a"]]}, eos=False)
    other = encode("t", {"train": [["a"]], "valid": [["a"]], "test": [["a", "a"]]}, eos=False)
    assert one.vocabulary == other.vocabulary and one.fingerprint != other.fingerprint


@given(TEXTS)
@laws
def test_load_inverts_write(tmp_path_factory: pytest.TempPathFactory, texts: dict) -> None:
    folder = tmp_path_factory.mktemp("corpus") / "prepared"
    written = write_corpus(folder, "naïve", texts, min_count=2, extra={"seed": 3})
    loaded = Corpus.load(folder)
    assert (loaded.name, loaded.level, loaded.vocabulary) == (written.name, written.level, written.vocabulary)
    assert loaded.description == written.description and loaded.fingerprint == written.fingerprint
    for split in SPLITS:
        assert loaded.split(split).dtype == torch.int64
        assert torch.equal(loaded.split(split), written.split(split))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["prepared"]


CHARACTERS = st.text("ab\n\r\x85\u2028 \tß", min_size=1).filter(lambda text: text.strip("\n"))


@given(st.fixed_dictionaries(dict.fromkeys(SPLITS, CHARACTERS)))
@laws
def test_characters_of_raw_text_survive(tmp_path_factory: pytest.TempPathFactory, texts: dict) -> None:
    folder = tmp_path_factory.mktemp("raw")
    for split in SPLITS:
        (folder / f"{split}.txt").write_bytes(texts[split].encode())
    raw = Corpus.load(folder, level="character")
    raw.save(folder / "prepared")
    prepared = Corpus.load(folder / "prepared", level="character")
    assert prepared.fingerprint == raw.fingerprint
    symbols = [prepared.vocabulary[i].replace(END_OF_LINE, "\n") for i in prepared.split("train")]
    assert "".join(symbols) == texts["train"].removesuffix("\n") + "\n"
    assert prepared.description["characters"]["train"] == len(symbols)


@pytest.mark.parametrize("layout", RAW_LAYOUTS)
def test_raw_words_equal_the_written_corpus(tmp_path: Path, layout: str) -> None:
    for split, lines in SMALL.items():
        text = "".join(f" {'  '.join(line)} \n" for line in lines)
        (tmp_path / layout.format(split=split)).write_text(text, encoding="utf-8")
    raw = Corpus.load(tmp_path, min_count=2)
    assert raw.level == "word" and raw.name == tmp_path.name
    assert raw.fingerprint == encode("other", SMALL, min_count=2).fingerprint


def test_writing_again_replaces_the_corpus_and_leaves_other_files(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", "old", SMALL)
    (tmp_path / "c" / "log").write_text("kept")
    write_corpus(tmp_path / "c", "new", {**SMALL, "train": [["q"]]})
    assert Corpus.load(tmp_path / "c").name == "new"
    assert (tmp_path / "c" / "log").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(corpus_module.np, "save", full)
    with pytest.raises(OSError, match="no space"):
        write_corpus(tmp_path / "c", "t", SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "splits", "message"),
    [
        ({"level": "syllable"}, SMALL, "level must be one of word, character, found 'syllable'"),
        ({"min_count": 0}, SMALL, "min_count must be at least 1, found 0"),
        ({}, {**SMALL, "valid": []}, "expected text in the valid split, found none"),
        ({}, {**SMALL, "test": [[], []]}, "expected text in the test split, found none"),
        ({}, {"train": [["a"]]}, "expected the splits train, valid, test, found train"),
        ({}, {**SMALL, "train": [["a\nb"]]}, "expected symbols without a newline"),
    ],
)
def test_encode_refuses(options: dict, splits: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode("t", splits, **options)


def _save(folder: Path, array: np.ndarray) -> None:
    np.save(folder / "train.npy", array)


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "corpus.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _truncate(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


DAMAGE = {
    "no vocabulary": (lambda f: (f / "vocabulary.txt").unlink(), "vocabulary.txt: expected the vocabulary"),
    "short vocabulary": (lambda f: (f / "vocabulary.txt").write_text("a\nb\n"), "expected 5 lines, found 2"),
    "cut vocabulary": (lambda f: _truncate(f / "vocabulary.txt", 1), "vocabulary.txt: expected 5 lines, found 4 whole"),
    "repeated symbol": (lambda f: (f / "vocabulary.txt").write_text("a\nb\nc\nd\na\n"), "found 1 repeated"),
    "not UTF-8": (lambda f: (f / "vocabulary.txt").write_bytes(b"\xff\n"), "vocabulary.txt: expected UTF-8 text"),
    "no array": (lambda f: (f / "test.npy").unlink(), "test.npy: expected an array of 4 ids, found no such file"),
    "truncated array": (lambda f: _truncate(f / "valid.npy", 3), "valid.npy: expected a whole .npy array"),
    "empty file": (lambda f: (f / "valid.npy").write_bytes(b""), "valid.npy: expected a whole .npy array"),
    "foreign file": (lambda f: (f / "valid.npy").write_text("hello"), "valid.npy: expected a whole .npy array"),
    "pickle": (lambda f: (f / "valid.npy").write_bytes(pickle.dumps([1])), "valid.npy: expected a whole .npy array"),
    "wrong dtype": (lambda f: _save(f, np.zeros(7, np.int64)), "expected a one-dimensional int32 array, found int64"),
    "wrong rank": (lambda f: _save(f, np.zeros((7, 1), np.int32)), "int32 array, found int32 with 2 dimensions"),
    "wrong length": (lambda f: _save(f, np.zeros(8, np.int32)), "train.npy: expected 7 ids, at least one, found 8"),
    "no ids": (
        lambda f: (_save(f, np.zeros(0, np.int32)), _edit(f, tokens={"train": 0, "valid": 3, "test": 4})),
        "train.npy: expected 0 ids, at least one, found 0",
    ),
    "id too large": (lambda f: _save(f, np.full(7, 5, np.int32)), "expected ids from 0 to 4, found 5 to 5"),
    "negative id": (lambda f: _save(f, np.full(7, -1, np.int32)), "expected ids from 0 to 4, found -1 to -1"),
    "changed ids": (lambda f: _save(f, np.zeros(7, np.int32)), "expected the fingerprint .*; prepare the corpus"),
    "not JSON": (lambda f: (f / "corpus.json").write_text("{"), "corpus.json: expected JSON"),
    "no object": (lambda f: (f / "corpus.json").write_text("[]"), "corpus.json: expected the key 'name'"),
    "missing key": (lambda f: _edit(f, fingerprint=None), "corpus.json: expected the key 'fingerprint'"),
    "foreign level": (lambda f: _edit(f, level="syllable"), "level must be one of word, character, found 'syllable'"),
    "missing split": (lambda f: _edit(f, tokens={"train": 7}), "expected token counts of .*, found train"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_load_refuses_damage_and_names_the_file(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    write_corpus(tmp_path / "c", "t", SMALL)
    damage(tmp_path / "c")
    with pytest.raises(InputError, match=message) as caught:
        Corpus.load(tmp_path / "c")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_load_refuses_a_contradicting_level_and_an_unknown_split(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", "t", SMALL)
    with pytest.raises(InputError, match="prepared at word level, found a request for 'character'"):
        Corpus.load(tmp_path / "c", level="character")
    with pytest.raises(InputError, match="level must be one of"):
        Corpus.load(tmp_path / "c", level="syllable")
    with pytest.raises(InputError, match="split must be one of train, valid, test, found 'dev'"):
        Corpus.load(tmp_path / "c").split("dev")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "expected a prepared corpus .* or raw text .*, found neither"),
        ({"train.txt": b"a", "valid.txt": b"a"}, r"test.txt: expected this file beside train.txt, found nothing"),
        ({"wiki.valid.tokens": b"a", "wiki.test.tokens": b"a"}, r"wiki.train.tokens: expected this file"),
        ({"train.txt": b"a", "valid.txt": b"\n \n", "test.txt": b"a"}, r"valid.txt: expected text, found none"),
        ({"train.txt": b"", "valid.txt": b"a", "test.txt": b"a"}, r"train.txt: expected text, found none"),
        ({"train.txt": b"a \xff", "valid.txt": b"a", "test.txt": b"a"}, r"train.txt: expected UTF-8 text"),
    ],
)
def test_load_refuses_bad_raw_text(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        Corpus.load(tmp_path)


def test_load_refuses_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder with a corpus, found nothing"):
        Corpus.load(tmp_path / "none")
    (tmp_path / "file").write_text("a")
    with pytest.raises(InputError, match="expected a folder with a corpus, found a file"):
        Corpus.load(tmp_path / "file")
    with pytest.raises(InputError, match="expected a folder to write the corpus to, found a file"):
        write_corpus(tmp_path / "file", "t", SMALL)

"""Prepared translation corpora: what they hold, that nothing leaks between splits, what is refused."""

import hashlib
import io
import json
import os
import re
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import InputError
from reproduction.data.language.bible import book_of, chapter_of, tokenise
from reproduction.data.translation import bible_pairs, iwslt14, multi30k, wmt17
from reproduction.data.translation.parallel_text import every_nth, of_like_lengths, read_aligned, write_pairs
from reproduction.data.translation.subwords import MosesBPE, SentencePieces

SPLITS = ("train", "valid", "test")
laws = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def bible(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "bible"
    description = bible_pairs.prepare(folder, max_tokens=12, vocabulary=600, max_eval_pairs=100)
    return folder, description


def lines(file):
    return file.read_text(encoding="utf-8").splitlines()


def test_subwords_join_to_the_text(bible):
    folder, _ = bible
    for split in SPLITS:
        for language in ("wyc", "kjv"):
            joined = [
                line.replace(" ", "").replace("\u2581", " ").strip()
                for line in lines(folder / "subwords" / f"{split}.{language}")
            ]
            assert joined == lines(folder / f"{split}.{language}")


def test_sentences_are_short_and_alike(bible):
    folder, description = bible
    for split in SPLITS:
        pairs = read_aligned([folder / f"{split}.{language}" for language in ("wyc", "kjv")])
        assert len(pairs) == description["pairs"][split]
        for pair in pairs:
            a, b = (len(tokenise(text)) for text in pair)
            assert min(a, b) >= 3 and max(a, b) <= 12 and max(a, b) <= 2 * min(a, b)


def test_chapters_stay_together_and_psalms_out_of_wycliffe():
    verses = bible_pairs.aligned_verses("wyc", "kjv")
    assert {book_of(verse_id) for verse_id, *_ in verses} == set(range(1, 67)) - {19}
    assert 19 in {book_of(verse_id) for verse_id, *_ in bible_pairs.aligned_verses("kjv", "web")}
    chapters = [chapter_of(verse_id) for verse_id, *_ in verses]
    splits = bible_pairs.split_chapters(chapters, seed=3)
    assert set().union(*splits.values()) == set(chapters) and sum(map(len, splits.values())) == len(set(chapters))
    assert splits == bible_pairs.split_chapters(chapters[::-1], seed=3) != bible_pairs.split_chapters(chapters, seed=4)


def test_the_same_seed_gives_the_same_bytes(bible, tmp_path):
    folder, description = bible
    again = bible_pairs.prepare(tmp_path / "again", max_tokens=12, vocabulary=600, max_eval_pairs=100)
    assert again == description == json.loads((folder / "pairs.json").read_text())
    for file in folder.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "again" / file.relative_to(folder)).read_bytes()


CLAUSES = st.lists(st.text("ab ", min_size=1, max_size=9).map(str.strip).filter(bool), min_size=1, max_size=6)


@given(CLAUSES, CLAUSES)
@laws
def test_paired_clauses_are_the_verse_in_order(left, right):
    source, target = (" ".join(f"{clause};" for clause in clauses) for clauses in (left, right))
    pairs = bible_pairs.clauses(source, target)
    reachable = max(len(left), len(right)) <= 2 * min(len(left), len(right))
    assert bool(pairs) == reachable
    if pairs:
        for side, text in enumerate((source, target)):
            squeezed = re.sub(r"\s", "", "".join(pair[side] for pair in pairs))
            assert squeezed == re.sub(r"\s", "", text)
    if left == right:
        assert pairs == [(f"{clause};", f"{clause};") for clause in left]


def published_multi30k():
    folder = os.environ.get("AP_DATA_DIR")
    return Path(folder) if folder and (Path(folder) / "multi30k" / "train.de").is_file() else None


@pytest.fixture
def captions(tmp_path, monkeypatch):
    """A folder with made-up captions, whose checksums are the published ones."""
    folder = tmp_path / "data" / "multi30k"
    folder.mkdir(parents=True)
    for part, number in (("train", 30), ("val", 4), ("test_2016_flickr", 5)):
        for language, word in (("de", "Hund"), ("en", "Dog")):
            text = "".join(f"{word} number {part} {n}. \n" for n in range(number))
            (folder / f"{part}.{language}").write_text(text)
            monkeypatch.setitem(multi30k.CHECKSUMS, f"{part}.{language}", hashlib.sha256(text.encode()).hexdigest())
    return tmp_path / "data"


@pytest.mark.parametrize("source", ["de", "en"])
def test_multi30k_in_either_direction(captions, tmp_path, source):
    description = multi30k.prepare(tmp_path / "out", source, data_dir=captions, vocabulary=40, lower_case=True)
    target = {"de": "en", "en": "de"}[source]
    assert description["languages"] == [source, target] and description["pairs"] == {"train": 30, "valid": 4, "test": 5}
    assert lines(tmp_path / "out" / "valid.en")[0] == "dog number val 0."
    assert (tmp_path / "out" / "subwords" / "train.de").is_file()


def test_multi30k_refuses_other_text(captions, tmp_path):
    file = captions / "multi30k" / "val.en"
    file.write_text(file.read_text().replace("0", "9"))
    with pytest.raises(InputError, match="val.en: expected the published text"):
        multi30k.prepare(tmp_path / "out", data_dir=captions, vocabulary=40)
    multi30k.prepare(tmp_path / "any", data_dir=captions, vocabulary=40, any_text=True)
    file.unlink()
    with pytest.raises(InputError, match="val.en: expected a file of Multi30k, found none; get it from github.com"):
        multi30k.prepare(tmp_path / "out", data_dir=captions)
    assert not (tmp_path / "out").exists()


def add_member(archive, name, text):
    info = tarfile.TarInfo(name)
    info.size = len(text.encode())
    archive.addfile(info, io.BytesIO(text.encode()))


def test_iwslt14_follows_fairseqs_recipe(tmp_path):
    archive = tmp_path / "de-en.tgz"
    words = [f"wort{n % 7} haus{n % 5}" for n in range(60)]
    with tarfile.open(archive, "w:gz") as opened:
        for language in ("de", "en"):
            speech = [f"Guten {word}, {language}!" for word in words]
            speech[4] = "x " * 9 if language == "de" else "x"  # too unlike
            tags = ["<url>http://x</url>", "<title>Ein Titel hier</title>", "<talkid>1</talkid>", *speech]
            add_member(opened, f"de-en/train.tags.de-en.{language}", "\n".join(tags) + "\n")
            for name in iwslt14.TESTS:
                text = f'<doc>\n<seg id="1"> It’s {name} </seg>\n<seg id="2">Zwei.</seg>\n</doc>\n'
                add_member(opened, f"de-en/IWSLT14.{name}.de-en.{language}.xml", text)
    description = iwslt14.prepare(tmp_path / "out", archive=archive, merges=30)
    assert description["pairs"] == {"train": 58, "valid": 2, "test": 10}
    assert lines(tmp_path / "out" / "test.en")[:2] == ["it's ted.dev2010", "zwei."]
    assert lines(tmp_path / "out" / "train.de")[0] == "ein titel hier"
    joined = [line.replace("@@ ", "") for line in lines(tmp_path / "out" / "subwords" / "train.en")]
    assert joined[1] == "guten wort0 haus0 , en !"
    with pytest.raises(InputError, match="expected SHA-256 abc"):
        iwslt14.prepare(tmp_path / "out", archive=archive, checksum="abc")
    with pytest.raises(InputError, match="found no such file; get it from http"):
        iwslt14.prepare(tmp_path / "out", archive=tmp_path / "none.tgz")
    (tmp_path / "cut.tgz").write_bytes(archive.read_bytes()[:300])
    with pytest.raises(InputError, match="cut.tgz: expected a whole tar archive"):
        iwslt14.prepare(tmp_path / "new", archive=tmp_path / "cut.tgz")
    assert not (tmp_path / "new").exists()


def test_wmt17_follows_fairseqs_recipe(tmp_path):
    folder = tmp_path / "wmt17"
    folder.mkdir()
    for url, name in wmt17.TRAINING.items():
        with tarfile.open(folder / url.rsplit("/", 1)[1], "w:gz") as opened:
            for language in ("en", "de"):
                text = "".join(f"Mother-in-law {n % 9} said „{language}“\n" for n in range(70))
                add_member(opened, f"{name}.{language}", text)
    with tarfile.open(folder / "test-full.tgz", "w:gz") as opened:
        for name in wmt17.TEST_FILES:
            add_member(opened, name, '<seg id="1">One - two</seg>\n')
    description = wmt17.prepare(tmp_path / "out", archives=folder, merges=20)
    assert description["pairs"] == {"train": 208, "valid": 2, "test": 1}
    assert lines(tmp_path / "out" / "train.en")[0] == 'Mother-in-law 0 said "en"'
    assert "@-@" in lines(tmp_path / "out" / "subwords" / "train.en")[0].replace("@@ ", "")
    (folder / "test-full.tgz").unlink()
    with pytest.raises(InputError, match="test-full.tgz: expected an archive, found no such file; get it from"):
        wmt17.prepare(tmp_path / "new", archives=folder, merges=20)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=30), st.integers(2, 5))
@laws
def test_cleaning_and_splitting(sizes, n):
    pairs = [("a" * a, "b" * b) for a, b in sizes]
    kept = of_like_lengths(pairs, lambda *pair: tuple(map(len, pair)), longest=9, ratio=1.5)
    assert kept == [
        (a, b) for a, b in pairs if 1 <= len(a) <= 9 and 1 <= len(b) <= 9 and 2 / 3 <= len(a) / len(b) <= 1.5
    ]
    rest, nth = every_nth(pairs, n)
    assert nth == pairs[n - 1 :: n] and len(rest) + len(nth) == len(pairs)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"target": "wyc"}, "expected another version than the source"),
        ({"max_pairs": 0}, "--max-pairs: expected at least 1"),
        ({"max_tokens": 2}, "--max-tokens: expected at least 3"),
        ({"vocabulary": 10**6}, "vocabulary: expected a size that the text allows"),
    ],
)
def test_bad_bible_pairs_leave_nothing(tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        bible_pairs.prepare(tmp_path / "out", **flags)
    assert not list(tmp_path.iterdir())


def test_bad_pairs_are_refused(tmp_path):
    subwords = SentencePieces.learn(["a b c d"] * 9, 12)
    good = {split: [("a b", "c d")] for split in SPLITS}
    write_pairs(tmp_path / "good", "good", ("x", "y"), good, subwords, {})
    for bad in ([], [("a", " ")], [("a\nb", "c")]):
        with pytest.raises(InputError, match="expected"):
            write_pairs(tmp_path / "bad", "bad", ("x", "y"), good | {"valid": bad}, subwords, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder"):
        write_pairs(tmp_path / "file", "bad", ("x", "y"), good, subwords, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "good"]
    # writing again replaces everything
    write_pairs(tmp_path / "good", "good", ("x", "y"), {split: [("d d", "a a")] for split in SPLITS}, subwords, {})
    assert lines(tmp_path / "good" / "test.x") == ["d d"]


def test_moses_subwords_escape_and_join():
    subwords = MosesBPE.learn([("en", "Don't stop & go")] * 5, 10)
    assert subwords.cut("Don't", "en").replace("@@ ", "") == "Don &apos;t"

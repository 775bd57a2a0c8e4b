"""Other data for trained models: through the vocabulary and in the layout of the training, from held-out text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import InputError
from reproduction.data.language import bible
from reproduction.data.language.bible import book_of, chapter_of
from reproduction.data.language.corpus import Corpus, encode, write_corpus
from reproduction.data.language.raw_text import SPLITS
from reproduction.data.shifted import pairs as other_pairs
from reproduction.data.shifted import questions as other_questions
from reproduction.data.shifted import tasks as other_tasks
from reproduction.data.shifted import text as other_text
from reproduction.data.tasks import bible_glue, bible_squad
from reproduction.data.tasks.glue import find_task, load_task
from reproduction.data.tasks.squad import load_squad
from reproduction.data.translation import bible_pairs
from reproduction.data.translation.parallel_text import write_pairs
from reproduction.data.translation.subwords import MosesBPE, SentencePieces, load_subwords
from reproduction.scores.majority import evaluate

pytestmark = pytest.mark.slow

LINES = st.lists(st.lists(st.sampled_from("abcdef"), max_size=5), min_size=1, max_size=6).filter(any)


@given(LINES, LINES)
@settings(max_examples=60, deadline=None)
def test_another_test_split_is_read_by_the_vocabulary_of_the_training(
    train: Sequence[Sequence[str]], other: Sequence[Sequence[str]]
) -> None:
    home = encode("home", dict.fromkeys(SPLITS, train))
    away = home.with_test("away", other, {"why": "law"})
    known = set(home.vocabulary)
    symbols = [away.vocabulary[i] for i in away.ids["test"]]
    assert symbols == [s if s in known else "<unk>" for line in other for s in [*line, "<eos>"]]
    assert away.vocabulary_fingerprint == home.vocabulary_fingerprint and away.fingerprint != ""
    assert all(np.array_equal(away.ids[split], home.ids[split]) for split in ("train", "valid"))
    described = away.description
    assert described["tokens"]["test"] == len(symbols) and described["unknown"]["test"] == symbols.count("<unk>")
    assert described["characters"]["test"] == len("".join(" ".join(line) + "\n" for line in other))
    # What the training split would have said of the same text is said of it here.
    same = encode("home", {"train": train, "valid": train, "test": other})
    assert same.fingerprint == away.fingerprint and same.description["tokens"] == described["tokens"]
    assert same.description["characters"] == described["characters"]


def test_another_corpus_is_a_prepared_folder(tmp_path: Path) -> None:
    home = encode("home", dict.fromkeys(SPLITS, [["a", "b"]]))
    home.with_test("away", [["a"], ["c"]], {}).save(tmp_path / "away")
    found = Corpus.load(tmp_path / "away")
    assert (found.name, found.description["unknown"]["test"]) == ("away", 1)
    with pytest.raises(InputError, match="away: expected text in the test split, found none"):
        home.with_test("away", [[]], {})


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "bbe"
    bible.prepare(str(folder), "bbe", max_train_tokens=20_000)
    return folder


def test_another_version_is_of_the_test_books_alone(text: Path, tmp_path: Path) -> None:
    away = other_text.prepare(tmp_path / "kjv", text, "bible-kjv", limit=50)
    home = Corpus.load(text)
    books = home.description["books"]["test"]
    verses = [bible.tokenise(verse) for i, verse in bible.verses("kjv") if book_of(i) in books][:50]
    assert away.ids["test"].size == sum(len(verse) + 1 for verse in verses)
    found = [away.vocabulary[i] for i in away.ids["test"]]
    expected = [word for verse in verses for word in [*verse, "<eos>"]]
    assert all(a in (b, "<unk>") for a, b in zip(found, expected, strict=True)) and "<unk>" in found
    for name, message in (("bible-bbe", "found the same"), ("tinyshakespeare", "named with --data-dir")):
        with pytest.raises(InputError, match=message):
            other_text.prepare(tmp_path / "x", text, name)
    with pytest.raises(InputError, match="--limit: expected at least 1, found 0"):
        other_text.prepare(tmp_path / "x", text, "bible-kjv", limit=0)
    assert not (tmp_path / "x").exists()


def test_a_play_is_cut_as_the_training_text_was(text: Path, tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text("Me:\nWell-met, let's go.\n\n\nYou:\nAy & no;\nso.\n")
    wiki = ["Me : Well @-@ met , let 's go . <eos>", "You : Ay & no ; so . <eos>"]
    words = [line.split()[:-1] for line in wiki]
    write_corpus(tmp_path / "raw", "wiki", dict.fromkeys(SPLITS, words))
    away = other_text.prepare(tmp_path / "a", tmp_path / "raw", "tinyshakespeare", data_dir=tmp_path)
    assert " ".join(away.vocabulary[i] for i in away.ids["test"]) == " ".join(wiki)
    one = other_text.prepare(tmp_path / "b", tmp_path / "raw", "tinyshakespeare", data_dir=tmp_path, limit=1)
    assert " ".join(one.vocabulary[i] for i in one.ids["test"]) == wiki[0]
    of_bible = other_text.prepare(tmp_path / "c", text, "tinyshakespeare", data_dir=tmp_path)
    assert of_bible.ids["test"].size == len(bible.tokenise("Me: Well-met, let's go. You: Ay & no; so.")) + 2
    with pytest.raises(InputError, match="expected a model of a Bible version, found one of wiki"):
        other_text.prepare(tmp_path / "d", tmp_path / "raw", "bible-kjv")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "wyc-bbe"
    bible_pairs.prepare(str(folder), "wyc", "bbe", max_tokens=12, vocabulary=400, max_pairs=300)
    return folder


def test_other_pairs_are_of_chapters_that_were_not_trained_on(pairs: Path, tmp_path: Path) -> None:
    described = other_pairs.prepare(tmp_path / "away", pairs, "bible-ylt-bbe", limit=40)
    assert described["languages"] == ["wyc", "bbe"] and described["pairs"] == {"test": 40}
    lines = [(tmp_path / "away" / f"test.{end}").read_text().splitlines() for end in ("wyc", "bbe")]
    found = bible_pairs.fit_pairs("wyc", "bbe", "clause", 12, True)
    chapters = bible_pairs.split_chapters([chapter for chapter, _ in found], seed=0)
    of_pair: dict[tuple[str, str], set[int]] = {}
    for chapter, pair in bible_pairs.fit_pairs("ylt", "bbe", "clause", 12, True):
        of_pair.setdefault(pair, set()).add(chapter)
    assert all(of_pair[pair] & chapters["test"] for pair in zip(*lines, strict=True))
    # cut by the subwords of the training
    model = SentencePieces((pairs / "subwords" / "sentencepiece.model").read_bytes())
    cut = (tmp_path / "away" / "subwords" / "test.wyc").read_text().splitlines()
    assert cut == [model.cut(line, "wyc") for line in lines[0]]
    assert not (tmp_path / "away" / "train.wyc").exists()


def test_captions_have_the_direction_and_the_case_of_the_training(tmp_path: Path) -> None:
    (tmp_path / "multi30k").mkdir()
    (tmp_path / "multi30k" / "test_2017_mscoco.de").write_text("Ein  Hund.\nDer Ball\n")
    (tmp_path / "multi30k" / "test_2017_mscoco.en").write_text("A dog. \nThe ball\n")
    lines = ["a dog", "ein hund", "the ball", "der ball"] * 3
    codes = MosesBPE.learn((("en", line) for line in lines), 3, lower_case=True)
    splits = dict.fromkeys(SPLITS, [("a dog", "ein hund")])
    write_pairs(tmp_path / "home", "home", ("en", "de"), splits, codes, {"lower_case": True})
    other_pairs.prepare(tmp_path / "away", tmp_path / "home", "test_2017_mscoco", data_dir=tmp_path)
    assert (tmp_path / "away" / "test.en").read_text() == "a dog.\nthe ball\n"
    assert (tmp_path / "away" / "test.de").read_text() == "ein hund.\nder ball\n"
    assert (tmp_path / "away" / "subwords" / "test.en").read_text().splitlines()[0] == codes.cut("a dog.", "en")
    for name, message in (("bible-ylt-bbe", "a model of two Bible versions"), ("news", "--name: expected bible-")):
        with pytest.raises(InputError, match=message):
            other_pairs.prepare(tmp_path / "x", tmp_path / "home", name, data_dir=tmp_path)
    with pytest.raises(InputError, match="expected a local folder that holds multi30k/"):
        other_pairs.prepare(tmp_path / "x", tmp_path / "home", "test_2017_mscoco")
    with pytest.raises(InputError, match="pairs.json: expected the description"):
        other_pairs.prepare(tmp_path / "x", tmp_path, "test_2017_mscoco")


@pytest.mark.parametrize("flags", [{}, {"lower_case": True}, {"aggressive_dashes": True}])
def test_subwords_are_read_as_they_were_saved(flags: dict[str, bool], tmp_path: Path) -> None:
    learned = MosesBPE.learn([("en", "the well-known low lower lowest & the new newer newest")] * 3, 12, **flags)
    learned.save(tmp_path)
    again = load_subwords(tmp_path, learned.description)
    for line in ("The lowest-new & well", "lower THE"):
        assert again.cut(line, "en") == learned.cut(line, "en")
    with pytest.raises(InputError, match="expected the subwords of a corpus"):
        load_subwords(tmp_path / "none", {})


HANS = "gold_label\tsentence1\tsentence2\theuristic\n"
HANS += "".join(f"{label}\tp{i} .\th{i} .\tlexical_overlap\n" for i, label in enumerate(["non-entailment"] * 3))
HANS += "entailment\tp3 .\th3 .\tconstituent\n"
PAWS = "1\tA `` b\tB a\t0\n2\tc\td\t1\n3\te\tf\t1\n"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    for name, content in (("hans/hans_eval_30000.tsv", HANS), ("paws/dev.tsv", PAWS)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    return tmp_path


def test_hans_and_paws_are_read_as_the_tasks_that_they_are_for(published: Path, tmp_path: Path) -> None:
    described = other_tasks.prepare(tmp_path / "h", "rte", "HANS", data_dir=published)
    assert described["classes"] == {"entailment": 1, "not_entailment": 3}
    rows = load_task(find_task("RTE"), tmp_path / "h")["validation"]
    assert rows["sentence1"] == [f"p{i} ." for i in range(4)] and rows["label"] == [1, 1, 1, 0]
    other_tasks.prepare(tmp_path / "p", "MRPC", "PAWS", data_dir=published)
    rows = load_task(find_task("MRPC"), tmp_path / "p")["validation"]
    assert rows["sentence2"] == ["B a", "d", "f"] and rows["label"] == [0, 1, 1]
    limited = other_tasks.prepare(tmp_path / "l", "MRPC", "PAWS", data_dir=published, limit=2)
    kept = load_task(find_task("MRPC"), tmp_path / "l")["validation"]["sentence2"]
    assert limited["rows"] == 2 and kept == [s for s in ("B a", "d", "f") if s in kept]


@pytest.mark.parametrize(
    ("task", "name", "change", "message"),
    [
        ("RTE", "HANS", ("hans/hans_eval_30000.tsv", "heuristic", "rule"), "line 1: expected the fields gold_label"),
        ("RTE", "HANS", ("hans/hans_eval_30000.tsv", "entailment\tp3", "maybe\tp3"), "line 5: expected entailment or"),
        ("MRPC", "PAWS", ("paws/dev.tsv", "c\td", "c d"), "line 2: expected 4 fields between tabs, found 3"),
        ("MRPC", "PAWS", ("paws/dev.tsv", "f\t1", "f\t2"), "line 3: expected 0 or 1 as label, found '2'"),
        ("MRPC", "HANS", ("paws/dev.tsv", "c", "c"), "HANS: expected the task RTE, found MRPC"),
        ("MRPC", "QQP", ("paws/dev.tsv", "c", "c"), "--name: expected bible-VERSION-VERSION or one of HANS, PAWS"),
        ("Bible-Order", "bible-wyc-kjv", ("paws/dev.tsv", "c", "c"), "expected the stand-ins of the training"),
    ],
)
def test_bad_rows_are_refused_by_their_place(
    published: Path, tmp_path: Path, task: str, name: str, change: tuple[str, str, str], message: str
) -> None:
    file, old, new = change
    (published / file).write_text((published / file).read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        other_tasks.prepare(tmp_path / "out", task, name, data_dir=published)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="paws/dev.tsv: expected a file, found none; get it from github.com"):
        other_tasks.prepare(tmp_path / "out", "MRPC", "PAWS", data_dir=tmp_path)
    with pytest.raises(InputError, match="named with --data-dir or AP_DATA_DIR, found none"):
        other_questions.prepare(tmp_path / "out", "adversarial-qa")


def test_stand_ins_away_are_of_books_that_were_held_out(tmp_path: Path) -> None:
    home = bible_glue.prepare(tmp_path / "glue", max_train=20, max_eval=20)
    verses = {text: i for version in ("wyc", "kjv") for i, text in bible.verses(version)}
    other_tasks.prepare(tmp_path / "t", "Bible-Paraphrase", "bible-wyc-kjv", trained=tmp_path / "glue", limit=30)
    rows = load_task(find_task("Bible-Paraphrase"), tmp_path / "t")["validation"]
    assert len(rows) == 30 and sum(rows["label"]) == 15
    held_out = home["books"]["valid"]
    assert {book_of(verses[text]) for text in rows["sentence1"]} <= set(held_out)
    for row in rows:
        assert (verses[row["sentence1"]] == verses[row["sentence2"]]) == bool(row["label"])

    home = bible_squad.prepare(tmp_path / "squad", max_train=8, max_eval=8)
    other_questions.prepare(tmp_path / "q", "bible-ylt-web", trained=tmp_path / "squad", limit=12)
    asked = load_squad(tmp_path / "q")["validation"]
    assert len(asked) == 12
    books = {*home["books"]["valid"], *home["books"]["test"]}
    assert {chapter_of(int(key)) // 1000 for key in asked["id"]} <= books
    ylt, web = (dict(bible.verses(version)) for version in ("ylt", "web"))
    for row in asked:
        assert row["question"] == ylt[int(row["id"])] and row["answers"]["text"] == [web[int(row["id"])]]


def test_adversarial_questions_become_squads(tmp_path: Path) -> None:
    folder = tmp_path / "adversarial_qa"
    folder.mkdir()
    rows = [
        {"id": f"q{i}", "title": "T", "context": f"It is number {i}.", "question": "Which?"}
        | {"answers": {"text": [f"number {i}"], "answer_start": [6]}}
        for i in range(4)
    ]
    file = folder / "adversarialqa_validation.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    described = other_questions.prepare(tmp_path / "out", "adversarial-qa", data_dir=tmp_path)
    assert described["rows"] == 4
    assert [{name: row[name] for name in rows[0]} for row in load_squad(tmp_path / "out")["validation"]] == rows
    assert other_questions.prepare(tmp_path / "two", "adversarial-qa", data_dir=tmp_path, limit=2)["rows"] == 2
    file.write_text(file.read_text() + '{"id": "q5"}\n')
    with pytest.raises(InputError, match="line 5: expected a question as JSON"):
        other_questions.prepare(tmp_path / "bad", "adversarial-qa", data_dir=tmp_path)
    assert not (tmp_path / "bad").exists()


def test_the_majority_class_of_the_training_data_is_scored_out_of_distribution(published: Path, tmp_path: Path) -> None:
    home = tmp_path / "home" / "RTE"
    home.mkdir(parents=True)
    lines = ["index\tsentence1\tsentence2\tlabel", *(f"{i}\ta\tb\tnot_entailment" for i in range(3))]
    (home / "train.tsv").write_text("\n".join([*lines, "3\ta\tb\tentailment"]) + "\n")
    other_tasks.prepare(tmp_path / "away", "RTE", "HANS", data_dir=published)
    task = find_task("RTE")
    found = evaluate(task, str(tmp_path / "home"), str(tmp_path / "away"))
    assert found["validation"] == {"accuracy": 0.75, "glue_score": 75.0}
    with pytest.raises(InputError, match="expected a split validation in the data, found train"):
        evaluate(task, str(tmp_path / "home"))

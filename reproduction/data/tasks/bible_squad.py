"""A stand-in for SQuAD, made of two Bible versions that install with pip, in SQuAD's JSON. It is not SQuAD.

The question is a verse in one version, the context a passage of the other, and the answer is the verse in it. Whole
books are held out. Run ``python -m reproduction.data.tasks.bible_squad --help``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from random import Random
from typing import Any

import numpy as np

from attention_pruning import InputError
from reproduction.data.language.bible import VERSIONS, book_of
from reproduction.data.preparation import run_preparation
from reproduction.data.tasks.bible_glue import MIN_WORDS, Verse, check_limits, overlap, shared_verses, usable, words
from reproduction.runs.command import run_main
from reproduction.runs.files import atomic_path, make_folder, write_json

DESCRIPTION_FILE = "questions.json"
#: SQuAD's test set is not public, so that there are two files; the test books go to the second.
FILES = {"train-v1.1.json": ("train",), "dev-v1.1.json": ("valid", "test")}

Passage = Sequence[Verse]


def passages(verses: Sequence[Verse], size: int) -> Iterator[list[Verse]]:
    """Consecutive verses of a book, as many as stay within ``size`` words of the second version.

    What is left at the end of a book is passed over if it is shorter than half of that.
    """
    for _, book in groupby(verses, key=lambda verse: book_of(verse[0])):
        passage: list[Verse] = []
        length = 0
        for verse in book:
            more = len(words(verse[2]))
            if passage and length + more > size:
                yield passage
                passage, length = [], 0
            passage.append(verse)
            length += more
        if length >= size / 2:
            yield passage


def paragraph(passage: Passage, chosen: Sequence[Verse]) -> dict[str, Any]:
    """A passage with questions about some of its verses, as SQuAD's JSON has it."""
    context, starts = "", {}
    for verse_id, _, text in passage:
        starts[verse_id] = len(context)
        context += f"{text} "
    questions = [
        {"id": f"{verse_id}", "question": question, "answers": [{"text": text, "answer_start": starts[verse_id]}]}
        for verse_id, question, text in chosen
    ]
    return {"context": context.rstrip(), "qas": questions}


def draw(
    cut: Sequence[Passage], is_usable: Callable[[str], bool], questions: int, limit: int | None, random: Random
) -> list[tuple[Passage, list[Verse]]]:
    """Passages in a random order and the verses that are asked for in each, ``limit`` questions in all.

    Raises
    ------
    InputError
        If no verse is fit to be asked for.
    """
    asked: list[tuple[Passage, list[Verse]]] = []
    left = len(cut) * questions if limit is None else limit
    for passage in random.sample(cut, len(cut)):
        fit = [verse for verse in passage if is_usable(verse[1]) and is_usable(verse[2])]
        if chosen := random.sample(fit, min(questions, len(fit), left)):
            asked.append((passage, chosen))
            left -= len(chosen)
    if not asked:
        raise InputError("--max-words: expected a limit that leaves questions in both files, found none")
    return asked


def as_json(asked: Iterable[tuple[Passage, Sequence[Verse]]]) -> str:
    """A file of SQuAD with these passages and questions, an article a book."""
    articles: dict[int, list[dict[str, Any]]] = {}
    for passage, chosen in asked:
        articles.setdefault(book_of(passage[0][0]), []).append(paragraph(passage, chosen))
    data = [{"title": f"Book {book}", "paragraphs": articles[book]} for book in sorted(articles)]
    return json.dumps({"version": "1.1", "data": data}, ensure_ascii=False)


def most_alike(asked: Sequence[tuple[Passage, Sequence[Verse]]]) -> float:
    """Share of the questions whose answer is the verse that has most words in common with the question."""

    def best(question: str, passage: Passage) -> Verse:
        return max(passage, key=lambda verse: overlap(question, verse[2]))

    return round(float(np.mean([best(verse[1], passage) == verse for passage, verses in asked for verse in verses])), 4)


def prepare(
    out: str | os.PathLike[str],
    versions: Sequence[str] = ("kjv", "bbe"),
    *,
    passage_words: int = 300,
    questions: int = 4,
    max_train: int | None = None,
    max_eval: int | None = 500,
    max_words: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the questions to the folder ``out``; the arguments are the command's flags. Returns their description."""
    check_limits(max_train=max_train, max_eval=max_eval)
    for flag, value, least in (
        ("max-words", max_words, MIN_WORDS),
        ("passage-words", passage_words, 2 * max_words),
        ("questions", questions, 1),
    ):
        if value < least:
            raise InputError(f"--{flag}: expected at least {least}, found {value}")
    verses, books = shared_verses(versions, seed)
    is_usable = usable((text for _, *texts in verses for text in texts), max_words)
    folder, random = make_folder(out), Random(seed)
    (folder / DESCRIPTION_FILE).unlink(missing_ok=True)  # an interrupted replacement is not described as another
    digest, counts, alike = hashlib.sha256(), {}, {}
    for file, splits in FILES.items():
        of_split = [verse for verse in verses if any(book_of(verse[0]) in books[split] for split in splits)]
        limit = max_train if "train" in splits else max_eval
        asked = draw(list(passages(of_split, passage_words)), is_usable, questions, limit, random)
        text = as_json(asked)
        digest.update(f"{file}\n{text}".encode())
        with atomic_path(folder / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
        counts[file], alike[file] = sum(len(chosen) for _, chosen in asked), most_alike(asked)
    description = {
        "what": "a stand-in for SQuAD, made of Bible verses; not SQuAD",
        "source": [f"{VERSIONS[version]}, PyPI package pythonbible-{version}" for version in versions],
        "split_rule": "whole books, about 2/11 of the verses for dev",
        "books": books,
        "passage_words": passage_words,
        "max_words": max_words,
        "seed": seed,
        "questions": counts,
        "verse_of_most_overlap_is_answer": alike,
        "fingerprint": digest.hexdigest()[:16],
    }
    write_json(folder / DESCRIPTION_FILE, description)
    return description


def report(description: Mapping[str, Any]) -> tuple[str, str]:
    """Fingerprint of the questions, and one line about them."""
    counts = ", ".join(f"{file} {number:,}" for file, number in description["questions"].items())
    return description["fingerprint"], f"questions: {counts} ({description['fingerprint']})"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.data.tasks.bible_squad",
        description="Write a replacement for SQuAD 1.1, in its JSON, from two Bible versions; it is not SQuAD.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, default=argparse.SUPPRESS, help="folder to write; it serves as a data folder")
    add(
        "--versions",
        nargs=2,
        default=("kjv", "bbe"),
        choices=VERSIONS,
        help="version of the question, and version of its context",
    )
    add("--passage-words", type=int, default=300, help="words of a context, at most; it is whole verses")
    add("--questions", type=int, default=4, help="questions about a context, at most")
    add("--max-train", type=int, help="training questions to keep, drawn with the seed; None: all")
    add("--max-eval", type=int, default=500, help="questions of dev to keep, drawn with the seed")
    add("--max-words", type=int, default=20, help="longest question and answer")
    add("--seed", type=int, default=0, help="seed of the draw of books and of all else")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_preparation(build_parser(), prepare, report, argv)


if __name__ == "__main__":
    run_main(main)

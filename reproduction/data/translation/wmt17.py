"""WMT17 English to German, 4.5 million sentence pairs: the recipe of fairseq's examples.

Europarl, Common Crawl and News Commentary, punctuation normalised, aggressively split Moses tokens (sacremoses), every
100th pair for validation, newstest2014 for testing, 40,000 joint merges by subword-nmt, then pairs of 1 to 250 subwords
and at most 1.5 times as long on one side. Takes hours and tens of gigabytes of memory.

Run ``python -m reproduction.data.translation.wmt17 --help``.
"""

from __future__ import annotations

import argparse
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from attention_pruning.errors import InputError
from reproduction.data.preparation import run_preparation
from reproduction.data.sources import DATA_DIR_VARIABLE, member_lines, opened_archive, segments
from reproduction.data.translation.parallel_text import every_nth, of_like_lengths, report, sha256, write_pairs
from reproduction.data.translation.subwords import MosesBPE
from reproduction.runs.command import run_main

FOLDER = "wmt17"
LANGUAGES = ("en", "de")
#: Where each archive is published, and the files of its training text, without their language.
TRAINING = {
    "http://statmt.org/wmt13/training-parallel-europarl-v7.tgz": "training/europarl-v7.de-en",
    "http://statmt.org/wmt13/training-parallel-commoncrawl.tgz": "commoncrawl.de-en",
    "http://data.statmt.org/wmt17/translation-task/training-parallel-nc-v12.tgz": "training/news-commentary-v12.de-en",
}
TEST_URL = "http://statmt.org/wmt14/test-full.tgz"
TEST_FILES = ("test-full/newstest2014-deen-src.en.sgm", "test-full/newstest2014-deen-ref.de.sgm")
LONGEST, RATIO, EVERY = 250, 1.5, 100


def normalised(lines: Sequence[str], language: str) -> list[str]:
    """Punctuation as Moses' ``normalize-punctuation``, no control characters, single blanks."""
    from sacremoses import MosesPunctNormalizer

    normalizer = MosesPunctNormalizer(lang=language)
    return [" ".join(_printable(normalizer.normalize(line)).split()) for line in lines]


def _printable(text: str) -> str:
    return "".join(" " if unicodedata.category(character).startswith("C") else character for character in text)


def aligned(name: str, columns: Sequence[list[str]]) -> list[tuple[str, str]]:
    """Two columns as pairs.

    Raises
    ------
    InputError
        If one is longer.
    """
    if len(columns[0]) != len(columns[1]):
        raise InputError(
            f"{name}: expected as many lines in both languages, found {len(columns[0])} and {len(columns[1])}"
        )
    return list(zip(*columns, strict=True))


def prepare(out: str | os.PathLike[str], *, archives: str | os.PathLike[str], merges: int = 40_000) -> dict:
    """Prepare WMT17 in the folder ``out``; the arguments are the command's flags. Returns its description."""
    folder, checksums = Path(archives), {}
    pairs: list[tuple[str, str]] = []
    for url, name in TRAINING.items():
        file = folder / url.rsplit("/", 1)[1]
        with opened_archive(file, f"get it from {url}") as opened:
            columns = [normalised(member_lines(opened, f"{name}.{language}"), language) for language in LANGUAGES]
        pairs += [pair for pair in aligned(name, columns) if all(pair)]
        checksums[file.name] = sha256(file)
    file = folder / TEST_URL.rsplit("/", 1)[1]
    with opened_archive(file, f"get it from {TEST_URL}") as opened:
        test = aligned("newstest2014", [segments(member_lines(opened, name)) for name in TEST_FILES])
    checksums[file.name] = sha256(file)

    train, valid = every_nth(pairs, EVERY)
    texts = ((language, pair[side]) for side, language in enumerate(LANGUAGES) for pair in train)
    subwords = MosesBPE.learn(texts, merges, aggressive_dashes=True)

    def lengths(*pair: str) -> tuple[int, int]:
        return tuple(len(subwords.cut(text, language).split()) for text, language in zip(pair, LANGUAGES, strict=True))

    splits = {
        "train": of_like_lengths(train, lengths, LONGEST, RATIO),
        "valid": of_like_lengths(valid, lengths, LONGEST, RATIO),
    }
    extra = {
        "source": [*TRAINING, TEST_URL],
        "archive_sha256": checksums,
        "split_rule": f"every {EVERY}th for valid; test: newstest2014",
        "seed": None,
        "lower_case": False,
    }
    return write_pairs(out, "wmt17", LANGUAGES, splits | {"test": test}, subwords, extra)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    data_dir = os.environ.get(DATA_DIR_VARIABLE)
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.data.translation.wmt17",
        description="Prepare WMT17 English to German as fairseq's examples do: text and subwords of three splits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="The archives: " + " ".join([*TRAINING, TEST_URL]),
    )
    add = parser.add_argument
    add("--out", required=True, default=argparse.SUPPRESS, help="folder to write")
    add(
        "--archives",
        default=str(Path(data_dir) / FOLDER) if data_dir else FOLDER,
        help=f"folder that holds the four archives; with {DATA_DIR_VARIABLE} set, by default {FOLDER}/ in that folder",
    )
    add("--merges", type=int, default=40_000, help="merge operations of the joint subwords")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_preparation(build_parser(), prepare, report, argv)


if __name__ == "__main__":
    run_main(main)

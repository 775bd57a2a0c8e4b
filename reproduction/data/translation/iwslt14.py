"""IWSLT14 German to English (Cettolo et al., 2014), 160,000 sentence pairs of talks: the recipe of fairseq's examples.

Moses tokens in lower case, pairs of 1 to 175 tokens and at most 1.5 times as long on one side, every 23rd pair for
validation, the TED sets of 2010 to 2012 for testing, 10,000 joint merges by subword-nmt. Tokens are sacremoses', which
follow Moses' perl script but for rare characters.

Run ``python -m reproduction.data.translation.iwslt14 --help``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from attention_pruning.errors import InputError
from reproduction.data.preparation import run_preparation
from reproduction.data.sources import DATA_DIR_VARIABLE, member_lines, opened_archive, segments
from reproduction.data.translation.parallel_text import every_nth, of_like_lengths, report, sha256, write_pairs
from reproduction.data.translation.subwords import MosesBPE, moses_tokens
from reproduction.runs.command import run_main

URL = "http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz"
ARCHIVE = Path("iwslt14") / "de-en.tgz"
LANGUAGES = ("de", "en")
#: Lines of the training files that are no speech, and marks to take off others.
NOT_SPEECH = ("<url>", "<talkid>", "<keywords>")
MARKS = ("<title>", "</title>", "<description>", "</description>")
TESTS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
LONGEST, RATIO, EVERY = 175, 1.5, 23


def training_pairs(columns: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """The sentences of the two ``train.tags`` files, aligned line by line.

    Raises
    ------
    InputError
        If they do not have equally many.
    """
    speech = []
    for lines in columns:
        kept = [line for line in lines if not any(mark in line for mark in NOT_SPEECH)]
        for mark in MARKS:
            kept = [line.replace(mark, "") for line in kept]
        speech.append([" ".join(line.lower().split()) for line in kept])
    if len(speech[0]) != len(speech[1]):
        raise InputError(
            f"iwslt14: expected as many German as English sentences, found {len(speech[0])} and {len(speech[1])}"
        )
    return list(zip(*speech, strict=True))


def prepare(
    out: str | os.PathLike[str], *, archive: str | os.PathLike[str], merges: int = 10_000, checksum: str | None = None
) -> dict:
    """Prepare IWSLT14 in the folder ``out``; the arguments are the command's flags. Returns its description."""
    with opened_archive(archive, f"get it from {URL}") as opened:
        digest = sha256(archive)
        if checksum is not None and checksum != digest:
            raise InputError(f"{archive}: expected SHA-256 {checksum}, found {digest}")
        pairs = training_pairs([member_lines(opened, f"de-en/train.tags.de-en.{language}") for language in LANGUAGES])
        test: list[tuple[str, str]] = []
        for name in TESTS:
            files = (f"de-en/IWSLT14.{name}.de-en.{language}.xml" for language in LANGUAGES)
            sides = [
                [" ".join(line.lower().split()) for line in segments(member_lines(opened, file))] for file in files
            ]
            if len(sides[0]) != len(sides[1]):
                raise InputError(
                    f"iwslt14: expected equally long sides of {name}, found {len(sides[0])} and {len(sides[1])}"
                )
            test += zip(*sides, strict=True)

    def lengths(*pair: str) -> tuple[int, int]:
        return tuple(len(moses_tokens(text, language).split()) for text, language in zip(pair, LANGUAGES, strict=True))

    train, valid = every_nth(of_like_lengths(pairs, lengths, LONGEST, RATIO), EVERY)
    texts = ((language, pair[side]) for side, language in enumerate(LANGUAGES) for pair in train)
    subwords = MosesBPE.learn(texts, merges, lower_case=True)
    extra = {
        "source": URL,
        "archive_sha256": digest,
        "split_rule": f"every {EVERY}rd for valid; test: {', '.join(TESTS)}",
        "seed": None,
        "lower_case": True,
    }
    return write_pairs(out, "iwslt14", LANGUAGES, {"train": train, "valid": valid, "test": test}, subwords, extra)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    data_dir = os.environ.get(DATA_DIR_VARIABLE)
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.data.translation.iwslt14",
        description="Prepare IWSLT14 German to English as fairseq's examples do: text and subwords of three splits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, default=argparse.SUPPRESS, help="folder to write")
    add(
        "--archive",
        default=str(Path(data_dir) / ARCHIVE) if data_dir else str(ARCHIVE.name),
        help=f"de-en.tgz, from {URL}; with {DATA_DIR_VARIABLE} set, by default {ARCHIVE} in that folder",
    )
    add("--checksum", help="SHA-256 that the archive must have; the one found is recorded either way")
    add("--merges", type=int, default=10_000, help="merge operations of the joint subwords")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_preparation(build_parser(), prepare, report, argv)


if __name__ == "__main__":
    run_main(main)

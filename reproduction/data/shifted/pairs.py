"""Other sentence pairs for a translation model that is trained already, cut into the subwords of its training.

- ``bible-SOURCE-TARGET``: for a model of two Bible versions, the chapters that it was not trained on in two others.
- ``test_2017_mscoco`` and Multi30k's other test sets: for a model of German and English, from ``multi30k/`` of the
  local data folder.

The files have the endings of the languages that the model knows, whatever version they are in; there is a test split
alone. Run ``python -m reproduction.data.shifted.pairs --help``.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from attention_pruning import InputError
from reproduction.data.language.bible import VERSIONS
from reproduction.data.preparation import run_preparation
from reproduction.data.shifted.text import add_data_flags, check_limit
from reproduction.data.translation.bible_pairs import fit_pairs, split_chapters
from reproduction.data.translation.multi30k import LANGUAGES, SOURCE, TESTS, local_pairs
from reproduction.data.translation.parallel_text import SUBWORD_FOLDER, read_description, report, write_pairs
from reproduction.data.translation.subwords import load_subwords
from reproduction.runs.command import run_main

_VERSION = "|".join(VERSIONS)
_BIBLE = re.compile(rf"bible-({_VERSION})-({_VERSION})")

Pair = tuple[str, str]


def bible_test(trained: Mapping[str, Any], source: str, target: str) -> list[Pair]:
    """Pairs of two versions, of the chapters that another pair of versions was tested on, in a random order.

    Parameters
    ----------
    trained : mapping
        ``pairs.json`` of `reproduction.data.translation.bible_pairs`.

    Raises
    ------
    InputError
        If the trained pairs are not of two Bible versions, or are these two.
    """
    languages = tuple(trained["languages"])
    if not set(languages) <= set(VERSIONS):
        raise InputError(
            f"bible-{source}-{target}: expected a model of two Bible versions, found {'-'.join(languages)}"
        )
    if languages == (source, target):
        raise InputError(f"bible-{source}-{target}: expected other versions than those of the training, found the same")
    how = [trained[name] for name in ("unit", "max_tokens", "lower_case")]
    # The draw depends on which chapters have a pair that is fit, so that it is made as it was for the training.
    held_out = split_chapters([chapter for chapter, _ in fit_pairs(*languages, *how)], trained["seed"])["test"]
    pairs = [pair for chapter, pair in fit_pairs(source, target, *how) if chapter in held_out]
    Random(trained["seed"]).shuffle(pairs)
    return pairs


def caption_test(trained: Mapping[str, Any], name: str, data_dir: str | os.PathLike[str] | None) -> list[Pair]:
    """A test set of Multi30k, in the direction and the case of the training.

    Raises
    ------
    InputError
        If the training was not of German and English, or the files are missing.
    """
    languages = tuple(trained["languages"])
    if set(languages) != set(LANGUAGES):
        raise InputError(f"{name}: expected a model of {' and '.join(LANGUAGES)}, found {'-'.join(languages)}")
    if f"test: {name}" in trained.get("split_rule", ""):
        raise InputError(f"{name}: expected another test set than that of the training, found the same")
    if not data_dir:
        raise InputError(
            f"{name}: expected a local folder that holds multi30k/, found none named; get it from {SOURCE}"
        )
    lower = bool(trained.get("lower_case"))
    pairs = [
        tuple(" ".join((text.lower() if lower else text).split()) for text in pair)
        for pair in local_pairs(data_dir, name)
    ]
    return pairs if languages == LANGUAGES else [pair[::-1] for pair in pairs]


def prepare(
    out: str | os.PathLike[str],
    trained: str | os.PathLike[str],
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Prepare other pairs in the folder ``out``; the arguments are the command's flags. Returns their description."""
    check_limit(limit)
    home = read_description(trained)
    if match := _BIBLE.fullmatch(name):
        pairs = bible_test(home, *match.groups())
        source = " and ".join(f"{VERSIONS[version]} (PyPI package pythonbible-{version})" for version in match.groups())
    elif name in TESTS:
        pairs = caption_test(home, name, data_dir)
        source = f"{SOURCE}, local folder"
    else:
        raise InputError(f"--name: expected bible-VERSION-VERSION or one of {', '.join(TESTS)}, found {name!r}")
    subwords = load_subwords(Path(trained) / SUBWORD_FOLDER, home["subwords"])
    extra = {"source": source, "trained_on": home["name"], "limit": limit, "lower_case": bool(home.get("lower_case"))}
    languages = tuple(home["languages"])
    return write_pairs(out, name, languages, {"test": pairs[:limit]}, subwords, extra, parts=("test",))


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.data.shifted.pairs",
        description="Prepare out-of-distribution sentence pairs for a translation model, in its subwords.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--trained", required=True, default=argparse.SUPPRESS, help="prepared pairs that the model was trained on")
    add("--name", required=True, default=argparse.SUPPRESS, help=f"bible-SOURCE-TARGET, or {', '.join(TESTS)}")
    add("--out", required=True, default=argparse.SUPPRESS, help="folder to write")
    add_data_flags(parser, "pairs to keep; None: all")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_preparation(build_parser(), prepare, report, argv)


if __name__ == "__main__":
    run_main(main)

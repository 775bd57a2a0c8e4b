"""A prepared translation corpus: running text and subwords of each split in two languages, as fairseq's preprocessing
takes it.

A folder holds ``SPLIT.LANGUAGE`` (running text, a sentence a line), ``subwords/SPLIT.LANGUAGE`` (the same, cut into
subwords with blanks between them), the subword model, and ``pairs.json``, which says what it is and is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attention_pruning import InputError
from attention_pruning.files.whole import room_beside
from reproduction.data.language.raw_text import SPLITS, text_lines
from reproduction.data.translation.subwords import Subwords
from reproduction.runs.files import make_folder
from reproduction.runs.json_file import read_json

DESCRIPTION_FILE = "pairs.json"
SUBWORD_FOLDER = "subwords"

#: Sentences of the first and the second language.
Pairs = Sequence[tuple[str, str]]


def write_pairs(
    folder: str | os.PathLike[str],
    name: str,
    languages: tuple[str, str],
    splits: Mapping[str, Pairs],
    subwords: Subwords,
    extra: Mapping[str, Any],
    parts: Sequence[str] = SPLITS,
) -> dict[str, Any]:
    """Write a corpus, whole or not at all: under a temporary name beside ``folder`` first.

    Parameters
    ----------
    languages : (str, str)
        Source and target, as file endings.
    splits : mapping
        ``train``, ``valid`` and ``test``.
    subwords : Subwords
        Learned on the training split.
    extra : mapping
        JSON values that describe where the text comes from and what was done to it.
    parts : sequence of str
        The splits to write: all that a training needs, or fewer.

    Returns
    -------
    dict
        What ``pairs.json`` holds; ``fingerprint`` is of all the text.

    Raises
    ------
    InputError
        If a split is empty or missing, a sentence is blank or spans lines, or the folder cannot be written.
    """
    _check(name, splits, parts)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder to write the pairs to, found a file")
    make_folder(folder.parent)
    with room_beside(folder) as room:
        temporary = room / "corpus"
        (temporary / SUBWORD_FOLDER).mkdir(parents=True)
        digest = hashlib.sha256()
        for split in parts:
            for language, lines in zip(languages, zip(*splits[split], strict=True), strict=True):
                text = "".join(f"{line}\n" for line in lines)
                digest.update(f"{split}.{language}\n{text}".encode())
                (temporary / f"{split}.{language}").write_text(text, encoding="utf-8")
                cut = "".join(f"{subwords.cut(line, language)}\n" for line in lines)
                (temporary / SUBWORD_FOLDER / f"{split}.{language}").write_text(cut, encoding="utf-8")
        subwords.save(temporary / SUBWORD_FOLDER)
        description = {
            "name": name,
            "languages": list(languages),
            "pairs": {split: len(splits[split]) for split in parts},
            "subwords": subwords.description,
            "fingerprint": digest.hexdigest()[:16],
            **extra,
        }
        content = json.dumps(description, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (temporary / DESCRIPTION_FILE).write_text(content, encoding="utf-8")
        _replace(temporary, folder)
    return description


def _check(name: str, splits: Mapping[str, Pairs], parts: Sequence[str]) -> None:
    for split in parts:
        if not splits.get(split):
            raise InputError(f"{name}: expected sentence pairs for {split}, found none")
        for number, pair in enumerate(splits[split], 1):
            if any(not sentence.strip() or len(sentence.splitlines()) != 1 for sentence in pair):
                raise InputError(f"{name}: expected two lines of text in pair {number} of {split}, found {pair!r}")


def _replace(temporary: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(temporary, folder)
        return
    (folder / DESCRIPTION_FILE).unlink(missing_ok=True)  # an interrupted replacement is no corpus
    (folder / SUBWORD_FOLDER).mkdir(exist_ok=True)
    files = [file.relative_to(temporary) for file in temporary.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: file.name == DESCRIPTION_FILE):
        os.replace(temporary / file, folder / file)


def report(description: Mapping[str, Any]) -> tuple[str, str]:
    """Fingerprint of a corpus, and one line about it."""
    counts = ", ".join(f"{split} {number:,}" for split, number in description["pairs"].items())
    line = f"{description['name']} {'-'.join(description['languages'])}: {counts} pairs ({description['fingerprint']})"
    return description["fingerprint"], line


def read_description(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``pairs.json`` of a prepared corpus says.

    Raises
    ------
    InputError
        If there is none, or it is something else.
    """
    path = Path(folder) / DESCRIPTION_FILE
    expected = "the description of sentence pairs"
    description = read_json(path, expected)
    of_pairs = isinstance(description, dict) and isinstance(description.get("subwords"), dict)
    languages = description.get("languages") if of_pairs else None
    if not isinstance(languages, list) or len(languages) != 2 or not all(isinstance(one, str) for one in languages):
        raise InputError(f"{path}: expected {expected}, found something else")
    return description


def read_aligned(files: Sequence[str | os.PathLike[str]]) -> list[tuple[str, ...]]:
    """The lines of files that translate one another, line by line.

    Raises
    ------
    InputError
        If one is missing or not UTF-8, or they have different numbers of lines.
    """
    columns = []
    for file in files:
        columns.append(text_lines(file))
        if len(columns[-1]) != len(columns[0]):
            raise InputError(f"{file}: expected {len(columns[0])} lines, as {files[0]} has, found {len(columns[-1])}")
    return list(zip(*columns, strict=True))


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal digest of a file.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: expected a file, found: {error.strerror}") from error


def of_like_lengths(
    pairs: Pairs, lengths: Callable[[str, str], tuple[int, int]], longest: int, ratio: float
) -> list[tuple[str, str]]:
    """The pairs with 1 to ``longest`` tokens on either side, neither more than ``ratio`` times as many as the other.

    The rule of Moses' ``clean-corpus-n``; ``lengths`` counts the tokens of both sides.
    """
    kept = []
    for pair in pairs:
        shorter, longer = sorted(lengths(*pair))
        if shorter >= 1 and longer <= longest and longer <= ratio * shorter:
            kept.append(pair)
    return kept


def every_nth(pairs: Pairs, n: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """All pairs but every n-th, and every n-th."""
    numbered = list(enumerate(pairs, 1))
    return [pair for number, pair in numbered if number % n], [pair for number, pair in numbered if not number % n]


def first_share(pairs: Pairs, fraction: float) -> list[tuple[str, str]]:
    """The first ``fraction`` of the pairs, rounded: of two fractions, the smaller one's pairs are also the other's.

    Raises
    ------
    InputError
        If it is no fraction above 0, or leaves no pair.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"--pairs-fraction: expected a fraction above 0 and at most 1, found {fraction}")
    kept = list(pairs[: round(fraction * len(pairs))])
    if not kept:
        raise InputError(f"--pairs-fraction: expected at least one of {len(pairs)} pairs, found {fraction}")
    return kept

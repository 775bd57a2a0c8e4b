"""Raw text as upstream's users keep it: a folder with one file a split."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from attention_pruning.errors import InputError

SPLITS = ("train", "valid", "test")
RAW_LAYOUTS = ("{split}.txt", "wiki.{split}.tokens")


def raw_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Return the raw text file of each split in a folder.

    Raises
    ------
    InputError
        If a split has no file under any of the known layouts; the message names what was looked for.
    """
    folder = Path(folder)
    present = {layout: [s for s in SPLITS if (folder / layout.format(split=s)).is_file()] for layout in RAW_LAYOUTS}
    layout = max(RAW_LAYOUTS, key=lambda layout: len(present[layout]))
    missing = [layout.format(split=split) for split in SPLITS if split not in present[layout]]
    if not present[layout]:
        wanted = " or ".join(layout.format(split="{train,valid,test}") for layout in RAW_LAYOUTS)
        raise InputError(f"{folder}: expected a prepared corpus (corpus.json) or raw text ({wanted}), found neither")
    if missing:
        found = layout.format(split=present[layout][0])
        raise InputError(f"{folder / missing[0]}: expected this file beside {found}, found nothing")
    return {split: folder / layout.format(split=split) for split in SPLITS}


def text_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a UTF-8 text file. Only a newline ends one; a carriage return before it is no part of the line.

    Raises
    ------
    InputError
        If the file cannot be read, or is not UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: expected a text file, found: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found an invalid byte at offset {error.start}") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def read_lines(path: str | os.PathLike[str], level: str = "word") -> Iterator[list[str]]:
    """Yield the tokens of each line of a UTF-8 text file, blank lines included.

    Words are what stands between white space. Characters exclude the newline, which ``<eos>`` stands for.

    Raises
    ------
    InputError
        If the file is not UTF-8 or holds no text.
    """
    empty = True
    try:
        # Only a newline ends a line: a lone carriage return is a character like any other.
        with open(path, encoding="utf-8", newline="\n") as file:
            for line in file:
                tokens = line.split() if level == "word" else list(line.removesuffix("\n"))
                empty = empty and not tokens
                yield tokens
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found an invalid byte at offset {error.start}") from error
    if empty:
        raise InputError(f"{path}: expected text, found none")

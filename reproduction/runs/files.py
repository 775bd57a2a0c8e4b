"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attention_pruning import InputError
from attention_pruning.files.whole import written_whole


def make_folder(path: str | Path) -> Path:
    """Make a folder, and those above it, unless it is there.

    Raises
    ------
    InputError
        If that is impossible, or the folder cannot be written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: expected a folder that can be written to, found: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{path}: expected a folder that can be written to, found one that cannot")
    return path


def prepare_output(path: str | Path) -> None:
    """Make the folder of a file that will be written after long work, so that a bad name shows before it.

    Raises
    ------
    InputError
        If the file could not be written.
    """
    make_folder(Path(path).parent)
    if Path(path).is_dir():
        raise InputError(f"{path}: expected the name of a file to write, found a folder")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` that becomes ``path`` if the block ends well, and is removed if not.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    make_folder(Path(path).parent)
    with written_whole(path) as temporary:
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors leaves a file that only its owner can read


def write_json(path: str | Path, content: Any, indent: int = 2) -> None:
    """Write indented JSON atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent, sort_keys=True) + "\n")

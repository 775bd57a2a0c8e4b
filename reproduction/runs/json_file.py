"""JSON that may come from anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attention_pruning import InputError


def read_json(path: str | Path, expected: str = "JSON") -> Any:
    """What a JSON file holds.

    Parameters
    ----------
    path : path
    expected : str
        What the file should be, for messages.

    Raises
    ------
    InputError
        If the file cannot be read, or is no JSON in UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected {expected}, found no such file") from error
    except OSError as error:
        raise InputError(f"{path}: expected {expected}, found: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected {expected}, found an invalid byte at offset {error.start}") from error
    return parse_json(text, f"{path}: expected {expected}")


def parse_json(text: str, expected: str) -> Any:
    """What a text in JSON says; ``expected`` begins the message about any other text.

    Raises
    ------
    InputError
        If it is no JSON, or nested deeper than Python follows.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{expected}, found values nested too deep") from error
    except ValueError as error:
        raise InputError(f"{expected}, found something else ({error})") from error

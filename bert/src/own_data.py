"""Data that a user brings: files, or a data set of the Hugging Face hub by its name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HfHubHTTPError

from attention_pruning import InputError
from run_flags import Flags, LengthArguments

SPLITS = ("train", "validation", "test")
#: Ending of a file -> what reads it. Nothing in a table stands for a missing value: "null" and "NA" are words.
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
}
_REFUSALS = (OSError, ValueError, DatasetsError, HfHubHTTPError)


def own_files(data: LengthArguments) -> dict[str, Path]:
    """Split -> the file that a flag names for it."""
    named = {split: getattr(data, f"{split}_file") for split in SPLITS}
    return {split: Path(path) for split, path in named.items() if path is not None}


def load_own(flags: Flags) -> DatasetDict:
    """The splits of --dataset_name that have the usual names, or those of the files that flags name.

    Raises
    ------
    InputError
        If the hub cannot be reached and the cache has no copy; if a file is missing or malformed.
    """
    data = flags.data
    if data.dataset_name is None:
        return DatasetDict({split: read_file(path, split, flags) for split, path in own_files(data).items()})
    name = " ".join(filter(None, (data.dataset_name, data.dataset_config_name)))
    try:
        splits = datasets.load_dataset(data.dataset_name, data.dataset_config_name, **flags.model.hub)
    except _REFUSALS as error:
        raise InputError(
            f"--dataset_name: expected {name} on the Hugging Face hub or in its cache, found: {_reason(error)}"
        ) from error
    for part in splits.values():
        part.info.description = name
    return DatasetDict({split: part for split, part in splits.items() if split in SPLITS})


def read_file(path: Path, split: str, flags: Flags, **options: Any) -> Dataset:
    """The rows of a file of --train_file and the like: csv and tsv with a header, json or a json object a line.

    Raises
    ------
    InputError
        If the file is missing, has another ending, or is malformed.
    """
    if path.suffix not in _READERS:
        raise InputError(f"--{split}_file: expected a name in {' '.join(_READERS)}, found {path}")
    if not path.is_file():
        raise InputError(f"--{split}_file: expected a file, found none at {path}")
    reader, settings = _READERS[path.suffix]
    if reader == "json":
        _require_objects(path)
    try:
        rows = datasets.load_dataset(
            reader,
            data_files={split: str(path.resolve())},
            split=split,
            cache_dir=flags.model.cache_dir,
            **settings,
            **options,
        )
    except Exception as error:  # of a malformed file datasets lets out whatever the reading of it runs into
        raise InputError(f"{path}: expected rows of {reader}, found: {_reason(error)}") from error
    rows.info.description = f"{path.name}, {len(rows)} rows"
    return rows


def _require_objects(path: Path) -> None:
    """Refuse what is neither a list of objects nor objects one after another: the reader of datasets ends the process
    by some of it, such as a bare null or values that are nested by thousands.

    Raises
    ------
    InputError
    """
    decoder, blank = json.JSONDecoder(), re.compile(r"\s*")
    try:
        text = path.read_text(encoding="utf-8-sig")
        place = blank.match(text).end()
        while place < len(text):
            value, place = decoder.raw_decode(text, place)
            for row in value if isinstance(value, list) else [value]:
                if not isinstance(row, dict):
                    raise ValueError(f"{row!r} among them")
            place = blank.match(text, place).end()
    except RecursionError as error:
        raise InputError(f"{path}: expected rows of json, found: values nested too deep") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected rows of json, found: {error}") from error


def _reason(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__

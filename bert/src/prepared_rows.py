"""Tokenised rows on disk: prepared once, by whichever job needs them first, and mapped into memory by all of them.

A file's name is a hash of all that shapes its content: the rows, the tokenizer, the lengths and the versions of the
libraries. It is written in a room of its own and renamed, so that jobs that prepare the same rows at once do not
disturb one another, and a job that is killed leaves no half file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import tokenizers
import transformers
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from attention_pruning import InputError
from attention_pruning.files.whole import room_beside
from reproduction.runs.files import make_folder
from run_flags import Flags

FOLDER = "prepared"
#: Another number makes other files of the same rows: to be raised when what is made of them changes.
_FORMAT = 1
_TOKENIZER_SETTINGS = ("padding_side", "truncation_side", "pad_token_id", "pad_token_type_id", "model_input_names")


def prepared_folder(flags: Flags) -> Path:
    """``--prepared_dir``, else a folder in ``--cache_dir``, else in the cache that ``datasets`` keeps for the user."""
    if flags.data.prepared_dir is not None:
        return Path(flags.data.prepared_dir)
    return Path(flags.model.cache_dir or datasets.config.HF_DATASETS_CACHE) / FOLDER


class PreparedRows:
    """Prepares the splits of one run.

    Parameters
    ----------
    flags : Flags
        They say where the files are (:func:`prepared_folder`), and ``--overwrite_cache`` makes them anew.
    tokenizer : PreTrainedTokenizerBase
        A fast one.
    facts
        What else shapes the tokenised rows: the task, the lengths.

    Attributes
    ----------
    files : dict of str to str
        Split -> its file, of what was prepared so far.
    """

    def __init__(self, flags: Flags, tokenizer: PreTrainedTokenizerBase, **facts: Any) -> None:
        self.training: TrainingArguments = flags.training
        self.tokenizer = tokenizer
        self.folder, self.anew = prepared_folder(flags), flags.data.overwrite_cache
        self.facts = {
            "format": _FORMAT,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "versions": [transformers.__version__, tokenizers.__version__],
            "pad_to_max_length": flags.data.pad_to_max_length,
            **facts,
        }
        self.files: dict[str, str] = {}

    def prepare(
        self,
        split: str,
        rows: Dataset,
        fingerprint: str,
        tokenise: Callable[[dict[str, list]], dict[str, list]],
        keep: tuple[str, ...] = (),
    ) -> Dataset:
        """The rows tokenised, mapped from their file; in a job of several processes one makes it, the others wait.

        Parameters
        ----------
        fingerprint : str
            Of the rows.
        tokenise : callable
            From columns of some rows to columns of the model's inputs. Its name tells its files from another one's.
        keep : tuple of str
            Columns that stay; all others go.

        Raises
        ------
        InputError
            If the folder cannot be written to, or the file is damaged.
        """
        content = self.facts | {"rows": fingerprint, "tokenise": tokenise.__name__, "keep": keep}
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
        path = self.folder / f"{key}.arrow"
        with self.training.main_process_first(local=False, desc="tokenising"):
            make_folder(self.folder)
            options = {
                "batched": True,
                "remove_columns": [name for name in rows.column_names if name not in keep],
                "new_fingerprint": key,
            }
            if self.anew or not path.exists():
                # datasets writes to a temporary file in the same folder, which a killed process would leave
                with room_beside(path) as room:
                    made = room / path.name
                    with as_loaded(self.tokenizer):
                        rows.map(tokenise, cache_file_name=str(made), desc=f"Tokenising {split}", **options)
                    os.replace(made, path)
            try:
                ready = rows.map(tokenise, cache_file_name=str(path), **options)
            except pyarrow.ArrowInvalid as error:
                raise InputError(
                    f"{path}: expected tokenised rows, found a damaged file; --overwrite_cache makes it anew"
                ) from error
        self.files[split] = str(path)
        return ready


@contextlib.contextmanager
def as_loaded(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Restore the padding and truncation of a fast tokenizer in the end.

    A call leaves its own there. They would be saved with the model, but only by the run that tokenised.
    """
    backend = tokenizer.backend_tokenizer
    padding, truncation = backend.padding, backend.truncation
    try:
        yield
    finally:
        backend.no_padding() if padding is None else backend.enable_padding(**padding)
        backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hexadecimal digits of what a fast tokenizer makes of a text, whatever it was asked to do before."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("padding", "truncation"):  # left there by the last call
        content.pop(name, None)
    settings = {name: getattr(tokenizer, name, None) for name in _TOKENIZER_SETTINGS}
    text = json.dumps([content, settings, type(tokenizer).__name__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

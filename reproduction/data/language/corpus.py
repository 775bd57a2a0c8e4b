"""A corpus for language modelling: three splits of token ids, the vocabulary, and where they came from.

A prepared folder holds

- ``vocabulary.txt``: one symbol a line, in the order of the ids, UTF-8, lines end in a bare newline;
- ``train.npy valid.npy test.npy``: one-dimensional int32 arrays of ids;
- ``corpus.json``: name, level, fingerprint, sizes, source and split rule.

A folder of raw text (``train.txt valid.txt test.txt`` or ``wiki.{train,valid,test}.tokens``) is encoded in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_pruning.errors import InputError
from attention_pruning.files.whole import room_beside
from reproduction.data.language.encoding import LEVELS, UNKNOWN, encode_lines, encode_with
from reproduction.data.language.raw_text import SPLITS, raw_files, read_lines
from reproduction.runs.json_file import read_json

VOCABULARY_FILE = "vocabulary.txt"
DESCRIPTION_FILE = "corpus.json"


@dataclass(frozen=True)
class Corpus:
    """An encoded corpus.

    Attributes
    ----------
    name : str
    level : str
        ``"word"`` or ``"character"``.
    vocabulary : list of str
        Symbol of each id: the special symbols, then by falling count in the training split, ties in alphabetical order.
        The order matters to the adaptive softmax, whose clusters are ranges of ids.
    ids : dict of str to numpy.ndarray
        int32, one-dimensional, one array a split; values in ``[0, len(vocabulary))``.
    fingerprint : str
        First 16 hexadecimal digits of a SHA-256 over the vocabulary and the ids.
    description : dict
        What ``corpus.json`` holds: sizes per split, source, split rule, seed and so on.
    """

    name: str
    level: str
    vocabulary: list[str]
    ids: dict[str, np.ndarray]
    fingerprint: str
    description: dict[str, Any] = field(default_factory=dict)

    @property
    def vocabulary_fingerprint(self) -> str:
        """First 16 hexadecimal digits of a SHA-256 over the vocabulary: what a model's ids mean."""
        return hashlib.sha256(_vocabulary_bytes(self.vocabulary)).hexdigest()[:16]

    def split(self, name: str) -> torch.Tensor:
        """Return the ids of one split as a one-dimensional int64 tensor (a copy).

        Raises
        ------
        InputError
            If there is no such split.
        """
        if name not in self.ids:
            raise InputError(f"{self.name}: split must be one of {', '.join(SPLITS)}, found {name!r}")
        return torch.from_numpy(self.ids[name].astype(np.int64))

    @property
    def summary(self) -> str:
        """One line: name, tokens, vocabulary, fingerprint."""
        tokens = ", ".join(f"{split} {ids.size:,}" for split, ids in self.ids.items())
        return f"{self.name}: tokens {tokens}; vocabulary {len(self.vocabulary):,}; fingerprint {self.fingerprint}"

    def with_test(self, name: str, lines: Sequence[Sequence[str]], extra: Mapping[str, Any]) -> Corpus:
        """The same corpus with another text as its test split, through the same vocabulary.

        Parameters
        ----------
        name : str
            Of the new corpus.
        lines : sequence of lines
            The new test split; a line is a sequence of symbols. What the vocabulary lacks becomes ``<unk>``.
        extra : mapping
            More entries for ``corpus.json``.

        Raises
        ------
        InputError
            If there is no symbol in the lines.
        """
        if not any(lines):
            raise InputError(f"{name}: expected text in the test split, found none")
        ids = self.ids | {"test": encode_with(self.vocabulary, lines, self.description.get("end_of_line", True))}
        fingerprint = _fingerprint(self.vocabulary, ids)
        size = int(ids["test"].size)
        counts = {
            "tokens": size,
            "unknown": int((ids["test"] == self.vocabulary.index(UNKNOWN)).sum()),
            "characters": size if self.level == "character" else sum(len(" ".join(line)) + 1 for line in lines),
        }
        changed = {key: {**self.description.get(key, {}), "test": number} for key, number in counts.items()}
        description = {**self.description, "name": name, "fingerprint": fingerprint, **changed, **extra}
        return Corpus(name, self.level, self.vocabulary, ids, fingerprint, description)

    def reordered(self, vocabulary: Sequence[str], source: str = "vocabulary") -> Corpus:
        """The same text with the same symbols in another order, as a model of others may number them.

        Parameters
        ----------
        vocabulary : sequence of str
            Symbol of each new id.
        source : str
            Of the vocabulary, for messages.

        Raises
        ------
        InputError
            If it is not this corpus's vocabulary in another order.
        """
        new = {symbol: number for number, symbol in enumerate(vocabulary)}
        if len(new) != len(vocabulary) or set(new) != set(self.vocabulary):
            strange = sorted(set(new) ^ set(self.vocabulary))
            found = f"{strange[0]!r} in one of them only" if strange else "a symbol twice"
            raise InputError(f"{source}: expected the {len(self.vocabulary)} symbols of {self.name}, found {found}")
        numbers = np.array([new[symbol] for symbol in self.vocabulary], dtype=np.int32)
        ids = {split: numbers[old] for split, old in self.ids.items()}
        fingerprint = _fingerprint(vocabulary, ids)
        description = {**self.description, "fingerprint": fingerprint, "order": "another's"}
        return Corpus(self.name, self.level, list(vocabulary), ids, fingerprint, description)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the prepared folder; a reader never sees half of it.

        Everything is written under a temporary name beside ``folder`` first. Where ``folder`` exists, its
        ``corpus.json`` goes first and comes back last, so that `load` refuses an interrupted replacement.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: expected a folder to write the corpus to, found a file")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with room_beside(folder) as room:
            temporary = room / "corpus"
            temporary.mkdir()
            (temporary / VOCABULARY_FILE).write_bytes(_vocabulary_bytes(self.vocabulary))
            for split, ids in self.ids.items():
                np.save(temporary / f"{split}.npy", ids, allow_pickle=False)
            text = json.dumps(self.description, indent=2, ensure_ascii=False) + "\n"
            (temporary / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
            if not folder.exists():
                os.replace(temporary, folder)
                return
            (folder / DESCRIPTION_FILE).unlink(missing_ok=True)
            for file in [VOCABULARY_FILE, *(f"{split}.npy" for split in self.ids), DESCRIPTION_FILE]:
                os.replace(temporary / file, folder / file)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], level: str | None = None, min_count: int = 1) -> Corpus:
        """Read a prepared folder, or encode a folder of raw text in memory.

        Parameters
        ----------
        folder : path
        level : {"word", "character"}, optional
            How to cut raw text: words between white space (the default) or single characters. A prepared folder knows
            its own level, and a contradicting value is refused.
        min_count : int
            Raw text only: symbols seen less often in the training split become ``<unk>``.

        Raises
        ------
        InputError
            Missing, truncated, foreign or contradicting files, ids outside the vocabulary, no text, unknown level.
        """
        folder = Path(folder)
        if level is not None and level not in LEVELS:
            raise InputError(f"level must be one of {', '.join(LEVELS)}, found {level!r}")
        if not folder.is_dir():
            raise InputError(
                f"{folder}: expected a folder with a corpus, found {'a file' if folder.exists() else 'nothing'}"
            )
        if (folder / DESCRIPTION_FILE).exists():
            return _load_prepared(cls, folder, level)
        level = level or "word"
        files = raw_files(folder)
        lines = {split: read_lines(file, level) for split, file in files.items()}
        extra = {"source": "raw text", "split_rule": "as found in the folder"}
        return encode(folder.resolve().name, lines, level=level, min_count=min_count, extra=extra)


def encode(
    name: str,
    splits: Mapping[str, Iterable[Sequence[str]]],
    *,
    level: str = "word",
    min_count: int = 1,
    eos: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> Corpus:
    """Turn lines of tokens into a corpus, with a vocabulary from the training split alone.

    Parameters
    ----------
    name : str
    splits : mapping of str to iterable of lines
        ``train``, ``valid`` and ``test``; a line is a sequence of symbols. Generators will do.
    level : {"word", "character"}
    min_count : int
        Symbols seen less often than this in the training split become ``<unk>``, as do those of other splits alone.
    eos : bool
        Append ``<eos>`` to every line. At character level it stands for the newline.
    extra : mapping, optional
        More entries for ``corpus.json`` (source, split rule, seed ...).

    Raises
    ------
    InputError
        Unknown level, min_count below 1, missing split, a split with no text, or a symbol that holds a newline.
    """
    vocabulary, ids, characters = encode_lines(name, splits, level, min_count, eos)
    fingerprint = _fingerprint(vocabulary, ids)
    description = {
        "name": name,
        "level": level,
        "fingerprint": fingerprint,
        "vocabulary_size": len(vocabulary),
        "tokens": {split: int(ids[split].size) for split in SPLITS},
        "characters": characters,
        "unknown": {split: int((ids[split] == vocabulary.index(UNKNOWN)).sum()) for split in SPLITS},
        "min_count": min_count,
        "end_of_line": eos,
        **(extra or {}),
    }
    return Corpus(name, level, vocabulary, ids, fingerprint, description)


def write_corpus(
    folder: str | os.PathLike[str],
    name: str,
    splits: Mapping[str, Iterable[Sequence[str]]],
    *,
    level: str = "word",
    min_count: int = 1,
    eos: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> Corpus:
    """Encode lines of tokens and write the prepared folder; see `encode` and `Corpus.save`."""
    corpus = encode(name, splits, level=level, min_count=min_count, eos=eos, extra=extra)
    corpus.save(folder)
    return corpus


def _vocabulary_bytes(vocabulary: Sequence[str]) -> bytes:
    return "".join(f"{symbol}\n" for symbol in vocabulary).encode("utf-8")


def _fingerprint(vocabulary: Sequence[str], ids: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(_vocabulary_bytes(vocabulary))
    for split in SPLITS:
        digest.update(f"\n{split} {ids[split].size}\n".encode())
        digest.update(np.ascontiguousarray(ids[split], dtype="<i4").data)
    return digest.hexdigest()[:16]


def _load_prepared(cls: type[Corpus], folder: Path, level: str | None) -> Corpus:
    description = _read_description(folder / DESCRIPTION_FILE)
    if level is not None and level != description["level"]:
        raise InputError(
            f"{folder}: the corpus was prepared at {description['level']} level, found a request for {level!r}"
        )
    vocabulary = _read_vocabulary(folder / VOCABULARY_FILE, description["vocabulary_size"])
    ids = {}
    for split in SPLITS:
        ids[split] = _read_ids(folder / f"{split}.npy", description["tokens"][split], len(vocabulary))
    found = _fingerprint(vocabulary, ids)
    if found != description["fingerprint"]:
        expected = description["fingerprint"]
        raise InputError(f"{folder}: expected the fingerprint {expected}, found {found}; prepare the corpus again")
    return cls(description["name"], description["level"], vocabulary, ids, found, description)


def _read_description(path: Path) -> dict[str, Any]:
    description = read_json(path)
    types = {"name": str, "level": str, "fingerprint": str, "vocabulary_size": int, "tokens": dict}
    for key, kind in types.items():
        if not isinstance(description, dict) or not isinstance(description.get(key), kind):
            raise InputError(f"{path}: expected the key {key!r} with a value of type {kind.__name__}, found none")
    if description["level"] not in LEVELS:
        raise InputError(f"{path}: level must be one of {', '.join(LEVELS)}, found {description['level']!r}")
    if set(description["tokens"]) != set(SPLITS):
        raise InputError(
            f"{path}: expected token counts of {', '.join(SPLITS)}, found {', '.join(description['tokens'])}"
        )
    for key in ("tokens", "characters", "unknown"):  # all of them by split
        counts = description.get(key, {})
        if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
            raise InputError(f"{path}: expected whole numbers by split as {key}, found {counts!r}")
    return description


def _read_vocabulary(path: Path, size: int) -> list[str]:
    if not path.is_file():
        raise InputError(f"{path}: expected the vocabulary, one symbol a line, found no such file")
    try:
        vocabulary = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found an invalid byte at offset {error.start}") from error
    if vocabulary.pop() != "" or len(vocabulary) != size:
        raise InputError(f"{path}: expected {size} lines, found {len(vocabulary)} whole ones")
    if len(set(vocabulary)) != size:
        raise InputError(f"{path}: expected every symbol once, found {size - len(set(vocabulary))} repeated")
    return vocabulary


def _read_ids(path: Path, count: int, vocabulary_size: int) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path}: expected an array of {count} ids, found no such file")
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of a damaged header numpy lets out whatever Python's parser says of it
        raise InputError(f"{path}: expected a whole .npy array of numbers, found something else ({error})") from error
    if not isinstance(ids, np.ndarray) or ids.dtype != np.int32 or ids.ndim != 1:
        found = f"{ids.dtype} with {ids.ndim} dimensions" if isinstance(ids, np.ndarray) else "an archive"
        raise InputError(f"{path}: expected a one-dimensional int32 array, found {found}")
    if ids.size != count or count == 0:
        raise InputError(f"{path}: expected {count} ids, at least one, found {ids.size}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary_size:
        raise InputError(f"{path}: expected ids from 0 to {vocabulary_size - 1}, found {low} to {high}")
    return ids

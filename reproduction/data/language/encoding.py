"""From lines of symbols to ids, in one pass and with four bytes a token."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from attention_pruning.errors import InputError
from reproduction.data.language.raw_text import SPLITS

LEVELS = ("word", "character")
UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"


def encode_lines(
    name: str, splits: Mapping[str, Iterable[Sequence[str]]], level: str, min_count: int, eos: bool
) -> tuple[list[str], dict[str, np.ndarray], dict[str, int]]:
    """Build the vocabulary from the training split and encode every split; see `corpus.encode`.

    Returns
    -------
    vocabulary : list of str
    ids : dict of str to numpy.ndarray
        int32, one-dimensional, one array a split.
    characters : dict of str to int
        Characters of each split as plain text.
    """
    if level not in LEVELS:
        raise InputError(f"level must be one of {', '.join(LEVELS)}, found {level!r}")
    if min_count < 1:
        raise InputError(f"min_count must be at least 1, found {min_count}")
    if set(splits) != set(SPLITS):
        raise InputError(f"{name}: expected the splits {', '.join(SPLITS)}, found {', '.join(splits) or 'none'}")

    # Symbols are numbered as they come, and renumbered once the counts of the training split are known.
    table: defaultdict[str, int] = defaultdict()
    table.default_factory = table.__len__
    specials = [END_OF_LINE, UNKNOWN] if eos else [UNKNOWN]
    for symbol in specials:
        table[symbol]
    drafts, characters = {}, {}
    for split in SPLITS:
        drafts[split], line_count, blank = _number_lines(splits[split], table, eos)
        if drafts[split].size == (line_count if eos else 0):
            raise InputError(f"{name}: expected text in the {split} split, found none")
        characters[split] = _character_count(drafts[split], table, level, eos, line_count, blank)

    counts = np.bincount(drafts["train"], minlength=len(table))
    symbols = list(table)
    # A symbol of other splits alone has a count of 0 and stays out.
    kept = [i for i in range(len(specials), len(table)) if counts[i] >= min_count]
    kept.sort(key=lambda i: (-counts[i], symbols[i]))
    vocabulary = specials + [symbols[i] for i in kept]
    if broken := [symbol for symbol in vocabulary if "\n" in symbol]:
        raise InputError(f"{name}: expected symbols without a newline, found {broken[0]!r}")
    renumber = np.full(len(table), specials.index(UNKNOWN), dtype=np.int32)
    renumber[: len(specials)] = np.arange(len(specials), dtype=np.int32)
    renumber[kept] = np.arange(len(specials), len(vocabulary), dtype=np.int32)
    return vocabulary, {split: renumber[drafts.pop(split)] for split in SPLITS}, characters


def encode_with(vocabulary: Sequence[str], lines: Iterable[Sequence[str]], eos: bool) -> np.ndarray:
    """Encode lines by a vocabulary that there is already; what it lacks becomes ``<unk>``.

    Parameters
    ----------
    vocabulary : sequence of str
        Symbol of each id, ``<unk>`` among them (and ``<eos>``, if that is asked for).
    lines : iterable of lines
    eos : bool
        Append ``<eos>`` to every line.

    Returns
    -------
    numpy.ndarray
        int32, one-dimensional.
    """
    number = {symbol: i for i, symbol in enumerate(vocabulary)}
    unknown, ids = number[UNKNOWN], array("i")
    for line in lines:
        ids.extend(number.get(symbol, unknown) for symbol in line)
        if eos:
            ids.append(number[END_OF_LINE])
    return np.frombuffer(ids, dtype=np.intc).astype(np.int32, copy=False)


def _number_lines(
    lines: Iterable[Sequence[str]], table: defaultdict[str, int], eos: bool
) -> tuple[np.ndarray, int, int]:
    """Number the symbols of one split by order of appearance; also return how many lines and blank lines there were."""
    numbers = array("i")
    line_count = blank = 0
    number, end = table.__getitem__, table[END_OF_LINE] if eos else -1
    for line in lines:
        numbers.extend(map(number, line))
        if eos:
            numbers.append(end)
        line_count += 1
        blank += not line
    return np.frombuffer(numbers, dtype=np.intc).astype(np.int32, copy=False), line_count, blank


def _character_count(
    draft: np.ndarray, table: Mapping[str, int], level: str, eos: bool, line_count: int, blank: int
) -> int:
    """Count the characters of a split as plain text: one space between words, one newline a line."""
    if level == "character":
        return int(draft.size)
    lengths = np.fromiter(map(len, table), dtype=np.int64, count=len(table))
    per_symbol = np.bincount(draft, minlength=len(table))
    words = draft.size
    if eos:
        per_symbol[table[END_OF_LINE]] -= line_count
        words -= line_count
    # Every word is followed by a space or by the newline; a blank line has its newline only.
    return int(lengths @ per_symbol) + int(words) + blank

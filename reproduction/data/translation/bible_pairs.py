"""Two Bible versions as a translation corpus: real text that installs with pip, aligned by its verse numbers.

Old English into less old: Wycliffe (1395) to King James (1611) is a task that a small model learns in minutes, and that
copying the source does not solve. Verses are cut into clauses, whole chapters are held out.

Run ``python -m reproduction.data.translation.bible_pairs --help``.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from random import Random

from attention_pruning.errors import InputError
from reproduction.data.language.bible import VERSIONS, book_of, chapter_of, tokenise, verses
from reproduction.data.preparation import run_preparation
from reproduction.data.translation.parallel_text import first_share, report, write_pairs
from reproduction.data.translation.subwords import SentencePieces
from reproduction.runs.command import run_main

UNITS = ("clause", "verse")
PSALMS = 19
#: Where a verse may be cut: behind these marks and the quotation marks that follow them.
CLAUSE_END = re.compile(r"(?<=[.;:?!])[\"')]*\s+")
#: Clauses of either version that may form a pair, and what a pair of three costs beside its lengths.
STEPS = ((1, 1), (1, 2), (2, 1))
MERGE_COST = 0.3
MIN_TOKENS = 3
MAX_RATIO = 2.0
HELD_OUT_SHARE = 1 / 20


def aligned_verses(source: str, target: str) -> list[tuple[int, str, str]]:
    """Verse id and text in both versions, of the verses that both have, in canonical order.

    The Psalms are left out where Wycliffe's version takes part: it numbers them as the Vulgate does.

    Raises
    ------
    InputError
        If a version is unknown or not installed, or both are the same.
    """
    if source == target:
        raise InputError(f"--target: expected another version than the source, found {target!r}")
    other = dict(verses(target))
    shared = [(verse_id, text, other[verse_id]) for verse_id, text in verses(source) if verse_id in other]
    if "wyc" in (source, target):
        shared = [verse for verse in shared if book_of(verse[0]) != PSALMS]
    return shared


def clauses(source: str, target: str) -> list[tuple[str, str]]:
    """The clauses of a verse in two versions, paired in order.

    Where the versions punctuate differently, two neighbours on one side may pair with one on the other: of all such
    pairings, the one whose lengths agree best (as in Gale and Church, 1993, but by the logarithm of the ratio of
    characters). None, if even that does not reach the end of both.
    """
    left, right = (CLAUSE_END.split(text.strip()) for text in (source, target))
    best: dict[tuple[int, int], tuple[float, list[tuple[str, str]]]] = {(0, 0): (0.0, [])}
    for i in range(len(left) + 1):
        for j in range(len(right) + 1):
            for m, n in STEPS:
                if (i - m, j - n) not in best:
                    continue
                cost, before = best[i - m, j - n]
                pair = " ".join(left[i - m : i]), " ".join(right[j - n : j])
                cost += abs(math.log(len(pair[0]) / len(pair[1]))) + (m + n - 2) * MERGE_COST
                if (i, j) not in best or cost < best[i, j][0]:
                    best[i, j] = cost, [*before, pair]
    return best.get((len(left), len(right)), (0.0, []))[1]


def is_fit(source: str, target: str, max_tokens: int) -> bool:
    """Whether both sides have from 3 to ``max_tokens`` words and marks, neither twice as many as the other."""
    lengths = [len(tokenise(text)) for text in (source, target)]
    return min(lengths) >= MIN_TOKENS and max(lengths) <= max_tokens and max(lengths) <= MAX_RATIO * min(lengths)


def fit_pairs(
    source: str, target: str, unit: str, max_tokens: int, lower_case: bool
) -> list[tuple[int, tuple[str, str]]]:
    """Chapter and sentences of every pair that is fit, in canonical order."""
    found = []
    for verse_id, *texts in aligned_verses(source, target):
        texts = [text.lower() for text in texts] if lower_case else texts
        for pair in clauses(*texts) if unit == "clause" else [tuple(texts)]:
            if is_fit(*pair, max_tokens):
                found.append((chapter_of(verse_id), pair))
    return found


def split_chapters(chapters: Sequence[int], seed: int) -> dict[str, set[int]]:
    """Draw about every 20th chapter for the test split and as many for validation.

    Raises
    ------
    InputError
        If there are fewer than three.
    """
    order = sorted(set(chapters))
    if len(order) < 3:
        raise InputError(f"expected at least 3 chapters to split, found {len(order)}")
    Random(seed).shuffle(order)
    held_out = max(1, round(len(order) * HELD_OUT_SHARE))
    return {
        "test": set(order[:held_out]),
        "valid": set(order[held_out : 2 * held_out]),
        "train": set(order[2 * held_out :]),
    }


def prepare(
    out: str,
    source: str = "wyc",
    target: str = "kjv",
    *,
    unit: str = "clause",
    max_tokens: int = 15,
    max_pairs: int | None = None,
    pairs_fraction: float = 1.0,
    max_eval_pairs: int | None = 500,
    vocabulary: int = 1000,
    lower_case: bool = True,
    seed: int = 0,
) -> dict:
    """Prepare a corpus in the folder ``out``; the arguments are the command's flags. Returns its description."""
    for flag, limit in (("max-pairs", max_pairs), ("max-eval-pairs", max_eval_pairs)):
        if limit is not None and limit < 1:
            raise InputError(f"--{flag}: expected at least 1, found {limit}")
    if max_tokens < MIN_TOKENS:
        raise InputError(f"--max-tokens: expected at least {MIN_TOKENS}, found {max_tokens}")
    found = fit_pairs(source, target, unit, max_tokens, lower_case)
    chapters = split_chapters([chapter for chapter, _ in found], seed)
    limits = {"train": max_pairs, "valid": max_eval_pairs, "test": max_eval_pairs}
    splits = {}
    for split, members in chapters.items():
        pairs = [pair for chapter, pair in found if chapter in members]
        Random(seed).shuffle(pairs)
        splits[split] = pairs[: limits[split]]
    subwords = SentencePieces.learn((text for pair in splits["train"] for text in pair), vocabulary)
    # the subwords are of all pairs, so that corpora of fewer share them
    splits["train"] = first_share(splits["train"], pairs_fraction)
    extra = {
        "source": f"{VERSIONS[source]} and {VERSIONS[target]}, PyPI packages pythonbible-{source} and "
        f"pythonbible-{target}",
        "split_rule": "whole chapters, about every 20th each for valid and test",
        "seed": seed,
        "unit": unit,
        "max_tokens": max_tokens,
        "pairs_fraction": pairs_fraction,
        "lower_case": lower_case,
    }
    return write_pairs(out, f"bible-{source}-{target}", (source, target), splits, subwords, extra)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.data.translation.bible_pairs",
        description="Prepare two Bible versions for translation: running text and subwords of three splits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, default=argparse.SUPPRESS, help="folder to write")
    add("--source", default="wyc", choices=VERSIONS, help="version to translate; needs the package pythonbible-VERSION")
    add("--target", default="kjv", choices=VERSIONS, help="version to translate into")
    add("--unit", default="clause", choices=UNITS, help="what a sentence is")
    add("--max-tokens", type=int, default=15, help="longest sentence on either side, in words and marks")
    add("--max-pairs", type=int, help="training pairs to keep, drawn with the seed; None: all")
    add("--pairs-fraction", type=float, default=1.0, help="share of those pairs to keep, the first ones")
    add("--max-eval-pairs", type=int, default=500, help="validation and test pairs to keep, each, drawn with the seed")
    add("--vocabulary", type=int, default=1000, help="subwords that both versions share")
    add("--lower-case", action=argparse.BooleanOptionalAction, default=True, help="turn the text to lower case")
    add("--seed", type=int, default=0, help="seed of the draw of chapters and pairs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_preparation(build_parser(), prepare, report, argv)


if __name__ == "__main__":
    run_main(main)

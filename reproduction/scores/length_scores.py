"""BLEU of translations by the length of the source, in words: the whole is mostly that of common lengths.

    python -m reproduction.scores.length_scores --hypotheses OUT/generate-test.txt --sources PAIRS/test.de \\
        --references PAIRS/test.en --metrics metrics.json --out metrics@length.json

Each group is a corpus of its own. Its score depends on its length, too (few long matches in short sentences), so that
models are compared within a group, not groups with one another.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from attention_pruning import InputError
from reproduction.runs.command import run_main
from reproduction.runs.metrics import LABELS, SPARSITIES, write_metrics
from reproduction.runs.record import RunRecord
from reproduction.scores.bleu import read_lines, read_translations, score

LENGTHS = (10, 20, 30)


def groups(sources: Sequence[str], lengths: Sequence[int]) -> dict[str, list[int]]:
    """Numbers of the sentences of each group that has any, shortest first.

    Parameters
    ----------
    sources : sequence of str
    lengths : sequence of int
        Words of the longest sentence of each group but the last, ascending.

    Returns
    -------
    dict of str to list of int
        For 10 and 20, the names are ``1-10``, ``11-20`` and ``21+``.

    Raises
    ------
    InputError
        If the lengths do not ascend from at least 1.
    """
    if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
        raise InputError(f"--lengths: expected whole numbers that ascend from at least 1, found {list(lengths)}")
    names = [f"{low + 1}-{high}" for low, high in zip((0, *lengths), lengths, strict=False)] + [f"{lengths[-1] + 1}+"]
    found: dict[str, list[int]] = {name: [] for name in names}
    for number, source in enumerate(sources):
        words = len(source.split())
        found[names[sum(words > longest for longest in lengths)]].append(number)
    return {name: numbers for name, numbers in found.items() if numbers}


def scores_by_length(
    hypotheses: Sequence[str], sources: Sequence[str], references: Sequence[str], lengths: Sequence[int]
) -> dict[str, float]:
    """``bleu_1-10`` and its like, and how many ``sentences_1-10`` each is of.

    Raises
    ------
    InputError
        If there are not as many of each, or as `groups` does.
    """
    for name, lines in (("sources", sources), ("translations", hypotheses)):
        if len(lines) != len(references):
            raise InputError(f"{name}: expected {len(references)}, one for each reference, found {len(lines)}")
    found: dict[str, float] = {}
    for name, numbers in groups(sources, lengths).items():
        values, _ = score([hypotheses[number] for number in numbers], [references[number] for number in numbers])
        found |= {f"{metric}_{name}": values[metric] for metric in ("bleu", "sentences")}
    return found


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.scores.length_scores",
        description="BLEU of translations by the length of the source.",
    )
    add = parser.add_argument
    add("--hypotheses", type=Path, required=True, help="translations: text, a line each, or fairseq's generate file")
    add("--sources", type=Path, required=True, help="running text, a line each")
    add("--references", type=Path, required=True, help="running text, a line each")
    add("--lengths", type=int, nargs="+", default=LENGTHS, help="longest sources of all groups but the last, in words")
    add("--metrics", type=Path, required=True, help="metrics.json of the same translations, whose labels are taken")
    add("--out", type=Path, required=True, help="metrics@length.json to write, with .run.json beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    record = RunRecord("reproduction.scores.length_scores", vars(args))
    try:
        whole = json.loads(args.metrics.read_text(encoding="utf-8"))
        (split,) = whole["metrics"]
        labels, sparsities = ({name: whole[name] for name in names if name in whole} for names in (LABELS, SPARSITIES))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{args.metrics}: expected the metrics of one split of a run, found: {error}") from error
    texts = [read_translations(args.hypotheses), read_lines(args.sources), read_lines(args.references)]
    values = scores_by_length(*texts, args.lengths)
    print(f"{split}: " + "  ".join(f"{name} {value:.2f}" for name, value in values.items()))
    write_metrics(args.out, labels, {split: values}, **sparsities)
    record.write(args.out.with_suffix(".run.json"))
    return 0


if __name__ == "__main__":
    run_main(main)

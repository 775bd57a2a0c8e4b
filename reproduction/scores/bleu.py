"""BLEU and chrF of translations against their references, on running text, by sacrebleu.

Run ``python -m reproduction.scores.bleu --help``. ``fairseq/score_translations.py`` does the same for a checkpoint and
adds how sparse its attention was.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from sacrebleu.metrics import BLEU, CHRF

from attention_pruning import InputError
from reproduction.runs.command import run_main
from reproduction.runs.metrics import parse_labels, write_metrics
from reproduction.runs.record import RunRecord

#: A line of fairseq's generated file that holds a finished translation: number, score, text.
DETOKENISED = re.compile(r"D-(\d+)\t[^\t]*\t(.*)")
_GENERATED = re.compile(r"[STHDP]-\d+\t")


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file, without their ends.

    Raises
    ------
    InputError
        If it is missing, not UTF-8, or empty.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: expected a text file, found: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found an invalid byte at offset {error.start}") from error
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise InputError(f"{path}: expected text, found none")
    return lines


def read_translations(path: str | Path) -> list[str]:
    """Translations in the order of their sources: plain text, a line each, or what fairseq's generate wrote.

    Of the latter, the best finished translation of each sentence is taken (``D-`` lines, with ``--remove-bpe`` running
    text).

    Raises
    ------
    InputError
        If it cannot be read, or sentences are missing from a generated file.
    """
    lines = read_lines(path)
    if not any(_GENERATED.match(line) for line in lines[:50]):
        return lines
    found: dict[int, str] = {}
    for line in lines:
        if match := DETOKENISED.fullmatch(line):
            found.setdefault(int(match[1]), match[2])  # with --nbest, the best comes first
    missing = sorted(set(range(max(found, default=-1) + 1)) - set(found))
    if not found or missing:
        which = ", ".join(map(str, missing[:5])) or "all of them"
        raise InputError(f"{path}: expected a translation (D-) of every sentence, found none of {which}")
    return [found[number] for number in sorted(found)]


def score(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """BLEU and chrF of a corpus, one reference a sentence, and the signatures of both metrics.

    Raises
    ------
    InputError
        If they are not equally many.
    """
    if len(hypotheses) != len(references):
        raise InputError(f"translations: expected {len(references)}, one for each reference, found {len(hypotheses)}")
    values, signatures = {}, {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        values[name] = metric.corpus_score(list(hypotheses), [list(references)]).score
        signatures[name] = str(metric.get_signature())
    return values | {"sentences": len(references)}, signatures


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.scores.bleu",
        description="BLEU and chrF by sacrebleu. Of a source file as --hypotheses: the score of copying.",
    )
    add = parser.add_argument
    add(
        "--hypotheses",
        type=Path,
        required=True,
        help="translations: text, a line each, or fairseq's generate-SPLIT.txt",
    )
    add("--references", type=Path, required=True, help="running text, a line each")
    add("--split", default="test", help="what the sentences are (default: test)")
    add("--out", type=Path, help="metrics.json to write, with .run.json beside it (default: print only)")
    add("--label", action="append", default=[], metavar="KEY=VALUE", help="copied into metrics.json; may be repeated")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    labels = parse_labels(args.label)
    record = RunRecord("reproduction.scores.bleu", vars(args))
    values, signatures = score(read_translations(args.hypotheses), read_lines(args.references))
    print(f"{args.split}: " + "  ".join(f"{name} {value:.2f}" for name, value in values.items()))
    print("\n".join(f"{name}: {signature}" for name, signature in signatures.items()))
    if args.out is not None:
        write_metrics(args.out, labels, {args.split: values})
        record.write(args.out.with_suffix(".run.json"), signatures=signatures)
    return 0


if __name__ == "__main__":
    run_main(main)

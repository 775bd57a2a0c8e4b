"""BLEU and chrF of what ``generate.py`` wrote, on running text, with the sparsity of the model that wrote it.

    python fairseq/score_translations.py --generated OUT/generate-test.txt --references PAIRS/test.en \\
        --checkpoint checkpoints/checkpoint_best.pt --data DATA --out metrics.json

``python -m reproduction.scores.bleu`` scores any two text files, such as sources against references: copying.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import launcher

launcher.prepare()

from attention_pruning import InputError  # noqa: E402
from plugin.batches import load_split  # noqa: E402
from plugin.checkpoint import load_model  # noqa: E402
from plugin.model import PrunedTransformer  # noqa: E402
from plugin.sparsity import sparsities  # noqa: E402
from reproduction.runs.command import run_main  # noqa: E402
from reproduction.runs.metrics import parse_labels, write_metrics  # noqa: E402
from reproduction.runs.record import RunRecord  # noqa: E402
from reproduction.scores.bleu import read_lines, read_translations, score  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """All flags, with their defaults."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = top.add_argument
    add("--generated", type=Path, required=True, help="generate-SPLIT.txt of generate.py --results-path")
    add("--references", type=Path, required=True, help="running text, a line for each sentence of the split")
    add("--checkpoint", type=Path, required=True, help="the checkpoint that translated")
    add("--data", type=Path, help="the binarised data (default: the data of the training)")
    add("--split", default="test", help="what was translated (default: test)")
    add("--out", type=Path, help="metrics.json to write, with .run.json beside it (default: print only)")
    add("--label", action="append", default=[], metavar="KEY=VALUE", help="copied into metrics.json; may be repeated")
    return top


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    if args.label and args.out is None:
        raise InputError("--label: expected --out beside it, found none")
    labels = parse_labels(args.label)
    record = RunRecord("fairseq/score_translations.py", vars(args))
    values, signatures = score(read_translations(args.generated), read_lines(args.references))
    loaded = load_model(args.checkpoint, data=None if args.data is None else str(args.data))
    dataset = load_split(loaded.task, args.split)
    if len(dataset) != values["sentences"]:
        raise InputError(
            f"{args.references}: expected {len(dataset)} lines, as many as {args.split} has, found "
            f"{values['sentences']}"
        )
    masks = loaded.model.record if isinstance(loaded.model, PrunedTransformer) else {}
    sparsity = sparsities(loaded.model, masks, dataset)
    print(f"{args.split}: " + "  ".join(f"{name} {value:.3g}" for name, value in (values | sparsity).items()))
    print("\n".join(f"{name}: {signature}" for name, signature in signatures.items()))
    if args.out is not None:
        write_metrics(args.out, labels, {args.split: values}, **sparsity)
        record.write(
            args.out.with_suffix(".run.json"), signatures=signatures, masks=masks, model_fingerprint=loaded.fingerprint
        )


if __name__ == "__main__":
    run_main(main)

"""Perplexity of a trained Transformer-XL, dense or pruned, at any segment and memory length.

A pruned model brings its mask along. Beyond the lengths that the mask covers it is not evaluated; with --beyond dense
nothing is pruned there, and evaluated_sparsity says what share of its attention was pruned then.

    python transformer-xl/eval.py --checkpoint runs/dense/model.safetensors --data data/bible-web --split valid test
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch

from attention_pruning import InputError
from attention_pruning.sparsity import pruned_share
from data_utils import LMOrderedIterator, stream_counts
from evaluation import evaluate, explain_attention
from flags import Parser, add_backend_flag, add_beyond_flag, add_run_flags, choose_device
from mem_transformer import MemTransformerLM
from model_file import EVALUATION_FIELDS, load_model
from reproduction.data.language.corpus import SPLITS, Corpus
from reproduction.runs.command import HelpFormatter, limit_threads, run_main
from reproduction.runs.files import prepare_output
from reproduction.runs.metrics import parse_labels, write_metrics
from reproduction.runs.record import RunRecord
from upstream_flags import add_published_flags, check_upstream_flags


def parser() -> argparse.ArgumentParser:
    """All flags, with their defaults."""
    top = Parser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    top.add_argument(
        "--checkpoint", type=Path, help="model.safetensors of a training run; that in --work_dir unless it is given"
    )
    top.add_argument("--work_dir", type=Path, help="folder of a training run, or a --checkpoint")
    top.add_argument("--data", type=Path, required=True, help="folder of the corpus")
    top.add_argument(
        "--split",
        nargs="+",
        choices=(*SPLITS, "all"),
        default=["valid", "test"],
        help="splits to evaluate; all is valid and test, as published",
    )
    top.add_argument("--batch_size", type=int, default=10, help="parallel streams of text")
    top.add_argument("--tgt_len", type=int, help="tokens in a segment (default: the model's own)")
    top.add_argument("--mem_len", type=int, help="memory slots (default: the model's own)")
    top.add_argument("--clamp_len", type=int, help="treat larger distances as this one (default: the model's own)")
    top.add_argument(
        "--same_length",
        action=argparse.BooleanOptionalAction,
        help="let every query see the same number of keys, mem_len (default: the model's own)",
    )
    top.add_argument("--max_eval_steps", type=int, default=-1, help="segments to read, -1 for all")
    top.add_argument("--out", type=Path, help="metrics.json to write, with .run.json beside it (default: print only)")
    top.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="copied into metrics.json; may be repeated"
    )
    add_beyond_flag(top)
    add_backend_flag(top)
    add_run_flags(top)
    published = top.add_argument_group("the published implementation's")
    add_published_flags(published)
    published.add_argument("--no_log", action="store_true", help="no difference: results are printed, and in --out")
    return top


def check(args: argparse.Namespace) -> None:
    """Refuse what is not here, and find the model."""
    check_upstream_flags(args)
    if (args.checkpoint is None) == (args.work_dir is None):
        raise InputError("--checkpoint: expected a model, here or in --work_dir, found none or two")
    if args.checkpoint is None:
        args.checkpoint = args.work_dir / "model.safetensors"
    if "all" in args.split:
        args.split = ["valid", "test"]


def split_metrics(
    model: MemTransformerLM, iterator: LMOrderedIterator, level: str
) -> tuple[dict[str, float], torch.Tensor]:
    """Metrics of one text of words or characters, and how often each attention cell was used, int64 [T, M + T]."""
    started = time.time()
    found = evaluate(model, iterator, model.r_w_bias.device, progress=True)
    found["seconds"] = time.time() - started
    if level == "character":
        found["bits_per_character"] = found["nll"] / math.log(2)
    return found, stream_counts(iterator, model.config.mem_len, model.visibility)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    check(args)
    labels = parse_labels(args.label)
    limit_threads(args.threads)
    device = choose_device(args.device)
    corpus = Corpus.load(args.data)
    lengths = {name: getattr(args, name) for name in EVALUATION_FIELDS}
    loaded = load_model(args.checkpoint, args.beyond, **lengths)
    loaded.check_vocabulary(args.checkpoint, corpus)
    model = loaded.model.to(device)
    model.set_backend(args.attention_backend)
    iterators = {
        split: LMOrderedIterator(
            corpus.split(split),
            args.batch_size,
            model.config.tgt_len,
            name=f"{args.data} ({split})",
            max_steps=args.max_eval_steps,
        )
        for split in args.split
    }
    if args.out is not None:
        prepare_output(args.out)
    record = RunRecord("transformer-xl/eval.py", vars(args))
    metrics, used = {}, 0
    for split, iterator in iterators.items():
        metrics[split], counts = split_metrics(model, iterator, corpus.level)
        used = used + counts
        shown = "  ".join(f"{name} {value:,.4g}" for name, value in metrics[split].items())
        print(f"{corpus.name} {split}: {shown}")
    mask = loaded.info["mask"]
    sparsity = {
        "effective_sparsity": mask["effective_sparsity"] if mask else 0.0,
        "evaluated_sparsity": pruned_share(model.pruned_cells().cpu(), used) if model.pruned is not None else 0.0,
        "block_sparsity": mask["block_sparsity"] if mask else 0.0,
    }
    print("attention pruned: " + "  ".join(f"{name} {value:.4f}" for name, value in sparsity.items()))
    if args.out is not None:
        write_metrics(args.out, labels, metrics, **sparsity)
        attention = explain_attention(model, iterators[args.split[0]], device)
        facts = {"corpus": corpus.fingerprint, "model": loaded.fingerprint, "attention": attention}
        record.write(args.out.with_suffix(".run.json"), **facts)


if __name__ == "__main__":
    run_main(main, takes_device=True)

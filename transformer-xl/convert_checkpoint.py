"""Turn a Transformer-XL of others into a model.safetensors of train.py, or back.

--layout says whose: the authors' PyTorch code (upstream: model.pt, a pickled module, or model_state.pt, a state dict,
with config.json beside it) or TransfoXLLMHeadModel of transformers 4.35 (transformers: a folder with config.json and
weights). Nothing in a checkpoint is run. What --checkpoint is decides the direction: a .safetensors file is one of
train.py's and is written in that layout, into the folder --out; all else is read in that layout.

    python transformer-xl/convert_checkpoint.py --layout transformers --checkpoint transfo-xl-wt103 \\
        --data data/wikitext-103 --vocabulary vocab.txt --data_out data/theirs --out runs/theirs/model.safetensors
    python transformer-xl/convert_checkpoint.py --layout upstream --checkpoint runs/dense/model.safetensors --out theirs
"""

from __future__ import annotations

import argparse
from pathlib import Path

from attention_pruning import InputError
from flags import Parser
from foreign_checkpoints import read_checkpoint, write_checkpoint
from mem_transformer import MemTransformerLM
from model_file import load_model, save_model
from reproduction.data.language.corpus import Corpus
from reproduction.data.language.raw_text import text_lines
from reproduction.runs.command import HelpFormatter, run_main
from reproduction.runs.files import prepare_output
from reproduction.runs.record import RunRecord
from weight_layouts import LAYOUTS

SUFFIX = ".safetensors"


def parser() -> argparse.ArgumentParser:
    """All flags, with their defaults."""
    top = Parser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    top.add_argument("--layout", choices=LAYOUTS, required=True, help="whose layout is read or written")
    top.add_argument("--checkpoint", type=Path, required=True, help="model.safetensors, or their file or folder")
    top.add_argument("--out", type=Path, required=True, help="model.safetensors, or the folder to write for them")
    top.add_argument(
        "--data", type=Path, help="folder of the corpus that the model is for; needed unless a .safetensors is read"
    )
    top.add_argument(
        "--vocabulary",
        type=Path,
        help="file with their symbols in the order of their ids, one a line; unless it is given, their ids are taken "
        "to be those of --data, which sorts equally frequent words by the alphabet",
    )
    top.add_argument(
        "--data_out", type=Path, help="folder to write the corpus to with the ids of --vocabulary, or a new one"
    )
    top.add_argument("--tgt_len", type=int, help="tokens in a segment (default: the checkpoint's own, or 128)")
    return top


def read_corpus(args: argparse.Namespace) -> Corpus:
    """The corpus whose ids are the model's; it is written if it is a new one.

    Raises
    ------
    InputError
        If flags are missing, or the vocabulary is not that of the corpus in another order.
    """
    if args.data is None:
        raise InputError("--data: expected the corpus that the model is for, found none")
    if (args.vocabulary is None) != (args.data_out is None):
        raise InputError("--vocabulary: expected --data_out with it, for the corpus with those ids, found one of them")
    corpus = Corpus.load(args.data)
    if args.vocabulary is None:
        return corpus
    return corpus.reordered(text_lines(args.vocabulary), str(args.vocabulary))


def bring_in(args: argparse.Namespace) -> None:
    """Write somebody's checkpoint as a model.safetensors."""
    if args.out.suffix != SUFFIX:
        raise InputError(f"--out: expected the name of a {SUFFIX} file, found {args.out}")
    record = RunRecord("transformer-xl/convert_checkpoint.py", vars(args))
    corpus = read_corpus(args)
    config, weights = read_checkpoint(args.checkpoint, args.layout, args.tgt_len)
    if config.n_token != len(corpus.vocabulary):
        raise InputError(
            f"{args.checkpoint}: expected the {len(corpus.vocabulary)} symbols of {corpus.name}, found {config.n_token}"
        )
    prepare_output(args.out)
    if args.data_out is not None:
        corpus.save(args.data_out)
    model = MemTransformerLM(config)
    model.load_state_dict(weights)
    known = {"corpus": corpus.fingerprint, "vocabulary": corpus.vocabulary_fingerprint}
    save_model(args.out, model, **known, seed=None, mask=None, step=0, converted_from=args.layout)
    record.write(args.out.with_suffix(".run.json"), **known)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(corpus.vocabulary):,} symbols")


def take_out(args: argparse.Namespace) -> None:
    """Write a model.safetensors as others read it."""
    for name in ("data", "vocabulary", "data_out", "tgt_len"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name}: expected a checkpoint of others beside it, found {args.checkpoint}")
    loaded = load_model(args.checkpoint)
    if loaded.model.pruned is not None:
        raise InputError(
            f"{args.checkpoint}: expected a dense model, as {args.layout} has no masks, found a pruned one"
        )
    write_checkpoint(args.out, loaded.model.config, loaded.model.state_dict(), args.layout)
    print(f"{args.out}: a folder in the layout of {args.layout}")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    (take_out if args.checkpoint.suffix == SUFFIX and args.checkpoint.is_file() else bring_in)(args)


if __name__ == "__main__":
    run_main(main)

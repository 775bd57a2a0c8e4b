"""Train Transformer-XL on a text, dense or with pruned attention.

Flags have the names of the published PyTorch implementation. Two are the paper's: --fn, an average attention pattern
(or a finished prune mask), and --th, the fraction of attention to prune. Without --fn the model is dense.

    python transformer-xl/train.py --data data/bible-web --work_dir runs/dense
    python transformer-xl/train.py --data data/bible-web --work_dir runs/pruned --fn pattern.safetensors --th 0.8
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from accelerate import Accelerator, DistributedDataParallelKwargs

from attention_pruning import InputError, PruneMask
from attention_pruning.files.load import load_mask
from attention_pruning.make import random_like
from attention_pruning.recipe import ROW_FLOORS, RULES, SCOPES, MaskRecipe
from data_utils import LMOrderedIterator
from flags import HelpFormatter, add_run_flags, choose_device
from mem_transformer import MemTransformerLM, ModelConfig
from model_file import describe_mask
from reproduction.corpus import Corpus
from reproduction.training import RunRecord, limit_threads, make_folder, run_main, seed_everything
from schedules import SCHEDULES
from trainer import Trainer

#: The flags that a MaskRecipe has by the same names; its tau is --th.
RECIPE_FLAGS = ("rule", "scope", "block_size", "row_floor")


def parser() -> argparse.ArgumentParser:
    """All flags, with their defaults."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    files = top.add_argument_group("data and files")
    files.add_argument(
        "--data", type=Path, required=True, help="folder of a prepared corpus, or of train.txt valid.txt test.txt"
    )
    files.add_argument("--work_dir", type=Path, required=True, help="where the model, the checkpoint and run.json go")
    files.add_argument(
        "--restart", action="store_true", help="continue from the checkpoint in --work_dir, if there is one"
    )
    _model_flags(top.add_argument_group("model"))
    _optimisation_flags(top.add_argument_group("optimisation"))
    _pruning_flags(top.add_argument_group("pruning"))
    run = top.add_argument_group("run")
    run.add_argument("--seed", type=int, default=1111, help="of initial weights and dropout")
    run.add_argument("--log_interval", type=int, default=200, help="updates between lines of progress")
    run.add_argument(
        "--eval_interval", type=int, default=4000, help="updates between validations; there is one at the end"
    )
    run.add_argument("--checkpoint_interval", type=int, default=1000, help="updates between checkpoints")
    run.add_argument("--max_eval_steps", type=int, default=-1, help="segments of a validation, -1 for all")
    run.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), default="no", help="handled by accelerate")
    add_run_flags(run)
    return top


def _model_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--n_layer", type=int, default=12, help="layers")
    group.add_argument("--n_head", type=int, default=10, help="attention heads")
    group.add_argument("--d_head", type=int, default=50, help="width of a head")
    group.add_argument("--d_embed", type=int, default=-1, help="width of the embedding, -1 for d_model")
    group.add_argument("--d_model", type=int, default=500, help="width of the model")
    group.add_argument("--d_inner", type=int, default=1000, help="width inside the position-wise network")
    group.add_argument("--dropout", type=float, default=0.0, help="dropout everywhere but on attention")
    group.add_argument("--dropatt", type=float, default=0.0, help="dropout on attention probabilities")
    group.add_argument("--not_tied", action="store_true", help="do not tie the output weights to the embedding")
    group.add_argument(
        "--adaptive", action="store_true", help="adaptive embedding and softmax, with --cutoffs and --div_val"
    )
    group.add_argument("--cutoffs", type=int, nargs="*", default=[], help="borders of the adaptive softmax's clusters")
    group.add_argument("--div_val", type=int, default=1, help="each rarer cluster is this many times narrower")
    group.add_argument(
        "--pre_lnorm", action="store_true", help="normalise the input of each block instead of its output"
    )
    group.add_argument("--tgt_len", type=int, default=70, help="tokens in a segment")
    group.add_argument("--mem_len", type=int, default=0, help="memory slots: hidden states kept of earlier segments")
    group.add_argument(
        "--same_length", action="store_true", help="let every query see the same number of keys, mem_len"
    )
    group.add_argument("--clamp_len", type=int, default=-1, help="treat larger distances as this one, -1 for never")


def _optimisation_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--optim", choices=("adam", "sgd", "adagrad"), default="adam", help="optimiser")
    group.add_argument("--lr", type=float, default=0.00025, help="peak learning rate")
    group.add_argument("--mom", type=float, default=0.0, help="momentum of sgd")
    group.add_argument("--scheduler", choices=SCHEDULES, default="cosine", help="learning-rate schedule")
    group.add_argument("--warmup_step", type=int, default=0, help="updates of linear warm-up")
    group.add_argument("--eta_min", type=float, default=0.0, help="learning rate at the end of cosine and linear")
    group.add_argument("--clip", type=float, default=0.25, help="largest norm of the gradient, 0 for no clipping")
    group.add_argument("--max_step", type=int, default=100000, help="updates")
    group.add_argument("--batch_size", type=int, default=60, help="parallel streams of text, over all processes")
    group.add_argument("--eval_batch_size", type=int, default=10, help="parallel streams of the validation")
    group.add_argument(
        "--batch_chunk", type=int, default=1, help="parts of a batch whose gradients are added up, to save memory"
    )
    group.add_argument(
        "--init", choices=("normal", "uniform"), default="normal", help="distribution of initial weights"
    )
    group.add_argument("--init_range", type=float, default=0.1, help="half width of the uniform one")
    group.add_argument("--init_std", type=float, default=0.02, help="standard deviation of the normal one")
    group.add_argument("--proj_init_std", type=float, default=0.01, help="standard deviation of initial projections")


def _pruning_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--fn",
        type=Path,
        default=None,
        help="average attention pattern (.safetensors or the published .npy), or a prune mask",
    )
    group.add_argument(
        "--th", type=str, default=None, help="fraction of attention to prune, 0 to 1; a mask file has its own"
    )
    group.add_argument(
        "--rule", choices=RULES, default=None, help="how --th becomes a mask; published unless the file says"
    )
    group.add_argument(
        "--scope", choices=SCOPES, default=None, help="cells ranked together; layer unless the file says"
    )
    group.add_argument(
        "--block_size", type=int, default=None, help="prune whole blocks of this size; 1 (cells) unless the file says"
    )
    group.add_argument(
        "--row_floor",
        choices=ROW_FLOORS,
        default=None,
        help="whether a query keeps its best key; keep-best unless the file says",
    )
    group.add_argument("--random_prune", action="store_true", help="prune as many random cells instead")
    group.add_argument("--prune_seed", type=int, default=1, help="of --random_prune")


def check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other or make no sense."""
    intervals = ("log_interval", "eval_interval", "checkpoint_interval")
    for name in ("max_step", "batch_size", "eval_batch_size", "batch_chunk", *intervals):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}: expected at least 1, found {getattr(args, name)}")
    for name in ("dropout", "dropatt"):
        if not 0.0 <= getattr(args, name) < 1.0:
            raise InputError(f"--{name}: expected a fraction in [0, 1), found {getattr(args, name)}")
    if args.mixed_precision == "fp16" and choose_device(args.device).type == "cpu":
        raise InputError("--mixed_precision: expected no or bf16 on a CPU, found fp16")
    if not (args.lr > 0 and math.isfinite(args.lr)):
        raise InputError(f"--lr: expected a positive number, found {args.lr}")
    if not args.adaptive and (args.cutoffs or args.div_val != 1):
        raise InputError("--cutoffs and --div_val: expected --adaptive with them, found none")
    if args.fn is None:
        given = [n for n in ("th", *RECIPE_FLAGS) if getattr(args, n) is not None]
        if given or args.random_prune:
            name = given[0] if given else "random_prune"
            raise InputError(f"--{name}: expected --fn with it, the pattern to prune by, found none")


def read_mask(args: argparse.Namespace) -> PruneMask | None:
    """The prune mask that the flags ask for, or None for a dense model."""
    if args.fn is None:
        return None
    # As published for Transformer-XL, the percentile is that of the whole array.
    recipe = MaskRecipe(tau=args.th, **{name: getattr(args, name) for name in RECIPE_FLAGS}, crop=False)
    mask = load_mask(args.fn, recipe, site="self", causal=True)
    return random_like(mask, args.prune_seed) if args.random_prune else mask


def model_config(args: argparse.Namespace, n_token: int) -> ModelConfig:
    """The model that the flags describe."""
    shape = ("n_layer", "n_head", "d_head", "d_embed", "d_model", "d_inner", "div_val", "pre_lnorm")
    lengths = ("tgt_len", "mem_len", "same_length", "clamp_len")
    return ModelConfig(
        n_token=n_token,
        tied=not args.not_tied,
        cutoffs=list(args.cutoffs),
        **{name: getattr(args, name) for name in (*shape, *lengths, "dropout", "dropatt")},
    )


def build_model(
    args: argparse.Namespace, config: ModelConfig, mask: PruneMask | None, process: int
) -> MemTransformerLM:
    """The model with its first weights, the same in every process; each process goes on to draw its own dropout."""
    seed_everything(args.seed)
    model = MemTransformerLM(config, mask)
    model.initialize(args.init, args.init_range, args.init_std, args.proj_init_std)
    seed_everything(args.seed + process)
    return model


def read_text(
    args: argparse.Namespace, corpus: Corpus, rank: int, world: int
) -> tuple[LMOrderedIterator, LMOrderedIterator]:
    """This process's rows of the training text, and the whole validation text."""
    if args.batch_size % (args.batch_chunk * world):
        raise InputError(
            f"--batch_size: expected a multiple of --batch_chunk {args.batch_chunk} x {world} processes, "
            f"found {args.batch_size}"
        )
    names = {split: f"{args.data} ({split})" for split in ("train", "valid")}
    train = LMOrderedIterator(
        corpus.split("train"), args.batch_size, args.tgt_len, rank=rank, world_size=world, name=names["train"]
    )
    valid = LMOrderedIterator(
        corpus.split("valid"), args.eval_batch_size, args.tgt_len, name=names["valid"], max_steps=args.max_eval_steps
    )
    return train, valid


def main(argv: list[str] | None = None) -> int | None:
    """Run the command; returns its exit status."""
    args = parser().parse_args(argv)
    check(args)
    limit_threads(args.threads)
    corpus = Corpus.load(args.data)
    config = model_config(args, len(corpus.vocabulary))
    mask = read_mask(args)
    # Buffers never change: there is nothing to broadcast at every step.
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(
        cpu=choose_device(args.device).type == "cpu", mixed_precision=args.mixed_precision, kwargs_handlers=[parallel]
    )
    model = build_model(args, config, mask, accelerator.process_index)
    train, valid = read_text(args, corpus, accelerator.process_index, accelerator.num_processes)
    make_folder(args.work_dir)
    record = RunRecord("transformer-xl/train.py", vars(args))
    origin = {
        "corpus": corpus.fingerprint,
        "vocabulary": corpus.vocabulary_fingerprint,
        "seed": args.seed,
        "mask": None if mask is None else describe_mask(mask),
    }
    trainer = Trainer(args, accelerator, model, train, valid, origin)
    if args.restart and trainer.checkpoint_path.exists():
        trainer.read_checkpoint()
        record.seconds_before = trainer.seconds_before
    if mask is not None and accelerator.is_main_process:
        mask.save(args.work_dir / "mask.safetensors")
    accelerator.print(
        f"| {sum(p.numel() for p in model.parameters()):,} parameters | vocabulary {config.n_token:,} "
        f"| {train.targets * accelerator.num_processes:,} training tokens a pass | " + (str(mask) if mask else "dense")
    )
    status = trainer.run()
    if status is None and accelerator.is_main_process:
        record.write(args.work_dir / "run.json", **origin, valid_nll=trainer.best_loss, steps=trainer.step)
    return status


if __name__ == "__main__":
    run_main(main)

"""Train Transformer-XL on a text, dense or with pruned attention.

Flags have the names of the published PyTorch implementation. Two are the paper's: --fn, an average attention pattern
(or a finished prune mask), and --th, the fraction of attention to prune. Without --fn the model is dense.

    python transformer-xl/train.py --data data/bible-web --work_dir runs/dense
    python transformer-xl/train.py --data data/bible-web --work_dir runs/pruned --fn pattern.safetensors --th 0.8
"""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from attention_pruning import InputError, PruneMask
from attention_pruning.files.load import load_mask
from attention_pruning.make import random_like
from attention_pruning.processes import gathered, together
from attention_pruning.recipe import MaskRecipe
from data_utils import LMOrderedIterator
from evaluation import explain_attention
from flags import choose_device
from mem_transformer import MemTransformerLM, extended
from model_config import ModelConfig
from model_file import EVALUATION_FIELDS, describe_mask, load_model
from reproduction.data.language.corpus import Corpus
from reproduction.runs.checkpoint import seed_everything
from reproduction.runs.command import limit_threads, refuse_sharding, run_main
from reproduction.runs.folder import claim_folder, make_recipe, way
from reproduction.runs.record import RunRecord
from reproduction.runs.step_log import StepLog
from train_flags import RECIPE_FLAGS, build_parser, check, fill_cutoffs, validation_lengths
from trainer import Trainer

#: Flags that may change between a run and its continuation without making it another run. The text and the mask may
#: have moved; their fingerprints must be the same.
FREE_FLAGS = frozenset(
    {
        *("restart", "overwrite", "set_aside", "work_dir", "restart_dir", "data", "dataset", "fn"),
        *("device", "threads", "log_interval", "checkpoint_interval", "logging_dir", "report_to"),
    }
)
#: What a training leaves in its folder.
TRACES = ("model.safetensors", "mask.safetensors", "checkpoint.pt", "run.json")


def parser() -> argparse.ArgumentParser:
    """All flags, with their defaults."""
    return build_parser(__doc__)


def read_mask(args: argparse.Namespace) -> PruneMask | None:
    """The prune mask that the flags ask for, or None for a dense model."""
    if args.fn is None:
        return None
    # As published for Transformer-XL, the percentile is that of the whole array.
    recipe = MaskRecipe(tau=args.th, **{name: getattr(args, name) for name in RECIPE_FLAGS}, crop=False)
    lengths = (args.tgt_len, args.mem_len)  # of a mask by distance, which has none of its own
    mask = load_mask(args.fn, recipe, site="self", causal=True, lengths=lengths)
    return random_like(mask, args.prune_seed) if args.random_prune else mask


def model_config(args: argparse.Namespace, n_token: int) -> ModelConfig:
    """The model that the flags describe."""
    shape = ("n_layer", "n_head", "d_head", "d_embed", "d_model", "d_inner", "div_val", "pre_lnorm", "untie_r")
    lengths = ("tgt_len", "mem_len", "same_length", "clamp_len")
    return ModelConfig(
        n_token=n_token,
        tied=not args.not_tied,
        cutoffs=list(args.cutoffs),
        tie_projs=[args.tie_projs == "all"] + [args.tie_projs != "none"] * len(args.cutoffs),
        **{name: getattr(args, name) for name in (*shape, *lengths, "dropout", "dropatt")},
    )


def build_model(
    args: argparse.Namespace, config: ModelConfig, mask: PruneMask | None, process: int
) -> MemTransformerLM:
    """The model with its first weights, the same in every process; each process goes on to draw its own dropout."""
    seed_everything(args.seed)
    model = MemTransformerLM(config, mask, args.beyond)
    lengths = validation_lengths(args)
    if model.pruned is not None and args.beyond == "dense":
        model.set_pruned(extended(model.pruned, *lengths))
    covered = model.covered
    if model.pruned is not None and (lengths[0] > covered[0] or lengths[1] > covered[1]):
        raise InputError(
            f"--eval_tgt_len: expected what the prune mask covers, segments of {covered[0]} tokens after {covered[1]} "
            f"memory slots, found {lengths[0]} after {lengths[1]}; --beyond dense leaves the rest unpruned"
        )
    model.set_backend(args.attention_backend)
    model.initialize(args.init, args.init_range, args.init_std, args.proj_init_std)
    seed_everything(args.seed + process)
    return model


def start_from(args: argparse.Namespace, model: MemTransformerLM, corpus: Corpus) -> dict[str, Any]:
    """Give the model the weights in --restart_dir, if there is one; returns what the recipe says of them.

    Raises
    ------
    InputError
        If they are of another model or vocabulary, or of a pruned model where --fn gives no mask.
    """
    if args.restart_dir is None:
        return {}
    path = args.restart_dir / "model.safetensors"
    found = load_model(path)
    found.check_vocabulary(path, corpus)
    own, theirs = (dataclasses.asdict(config) for config in (model.config, found.model.config))
    for name in own.keys() - {*EVALUATION_FIELDS, "dropout", "dropatt"}:
        if own[name] != theirs[name]:
            raise InputError(f"{path}: expected a model with {name} {own[name]}, found {theirs[name]}")
    if found.model.pruned is not None and args.fn is None:
        raise InputError(f"--restart_dir: expected --fn beside the weights of a pruned model, found none ({path})")
    weights = dict(found.model.named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])
    return {"started_from": found.fingerprint}


def read_text(
    args: argparse.Namespace, corpus: Corpus, rank: int, world: int
) -> tuple[LMOrderedIterator, LMOrderedIterator]:
    """This process's rows of the training text and of the validation text."""
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
        corpus.split("valid"),
        args.eval_batch_size,
        validation_lengths(args)[0],
        rank=rank,
        world_size=world,
        name=names["valid"],
        max_steps=args.max_eval_steps,
        flag="--eval_batch_size",
    )
    return train, valid


def claim(
    args: argparse.Namespace, accelerator: Accelerator, corpus: Corpus, mask: PruneMask | None, **more: Any
) -> dict[str, Any]:
    """Make --work_dir this run's: ``resumes``, and ``facts`` for run.json, known in every process.

    Raises
    ------
    InputError
        In every process, if the folder holds another run, see ``run_folder.claim_folder``.
    """
    recipe = make_recipe(
        "transformer-xl/train.py",
        vars(args),
        free=FREE_FLAGS,
        text=corpus.fingerprint,
        mask=None if mask is None else mask.fingerprint,
        processes=accelerator.num_processes,
        **more,
    )
    folder = {}
    with together():
        if accelerator.is_main_process:
            found = claim_folder(args.work_dir, recipe, traces=TRACES, other=way(args), may_grow=("max_step",))
            folder = {"resumes": found.resumes, "facts": found.facts()}
    return gathered(folder)[0]


def open_log(args: argparse.Namespace, accelerator: Accelerator, done: int) -> AbstractContextManager[StepLog | None]:
    """The log in --logging_dir, which the main process writes; errors are those of all processes."""
    log: AbstractContextManager[StepLog | None] = nullcontext()
    with together():
        if args.logging_dir is not None and accelerator.is_main_process:
            log = StepLog(args.logging_dir, done, args.report_to)
    return log


def main(argv: list[str] | None = None) -> int | None:
    """Run the command; returns its exit status."""
    args = parser().parse_args(argv)
    check(args)
    refuse_sharding()
    limit_threads(args.threads)
    corpus = Corpus.load(args.data)
    fill_cutoffs(args, len(corpus.vocabulary))
    config = model_config(args, len(corpus.vocabulary))
    mask = read_mask(args)
    # Buffers never change: there is nothing to broadcast at every step.
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
    accelerator = Accelerator(
        cpu=choose_device(args.device).type == "cpu", mixed_precision=args.mixed_precision, kwargs_handlers=[parallel]
    )
    model = build_model(args, config, mask, accelerator.process_index)
    train, valid = read_text(args, corpus, accelerator.process_index, accelerator.num_processes)
    record = RunRecord("transformer-xl/train.py", vars(args))
    origin = {
        "corpus": corpus.fingerprint,
        "vocabulary": corpus.vocabulary_fingerprint,
        "seed": args.seed,
        "mask": None if mask is None else describe_mask(mask),
    }
    start = start_from(args, model, corpus)
    trainer = Trainer(args, accelerator, model, train, valid, origin | start)
    folder = claim(args, accelerator, corpus, mask, **start)
    if folder["resumes"] and trainer.checkpoint_path.exists():
        trainer.read_checkpoint()
        record.seconds_before = trainer.seconds_before
    if mask is not None and accelerator.is_main_process:
        mask.save(args.work_dir / "mask.safetensors")
    accelerator.print(
        f"| {sum(p.numel() for p in model.parameters()):,} parameters | vocabulary {config.n_token:,} "
        f"| {train.targets * accelerator.num_processes:,} training tokens a pass | " + (str(mask) if mask else "dense")
    )
    with open_log(args, accelerator, trainer.step) as trainer.log:
        status = trainer.run()
    if status is None and accelerator.is_main_process:
        model = accelerator.unwrap_model(trainer.model)
        with model.at_lengths(*validation_lengths(args)):
            attention = explain_attention(model, valid, accelerator.device)
        found = {"valid_nll": trainer.best_loss, "steps": trainer.step, "attention": attention}
        record.write(args.work_dir / "run.json", **origin, **start, **folder["facts"], **found)
    return status


if __name__ == "__main__":
    run_main(main, takes_device=True)

"""The flags of ``train.py``, in the names of the published PyTorch implementation, and what they say together."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from attention_pruning import InputError
from attention_pruning.recipe import ROW_FLOORS, RULES, SCOPES
from flags import Parser, add_backend_flag, add_beyond_flag, add_run_flags, choose_device
from reproduction.runs.command import HelpFormatter
from reproduction.runs.folder import add_folder_flags
from reproduction.runs.step_log import add_log_flags, check_log_flags
from schedules import FALLING_SCHEDULES, SCHEDULES
from upstream_flags import add_upstream_flags, check_upstream_flags

#: The published borders of the adaptive softmax, by the size of the vocabulary: WikiText-103, One Billion Word.
PUBLISHED_CUTOFFS = {267_735: [20_000, 40_000, 200_000], 793_471: [60_000, 100_000, 640_000]}
TIES = ("all_but_first", "none", "all")
SCHEDULER_HELP = (
    "learning-rate schedule: cosine and linear fall to --eta_min at --max_step; inv_sqrt is lr / sqrt(step), after a "
    "warm-up to lr / sqrt(warmup_step); dev_perf, the published one by validation loss, is refused"
)
DEFAULT_PRUNE_SEED = 1
#: The flags that a MaskRecipe has by the same names; its tau is --th.
RECIPE_FLAGS = ("rule", "scope", "block_size", "row_floor")


def build_parser(description: str | None = None) -> argparse.ArgumentParser:
    """All flags, with their defaults."""
    top = Parser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)
    files = top.add_argument_group("data and files")
    files.add_argument(
        "--data", type=Path, required=True, help="folder of a prepared corpus, or of train.txt valid.txt test.txt"
    )
    files.add_argument(
        "--work_dir",
        type=Path,
        help="where the model, the checkpoint and run.json go; has to be given unless --dataset is (LM-TFM-DATASET)",
    )
    files.add_argument(
        "--restart",
        action="store_true",
        help="continue from the checkpoint in --work_dir, if there is one; the same flags without it do so, too",
    )
    files.add_argument(
        "--restart_dir",
        type=Path,
        help="folder with a model.safetensors to start from, as convert_checkpoint.py or another training leaves it, "
        "with a new optimiser and step 0; random weights unless it is given",
    )
    add_folder_flags(files)
    _model_flags(top.add_argument_group("model"))
    _optimisation_flags(top.add_argument_group("optimisation"))
    _pruning_flags(top.add_argument_group("pruning"))
    run = top.add_argument_group("run")
    run.add_argument("--seed", type=int, default=1111, help="seed of the initial weights and of dropout")
    run.add_argument("--log_interval", type=int, default=200, help="updates between lines of progress")
    add_log_flags(run)
    run.add_argument(
        "--eval_interval", type=int, default=4000, help="updates between validations; there is one at the end"
    )
    run.add_argument("--checkpoint_interval", type=int, default=1000, help="updates between checkpoints")
    run.add_argument(
        "--eval_tgt_len",
        type=int,
        help="tokens in a segment of a validation, whose memory is longer by as many as it is shorter; --tgt_len "
        "unless given",
    )
    run.add_argument("--max_eval_steps", type=int, default=-1, help="segments of a validation, -1 for all")
    run.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), default="no", help="handled by accelerate")
    run.add_argument("--tf32", action="store_true", help="let a GPU round the factors of matrix products to 10 bits")
    add_run_flags(run)
    add_upstream_flags(top.add_argument_group("the published implementation's"))
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
    group.add_argument(
        "--cutoffs",
        type=int,
        nargs="*",
        default=[],
        help="borders of the adaptive softmax's clusters; as published for the vocabularies of WikiText-103 and the "
        "One Billion Word benchmark, for others at the shares of WikiText-103",
    )
    group.add_argument(
        "--tie_projs",
        choices=TIES,
        help="clusters whose projection the softmax shares with the embedding; all_but_first unless --dataset is lm1b",
    )
    group.add_argument("--untie_r", action="store_true", help="attention biases u and v of each layer, not of all")
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
    group.add_argument("--scheduler", choices=(*SCHEDULES, "dev_perf"), default="cosine", help=SCHEDULER_HELP)
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
        "--scope",
        choices=SCOPES,
        default=None,
        help="cells that are ranked together; those of a layer unless the file says",
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
    add_beyond_flag(group)
    add_backend_flag(group)
    group.add_argument("--random_prune", action="store_true", help="prune as many random cells instead")
    group.add_argument(
        "--prune_seed", type=int, default=DEFAULT_PRUNE_SEED, help="seed that --random_prune draws cells with"
    )


def check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other or make no sense."""
    check_upstream_flags(args)
    if args.work_dir is None:
        if args.dataset is None:
            raise InputError("--work_dir: expected a folder for the run, found none")
        args.work_dir = Path(f"LM-TFM-{args.dataset}")
    if args.restart_dir is not None and args.restart_dir.resolve() == args.work_dir.resolve():
        args.restart_dir = None  # the same folder is that of the run itself, which is continued
    if args.eval_tgt_len is not None and (args.eval_tgt_len < 1 or validation_lengths(args)[1] < 0):
        raise InputError(
            f"--eval_tgt_len: expected 1 or more, --tgt_len and --mem_len together at most, found {args.eval_tgt_len}"
        )
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
    if args.restart and args.overwrite:
        raise InputError("--restart: expected no --overwrite beside it, found both")
    check_log_flags(args)
    _check_companions(args)


def _check_companions(args: argparse.Namespace) -> None:
    """Refuse flags that would be ignored, because another one is not there."""
    needed = {
        "an adaptive softmax, --adaptive,": (args.adaptive, ("cutoffs", "div_val")),
        "projections, from --d_embed or --div_val,": (
            args.d_embed not in (-1, args.d_model) or args.div_val > 1,
            ("tie_projs",),
        ),
        "--optim sgd": (args.optim == "sgd", ("mom",)),
        "a schedule that falls to it, --scheduler cosine or linear,": (
            args.scheduler in FALLING_SCHEDULES,
            ("eta_min",),
        ),
        "--init uniform": (args.init == "uniform", ("init_range",)),
        "a pattern to prune by, --fn,": (
            args.fn is not None,
            ("th", *RECIPE_FLAGS, "random_prune", "beyond", "attention_backend"),
        ),
        "--random_prune": (args.random_prune, ("prune_seed",)),
    }
    defaults = build_parser()
    for what, (there, names) in needed.items():
        for name in names:
            if not there and getattr(args, name) != defaults.get_default(name):
                raise InputError(f"--{name}: expected {what} beside it, found none")


def validation_lengths(args: argparse.Namespace) -> tuple[int, int]:
    """Tokens in a segment of a validation and memory slots: as many keys as in training, as published."""
    length = args.tgt_len if args.eval_tgt_len is None else args.eval_tgt_len
    return length, args.mem_len and args.mem_len + args.tgt_len - length


def fill_cutoffs(args: argparse.Namespace, n_token: int) -> None:
    """Give an adaptive softmax what is not said, as published for the corpus: its borders, or their shares, and ties.

    Raises
    ------
    InputError
        If the vocabulary is too small to be shared out.
    """
    if args.tie_projs is None:
        args.tie_projs = "none" if args.dataset == "lm1b" else TIES[0]
    if not args.adaptive or args.cutoffs:
        return
    published = PUBLISHED_CUTOFFS.get(n_token)
    words, shares = next(iter(PUBLISHED_CUTOFFS.items()))
    args.cutoffs = published or [round(n_token * border / words) for border in shares]
    if sorted(set(args.cutoffs) - {0, n_token}) != args.cutoffs:
        raise InputError(f"--adaptive: expected --cutoffs beside it for a vocabulary of {n_token} words, found none")

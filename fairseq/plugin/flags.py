"""The flags of pruning, in the literal spelling of the published README, and what they say together."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from attention_pruning import InputError
from attention_pruning.ops.choice import BACKENDS
from attention_pruning.recipe import ROW_FLOORS, RULES, SCOPES, MaskRecipe

#: Site -> the flag that prunes it and the flag that names its pattern or mask.
SITE_FLAGS = {
    "enc-self": ("PRUNE_ENC_SELF_ATTN", "ENCODER_SELF_ATTN_PATH"),
    "dec-self": ("PRUNE_DEC_SELF_ATTN", "DECODER_SELF_ATTN_PATH"),
    "enc-dec": ("PRUNE_ENC_DEC_ATTN", "ENCODER_DECODER_ATTN_PATH"),
}
#: How ``compute_attn_score.py --attn_type`` spells the sites.
SITES_BY_TYPE = {"self-enc": "enc-self", "self-dec": "dec-self", "enc-dec": "enc-dec"}
BEYOND = ("error", "dense", "decoding")
#: The spellings of the flag that says so; the last two are those of earlier versions.
BEYOND_FLAGS = ("--beyond", "--beyond-pattern", "--beyond_pattern")
#: Where the namespace in a checkpoint records its masks, as JSON: site -> ``site_masks.describe``.
RECORD = "attention_pruning"
#: What a translating command that prints alignments overrides.
GIVES_WEIGHTS = "gives_weights"
DEFAULT_SEED = 1
#: Fields of a recipe that have a flag of the same name.
_RECIPE_FLAGS = ("rule", "scope", "block_size", "row_floor")
#: Flags that mean something only beside --PRUNE_BOOL, as attributes.
_NEED_PRUNING = ("TAU", "RANDOM_PRUNE", *_RECIPE_FLAGS, "attention_backend")


def add_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare the flags; fairseq's parser leaves out of the namespace what is not given."""
    add = parser.add_argument
    add("--PRUNE_BOOL", action="store_true", help="prune attention, at the sites that the next three flags name")
    add("--PRUNE_ENC_SELF_ATTN", action="store_true", help="prune the encoder's self-attention")
    add("--PRUNE_DEC_SELF_ATTN", action="store_true", help="prune the decoder's self-attention")
    add("--PRUNE_ENC_DEC_ATTN", action="store_true", help="prune the attention from decoder to encoder")
    for site, flag in (
        ("encoder self", "ENCODER_SELF"),
        ("decoder self", "DECODER_SELF"),
        ("cross", "ENCODER_DECODER"),
    ):
        add(
            f"--{flag}_ATTN_PATH",
            metavar="FILE",
            help=f"pattern or mask of {site}-attention: .safetensors, published .npy",
        )
    add(
        "--TAU",
        metavar="SHARE",
        help="share to prune, a fraction such as 0.5; needed with a pattern, a mask has its own",
    )
    add("--RANDOM_PRUNE", action="store_true", help="prune as many cells of every layer, but at random")
    add("--prune-seed", type=int, metavar="N", help=f"seed of --RANDOM_PRUNE (default: {DEFAULT_SEED})")
    add("--rule", choices=RULES, help="how TAU becomes a mask (default: published)")
    add(
        "--scope",
        choices=SCOPES,
        help="where cells compete: within each layer, head or row, or in the whole model (default: layer)",
    )
    add(
        "--block-size",
        "--block_size",
        type=int,
        metavar="N",
        help="prune whole blocks of this side (default: that of the pattern)",
    )
    add(
        "--row-floor",
        "--row_floor",
        choices=ROW_FLOORS,
        help="whether every query keeps its best key, or may lose all of them (default: keep-best)",
    )
    add(
        "--attention-backend",
        "--attention_backend",
        choices=BACKENDS,
        help="what computes pruned attention over whole sequences: whatever is fastest (auto, the default), the "
        "compiled kernel, FlexAttention, the Triton kernels, or the readable reference",
    )
    add(
        *BEYOND_FLAGS,
        dest="beyond_pattern",
        choices=BEYOND,
        help="attention at positions that the pattern does not cover: an error in text that is read and unpruned in "
        "text that the model writes itself (decoding, the default of train.py), unpruned (dense, the default of "
        "generate.py and interactive.py), or always an error",
    )
    add("--USE_ENTMAX", action="store_true", help="entmax 1.5 instead of softmax in all attention")
    add("--CUDA", action="store_true", help="refuse to run without a GPU (default: take one if there is one)")


@dataclass(frozen=True)
class PruneFlags:
    """What the flags ask for, checked.

    Attributes
    ----------
    paths : dict
        Site -> pattern or mask file; empty without --PRUNE_BOOL.
    recipe : MaskRecipe
        How the masks are asked for; open where no flag was given.
    random_seed : int or None
        With --RANDOM_PRUNE, its seed.
    beyond_pattern : {"error", "dense", "decoding"}
    normalizer : {"softmax", "entmax15"}
    backend : {"auto", "block_sparse", "flex", "triton", "reference"}
    gives_weights : bool
        Whether somebody uses the weights of cross-attention: training by alignments, or printing them.
    """

    paths: dict[str, str]
    recipe: MaskRecipe
    random_seed: int | None
    beyond_pattern: str
    normalizer: str
    backend: str
    gives_weights: bool

    @classmethod
    def read(cls, args: Any) -> PruneFlags:
        """Read and check fairseq's namespace.

        Raises
        ------
        InputError
            For a flag without what it needs, a file without its flag, a bad number, or --USE_ENTMAX beside a backend
            that knows only softmax.
        """
        entmax, backend = getattr(args, "USE_ENTMAX", False), getattr(args, "attention_backend", None) or "auto"
        if entmax and backend in ("block_sparse", "flex", "triton"):
            raise InputError(f"--attention-backend {backend}: expected no --USE_ENTMAX beside it, found both")
        seed = getattr(args, "prune_seed", None)
        random = getattr(args, "RANDOM_PRUNE", False)
        if seed is not None and not random:
            raise InputError("--prune-seed: expected --RANDOM_PRUNE beside it, found none")
        chosen = {name: getattr(args, name, None) for name in _RECIPE_FLAGS}
        return cls(
            paths=_paths(args),
            recipe=MaskRecipe(tau=getattr(args, "TAU", None), **chosen),
            random_seed=(DEFAULT_SEED if seed is None else seed) if random else None,
            beyond_pattern=getattr(args, "beyond_pattern", None) or "decoding",
            normalizer="entmax15" if entmax else "softmax",
            backend=backend,
            gives_weights=bool(getattr(args, "load_alignments", False) or getattr(args, GIVES_WEIGHTS, False)),
        )


def _paths(args: Any) -> dict[str, str]:
    prune = getattr(args, "PRUNE_BOOL", False)
    paths = {}
    for site, (switch, path_flag) in SITE_FLAGS.items():
        wanted, path = getattr(args, switch, False), getattr(args, path_flag, None)
        if wanted and not prune:
            raise InputError(f"--{switch}: expected --PRUNE_BOOL beside it, found none")
        if wanted and not path:
            raise InputError(f"--{switch}: expected --{path_flag} FILE beside it, found none")
        if path and not wanted:
            raise InputError(f"--{path_flag}: expected --PRUNE_BOOL and --{switch} beside it, found none")
        if wanted:
            paths[site] = path
    if prune and not paths:
        switches = ", ".join(f"--{switch}" for switch, _ in SITE_FLAGS.values())
        raise InputError(f"--PRUNE_BOOL: expected one of {switches} beside it, found none")
    alone = [name for name in _NEED_PRUNING if getattr(args, name, None) not in (None, False)]
    if alone and not prune:
        raise InputError(f"{spelling(alone[0])}: expected --PRUNE_BOOL beside it, found none")
    # A checkpoint that is only read may be dense: whoever translates says it without looking.
    if getattr(args, "beyond_pattern", None) and not prune and getattr(args, RECORD, None) is None:
        raise InputError("--beyond: expected --PRUNE_BOOL beside it, found none")
    return paths


def spelling(attribute: str) -> str:
    """The flag that gives an attribute of the namespace."""
    return f"--{attribute if attribute.isupper() else attribute.replace('_', '-')}"


def check_device(args: Any) -> None:
    """Hold --CUDA to its word.

    Raises
    ------
    InputError
        If there is no GPU, or --cpu is given too.
    """
    if not getattr(args, "CUDA", False):
        return
    if getattr(args, "cpu", False):
        raise InputError("--CUDA: expected no --cpu beside it, found both")
    if not torch.cuda.is_available():
        raise InputError("--CUDA: expected a CUDA device, found none")

"""The published flags of pruning, what they say together, and the mask that they put into a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel

from attention_pruning import InputError, PruneMask
from attention_pruning.files.load import load_mask
from attention_pruning.huggingface import BACKENDS, AttentionStack, find_stacks, model_masks, prune_model
from attention_pruning.make import random_like
from attention_pruning.recipe import ROW_FLOORS, RULES, SCOPES, MaskRecipe

#: The one site of a model with a single stack of attention.
SITE = "self"
#: What a gathered pattern may be written as: this library's file, or the published layout, which has no counts.
PATTERN_ENDINGS = (".safetensors", ".npy")
#: The flags that a MaskRecipe has by the same names.
_RECIPE_FLAGS = ("tau", "rule", "scope", "block_size", "row_floor")
_NEED_PRUNE = (*_RECIPE_FLAGS, "random_prune")
DEFAULT_SEED = 1


@dataclass
class PruningArguments:
    """The four published flags, and those of the library."""

    _argument_group_name = "pruning"

    save_attention_patterns: bool = field(
        default=False,
        metadata={"help": "average the model's attention over its training data, after --do_train if that is given"},
    )
    prune: bool = field(default=False, metadata={"help": "prune attention by --attn_path, in training and evaluation"})
    attn_path: str | None = field(
        default=None,
        metadata={
            "help": "pattern or mask to prune by (.safetensors, published .npy); or where "
            "--save_attention_patterns writes its pattern (.safetensors, or .npy for the published layout)"
        },
    )
    tau: str | None = field(
        default=None, metadata={"help": "share to prune, a fraction such as 0.5; a mask file has its own"}
    )
    rule: str | None = field(
        default=None, metadata={"choices": RULES, "help": "how --tau becomes a mask; published unless the file says"}
    )
    scope: str | None = field(
        default=None,
        metadata={
            "choices": SCOPES,
            "help": "cells that are ranked together; those of a layer unless the file says",
        },
    )
    block_size: int | None = field(
        default=None, metadata={"help": "prune whole blocks of this size; 1 (cells) unless the file says"}
    )
    row_floor: str | None = field(
        default=None,
        metadata={
            "choices": ROW_FLOORS,
            "help": "whether a query keeps its best key; keep-best unless the file says",
        },
    )
    random_prune: bool = field(default=False, metadata={"help": "prune as many random cells of every layer instead"})
    prune_seed: int | None = field(
        default=None, metadata={"help": f"seed that --random_prune draws cells with (default: {DEFAULT_SEED})"}
    )
    beyond: str = field(
        default="error",
        metadata={
            "choices": ("error", "dense"),
            "help": "sequences that are longer than the mask covers: an error, or unpruned there (dense)",
        },
    )
    attention_backend: str = field(
        default="auto",
        metadata={
            "aliases": ["--backend"],
            "choices": BACKENDS,
            "help": "what computes pruned attention: whatever is fastest; the compiled kernel; FlexAttention; the "
            "Triton kernels; or the readable reference",
        },
    )
    max_pattern_samples: int | None = field(
        default=None,
        metadata={"help": "average over so many training sequences, drawn with --seed, instead of all of them"},
    )

    @property
    def recipe(self) -> MaskRecipe:
        """How the mask is asked for; what no flag says is left open."""
        return MaskRecipe(**{name: getattr(self, name) for name in _RECIPE_FLAGS})

    def check(self, pad_to_max_length: bool) -> None:
        """Refuse flags that contradict each other or make no sense.

        Raises
        ------
        InputError
        """
        if self.prune and self.save_attention_patterns:
            raise InputError("--prune: expected a run of its own, found --save_attention_patterns beside it")
        for name in ("prune", "save_attention_patterns"):
            if getattr(self, name):
                if self.attn_path is None:
                    raise InputError(f"--{name}: expected --attn_path FILE with it, found none")
                check_padding(pad_to_max_length, f"--{name}")
        if self.attn_path is not None and not (self.prune or self.save_attention_patterns):
            raise InputError("--attn_path: expected --prune or --save_attention_patterns with it, found neither")
        if not self.prune:
            for name in _NEED_PRUNE:
                if getattr(self, name) not in (None, False):
                    raise InputError(f"--{name}: expected --prune with it, found none")
        if self.prune_seed is not None and not self.random_prune:
            raise InputError("--prune_seed: expected --random_prune with it, found none")
        _ = self.recipe  # refuses a bad one
        if self.save_attention_patterns and Path(self.attn_path).suffix not in PATTERN_ENDINGS:
            raise InputError(f"--attn_path: expected a name in {' or '.join(PATTERN_ENDINGS)}, found {self.attn_path}")
        if self.max_pattern_samples is not None:
            if not self.save_attention_patterns:
                raise InputError("--max_pattern_samples: expected --save_attention_patterns with it, found none")
            if self.max_pattern_samples < 1:
                raise InputError(f"--max_pattern_samples: expected at least 1, found {self.max_pattern_samples}")


def check_padding(pad_to_max_length: bool, reason: str) -> None:
    """Refuse dynamic padding beside a pattern or a mask, whose rows are positions up to --max_seq_length.

    Raises
    ------
    InputError
    """
    if not pad_to_max_length:
        raise InputError(f"--pad_to_max_length: expected true with {reason}, found false")


def single_stack(model: PreTrainedModel) -> AttentionStack:
    """The model's one stack of self-attention.

    Raises
    ------
    InputError
        If the model is not supported, or has cross attention too: a pattern of these scripts is of one site.
    """
    stacks = find_stacks(model)
    if list(stacks) != [SITE]:
        raise InputError(
            f"{type(model).__name__}: expected a model with one stack of attention, found {', '.join(stacks)}"
        )
    return stacks[SITE]


def read_mask(arguments: PruningArguments, causal: bool) -> PruneMask:
    """The mask that --prune asks for.

    Raises
    ------
    InputError
        If the file is missing, broken or of another site, or a pattern has no --tau with it.
    """
    mask = load_mask(arguments.attn_path, arguments.recipe, site=SITE, causal=causal)
    if not arguments.random_prune:
        return mask
    return random_like(mask, DEFAULT_SEED if arguments.prune_seed is None else arguments.prune_seed)


def apply_pruning(
    model: PreTrainedModel, arguments: PruningArguments, max_seq_length: int, pad_to_max_length: bool = True
) -> PruneMask | None:
    """Put the mask that the flags ask for into a model.

    A model that was saved with a mask keeps it when --prune is not given. It is never pruned by another one: what the
    first mask took away would shape the result, and no file would say so.

    Returns
    -------
    PruneMask or None
        The model's mask; None for a dense model.

    Raises
    ------
    InputError
        If the model has more than one stack of attention, or the mask was made for another model, is too short for
        ``max_seq_length``, or is not the one that the model came with. The model is unchanged then.
    """
    masks = model_masks(model)
    if not arguments.prune and not masks:
        for name, default in (("attention_backend", "auto"), ("beyond", "error")):
            if getattr(arguments, name) != default:
                raise InputError(f"--{name}: expected --prune, or a model with a mask, found neither")
        return None
    stack, carried = single_stack(model), masks.get(SITE)
    mask = read_mask(arguments, stack.causal) if arguments.prune else carried
    if carried is not None and mask.fingerprint != carried.fingerprint:
        raise InputError(
            f"{carried.source}: expected a dense model for --prune, or one pruned by the same mask {mask.fingerprint}, "
            f"found mask {carried.fingerprint} in it"
        )
    check_padding(pad_to_max_length, "a mask")
    positions = min(mask.query_length, mask.key_length)
    if positions < max_seq_length and arguments.beyond == "error":
        raise InputError(
            f"{mask.source}: expected at least {max_seq_length} positions, as --max_seq_length says, found "
            f"{positions}; --beyond dense leaves the others unpruned"
        )
    prune_model(model, mask, backend=arguments.attention_backend, beyond=arguments.beyond)
    return mask

"""From the flags to the prune masks of the three sites, and what a checkpoint records of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from attention_pruning import InputError, PruneMask
from attention_pruning.files.load import load_mask
from attention_pruning.make import random_like
from attention_pruning.recipe import MaskRecipe
from attention_pruning.structure import block_any

from .flags import PruneFlags, spelling


def model_shapes(args: Any) -> dict[str, tuple[int, int]]:
    """Site -> layers and heads of the model that fairseq's namespace describes."""
    encoder = (_layers(args, "encoder"), args.encoder_attention_heads)
    decoder = (_layers(args, "decoder"), args.decoder_attention_heads)
    return {"enc-self": encoder, "dec-self": decoder, "enc-dec": decoder}


def _layers(args: Any, side: str) -> int:
    kept = getattr(args, f"{side}_layers_to_keep", None)
    return len(kept.split(",")) if kept else getattr(args, f"{side}_layers")


def load_site_masks(flags: PruneFlags, shapes: Mapping[str, tuple[int, int]]) -> dict[str, PruneMask]:
    """The masks that the flags ask for, by site.

    Raises
    ------
    InputError
        If a file is missing, broken, of another site or model, or contradicts a flag.
    """
    masks = {}
    for site, path in flags.paths.items():
        mask = _load(path, site, flags.recipe, flags.random_seed)
        layers, heads = shapes[site]
        mask.check_model(layers=layers, heads=heads)
        masks[site] = mask
    return masks


@functools.lru_cache(maxsize=6)  # the flags are checked when they are read and once more when the model is built
def _load(path: str, site: str, recipe: MaskRecipe, random_seed: int | None) -> PruneMask:
    mask = load_mask(path, recipe, site=site)
    if random_seed is None:
        return mask
    if mask.kind != "data":
        raise InputError(
            f"{path}: expected a pattern or a data-informed mask for --RANDOM_PRUNE, found a {mask.kind} mask"
        )
    return random_like(mask, random_seed)


def describe(mask: PruneMask) -> dict[str, Any]:
    """What a checkpoint records of one site's mask, beside the cells themselves: JSON values."""
    made = {"kind": mask.kind, **mask.recipe.recorded(), "seed": mask.seed}
    each = mask.layers * mask.heads
    return made | {
        "effective_sparsity": mask.effective_sparsity,
        "empty_rows": mask.empty_rows,
        "fingerprint": mask.fingerprint,
        "queries": mask.query_length,
        "keys": mask.key_length,
        "allowed_cells": int(mask.allowed.sum()) * each,
        "block_sparsity": mask.block_sparsity(),
        "allowed_blocks": int(block_any(mask.allowed, mask.kernel_block).sum()) * each,
        # A mask that prunes nothing (tau 0) leaves the dense model as it is, and no cells in the checkpoint.
        "prunes": bool(mask.pruned.any()),
        "pattern": mask.metadata.get("pattern_fingerprint"),
    }


def check_record(flags: PruneFlags, record: Mapping[str, Mapping[str, Any]], normalizer: str | None) -> None:
    """Refuse to load a checkpoint under another recipe than it was trained with (``--model-overrides``).

    What happens beyond a pattern, and what computes attention, are for whoever uses the model to choose.

    Parameters
    ----------
    normalizer : str or None
        That of the training; None if the checkpoint does not say it.

    Raises
    ------
    InputError
    """
    if set(flags.paths) != set(record):
        raise InputError(
            f"checkpoint: expected the pruned sites of its training ({', '.join(record) or 'none'}), found "
            f"{', '.join(flags.paths) or 'none'}"
        )
    if normalizer not in (None, flags.normalizer):
        raise InputError(f"checkpoint: expected {normalizer}, as it was trained, found {flags.normalizer}")
    given = {("TAU" if name == "tau" else name): value for name, value in flags.recipe.recorded().items()}
    for site, facts in record.items():
        for name, found in given.items():
            expected = facts.get(name.lower())
            if found is not None and found != expected:
                raise InputError(
                    f"checkpoint: expected {spelling(name)} {expected}, that of its {site} mask, found {found}"
                )
        if flags.random_seed is not None and flags.random_seed != facts["seed"]:
            seed = "no random mask" if facts["seed"] is None else f"--prune-seed {facts['seed']}"
            raise InputError(f"checkpoint: expected {seed}, that of its {site} mask, found {flags.random_seed}")


def empty_mask(facts: Mapping[str, Any], heads: int) -> torch.Tensor:
    """The buffer that a checkpoint's cells of one layer will fill: bool [heads, queries, keys]."""
    return torch.zeros(heads, facts["queries"], facts["keys"], dtype=torch.bool)

"""The file of a trained model: weights and prune mask in safetensors, configuration and origin in its header."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attention_pruning import DistanceMask, InputError, PruneMask
from mem_transformer import MemTransformerLM, extended
from model_config import ModelConfig
from reproduction.corpus import Corpus
from reproduction.training import atomic_path
from reproduction.weights import weights_fingerprint

FORMAT = "transformer-xl/model/1"
#: The metadata of a mask by distance at the lengths of a model says what it is of, and the header of the model's file
#: that its mask goes on at other lengths.
OF_DISTANCES, ANY_LENGTH = "distance_mask_fingerprint", "any_length"
#: What an evaluation may choose for itself; everything else is the model's.
EVALUATION_FIELDS = ("tgt_len", "mem_len", "same_length", "clamp_len")


@dataclass(frozen=True)
class LoadedModel:
    """A model read from its file.

    Attributes
    ----------
    model : MemTransformerLM
    info : dict
        ``corpus``, ``vocabulary``, ``step``, and ``mask`` (metadata of the prune mask, or None).
    fingerprint : str
        Of the weights and the mask.
    """

    model: MemTransformerLM
    info: dict[str, Any]
    fingerprint: str

    def check_vocabulary(self, path: str | Path, corpus: Corpus) -> None:
        """Refuse a corpus whose ids mean other words than in training."""
        if corpus.vocabulary_fingerprint != self.info["vocabulary"]:
            raise InputError(
                f"{path}: was trained with another vocabulary ({self.info['vocabulary']}) than that of {corpus.name} "
                f"({corpus.vocabulary_fingerprint})"
            )


def describe_mask(mask: PruneMask) -> dict[str, Any]:
    """What a model's file tells of its prune mask."""
    measured = {name: getattr(mask, name) for name in ("effective_sparsity", "empty_rows", "fingerprint")}
    made = {"kind": mask.kind, **mask.recipe.recorded(), "seed": mask.seed}
    made[ANY_LENGTH] = OF_DISTANCES in mask.metadata
    return made | measured | {"block_sparsity": mask.block_sparsity()}


def by_distance(pruned_LHTK: Tensor, block_size: int, length: int, slots: int) -> Tensor:
    """What a mask by distance prunes at other lengths, from what it prunes at some: bool [layer, head, T', M' + T'].

    The first query of the last block of rows sees every distance, in blocks. Longer ones are pruned.
    """
    rows = pruned_LHTK.size(2)
    row = (rows - 1) // block_size * block_size
    keys = row + pruned_LHTK.size(3) - rows + 1
    kept_LHd = ~pruned_LHTK[:, :, row, :keys:block_size].flip(-1)
    mask = DistanceMask(kept_LHd, block_size=block_size).at(length, slots)
    return torch.stack([mask.cells(layer) for layer in range(mask.layers)])


def save_model(path: str | Path, model: MemTransformerLM, **info: Any) -> None:
    """Write the model atomically; ``info`` must be JSON."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"format": FORMAT, "config": model.config.to_json(), "info": json.dumps(info, sort_keys=True)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_model(path: str | Path, beyond: str = "error", **overrides: Any) -> LoadedModel:
    """Read a model written by :func:`save_model`.

    Parameters
    ----------
    path : path
    beyond : {"error", "dense"}
        At lengths that exceed what the prune mask covers: refuse, or leave the rest unpruned.
    overrides
        Lengths to evaluate at (``tgt_len``, ``mem_len``, ``same_length``, ``clamp_len``); None keeps the model's own.

    Raises
    ------
    InputError
        If the file is missing, damaged or something else, or the lengths exceed what the prune mask covers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a Transformer-XL model, found no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: expected a Transformer-XL model, found a damaged file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: expected format {FORMAT!r}, found {metadata.get('format', 'none')!r}")
    try:
        config, info = ModelConfig.from_json(metadata["config"]), json.loads(metadata["info"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected a configuration in its header, found a broken one ({error})") from error
    unknown = set(overrides) - set(EVALUATION_FIELDS)
    if unknown:
        raise ValueError(f"overrides: expected some of {EVALUATION_FIELDS}, found {sorted(unknown)}")
    config = dataclasses.replace(config, **{k: v for k, v in overrides.items() if v is not None})
    pruned = tensors.pop("pruned", None)
    model = MemTransformerLM(config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: expected the weights of its own configuration, found others") from error
    if pruned is not None:
        if (mask := info.get("mask") or {}).get(ANY_LENGTH):
            pruned = by_distance(pruned, mask["block_size"], config.tgt_len, config.mem_len)
        elif beyond == "dense":
            pruned = extended(pruned, config.tgt_len, config.mem_len)
        model.set_pruned(pruned)
        covered = (pruned.size(2), pruned.size(3) - pruned.size(2))
        if config.tgt_len > covered[0] or config.mem_len > covered[1]:
            raise InputError(
                f"{path}: its prune mask covers tgt_len {covered[0]} and mem_len {covered[1]}, "
                f"found --tgt_len {config.tgt_len} --mem_len {config.mem_len}; --beyond dense leaves the rest unpruned"
            )
    return LoadedModel(model.eval(), info, weights_fingerprint(model))

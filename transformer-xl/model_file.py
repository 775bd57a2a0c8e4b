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
from attention_pruning.files.tensors import fingerprint
from attention_pruning.structure import require_block_size
from mem_transformer import MemTransformerLM, extended
from model_config import ModelConfig
from model_shapes import model_shapes
from reproduction.data.language.corpus import Corpus
from reproduction.runs.checkpoint import weights_fingerprint
from reproduction.runs.files import atomic_path

FORMAT = "transformer-xl/model/1"
#: The header's name for a fingerprint of all else. Files of older versions have none.
CONTENT = "content_fingerprint"
#: Cells that the mask of a model may have at its lengths: a mask by distance could be asked for any.
_MOST_CELLS = 1 << 36
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
    metadata[CONTENT] = fingerprint(tensors, **metadata)
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
    unknown = set(overrides) - set(EVALUATION_FIELDS)
    if unknown:
        raise ValueError(f"overrides: expected some of {EVALUATION_FIELDS}, found {sorted(unknown)}")
    path = Path(path)
    metadata, tensors = _read(path)
    config, info = _header(path, metadata)
    pruned = tensors.pop("pruned", None)
    found = {name: tensor.shape for name, tensor in tensors.items() if tensor.is_floating_point()}
    if len(found) < len(tensors) or found != model_shapes(config, len(tensors), str(path)):
        raise InputError(f"{path}: expected the weights of its own configuration, found others")
    config = dataclasses.replace(config, **{k: v for k, v in overrides.items() if v is not None})
    model = MemTransformerLM(config)
    model.load_state_dict(tensors)
    if pruned is not None:
        _check_pruned(path, pruned, config)
        if (mask := info.get("mask") or {}).get(ANY_LENGTH):
            block_size = require_block_size(mask.get("block_size"))
            pruned = by_distance(pruned, block_size, config.tgt_len, config.mem_len)
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


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a model's file, as they were written."""
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
    # A name that is not known may be that of the fingerprint, damaged: older files have none.
    if unknown := sorted(metadata.keys() - {"format", "config", "info", CONTENT}):
        raise InputError(f"{path}: expected format, config, info and {CONTENT} in its header, found {unknown[0]!r}")
    recorded = metadata.pop(CONTENT, None)
    if recorded is not None and recorded != (found := fingerprint(tensors, **metadata)):
        raise InputError(f"{path}: expected content of fingerprint {recorded}, as its header says, found {found}")
    return metadata, tensors


def _header(path: Path, metadata: dict[str, str]) -> tuple[ModelConfig, dict[str, Any]]:
    try:
        config, info = ModelConfig.from_json(metadata["config"]), json.loads(metadata["info"])
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a configuration in its header, found a broken one ({error})") from error
    if not isinstance(info, dict) or not isinstance(info.get("mask"), dict | None):
        raise InputError(f"{path}: expected facts by name in its header, found {metadata['info']}")
    return config, {"corpus": None, "vocabulary": None, "step": None, "mask": None} | info


def _check_pruned(path: Path, pruned: Tensor, config: ModelConfig) -> None:
    """Refuse what is no mask of the model, and lengths that no mask can be made for."""
    shape = list(pruned.shape)
    of_model = pruned.dtype == torch.bool and len(shape) == 4 and shape[:2] == [config.n_layer, config.n_head]
    if not of_model or not 1 <= shape[2] <= shape[3]:
        raise InputError(
            f"{path}: expected a prune mask [{config.n_layer}, {config.n_head}, query, key] of bools, found "
            f"{pruned.dtype} of {shape}"
        )
    cells = shape[0] * shape[1] * config.tgt_len * (config.mem_len + config.tgt_len)
    if cells > _MOST_CELLS:
        raise InputError(
            f"{path}: expected lengths at which its prune mask has at most {_MOST_CELLS} cells, found tgt_len "
            f"{config.tgt_len} and mem_len {config.mem_len}"
        )

"""Checkpoints of Transformer-XL that others wrote, read without running any code in them, and written for others.

- upstream: ``model.pt``, the authors' pickled module, or ``model_state.pt``, a state dict, and ``config.json``;
- transformers: a folder with ``config.json`` and ``pytorch_model.bin`` or ``model.safetensors``, as of release 4.35.

``config.json`` has the names of transformers' ``TransfoXLConfig`` in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from attention_pruning import InputError
from model_config import ModelConfig
from relative_attention import PositionalEmbedding
from reproduction.runs.files import atomic_path, write_json
from reproduction.runs.json_file import read_json
from reproduction.runs.torch_files import is_archive, read_torch_file
from weight_layouts import BUFFERS, from_layout, to_layout

#: Names of files in a folder, by layout, the one to write first.
FILES = {"upstream": ("model_state.pt", "model.pt"), "transformers": ("pytorch_model.bin", "model.safetensors")}
CONFIG_FILE = "config.json"
#: Classes of modules that a pickled model may consist of. None of them is imported: their attributes are read.
_MODULES = re.compile(
    r"torch\.nn\.modules\.\w+\.\w+|mem_transformer\.\w+|(utils\.)?proj_adaptive_softmax\.\w+|fp16_opt\.FP16_Module"
)
#: What a message says of a file with objects of other classes.
_UNSAFE = (
    "what cannot be read without running code; where its classes are, torch.save(model.state_dict(), 'model_state.pt') "
    f"makes a file that can, to have a {CONFIG_FILE} beside it"
)
_SHAPE = ("n_layer", "n_head", "d_head", "d_embed", "d_model", "d_inner", "dropout", "dropatt", "div_val", "pre_lnorm")
_SAME_NAMES = (*_SHAPE, "mem_len", "same_length", "clamp_len", "untie_r")
_EPSILON = torch.nn.LayerNorm(1).eps


class _Module:
    """What is left of a pickled module: its attributes."""


def read_checkpoint(path: str | Path, layout: str, tgt_len: int | None = None) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and weights, for our model, of somebody's checkpoint.

    Parameters
    ----------
    path : path
        A folder, or the file in it.
    layout : {"upstream", "transformers"}
    tgt_len : int, optional
        Tokens in a segment; the checkpoint's own, or 128, without it.

    Raises
    ------
    InputError
        If it is missing, damaged, something else, of a kind of model that ours is not, or not to be read safely.
    """
    file = _file(Path(path), layout)
    read = _load(file)
    if isinstance(read, _Module):
        tensors, values = _read_module(read, file)
    else:
        tensors, values = _state_dict(read, file), _read_config(file.with_name(CONFIG_FILE))
    lengths = {"tgt_len": tgt_len or values.get("tgt_len", 128)}
    config = _model_config({**values, **lengths}, file)
    return config, from_layout(tensors, config, layout, str(file))


def write_checkpoint(folder: str | Path, config: ModelConfig, weights: dict[str, Tensor], layout: str) -> None:
    """Write a folder that :func:`read_checkpoint` and those others read.

    Raises
    ------
    InputError
        If the layout has no place for what the model has.
    """
    if layout == "upstream" and config.untie_r:
        raise InputError("--layout upstream: expected attention biases shared by all layers, found some of each layer")
    tensors = to_layout(weights, config, layout)
    tensors[BUFFERS[layout]] = PositionalEmbedding(config.d_model).inv_freq
    folder = Path(folder)
    with atomic_path(folder / FILES[layout][0]) as temporary:
        torch.save(tensors, temporary)
    values = {name: getattr(config, name) for name in (*_SAME_NAMES, "tgt_len", "cutoffs", "tie_projs")}
    shared = {"proj_share_all_but_first": all(config.tie_projs[1:]), "tie_word_embeddings": config.tied}
    kind = {"model_type": "transfo-xl", "architectures": ["TransfoXLLMHeadModel"], "attn_type": 0}
    write_json(
        folder / CONFIG_FILE,
        {**values, **shared, **kind, "vocab_size": config.n_token, "layer_norm_epsilon": _EPSILON},
    )


def _file(path: Path, layout: str) -> Path:
    if path.is_file():
        return path
    for name in FILES[layout]:
        if (path / name).is_file():
            return path / name
    raise InputError(f"{path}: expected a folder with {' or '.join(FILES[layout])}, found none")


def _load(file: Path) -> Any:
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: expected a model's weights, found a damaged file ({error})") from error
    found = _foreign_names(file)
    if strange := [name for name in found if not _MODULES.fullmatch(name)]:
        raise InputError(f"{file}: expected a model's weights, found {strange[0]} in it, which is not safe to read")
    with torch.serialization.safe_globals([(_Module, name) for name in found]):
        return read_torch_file(file, "a model's weights", unsafe=_UNSAFE)


def _foreign_names(file: Path) -> list[str]:
    """What a pickle names that torch does not know as safe. A file that is no archive can only be a state dict."""
    if not is_archive(file):
        return []
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception as error:  # whatever the reading of damaged bytes runs into
        found = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(f"{file}: expected a model's weights, found a damaged file ({found})") from error


def _state_dict(read: Any, file: Path) -> dict[str, Tensor]:
    if not isinstance(read, dict) or not read or not all(isinstance(value, Tensor) for value in read.values()):
        raise InputError(f"{file}: expected a model or its state dict, found something else")
    return dict(read)


def _read_module(module: _Module, file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of a pickled model of the authors', and its shape in the names of ``config.json``."""
    try:
        while "module" in module._modules:  # what holds a model in half precision
            module = module._modules["module"]
        return dict(_tensors(module)), _module_config(module)
    except (KeyError, AttributeError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise InputError(f"{file}: expected the authors' MemTransformerLM, found another model ({error})") from error


def _tensors(module: _Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by their dotted names, as in a state dict."""
    for name, tensor in {**module._parameters, **module._buffers}.items():
        if tensor is not None:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{prefix}{name} is no tensor")
            yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.")


def _module_config(model: _Module) -> dict[str, Any]:
    """The shape of a pickled model of the authors', in the names of ``config.json``."""
    layer = model._modules["layers"]._modules["0"]._modules
    attention, network = layer["dec_attn"], layer["pos_ff"]
    embedding, softmax = (model._modules[name]._modules for name in ("word_emb", "crit"))
    tables, outputs = embedding["emb_layers"]._modules, softmax["out_layers"]._modules
    projections = list(embedding["emb_projs"]._parameters.values())
    own = list(softmax["out_projs"]._parameters.values())
    if len(projections) == 1:  # that of all clusters
        projections *= len(own)
    cutoffs = list(model._modules["word_emb"].cutoffs)[:-1]
    return {
        **{name: getattr(model, name) for name in ("n_layer", "n_head", "d_head", "d_model", "d_embed")},
        **{name: getattr(model, name) for name in ("tgt_len", "mem_len", "same_length", "clamp_len", "attn_type")},
        "vocab_size": model.n_token,
        "d_inner": network.d_inner,
        "dropout": model._modules["drop"].p,
        "dropatt": attention._modules["dropatt"].p,
        "pre_lnorm": attention.pre_lnorm,
        "div_val": model._modules["word_emb"].div_val,
        "cutoffs": cutoffs,
        "untie_r": False,
        "tie_word_embeddings": outputs["0"]._parameters["weight"] is tables["0"]._parameters["weight"],
        "tie_projs": [mine is shared for mine, shared in zip(own, projections, strict=bool(projections))],
    }


def _read_config(path: Path) -> dict[str, Any]:
    values = read_json(path, "the model's shape beside its weights, in JSON")
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected an object of names and values, found something else")
    return values


def _model_config(values: dict[str, Any], file: Path) -> ModelConfig:
    wanted = {"attn_type": 0, "layer_norm_epsilon": _EPSILON}
    for name, value in wanted.items():
        if values.get(name, value) != value:
            raise InputError(f"{file}: expected a model with {name} {value}, found {values[name]}")
    if missing := sorted({*_SAME_NAMES, "vocab_size", "cutoffs"} - set(values)):
        raise InputError(f"{file}: expected {missing[0]} in its configuration, found none")
    # transformers appends the size of the vocabulary to the borders.
    borders, ties = values["cutoffs"], values.get("tie_projs")
    if not isinstance(borders, list) or not isinstance(ties, list | None):
        raise InputError(f"{file}: expected lists as cutoffs and tie_projs, found {borders!r} and {ties!r}")
    cutoffs = [border for border in borders if border != values["vocab_size"]]
    share = bool(values.get("proj_share_all_but_first", True))
    fields = {
        "n_token": values["vocab_size"],
        "tgt_len": values["tgt_len"],
        "cutoffs": cutoffs,
        "tied": bool(values.get("tie_word_embeddings", values.get("tie_weight", True))),
        "tie_projs": [bool(tie) for tie in ties or [False] + [share] * len(cutoffs)],
        **{name: values[name] for name in _SAME_NAMES},
    }
    try:
        return ModelConfig.of(fields)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error

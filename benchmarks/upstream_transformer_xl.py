"""The authors' PyTorch Transformer-XL as a peer: imported from a checkout, unedited, with the weights of our model.

None of it is part of this repository. What it needs to run on today's torch is done from outside, at import.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from interleave import BenchmarkError, Step, Walk
from torch import Tensor


def load_upstream(checkout: Path) -> type[torch.nn.Module]:
    """Import ``MemTransformerLM`` from a checkout and leave no trace in the import system.

    Call it before importing our model, whose modules have the same names.

    Raises
    ------
    BenchmarkError
        If the folder is not such a checkout.
    """
    folder = checkout.resolve() / "pytorch"
    if not (folder / "mem_transformer.py").is_file():
        raise BenchmarkError(f"--upstream: expected {folder}/mem_transformer.py, found no such file")
    before, path, cuda = set(sys.modules), list(sys.path), torch.version.cuda
    # Their scripts run inside the folder, and read CUDA's version at import even where there is none.
    sys.path[:0] = [str(folder), str(folder / "utils")]
    torch.version.cuda = cuda or "0.0"
    try:
        return importlib.import_module("mem_transformer").MemTransformerLM
    finally:
        sys.path[:], torch.version.cuda = path, cuda
        for name in set(sys.modules) - before:
            # The class keeps what it refers to.
            if str(getattr(sys.modules[name], "__file__", None)).startswith(str(folder)):
                del sys.modules[name]


def build_upstream(model_class: type[torch.nn.Module], ours: Any) -> torch.nn.Module:
    """The authors' model with the shape and the weights of ours; it shares its attention biases among the layers."""
    config = ours.config
    model = model_class(
        config.n_token,
        config.n_layer,
        config.n_head,
        config.d_model,
        config.d_head,
        config.d_inner,
        config.dropout,
        config.dropatt,
        d_embed=config.d_embed,
        div_val=config.div_val,
        tie_weight=config.tied,
        tie_projs=list(config.tie_projs),
        pre_lnorm=config.pre_lnorm,
        tgt_len=config.tgt_len,
        ext_len=0,
        mem_len=config.mem_len,
        cutoffs=list(config.cutoffs),
        same_length=config.same_length,
        clamp_len=config.clamp_len,
    )
    # Our modules are importable by now, see load_upstream.
    weights = importlib.import_module("weight_layouts").to_layout(ours.state_dict(), config, "upstream")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    for layer in model.layers:
        layer.register_forward_pre_hook(_boolean_mask, with_kwargs=True)
    return model


def _boolean_mask(_layer: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Today's masked_fill refuses the byte masks of 2019."""
    return args, {**kwargs, "dec_attn_mask": kwargs["dec_attn_mask"].bool()}


def upstream_evaluation(model: torch.nn.Module, segments: list[tuple[Tensor, Tensor]]) -> Step:
    """One segment of the authors' ``eval.py``."""
    walk = Walk(_time_first(segments), [])

    def step() -> None:
        model.eval()
        data_TB, target_TB = walk.next()
        with torch.no_grad():
            nll, *walk.memory = model(data_TB, target_TB, *walk.memory)
        nll.mean().item()

    return step


def upstream_training(model: torch.nn.Module, segments: list[tuple[Tensor, Tensor]], rate: float, clip: float) -> Step:
    """One update of the authors' ``train.py``, with the optimiser as it makes it."""
    walk = Walk(_time_first(segments), [])
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)

    def step() -> None:
        model.train()
        data_TB, target_TB = walk.next()
        model.zero_grad()
        nll, *walk.memory = model(data_TB, target_TB, *walk.memory)
        loss = nll.float().mean()
        loss.backward()
        loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()

    return step


def _time_first(segments: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """[B, T] -> [T, B], the layout there."""
    return [(data.T.contiguous(), target.T.contiguous()) for data, target in segments]


def check_agreement(ours: Any, theirs: torch.nn.Module, segments: list[tuple[Tensor, Tensor]]) -> None:
    """Compare the losses of three consecutive segments, in evaluation mode.

    Raises
    ------
    BenchmarkError
        If they differ by more than 1e-4: two models that compute different things must not be timed side by side.
    """
    ours.eval()
    theirs.eval()
    memory, memories = None, []
    with torch.no_grad():
        for (data_BT, target_BT), (data_TB, target_TB) in zip(segments[:3], _time_first(segments[:3]), strict=True):
            found, memory = ours(data_BT, target_BT, memory)
            expected, *memories = theirs(data_TB, target_TB, *memories)
            if not torch.isclose(found.mean(), expected.mean(), rtol=0, atol=1e-4):
                raise BenchmarkError(
                    f"--upstream: expected the loss of our model, {found.mean():.5f}, found {expected.mean():.5f}"
                )

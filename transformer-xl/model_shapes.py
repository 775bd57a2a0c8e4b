"""The shapes of a model's tensors, before any of them is made: what a file claims is held against what it holds."""

from __future__ import annotations

import torch

from attention_pruning import InputError
from mem_transformer import MemTransformerLM
from model_config import ModelConfig


def model_shapes(config: ModelConfig, tensors: int, source: str) -> dict[str, torch.Size]:
    """The shape of every weight of a model of this configuration, by name, at no cost in memory.

    Parameters
    ----------
    config : ModelConfig
    tensors : int
        How many tensors there are beside the configuration; a model has more than it has layers and clusters.
    source : str
        Of the configuration, for messages.

    Raises
    ------
    InputError
        If it is a configuration of more weights than that, or of none that can be.
    """
    if max(config.n_layer, len(config.cutoffs)) > tensors:
        raise InputError(
            f"{source}: expected the weights of {config.n_layer} layers and {len(config.cutoffs) + 1} clusters, as its "
            f"configuration says, found {tensors} tensors"
        )
    try:
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in MemTransformerLM(config).state_dict().items()}
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{source}: expected the configuration of a model, found one that makes none ({found})"
        ) from error

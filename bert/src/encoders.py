"""A pretrained model with its tokenizer, checked against the lengths that the flags ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from attention_pruning import InputError
from reproduction.data.tasks.pretrained import find_model
from run_flags import ModelArguments


def load_tokenizer(arguments: ModelArguments, max_seq_length: int) -> PreTrainedTokenizerBase:
    """Read the model's tokenizer.

    Raises
    ------
    InputError
        If there is none, it is not a fast one, it cannot pad, or it cannot make sequences of ``max_seq_length``.
    """
    name = arguments.tokenizer_name or arguments.model_name_or_path
    tokenizer = _loaded(name, arguments, "tokenizer", AutoTokenizer.from_pretrained)
    if not tokenizer.is_fast:
        raise InputError(f"{name}: expected a fast tokenizer, found {type(tokenizer).__name__}")
    if tokenizer.pad_token_id is None:
        raise InputError(f"{name}: expected a tokenizer that can pad, found no padding token")
    least = tokenizer.num_special_tokens_to_add(pair=True) + 2
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float):
        raise InputError(f"{name}: expected a number as model_max_length of its tokenizer, found {longest!r}")
    if not least <= max_seq_length <= longest:
        raise InputError(
            f"--max_seq_length: expected {least} to {longest}, what the tokenizer of "
            f"{name} allows, found {max_seq_length}"
        )
    return tokenizer


def load_config(arguments: ModelArguments, max_seq_length: int) -> PreTrainedConfig:
    """Read the model's configuration.

    Raises
    ------
    InputError
        If there is none, or the model has fewer than ``max_seq_length`` positions.
    """
    name = arguments.config_name or arguments.model_name_or_path
    config = _loaded(name, arguments, "config.json", AutoConfig.from_pretrained)
    positions = getattr(config, "max_position_embeddings", max_seq_length)
    if isinstance(positions, bool) or not isinstance(positions, int):
        raise InputError(f"{name}: expected a whole number as max_position_embeddings, found {positions!r}")
    if positions < max_seq_length:
        raise InputError(
            f"--max_seq_length: expected at most {positions}, the positions of {name}, found {max_seq_length}"
        )
    return config


def load_model(arguments: ModelArguments, auto_class: type, config: PreTrainedConfig) -> PreTrainedModel:
    """Read a model for a task, with the mask that was saved with it, if any.

    Parameters
    ----------
    auto_class : type
        One of transformers' ``AutoModelFor...``.

    Raises
    ------
    InputError
        If there is none, it is broken, or its head is another task's.
    """
    options = {"config": config, "ignore_mismatched_sizes": arguments.ignore_mismatched_sizes}
    return _loaded(arguments.model_name_or_path, arguments, "model", auto_class.from_pretrained, **options)


def _loaded(name: str, arguments: ModelArguments, what: str, load: Callable[..., Any], **options: Any) -> Any:
    try:
        return load(find_model(name), revision=arguments.model_revision, **arguments.hub, **options)
    except InputError:
        raise
    except Exception as error:  # of a damaged file transformers lets out whatever the reading of it runs into
        found = " ".join(str(error).split())
        if "ignore_mismatched_sizes" in found:
            found = "weights of other shapes, such as those of another task's head (--ignore_mismatched_sizes)"
        raise InputError(f"{name}: expected a {what} that transformers can load, found: {found}") from error

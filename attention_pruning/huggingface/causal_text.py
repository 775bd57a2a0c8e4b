"""A causal language model by name, and a text file in windows of its tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError


def load_causal(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, from a folder or by a name on the hub.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        found = " ".join(str(error).split())
        raise InputError(f"{name}: expected a causal language model of transformers, found: {found}") from error


def read_windows(path: str, tokenizer: PreTrainedTokenizerBase, length: int, number: int) -> Tensor:
    """int64 [windows, length]: the beginning of a text, cut into windows of whole length.

    Raises
    ------
    InputError
        If the file cannot be read as text, or is too short for two windows.
    """
    if length < 2 or number < 2:
        name, found = ("--length", length) if length < 2 else ("--windows", number)
        raise InputError(f"{name}: expected at least 2, found {found}")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a file of text in UTF-8, found: {error}") from error
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][: number * length]
    whole = len(ids) // length
    if whole < 2:
        raise InputError(f"{path}: expected at least 2 windows of {length} tokens, found {len(ids)} tokens")
    return torch.tensor(ids[: whole * length]).view(whole, length)

"""Tensors from what a user gives."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InputError


def as_tensor(value: object, name: str) -> Tensor:
    """What ``torch.as_tensor`` makes of a tensor, a numpy array or nested lists of numbers, without its history.

    Raises
    ------
    InputError
        If torch makes no tensor of it. The message begins with ``name``.
    """
    try:
        return torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"{name}: expected a tensor, or an array of numbers or bools, found {type(value).__name__}"
        ) from error

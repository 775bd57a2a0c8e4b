"""The dropout mask of the kernels: a hash of a seed, the row and the key, computed here in torch.

Without a state it is the same in forward and backward and for any number of threads. ``dropout.h`` is the same in C++.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """The 32-bit mixer "lowbias32" of Chris Wellons, on int64 that hold 32 bits."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def keep_mask(seed: int | Tensor, dropout_p: float, batch: int, heads: int, queries: int, keys: int) -> Tensor:
    """bool [batch, heads, queries, keys], True = stays: each cell with probability 1 - ``dropout_p``.

    The seed is 64 bits, a number or an int64 tensor (), whose value nobody looks at: ``torch.compile`` goes through.
    """
    row = torch.arange(batch * heads * queries, dtype=torch.int64)
    low, high = seed & _WORD, (seed >> 32) & _WORD
    row_hash = _mix(_mix((row & _WORD) ^ low) ^ (row >> 32) ^ high)
    cell = (row_hash[:, None] + torch.arange(keys, dtype=torch.int64) * 0x9E3779B9) & _WORD
    return (_mix(cell) >= threshold(dropout_p)).view(batch, heads, queries, keys)


def threshold(dropout_p: float) -> Tensor:
    """int64 (): hashes below it are dropped. From the float32 that the kernel is given."""
    return (torch.tensor(dropout_p, dtype=torch.float32).double() * 2**32).long()

"""Square blocks over the last two axes of a tensor, whose lengths need not be multiples of the block size.

Letters: Q queries, K keys, B block size; q = ceil(Q / B) and k = ceil(K / B) count blocks. The last block of an axis
may be smaller than B.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .errors import InputError


def require_block_size(block_size: int) -> int:
    """Refuse, with InputError, what is not a whole number of at least 1."""
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise InputError(f"block_size: expected a whole number of 1 or more, found {block_size!r}")
    return block_size


def block_count(length: int, block_size: int) -> int:
    """How many blocks of ``block_size`` cover ``length`` cells."""
    return -(-length // block_size)


def block_sum(x_QK: Tensor, block_size: int) -> Tensor:
    """Sum over every block: [..., Q, K] -> [..., q, k], in the dtype of ``x`` (give numbers, not bools)."""
    if block_size == 1:
        return x_QK
    rows, columns = x_QK.shape[-2:]
    padded = F.pad(x_QK, (0, -columns % block_size, 0, -rows % block_size))
    q, k = block_count(rows, block_size), block_count(columns, block_size)
    return padded.reshape(*x_QK.shape[:-2], q, block_size, k, block_size).sum((-3, -1))


def block_any(x_QK: Tensor, block_size: int) -> Tensor:
    """Whether a block holds any True: bool [..., Q, K] -> bool [..., q, k]."""
    return block_sum(x_QK.int(), block_size) > 0


def row_blocks(x_QK: Tensor, block_size: int) -> Tensor:
    """Whether a row holds any True within each block of keys: bool [..., Q, K] -> bool [..., Q, k]."""
    if block_size == 1:
        return x_QK
    padded = F.pad(x_QK, (0, -x_QK.shape[-1] % block_size))
    return padded.unflatten(-1, (-1, block_size)).any(-1)


def expand_blocks(x_qk: Tensor, block_size: int, query_length: int, key_length: int) -> Tensor:
    """Give every cell the value of its block: [..., q, k] -> [..., Q, K]. For ``block_size`` 1 this is ``x`` itself."""
    if block_size == 1:
        return x_qk
    by_row = x_qk.repeat_interleave(block_size, -2)[..., :query_length, :]
    return by_row.repeat_interleave(block_size, -1)[..., :key_length]

"""Where attention happens, what its structure lets a query see, and the arithmetic of square blocks over it.

Lengths need not be multiples of a block: the last block of an axis may be smaller. Letters in names: Q queries, K keys
in cells; q = ceil(Q / B) and k = ceil(K / B) the same in blocks of side B.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError

#: ``self-local``: self-attention within a window, beside layers of the same model that have none.
SITES = ("self", "self-local", "enc-self", "dec-self", "enc-dec")
#: The largest side of a block.
LARGEST_BLOCK = 1 << 20


def visible_cells(query_length: int, key_length: int, causal: bool, rows: slice = slice(None)) -> Tensor:
    """The cells that the structure shows to a query: bool [Q, K], or only some ``rows`` of them.

    Without causality, all of them. With it, key <= query + (K - Q): the first K - Q keys are memory slots, the rest is
    the segment of the queries.
    """
    start, stop, _ = rows.indices(query_length)
    cells = torch.ones(max(stop - start, 0), key_length, dtype=torch.bool)
    return cells.tril_(start + key_length - query_length) if causal else cells


def window_cells(query: Tensor, key: Tensor, window: int) -> Tensor:
    """Whether positions are less than a window apart, on either side: bool, of positions that broadcast."""
    return (query - key).abs() < window


def resolve_structure(site: str, causal: bool | None, query_length: int, key_length: int) -> bool:
    """Check the site and say whether it is causal: as told, else only ``dec-self`` is.

    Raises
    ------
    InputError
        For an unknown site, or a causal one with fewer keys than queries.
    """
    if site not in SITES:
        raise InputError(f"site: expected one of {', '.join(SITES)}, found {site!r}")
    if causal not in (None, True, False):
        raise InputError(f"causal: expected true or false, found {causal!r}")
    causal = site == "dec-self" if causal is None else bool(causal)
    if causal and key_length < query_length:
        raise InputError(
            f"causal attention: expected at least as many keys as queries, found {query_length} queries and "
            f"{key_length} keys"
        )
    return causal


def require_block_size(block_size: int) -> int:
    """Refuse, with InputError, what is not a whole number of at least 1, and at most `LARGEST_BLOCK`."""
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise InputError(f"block_size: expected a whole number of 1 or more, found {block_size!r}")
    if block_size > LARGEST_BLOCK:
        raise InputError(f"block_size: expected at most {LARGEST_BLOCK}, found {block_size}")
    return block_size


def block_count(length: int, block_size: int) -> int:
    """How many blocks of ``block_size`` cover ``length`` cells."""
    return -(-length // block_size)


def block_sum(x_QK: Tensor, block_size: int) -> Tensor:
    """Sum over every block: [..., Q, K] -> [..., q, k], in the dtype of ``x`` (give numbers, not bools)."""
    if block_size == 1:
        return x_QK
    rows, columns = x_QK.shape[-2:]
    # nothing is padded to a block that is longer than all cells
    high, wide = max(1, min(block_size, rows)), max(1, min(block_size, columns))
    padded = F.pad(x_QK, (0, -columns % wide, 0, -rows % high))
    q, k = block_count(rows, high), block_count(columns, wide)
    return padded.reshape(*x_QK.shape[:-2], q, high, k, wide).sum((-3, -1))


def block_cells(x_QK: Tensor, block_size: int) -> Tensor:
    """The sum over every block of bools or whole numbers: [..., Q, K] -> int64 [..., q, k], at no cost in memory."""
    if block_size == 1:
        return x_QK.long()
    # by some rows at a time: torch makes int64 of all the bools that it adds up
    by_key = torch.cat([_in_blocks(rows, -1, block_size).sum(-1) for rows in x_QK.split(256, -2)], -2)
    return _in_blocks(by_key, -2, block_size).sum(-2)


def _in_blocks(x: Tensor, axis: int, block_size: int) -> Tensor:
    """An axis, counted from the end, as two, of blocks and of places in them: 0 or False where a block goes beyond.

    A block that is longer than the axis has as many places as the axis.
    """
    block_size = min(block_size, max(1, x.shape[axis]))
    missing = -x.shape[axis] % block_size
    if missing:  # else nothing is copied
        x = F.pad(x, (0, 0) * (-axis - 1) + (0, missing))
    return x.unflatten(axis, (-1, block_size))


def block_any(x_QK: Tensor, block_size: int) -> Tensor:
    """Whether a block holds any True: bool [..., Q, K] -> bool [..., q, k]."""
    if block_size == 1:
        return x_QK
    by_key = row_blocks(x_QK, block_size)
    return _in_blocks(by_key, -2, block_size).any(-2)


def row_blocks(x_QK: Tensor, block_size: int) -> Tensor:
    """Whether a row holds any True within each block of keys: bool [..., Q, K] -> bool [..., Q, k]."""
    if block_size == 1:
        return x_QK
    return _in_blocks(x_QK, -1, block_size).any(-1)


def expand_blocks(x_qk: Tensor, block_size: int, query_length: int, key_length: int) -> Tensor:
    """Give every cell the value of its block: [..., q, k] -> [..., Q, K]. For ``block_size`` 1 this is ``x`` itself."""
    if block_size == 1:
        return x_qk
    high, wide = min(block_size, query_length), min(block_size, key_length)
    by_row = x_qk.repeat_interleave(high, -2)[..., :query_length, :]
    return by_row.repeat_interleave(wide, -1)[..., :key_length]


def visible_blocks(query_length: int, key_length: int, block_size: int, causal: bool) -> Tensor:
    """The blocks in which the structure shows a cell: bool [q, k], by comparison of positions, never by cells."""
    q, k = block_count(query_length, block_size), block_count(key_length, block_size)
    if not causal:
        return torch.ones(q, k, dtype=torch.bool)
    last_query = (torch.arange(1, q + 1) * block_size).clamp(max=query_length) - 1
    first_key = torch.arange(k) * block_size
    return first_key[None, :] <= last_query[:, None] + (key_length - query_length)


def rows_without(kept_Hqk: Tensor, useful_Qk: Tensor, block_size: int) -> Tensor:
    """The rows (head, query) that have useful blocks but no kept one among them: bool [H, Q]."""
    queries = useful_Qk.shape[0]
    kept_HQk = kept_Hqk.repeat_interleave(min(block_size, queries), 1)[:, :queries]
    return useful_Qk.any(-1) & ~(kept_HQk & useful_Qk).any(-1)

"""How sparse a mask is: counts that answer different questions (the terms are those of docs/method.md).

Letters in names: L layers, H heads, Q queries, K keys in cells; q, k the same in blocks of ``block_size``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .arrays import as_tensor
from .errors import InputError
from .structure import block_any, block_cells, block_count, expand_blocks, require_block_size, row_blocks, rows_without


def pruned_share(pruned_LHQK: Tensor, count_QK: Tensor) -> float:
    """The pruned share of attention cells, each weighed by how often it was used.

    Parameters
    ----------
    pruned_LHQK : Tensor
        bool
    count_QK : Tensor
        int64, the same for all layers and heads; not all zero. Blocks serve as well as cells, if a block's count is the
        sum over its cells.
    """
    layers, heads = pruned_LHQK.shape[:2]
    used = sum(int((layer_HQK * count_QK).sum()) for layer_HQK in pruned_LHQK)
    return used / (int(count_QK.sum()) * layers * heads)


def cell_counts(query_lengths: Sequence[int], key_lengths: Sequence[int], causal: bool = False) -> Tensor:
    """How often sequences use each cell of one layer and head.

    Parameters
    ----------
    query_lengths, key_lengths : sequence of int
        Real queries and keys of each sequence, which uses its t x s cells, or the lower half of them.
    causal : bool

    Returns
    -------
    Tensor
        int64 [Q, K], up to the longest.
    """
    query_lengths, key_lengths = torch.as_tensor(query_lengths), torch.as_tensor(key_lengths)
    corners = torch.zeros(int(query_lengths.max()) + 1, int(key_lengths.max()) + 1, dtype=torch.int64)
    corners.index_put_((query_lengths, key_lengths), torch.tensor(1), accumulate=True)
    # A cell (t, s) belongs to every sequence longer than t with more than s keys.
    count_QK = corners.flip(0, 1).cumsum(0).cumsum(1).flip(0, 1)[1:, 1:]
    return count_QK.tril() if causal else count_QK


def layer_sparsity(pruned_LHqk: Tensor, allowed_QK: Tensor, block_size: int) -> list[float]:
    """Pruned allowed cells / allowed cells, by layer."""
    allowed_qk = block_cells(allowed_QK, block_size)
    return [pruned_share(layer_Hqk[None], allowed_qk) for layer_Hqk in pruned_LHqk]


def effective_sparsity(pruned_LHqk: Tensor, allowed_QK: Tensor, block_size: int) -> float:
    """Pruned allowed cells / allowed cells over all layers and heads."""
    return pruned_share(pruned_LHqk, block_cells(allowed_QK, block_size))


def checked_counts(count: object, query_length: int, key_length: int, source: str) -> Tensor:
    """Counts of use as int64 [query_length, key_length], on the CPU, 0 where they do not reach.

    Raises
    ------
    InputError
        For other shapes, counts that are longer, fractions, negative numbers, or counts of nothing.
    """
    count = as_tensor(count, "counts").cpu()
    if count.ndim != 2 or count.shape[0] > query_length or count.shape[1] > key_length:
        raise InputError(
            f"{source}: expected counts of at most {query_length} queries and {key_length} keys, found "
            f"{list(count.shape)}"
        )
    if count.is_floating_point() or count.is_complex() or (count < 0).any() or not count.any():
        raise InputError(f"{source}: expected whole counts, none negative and some above 0, found others")
    missing = (0, key_length - count.shape[1], 0, query_length - count.shape[0])
    return torch.nn.functional.pad(count.long(), missing)


def block_sparsity(layers_HQK: Iterable[Tensor], visible_QK: Tensor, allowed_QK: Tensor, size: int) -> float:
    """Skipped blocks / blocks of side ``size`` that hold an allowed cell; skipped: nothing visible in it is kept.

    Parameters
    ----------
    layers_HQK : iterable of Tensor
        Layer by layer, the pruned cells: bool.
    """
    size = require_block_size(size)
    holds_allowed_qk = block_any(allowed_QK, size)
    skipped = heads = 0
    for pruned_HQK in layers_HQK:
        computed_Hqk = block_any(visible_QK & ~pruned_HQK, size)
        skipped += int((holds_allowed_qk & ~computed_Hqk).sum())
        heads += len(pruned_HQK)
    return skipped / (int(holds_allowed_qk.sum()) * heads)


def empty_rows(pruned_LHqk: Tensor, allowed_QK: Tensor, block_size: int) -> int:
    """Rows (layer, head, query) that have allowed cells and keep none of them."""
    useful_Qk = row_blocks(allowed_QK, block_size)
    return sum(int(rows_without(~layer_Hqk, useful_Qk, block_size).sum()) for layer_Hqk in pruned_LHqk)


def overlap(pruned_LHqk: Tensor, other_LHqk: Tensor, visible_QK: Tensor, block_size: int, other_size: int) -> Tensor:
    """Visible cells that both prune / visible cells that either prunes: float64 [L, H], 1 where neither prunes any."""
    size = math.gcd(block_size, other_size)
    queries, keys = (block_count(length, size) for length in visible_QK.shape)
    visible_qk = block_cells(visible_QK, size)
    shares = []
    for own_Hqk, second_Hqk in zip(pruned_LHqk, other_LHqk, strict=True):
        own_Hqk = expand_blocks(own_Hqk, block_size // size, queries, keys)
        second_Hqk = expand_blocks(second_Hqk, other_size // size, queries, keys)
        both_H, either_H = ((x * visible_qk).sum((1, 2)) for x in (own_Hqk & second_Hqk, own_Hqk | second_Hqk))
        shares.append(torch.where(either_H == 0, 1.0, both_H / either_H.clamp(min=1).double()))
    return torch.stack(shares)

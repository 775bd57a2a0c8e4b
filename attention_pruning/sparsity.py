"""How sparse a mask is: counts that answer different questions (the terms are those of docs/method.md).

Letters in names: L layers, H heads, Q queries, K keys in cells; q, k the same in blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import InputError
from .make.rules import rows_without
from .structure import block_any, block_sum, require_block_size, row_blocks

if TYPE_CHECKING:
    from .mask import PruneMask


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


def layer_sparsity(mask: PruneMask) -> list[float]:
    """Pruned allowed cells / allowed cells, by layer."""
    allowed_qk = block_sum(mask.allowed.long(), mask.block_size)
    return [pruned_share(layer_Hqk[None], allowed_qk) for layer_Hqk in mask.pruned]


def effective_sparsity(mask: PruneMask) -> float:
    """Pruned allowed cells / allowed cells over all layers and heads."""
    return pruned_share(mask.pruned, block_sum(mask.allowed.long(), mask.block_size))


def checked_counts(mask: PruneMask, count_QK: Tensor) -> Tensor:
    """Counts of use as int64 [Q, K], on the CPU; refused are other shapes than the mask's and what counts nothing."""
    count = torch.as_tensor(count_QK).cpu()
    if count.ndim != 2 or count.shape[0] > mask.query_length or count.shape[1] > mask.key_length:
        raise InputError(
            f"{mask.source}: expected counts of at most {mask.query_length} queries and {mask.key_length} keys, found "
            f"{list(count.shape)}"
        )
    if count.is_floating_point() or (count < 0).any() or not count.any():
        raise InputError(f"{mask.source}: expected whole counts, none negative and some above 0, found others")
    missing = (0, mask.key_length - count.shape[1], 0, mask.query_length - count.shape[0])
    return torch.nn.functional.pad(count.long(), missing)


def evaluated_sparsity(mask: PruneMask, count_QK: Tensor) -> float:
    """Pruned share of the cells that an evaluation used."""
    count = checked_counts(mask, count_QK)
    if (count[~mask.visible] != 0).any():
        raise InputError(f"{mask.source}: expected counts of visible cells only, found some that no query can see")
    return pruned_share(mask.pruned, block_sum(count, mask.block_size))


def block_sparsity(mask: PruneMask, size: int) -> float:
    """Skipped blocks / blocks that hold an allowed cell; skipped means that nothing visible in the block is kept."""
    size = require_block_size(size)
    holds_allowed, visible = block_any(mask.allowed, size), mask.visible
    skipped = 0
    for layer in range(mask.layers):
        computed = block_any(visible & ~mask.cells(layer), size)
        skipped += int((holds_allowed & ~computed).sum())
    return skipped / (int(holds_allowed.sum()) * mask.layers * mask.heads)


def empty_rows(mask: PruneMask) -> int:
    """Rows (layer, head, query) that have allowed cells and keep none of them."""
    useful_Qk = row_blocks(mask.allowed, mask.block_size)
    return sum(int(rows_without(~layer_Hqk, useful_Qk, mask.block_size).sum()) for layer_Hqk in mask.pruned)

"""From a pattern to a mask: how averages and tau become pruned cells by the two rules, their scopes, and the row floor.

Everything works on blocks of ``block_size`` B; cells are blocks of 1. Letters in names: L layers, H heads, Q queries, K
keys in cells; q, k the same in blocks; G groups that lose the same share, N members of a group.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..mask import PruneMask
from ..pattern import AttentionPattern, require_pattern
from ..recipe import MaskRecipe
from ..structure import block_any, row_blocks, rows_without


def decimal_share(tau: float) -> Fraction:
    """The number that a person wrote: 0.29 is 29/100, which the float 0.29 is a little below."""
    return Fraction(str(tau))


def from_pattern(
    pattern: AttentionPattern, recipe: MaskRecipe | float | str | None = None, **fields: object
) -> PruneMask:
    """Prune the lowest share tau of a pattern.

    Parameters
    ----------
    pattern : AttentionPattern
    recipe : MaskRecipe, float or str
        How, or tau alone: a fraction in [0, 1], of which 0 prunes nothing. What it leaves open takes its default.
    **fields
        Of the recipe, by name: ``from_pattern(pattern, 0.9, rule="allowed", block_size=32)``. Transformer-XL takes its
        percentile over the whole array: ``crop=False``.

    Returns
    -------
    PruneMask
        Of kind "data". Its metadata is the pattern's, with the pattern's fingerprint.

    Raises
    ------
    InputError
        For what is no pattern, a recipe without tau or with an unknown choice, a block size other than the pool of a
        pooled pattern, or a pattern without a single observation.
    """
    require_pattern(pattern)
    recipe = MaskRecipe.of(recipe, **fields).closed()
    if not pattern.allowed.any():
        raise InputError(f"{pattern.source}: expected at least one observed cell, found none")
    average_LHqk = pattern.pooled(recipe.block_size).average
    return PruneMask(
        prune_by_rule(average_LHqk, pattern.visible, pattern.allowed, recipe),
        pattern.allowed,
        site=pattern.site,
        causal=pattern.causal,
        recipe=recipe,
        metadata=pattern.metadata | {"pattern_fingerprint": pattern.fingerprint},
        source=pattern.file,
    )


def prune_by_rule(average_LHqk: Tensor, visible_QK: Tensor, allowed_QK: Tensor, recipe: MaskRecipe) -> Tensor:
    """The prune mask of averages: bool [L, H, q, k], True = pruned. See docs/method.md and arXiv 2012.02030.

    Parameters
    ----------
    average_LHqk : Tensor
        float32, the average attention of each block (0 for blocks without an allowed cell).
    visible_QK, allowed_QK : Tensor
        bool, in cells: what the structure shows; what it shows and was observed.
    recipe : MaskRecipe
        With nothing left open.
    """
    pruned = torch.zeros(average_LHqk.shape, dtype=torch.bool)
    if recipe.tau == 0:
        return pruned
    allowed_qk = block_any(allowed_QK, recipe.block_size)
    unobserved_qk = block_any(visible_QK, recipe.block_size) & ~allowed_qk
    if recipe.rule == "allowed":
        pruned = _prune_share(average_LHqk, allowed_qk, recipe)
    else:
        rows, columns = bounding_box(allowed_qk) if recipe.crop else (slice(None), slice(None))
        pruned[:, :, rows, columns] = _prune_below_percentile(average_LHqk[:, :, rows, columns], recipe)
    pruned = pruned & ~unobserved_qk if recipe.unobserved == "keep" else pruned | unobserved_qk
    if recipe.row_floor == "keep-best":
        for layer_pruned, layer_average in zip(pruned, average_LHqk, strict=True):
            _keep_best(layer_pruned, layer_average, allowed_QK, recipe.block_size)
    return pruned


def bounding_box(cells_qk: Tensor) -> tuple[slice, slice]:
    """The smallest rectangle that holds every True (there must be one): its rows and its columns."""
    rows, columns = cells_qk.any(1).nonzero().flatten().tolist(), cells_qk.any(0).nonzero().flatten().tolist()
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _in_groups(x_LHqk: Tensor, scope: str) -> Tensor:
    """[L, H, q, k] -> [G, N]: one row for everything that competes."""
    layers, heads, queries, _ = x_LHqk.shape
    groups = {"model": 1, "layer": layers, "head": layers * heads, "row": layers * heads * queries}[scope]
    return x_LHqk.reshape(groups, -1)


def _prune_share(average_LHqk: Tensor, allowed_qk: Tensor, recipe: MaskRecipe) -> Tensor:
    average_GN = _in_groups(average_LHqk, recipe.scope)
    allowed_GN = _in_groups(allowed_qk.expand(average_LHqk.shape), recipe.scope)
    share = decimal_share(recipe.tau)
    budget_G = torch.tensor([math.floor(share * number) for number in allowed_GN.sum(1).tolist()])
    return lowest(average_GN, allowed_GN, budget_G).reshape(average_LHqk.shape)


def lowest(score_GN: Tensor, candidates_GN: Tensor, budget_G: Tensor) -> Tensor:
    """Choose in each group as many candidates as its budget says, lowest score first, ties by index.

    Parameters
    ----------
    score_GN : Tensor
        Finite numbers.
    candidates_GN : Tensor
        bool: what may be chosen.
    budget_G : Tensor
        int64, at most the number of candidates.

    Returns
    -------
    Tensor
        bool [G, N]
    """
    # Candidates come first since everyone else scores infinity; a stable sort keeps equal scores in index order.
    order_GN = score_GN.masked_fill(~candidates_GN, math.inf).argsort(dim=1, stable=True)
    within_budget = torch.arange(score_GN.shape[1]) < budget_G[:, None]
    return torch.zeros_like(candidates_GN).scatter(1, order_GN, within_budget)


def _prune_below_percentile(average_LHqk: Tensor, recipe: MaskRecipe) -> Tensor:
    average_GN = _in_groups(average_LHqk, recipe.scope).double().numpy()  # in float32 numpy would round the rank, too
    percent = float(100 * decimal_share(recipe.tau))
    threshold_G1 = np.percentile(average_GN, percent, axis=1, method="nearest", keepdims=True)
    return torch.from_numpy(average_GN <= threshold_G1).reshape(average_LHqk.shape)


def _keep_best(pruned_Hqk: Tensor, average_Hqk: Tensor, allowed_QK: Tensor, block_size: int) -> None:
    """Give every empty row of one layer its best block back, in place; all rows are judged by the mask as it came.

    A row is empty if it has allowed cells and no kept block holds any of them; its best block is the one with the
    largest average among those that do.
    """
    queries = allowed_QK.shape[0]
    useful_Qk = row_blocks(allowed_QK, block_size)
    empty_HQ = rows_without(~pruned_Hqk, useful_Qk, block_size)
    average_HQk = average_Hqk.repeat_interleave(block_size, 1)[:, :queries]
    best_HQ = best_of(average_HQk, useful_Qk)
    head, query = empty_HQ.nonzero(as_tuple=True)
    pruned_Hqk[head, query // block_size, best_HQ[head, query]] = False


def best_of(score: Tensor, candidates: Tensor) -> Tensor:
    """Index along the last axis of the candidate with the largest score: int64; any index where there is no candidate.

    Of equals the last: the rules prune equals from the first on, so it is the one that a growing tau takes last. A mask
    with a row floor therefore still prunes a superset of that for a smaller tau.
    """
    return score.shape[-1] - 1 - score.masked_fill(~candidates, -math.inf).flip(-1).argmax(-1)

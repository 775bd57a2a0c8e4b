"""From a pattern to a mask by distance, which holds for sequences of any length.

Letters in names: L layers, H heads, q, k queries and keys in blocks; d distances in blocks, G groups, N their members.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..distance_mask import DistanceMask
from ..errors import InputError
from ..pattern import AttentionPattern, require_pattern
from ..recipe import MaskRecipe, parse_tau, require_choice
from ..structure import block_any, block_count, block_sum
from .rules import decimal_share

SCOPES = ("layer", "head", "model")


def by_distance(
    pattern: AttentionPattern,
    tau: float | str,
    *,
    sinks: int = 4,
    scope: str = "layer",
    block_size: int | None = None,
) -> DistanceMask:
    """Prune the distances that the heads of a pattern attend to least, together at most a share tau of its cells.

    A head's attention to a distance is the mean of its averages over the allowed cells (or blocks) of that distance,
    the sinks apart, which all stay. Within a group, distances go whole, the least attended first and of equals the
    longest first, as long as the cells that went are at most floor(tau * allowed cells), sinks counted among them: rule
    "allowed" of ``make.from_pattern``, by distance. Without sinks every head keeps distance 0, so that no query is left
    without a key. Distances that were not observed are pruned.

    Parameters
    ----------
    pattern : AttentionPattern
        Of causal self-attention.
    tau : float or str
        A fraction in [0, 1].
    sinks : int
        First positions that every query keeps, rounded up to whole blocks. 0 for a pattern with memory slots, whose
        first keys are no first positions.
    scope : {"layer", "head", "model"}
        What a group is.
    block_size : int, optional
        The side of the blocks that go whole; by default the pattern's pool.

    Returns
    -------
    DistanceMask

    Raises
    ------
    InputError
        For what is no pattern, one that is not causal, or has another pool than the block size, a tau outside [0, 1],
        or sinks with memory slots.
    """
    require_pattern(pattern)
    require_choice("scope", scope, SCOPES)
    size = MaskRecipe(block_size=pattern.pool if block_size is None else block_size).block_size
    memory = pattern.key_length - pattern.query_length
    if not pattern.causal:
        raise InputError(f"{pattern.source}: expected causal attention for a mask by distance, found {pattern.site}")
    if isinstance(sinks, bool) or not isinstance(sinks, int) or sinks < 0 or (sinks and memory):
        expected = "0 for a pattern with memory slots" if memory else "a whole number of at least 0"
        raise InputError(f"sinks: expected {expected}, found {sinks!r}")
    if memory % size:
        raise InputError(f"{pattern.source}: expected memory slots in whole blocks of {size}, found {memory}")
    share, sink_blocks = decimal_share(parse_tau(tau)), block_count(sinks, size)
    average_LHd, cells_d = _by_distance(pattern.pooled(size), memory // size, sink_blocks)
    groups = {"model": 1, "layer": pattern.layers, "head": pattern.layers * pattern.heads}[scope]
    budget = int(share * int(pattern.allowed.sum()) * pattern.layers * pattern.heads / groups)
    kept = _keep(average_LHd, cells_d, groups, budget, spare_own=not sinks)
    return DistanceMask(
        kept,
        sinks=sink_blocks * size,
        block_size=size,
        site=pattern.site,
        tau=float(share),
        scope=scope,
        observed=pattern.key_length,
        metadata=pattern.metadata | {"pattern_fingerprint": pattern.fingerprint},
        source=pattern.file,
    )


def _by_distance(pattern: AttentionPattern, memory: int, sinks: int) -> tuple[Tensor, Tensor]:
    """The mean attention to each distance, float64 [L, H, d], and how many allowed cells it has, int64 [d]."""
    allowed_qk = block_any(pattern.allowed, pattern.pool)
    cells_qk = block_sum(pattern.allowed.long(), pattern.pool)
    allowed_qk[:, :sinks] = False
    queries, keys = allowed_qk.shape
    distance_qk = (torch.arange(queries)[:, None] + memory - torch.arange(keys)).clamp(min=0)
    blocks_d = torch.zeros(keys, dtype=torch.float64).index_add_(
        0, distance_qk.flatten(), allowed_qk.flatten().double()
    )
    cells_d = torch.zeros(keys, dtype=torch.int64).index_add_(
        0, distance_qk.flatten(), (cells_qk * allowed_qk).flatten()
    )
    sums_LHd = torch.stack(
        [
            torch.zeros(pattern.heads, keys, dtype=torch.float64).index_add_(
                1, distance_qk.flatten(), (layer_Hqk.double() * allowed_qk).flatten(1)
            )
            for layer_Hqk in pattern.average
        ]
    )
    return sums_LHd / blocks_d.clamp(min=1), cells_d


def _keep(average_LHd: Tensor, cells_d: Tensor, groups: int, budget: int, spare_own: bool) -> Tensor:
    """bool [L, H, d]: what stays when the least attended distances of each group are pruned.

    Parameters
    ----------
    budget : int
        Cells of a group that may go.
    spare_own : bool
        Whether distance 0 stays.
    """
    layers, heads, distances = average_LHd.shape
    observed = cells_d > 0
    candidates_d = observed.clone()
    candidates_d[0] &= not spare_own
    # Longest first, so that a stable sort takes the longer of equals.
    flipped = [x.expand(layers, heads, distances).flip(-1).reshape(groups, -1) for x in (candidates_d, cells_d)]
    candidates_GN, cells_GN = flipped
    score_GN = average_LHd.flip(-1).reshape(groups, -1).masked_fill(~candidates_GN, math.inf)
    order_GN = score_GN.argsort(dim=1, stable=True)
    gone_GN = (cells_GN * candidates_GN).gather(1, order_GN).cumsum(1) <= budget
    pruned_GN = torch.zeros_like(candidates_GN).scatter(1, order_GN, gone_GN) & candidates_GN
    return observed & ~pruned_GN.reshape(layers, heads, distances).flip(-1)

"""Masks to compare a data-informed mask with: as much pruned in every layer, chosen with less knowledge of the data.

A random mask knows nothing, a window knows that near is useful, a mask by distance knows how much each head attends to
each distance but not where. The latter two may keep the first positions as well, which many heads attend to from
anywhere (sinks). These give every block a score and prune the lowest ones of each layer, never the last block of a row.
Shuffled heads know all but which head is which.
Letters in names: H heads, Q queries, K keys in cells; q, k the same in blocks; D distances.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from ..mask import PruneMask, require_mask
from ..pattern import AttentionPattern, require_pattern
from ..structure import block_any, block_sum, row_blocks
from .rules import best_of, bounding_box, lowest


def random_like(mask: PruneMask, seed: int, use: Tensor | None = None) -> PruneMask:
    """Prune as many allowed cells (blocks) of every layer as ``mask`` does, drawn uniformly with a recorded seed.

    Under ``keep-best`` every row keeps its best-drawn cell. Unobserved cells stay as they are in ``mask``.

    Parameters
    ----------
    use : Tensor, optional
        int64 [<= Q, <= K], such as the ``count`` of the pattern behind ``mask``: how often each cell was used. Then a
        layer loses the same share of that *use*, to one cell, instead of the same number of cells: the two masks agree
        in evaluated instead of effective sparsity.

    Raises
    ------
    InputError
        For what is no mask, a seed that is no whole number of at least 0, counts that are none or longer than the mask,
        or if the row floor leaves too few blocks to choose from.
    """
    require_mask(mask)
    _require_seed(seed)
    return _like(mask, random_scores(mask, seed), use, kind="random", seed=seed)


def shuffled_heads_like(mask: PruneMask, seed: int) -> PruneMask:
    """The same cells of every layer pruned, each head's on another head of it, drawn with a recorded seed.

    What is left of a data-informed mask's worth here is not about which head needs what. A layer prunes as many cells
    as before, and as much of their use, because all heads of a layer see the same ones.

    Raises
    ------
    InputError
        For what is no mask or has one head, or a seed that is no whole number of at least 0.
    """
    require_mask(mask)
    _require_seed(seed)
    if mask.heads < 2:
        raise InputError(f"{mask.source}: expected at least two heads to shuffle, found {mask.heads}")
    generator = torch.Generator().manual_seed(seed)
    pruned = torch.stack([layer_Hqk[_derangement(mask.heads, generator)] for layer_Hqk in mask.pruned])
    metadata = mask.metadata | {"like_fingerprint": mask.fingerprint}
    return mask.with_pruned(pruned, kind="shuffled-heads", seed=seed, metadata=metadata)


def _require_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed: expected a whole number of at least 0, found {seed!r}")


def _derangement(number: int, generator: torch.Generator) -> Tensor:
    """An order in which nothing stays where it was, all of them alike in chance: int64."""
    while True:
        order = torch.randperm(number, generator=generator)
        if not (order == torch.arange(number)).any():
            return order


def window_like(mask: PruneMask, use: Tensor | None = None, *, sinks: int = 0) -> PruneMask:
    """Keep as many allowed cells (blocks) of every layer as ``mask`` does, those nearest to the diagonal.

    See `window_scores` for where the diagonal lies, and `random_like` for ``use``.

    Parameters
    ----------
    sinks : int
        First keys that go last: every query keeps them, and the window is so much narrower. A multiple of the mask's
        block size.

    Raises
    ------
    InputError
        For what is no mask, counts that are none or longer than the mask, sinks that are no whole blocks of keys or
        come before memory slots, or if the row floor leaves too few blocks to choose from.
    """
    require_mask(mask)
    return _like(mask, window_scores(mask), use, sinks, kind="window")


def distance_like(
    mask: PruneMask, pattern: AttentionPattern, use: Tensor | None = None, *, sinks: int = 0
) -> PruneMask:
    """Keep as many allowed cells (blocks) of every layer as ``mask`` does, at the distances that the heads attend to.

    A data-informed mask that is no better than this one has learned which distances matter to which head, and nothing
    about positions. See `distance_scores` for how a cell is judged, `random_like` for ``use``, and `window_like` for
    ``sinks``.

    Raises
    ------
    InputError
        As of `window_like`, and for what is no pattern, or a pattern of another shape, site or choice of allowed cells
        than the mask's.
    """
    require_mask(mask)
    found = _like(mask, distance_scores(mask, pattern), use, sinks, kind="distance")
    return found.with_pruned(found.pruned, metadata=found.metadata | {"distances_fingerprint": pattern.fingerprint})


def _like(
    mask: PruneMask,
    scores: Callable[[int], Tensor],
    use: Tensor | None,
    sinks: int = 0,
    *,
    kind: str,
    seed: int | None = None,
) -> PruneMask:
    scores = with_sinks(scores, mask, sinks) if sinks != 0 else scores
    use_QK = None if use is None else mask.checked_counts(use) * mask.allowed
    equal = "effective_sparsity" if use_QK is None else "evaluated_sparsity"
    metadata = mask.metadata | {"like_fingerprint": mask.fingerprint, "like_in": equal}
    metadata |= {"sinks": sinks} if sinks else {}
    return mask.with_pruned(prune_as_much(mask, scores, use_QK), kind=kind, seed=seed, metadata=metadata)


def random_scores(mask: PruneMask, seed: int) -> Callable[[int], Tensor]:
    """Uniform scores, drawn layer after layer from one seeded CPU generator: layer -> float64 [H, q, k]."""
    generator = torch.Generator().manual_seed(seed)
    return lambda layer: torch.rand(mask.pruned.shape[1:], generator=generator, dtype=torch.float64)


def window_scores(mask: PruneMask) -> Callable[[int], Tensor]:
    """Minus the distance of each block's centre to the diagonal, the same in every layer: layer -> float64 [H, q, k].

    The diagonal is query + (K - Q) = key where attention is causal (memory slots come first), query = key in other
    self-attention, and for ``enc-dec`` it joins the corners of the rectangle that was observed.
    """
    queries, keys = mask.allowed.shape
    twice_q, twice_k = _twice_centres(queries, mask.block_size), _twice_centres(keys, mask.block_size)
    if mask.site == "enc-dec":
        rows, columns = bounding_box(mask.allowed)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        # whole numbers, so that equal distances are equal: (q + 1/2) / height - (k + 1/2) / width, times 2 * height *
        # width
        along_q = (twice_q + 1 - 2 * rows.start) * width
        along_k = (twice_k + 1 - 2 * columns.start) * height
    else:
        along_q = twice_q + 2 * (keys - queries) if mask.causal else twice_q
        along_k = twice_k
    score_qk = -(along_q[:, None] - along_k[None, :]).abs().double()
    return lambda layer: score_qk.expand(mask.pruned.shape[1:])


def with_sinks(scores: Callable[[int], Tensor], mask: PruneMask, sinks: int) -> Callable[[int], Tensor]:
    """Scores under which the first keys are pruned last: layer -> float64 [H, q, k].

    Raises
    ------
    InputError
        For sinks that are no whole blocks of keys, or that come before memory slots: the first key is not the first
        position of the text there.
    """
    if isinstance(sinks, bool) or not isinstance(sinks, int) or sinks < 0 or sinks % mask.block_size:
        raise InputError(f"sinks: expected a multiple of the block size {mask.block_size}, found {sinks!r}")
    queries, keys = mask.allowed.shape
    if mask.causal and keys > queries:
        raise InputError(
            f"sinks: expected keys that start with the text, found {keys - queries} memory slots before them in "
            f"{mask.source}"
        )
    first = sinks // mask.block_size
    highest = torch.finfo(torch.float64).max  # not infinite: what may not be pruned at all scores infinity

    def kept_first(layer: int) -> Tensor:
        score_Hqk = scores(layer).clone()
        score_Hqk[..., :first] = highest
        return score_Hqk

    return kept_first


def distance_scores(mask: PruneMask, pattern: AttentionPattern) -> Callable[[int], Tensor]:
    """The pattern's mean along each diagonal, by head: layer -> float64 [H, q, k], equal where query - key is equal.

    The mean is over the allowed cells of a diagonal, or over the allowed blocks of the pooled pattern.

    Raises
    ------
    InputError
        If the pattern does not describe the attention that the mask prunes.
    """
    require_pattern(pattern)
    for name in ("site", "causal", "layers", "heads", "query_length", "key_length"):
        if (expected := getattr(mask, name)) != (found := getattr(pattern, name)):
            raise InputError(f"{pattern.source}: expected {name} {expected}, that of {mask.source}, found {found}")
    if not torch.equal(mask.allowed, pattern.allowed):
        raise InputError(f"{pattern.source}: expected the allowed cells of {mask.source}, found others")
    average_LHqk = pattern.pooled(mask.block_size).average
    allowed_qk = block_any(mask.allowed, mask.block_size)
    queries, keys = allowed_qk.shape
    diagonal_qk = torch.arange(queries)[:, None] - torch.arange(keys) + keys - 1
    number_D = torch.zeros(queries + keys - 1, dtype=torch.float64)
    number_D.index_add_(0, diagonal_qk.flatten(), allowed_qk.flatten().double())

    def scores(layer: int) -> Tensor:
        sum_HD = torch.zeros(mask.heads, len(number_D), dtype=torch.float64)
        sum_HD.index_add_(1, diagonal_qk.flatten(), (average_LHqk[layer].double() * allowed_qk).flatten(1))
        return (sum_HD / number_D.clamp(min=1))[:, diagonal_qk]

    return scores


def _twice_centres(length: int, block_size: int) -> Tensor:
    """First plus last index of every block of an axis: int64."""
    first = torch.arange(0, length, block_size)
    return first + (first + block_size - 1).clamp(max=length - 1)


def prune_as_much(mask: PruneMask, scores: Callable[[int], Tensor], use_QK: Tensor | None = None) -> Tensor:
    """Prune in each layer as many allowed blocks as ``mask`` does, lowest score first: bool like ``mask.pruned``.

    Ties go in the order of query, key, head, so that all heads get the same band. Blocks that are not allowed stay as
    they are in ``mask``. Under the row floor ``keep-best`` no row loses its last block.

    Parameters
    ----------
    use_QK : Tensor, optional
        int64, how often each cell was used. Then a block counts as often as its cells were used, and a layer prunes
        the number of blocks whose use comes nearest to what ``mask`` prunes of it.

    Raises
    ------
    InputError
        If the row floor leaves too few blocks to choose from (possible only for blocks of several cells).
    """
    allowed_qk = block_any(mask.allowed, mask.block_size)
    weight_qk = allowed_qk.long() if use_QK is None else block_sum(use_QK, mask.block_size)
    useful_Qk = row_blocks(mask.allowed, mask.block_size)
    pruned = mask.pruned.clone()
    for layer, reference_Hqk in enumerate(mask.pruned):
        score_Hqk = scores(layer)
        candidates_Hqk = allowed_qk.expand(score_Hqk.shape)
        if mask.row_floor == "keep-best":
            candidates_Hqk = candidates_Hqk & ~best_of_rows(score_Hqk, useful_Qk, mask.block_size)
        wanted = int((reference_Hqk * weight_qk).sum())
        # heads last: the order in which ties are broken
        score, candidates, weight = (
            x.permute(1, 2, 0).reshape(1, -1) for x in (score_Hqk, candidates_Hqk, weight_qk.expand(score_Hqk.shape))
        )
        number, found = _nearest_budget(score, candidates, weight, wanted)
        if use_QK is None and found != wanted:
            raise InputError(
                f"{mask.source}: expected at most {found} pruned blocks in layer {layer}, all that leave every row a "
                f"block, found {wanted}"
            )
        chosen = lowest(score, candidates, torch.tensor([number])).reshape(*allowed_qk.shape, -1)
        pruned[layer] = torch.where(allowed_qk, chosen.permute(2, 0, 1), reference_Hqk)
    return pruned


def _nearest_budget(score_1N: Tensor, candidates_1N: Tensor, weight_1N: Tensor, wanted: int) -> tuple[int, int]:
    """How many of the lowest candidates weigh nearest to ``wanted`` together (the fewest, if several do), and what."""
    order = score_1N[candidates_1N].argsort(stable=True)
    total = torch.nn.functional.pad(weight_1N[candidates_1N][order].cumsum(0), (1, 0))
    number = int((total - wanted).abs().argmin())
    return number, int(total[number])


def best_of_rows(score_Hqk: Tensor, useful_Qk: Tensor, block_size: int) -> Tensor:
    """Blocks that together leave no row empty, the best-scored of their row each: bool [H, q, k].

    Rows that share blocks can share one: within a block row, those with the fewest blocks choose first, and a row that
    already has one of the chosen needs no other. For cells it is simply the best cell of every row.
    """
    padded_Qk = torch.nn.functional.pad(useful_Qk, (0, 0, 0, -useful_Qk.shape[0] % block_size))
    useful_qBk = padded_Qk.unflatten(0, (-1, block_size))
    order_qB = useful_qBk.sum(-1).argsort(dim=1, stable=True)
    useful_qBk = useful_qBk.take_along_dim(order_qB[..., None], dim=1)
    best_Hqk = torch.zeros(score_Hqk.shape, dtype=torch.bool)
    for useful_qk in useful_qBk.unbind(1):
        uncovered_Hq = useful_qk.any(-1) & ~(best_Hqk & useful_qk).any(-1)
        choice_Hq = best_of(score_Hqk, useful_qk)
        best_Hqk |= torch.zeros_like(best_Hqk).scatter(-1, choice_Hq[..., None], uncovered_Hq[..., None])
    return best_Hqk

"""How much can go without training: shares by head, from what pruning each of them alone costs.

One tau for a whole model takes as much from a head that needs all it sees as from one that needs nothing. Here every
head is pruned alone, at each of some shares, and the rise of the loss on held-out batches is its price there. Shares
are then raised head by head, wherever the next cells cost least, until the prices add up to what the budget allows, and
the joint mask is measured: prices of single heads need not add up, so what was allowed is lowered until the measured
rise is within the budget.

Letters in names: L layers, H heads, T shares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import InputError
from ..make import from_pattern
from ..mask import PruneMask
from ..pattern import AttentionPattern
from ..progress import shown
from ..recipe import parse_tau
from ..structure import block_sum
from .collect import collect_patterns
from .given import named
from .prune import model_masks, prune_model, unprune_model

#: The shares that are tried, unless others are given.
TAUS = (0.25, 0.5, 0.75, 0.9, 1.0)
#: How often what is allowed is lowered or raised on the way to the budget.
TRIES = 8


@dataclass(frozen=True)
class Calibration:
    """A mask within a budget, and what it was chosen from.

    Attributes
    ----------
    masks : dict of PruneMask
        By site, of kind "custom": no one tau made them.
    taus : dict of Tensor
        float64 [L, H] by site: the share that each head loses.
    rises : dict of Tensor
        float64 [L, H, T] by site: how much the loss rises where that head alone is pruned at that share.
    tried : tuple of float
        The shares of the last axis.
    dense_loss, loss : float
        Mean loss of a token (or of whatever the model's loss is a mean of) on the held-out batches: dense, under the
        masks.
    """

    masks: dict[str, PruneMask]
    taus: dict[str, Tensor]
    rises: dict[str, Tensor]
    tried: tuple[float, ...]
    dense_loss: float
    loss: float

    def rows(self) -> list[dict[str, object]]:
        """A row for each head: site, layer, head, tau, and the rise of the loss under that head's mask alone."""
        found = []
        for site, taus_LH in self.taus.items():
            for layer, head in torch.cartesian_prod(*map(torch.arange, taus_LH.shape)).tolist():
                tau = float(taus_LH[layer, head])
                place = self.tried.index(tau) if tau else None
                rise = 0.0 if place is None else float(self.rises[site][layer, head, place])
                found.append({"site": site, "layer": layer, "head": head, "tau": tau, "rise": rise})
        return found


@dataclass
class _Search:
    """What is known of the heads of all sites, in one list: how many cells go at each share, and at what price."""

    cells_NT: Tensor
    rises_NT: Tensor

    def cells_of(self, chosen: Sequence[int]) -> int:
        """How many cells go where each head has the share of that number."""
        return sum(int(self.cells_NT[head, share - 1]) for head, share in enumerate(chosen) if share)

    def within(self, allowed: float) -> list[int]:
        """For each head the number of its share (0: none), such that the prices add up to at most ``allowed``.

        From nothing pruned, the step with the lowest price for a cell is taken, as long as it fits: the greedy rule for
        a knapsack whose items may be raised. A step may skip shares, so that a costly one is no wall before a cheap
        one. A negative price (pruning that helps) is taken as 0, for it may be noise.
        """
        cost_NT = F.pad(self.rises_NT.clamp(min=0).double(), (1, 0))
        gain_NT = F.pad(self.cells_NT.double(), (1, 0))
        at = torch.zeros(len(cost_NT), dtype=torch.long)
        spent = 0.0
        while True:
            more_NT = gain_NT - gain_NT.gather(1, at[:, None])
            price_NT = (cost_NT - cost_NT.gather(1, at[:, None])).clamp(min=0)
            fits_NT = (more_NT > 0) & (spent + price_NT <= allowed)
            if not fits_NT.any():
                return at.tolist()
            # of steps of one price for a cell, the largest
            rate_NT = torch.where(fits_NT, price_NT / more_NT.clamp(min=1), math.inf)
            best = rate_NT == rate_NT.min()
            place = int(torch.where(best, more_NT, -1.0).argmax())
            head, share = divmod(place, cost_NT.shape[1])
            spent += float(price_NT[head, share])
            at[head] = share


def calibrate(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    budget: float,
    *,
    patterns: Mapping[str, AttentionPattern] | None = None,
    taus: Sequence[float | str] = TAUS,
    block_size: int | None = None,
    progress: bool | None = None,
) -> Calibration:
    """Masks that raise the loss of a model by at most a budget, without any training.

    It takes one pass over the batches for each head and share, and some more: keep them few, and other ones than those
    that patterns were made of, or than what the masks are judged by later.

    Parameters
    ----------
    model : PreTrainedModel
        Dense. It is left as it was; ``prune_model(model, found.masks)`` applies what was found.
    batches : iterable of mappings
        Held-out batches with ``labels``, so that the model gives its ``loss``. Gone through many times.
    budget : float
        How much the loss may rise, in its own unit, such as 0.02 nats a token.
    patterns : mapping, optional
        By site, such as ``collect_patterns`` returns, of sites that are to be pruned. By default all, from the batches.
    taus : sequence of float or str
        The shares that are tried: rule "allowed" of ``make.from_pattern``, within each head.
    block_size : int, optional
        The side of the blocks that go whole; by default the patterns' pool.
    progress : bool, optional
        As in ``collect_patterns``.

    Returns
    -------
    Calibration

    Raises
    ------
    InputError
        For a model that is pruned or not supported, a budget below 0, no share above 0, no batches, or batches for
        which the model gives no loss.
    """
    if not isinstance(budget, int | float) or isinstance(budget, bool) or not budget >= 0:
        raise InputError(f"budget: expected a rise of the loss of at least 0, found {budget!r}")
    tried = tuple(sorted({parse_tau(tau) for tau in taus} - {0.0}))
    if not tried:
        raise InputError("taus: expected a share above 0, found none")
    if model_masks(model):
        raise InputError(f"{type(model).__name__}: expected a dense model to calibrate, found a pruned one")
    held_out = list(batches)
    if not held_out:
        raise InputError("batches: expected at least one, found none")
    if patterns is None:
        patterns = collect_patterns(model, held_out, block_size=block_size or 1, progress=progress)
    by_share = {site: [_of_heads(pattern, tau, block_size) for tau in tried] for site, pattern in patterns.items()}
    with _pruning(model) as under:
        dense_loss = _loss(model, held_out)
        rises = _rises(model, under, by_share, held_out, dense_loss, progress)
        search = _search(by_share, rises)
        masks, taus_by_site, loss = _fit(model, under, by_share, search, tried, held_out, dense_loss, budget)
    return Calibration(masks, taus_by_site, rises, tried, dense_loss, loss)


def _of_heads(pattern: AttentionPattern, tau: float, block_size: int | None) -> PruneMask:
    size = pattern.pool if block_size is None else block_size
    try:
        return from_pattern(pattern, tau, rule="allowed", scope="head", block_size=size)
    except InputError as error:
        raise InputError(f"{named(pattern)}: {error}") from error


class _pruning:
    """Within it the model runs under whatever masks it is given; after it the model is as it was."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __enter__(self) -> _pruning:
        self.implementation, self.training = self.model.config._attn_implementation, self.model.training
        self.model.eval()
        return self

    def __call__(self, masks: Mapping[str, PruneMask]) -> None:
        prune_model(self.model, masks)

    def __exit__(self, *exception: object) -> None:
        unprune_model(self.model, self.implementation)
        self.model.train(self.training)


def _loss(model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """The mean loss over all labels that count; over batches where labels are no tokens."""
    total, weight = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            moved = {name: x.to(model.device) if isinstance(x, Tensor) else x for name, x in batch.items()}
            loss = getattr(model(**moved), "loss", None)
            if loss is None:
                raise InputError(
                    f"batches: expected labels, for which {type(model).__name__} gives a loss, found {sorted(batch)}"
                )
            labels = moved.get("labels")
            number = int((labels != -100).sum()) if isinstance(labels, Tensor) and not labels.is_floating_point() else 1
            total += float(loss) * number
            weight += number
    if not math.isfinite(total):
        raise InputError(f"batches: expected a finite loss of {type(model).__name__}, found {total / max(1, weight)}")
    return total / max(1, weight)


def _rises(model, under, by_share, batches, dense_loss: float, progress: bool | None) -> dict[str, Tensor]:
    """float64 [L, H, T] by site: the rise of the loss where one head alone is pruned."""
    found, places = {}, []
    for site, masks in by_share.items():
        layers, heads = masks[0].layers, masks[0].heads
        found[site] = torch.zeros(layers, heads, len(masks), dtype=torch.float64)
        places += [(site, *place) for place in torch.cartesian_prod(*map(torch.arange, found[site].shape)).tolist()]
    for site, layer, head, share in shown(places, len(places), "calibrate", progress):
        mask = by_share[site][share]
        alone = torch.zeros_like(mask.pruned)
        alone[layer, head] = mask.pruned[layer, head]
        under({site: mask.with_pruned(alone)})
        found[site][layer, head, share] = _loss(model, batches) - dense_loss
    return found


def _search(by_share: Mapping[str, Sequence[PruneMask]], rises: Mapping[str, Tensor]) -> _Search:
    cells = []
    for masks in by_share.values():
        cells.append(torch.stack([_cells_of_heads(mask) for mask in masks], -1).flatten(0, 1))
    return _Search(torch.cat(cells), torch.cat([rise.flatten(0, 1) for rise in rises.values()]))


def _cells_of_heads(mask: PruneMask) -> Tensor:
    """int64 [L, H]: the allowed cells that each head loses."""
    return (mask.pruned * block_sum(mask.allowed.long(), mask.block_size)).sum((-2, -1))


def _fit(model, under, by_share, search: _Search, tried, batches, dense_loss: float, budget: float):
    """The largest masks that were found within the budget, their shares, and their loss."""
    nothing = (0,) * len(search.cells_NT)
    best, rises = nothing, {nothing: 0.0}
    low, allowed, high = 0.0, budget, 2.0 * budget
    for _ in range(TRIES):
        chosen = tuple(search.within(allowed))
        if chosen not in rises:
            under(_joint(by_share, chosen, tried)[0])
            rises[chosen] = _loss(model, batches) - dense_loss
        if rises[chosen] <= budget:
            low, best = allowed, max(best, chosen, key=search.cells_of)
        else:
            high = allowed
        allowed = (low + high) / 2
    return *_joint(by_share, best, tried), dense_loss + rises[best]


def _joint(by_share, chosen: Sequence[int], tried: Sequence[float]):
    """The masks in which each head has the share that was chosen for it, and the shares [L, H], by site."""
    masks, taus, start = {}, {}, 0
    for site, of_site in by_share.items():
        first = of_site[0]
        number = first.layers * first.heads
        places_LH = torch.tensor(chosen[start : start + number]).view(first.layers, first.heads)
        start += number
        stacked = torch.stack([torch.zeros_like(first.pruned), *(mask.pruned for mask in of_site)])
        index = places_LH[None, :, :, None, None].expand(1, *first.pruned.shape)
        pruned = stacked.gather(0, index)[0]
        metadata = first.metadata | {"made_by": "calibrate"}
        masks[site] = first.with_custom(pruned, metadata)
        taus[site] = torch.tensor([0.0, *tried], dtype=torch.float64)[places_LH]
    return masks, taus

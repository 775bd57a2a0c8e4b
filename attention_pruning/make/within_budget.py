"""Masks within a budget of loss, without any training: shares by head, from what pruning each of them alone costs.

One tau for a whole model takes as much from a head that needs all it sees as from one that needs nothing. Here every
head is pruned alone, at each of some shares, and the rise of the loss on held-out data is its price there. Shares are
then raised head by head, wherever the next cells cost least, until the prices add up to what the budget allows, and the
joint mask is measured: prices of single heads need not add up, so what was allowed is lowered until the measured rise
is within the budget. A cell counts as often as the data uses it: what no sequence reaches is not worth pruning.

Letters in names: L layers, H heads, T shares; N heads of all sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..mask import PruneMask
from ..pattern import AttentionPattern, require_pattern
from ..progress import shown
from ..recipe import parse_tau
from ..structure import block_sum
from .rules import from_pattern

#: The shares that are tried, unless others are given.
TAUS = (0.25, 0.5, 0.75, 0.9, 1.0)
#: How often what is allowed is lowered or raised on the way to the budget.
TRIES = 8
#: The loss of a model under masks by site; under none, of the dense model.
LossUnder = Callable[[Mapping[str, PruneMask]], float]


@dataclass(frozen=True)
class Calibration:
    """A mask within a budget, and what it was chosen from.

    Attributes
    ----------
    masks : dict of PruneMask
        By site, of kind "custom": no one tau made them.
    taus : dict of Tensor
        float64 [L, H] by site: the share of each head that is pruned.
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
    """What is known of the heads of all sites, in one list: how much use goes at each share, and at what price."""

    use_NT: Tensor
    rises_NT: Tensor

    def use_of(self, chosen: Sequence[int]) -> int:
        """How much use goes where each head has the share of that number: cells, each as often as it was used."""
        return sum(int(self.use_NT[head, share - 1]) for head, share in enumerate(chosen) if share)

    def within(self, allowed: float) -> list[int]:
        """For each head the number of its share (0: none), such that the prices add up to at most ``allowed``.

        From nothing pruned, the step with the lowest price for its use is taken, as long as it fits: the greedy rule
        for a knapsack whose items may be raised. A step may skip shares, so that a costly one is no wall before a cheap
        one. A negative price (pruning that helps) is taken as 0, for it may be noise.
        """
        cost_NT = F.pad(self.rises_NT.clamp(min=0).double(), (1, 0))
        gain_NT = F.pad(self.use_NT.double(), (1, 0))
        at = torch.zeros(len(cost_NT), dtype=torch.long)
        spent = 0.0
        while True:
            more_NT = gain_NT - gain_NT.gather(1, at[:, None])
            price_NT = (cost_NT - cost_NT.gather(1, at[:, None])).clamp(min=0)
            fits_NT = (more_NT > 0) & (spent + price_NT <= allowed)
            if not fits_NT.any():
                return at.tolist()
            # of steps of one price for its use, the largest
            rate_NT = torch.where(fits_NT, price_NT / more_NT.clamp(min=1), math.inf)
            best = rate_NT == rate_NT.min()
            place = int(torch.where(best, more_NT, -1.0).argmax())
            head, share = divmod(place, cost_NT.shape[1])
            spent += float(price_NT[head, share])
            at[head] = share


@dataclass(frozen=True)
class Sensitivities:
    """What pruning each head alone costs: measured once, for as many budgets as are asked for.

    Attributes
    ----------
    loss_under : callable
        Masks by site -> the loss of the model under them on held-out data; no masks: dense.
    by_share : dict of list of PruneMask
        By site, a mask for each share, in which every head has it.
    rises : dict of Tensor
        float64 [L, H, T] by site: how much the loss rises where that head alone is pruned at that share.
    tried : tuple of float
        The shares.
    dense_loss : float
    """

    loss_under: LossUnder
    by_share: dict[str, list[PruneMask]]
    rises: dict[str, Tensor]
    tried: tuple[float, ...]
    dense_loss: float
    _search: _Search

    @classmethod
    def measure(
        cls,
        loss_under: LossUnder,
        patterns: Mapping[str, AttentionPattern],
        *,
        taus: Sequence[float | str] = TAUS,
        block_size: int | None = None,
        progress: bool | None = None,
    ) -> Sensitivities:
        """Prune each head alone at each share. Parameters and errors are those of ``within_budget``."""
        tried = checked_taus(taus)
        if not patterns:
            raise InputError("patterns: expected at least one, found none")
        by_share = {site: [_of_heads(pattern, tau, block_size) for tau in tried] for site, pattern in patterns.items()}

        def finite_loss(masks: Mapping[str, PruneMask]) -> float:
            loss = loss_under(masks)
            if not math.isfinite(loss):
                raise InputError(f"loss: expected a finite number, found {loss} {'under masks' if masks else 'dense'}")
            return loss

        dense_loss = finite_loss({})
        rises = _rises(finite_loss, by_share, dense_loss, progress)
        return cls(finite_loss, by_share, rises, tried, dense_loss, _search(by_share, patterns, rises))

    def within(self, budget: float) -> Calibration:
        """The largest masks that were found under which the loss rises by at most the budget.

        Raises
        ------
        InputError
            For a budget below 0.
        """
        check_budget(budget)
        nothing = (0,) * len(self._search.use_NT)
        best, rises = nothing, {nothing: 0.0}
        low, allowed, high = 0.0, budget, 2.0 * budget
        for _ in range(TRIES):
            chosen = tuple(self._search.within(allowed))
            if chosen not in rises:
                rises[chosen] = self.loss_under(_joint(self.by_share, chosen, self.tried)[0]) - self.dense_loss
            if rises[chosen] <= budget:
                low, best = allowed, max(best, chosen, key=self._search.use_of)
            else:
                high = allowed
            allowed = (low + high) / 2
        masks, taus = _joint(self.by_share, best, self.tried)
        return Calibration(masks, taus, self.rises, self.tried, self.dense_loss, self.dense_loss + rises[best])


def within_budget(
    loss_under: LossUnder,
    patterns: Mapping[str, AttentionPattern],
    budget: float,
    *,
    taus: Sequence[float | str] = TAUS,
    block_size: int | None = None,
    progress: bool | None = None,
) -> Calibration:
    """Masks that raise a loss by at most a budget; for several budgets, see ``Sensitivities``.

    Parameters
    ----------
    loss_under : callable
        Masks by site -> the loss of the model under them on held-out data; no masks: dense. It is called once for each
        head and share, and some times more.
    patterns : mapping
        By site, of the sites that are to be pruned.
    budget : float
        How much the loss may rise, in its own unit.
    taus : sequence of float or str
        The shares that are tried: rule "allowed" of ``from_pattern``, within each head.
    block_size : int, optional
        The side of the blocks that go whole; by default the patterns' pool.
    progress : bool, optional
        Show a bar; by default where a terminal is.

    Returns
    -------
    Calibration

    Raises
    ------
    InputError
        For a budget below 0, no share above 0, no pattern, or a loss that is not finite.
    """
    check_budget(budget)
    return Sensitivities.measure(loss_under, patterns, taus=taus, block_size=block_size, progress=progress).within(
        budget
    )


def check_budget(budget: object) -> None:
    """Refuse what is no number of at least 0."""
    if not isinstance(budget, int | float) or isinstance(budget, bool) or not budget >= 0:
        raise InputError(f"budget: expected a rise of the loss of at least 0, found {budget!r}")


def checked_taus(taus: Sequence[float | str]) -> tuple[float, ...]:
    """The shares to try, from the lowest, without 0."""
    tried = tuple(sorted({parse_tau(tau) for tau in taus} - {0.0}))
    if not tried:
        raise InputError("taus: expected a share above 0, found none")
    return tried


def _of_heads(pattern: AttentionPattern, tau: float, block_size: int | None) -> PruneMask:
    require_pattern(pattern)
    size = pattern.pool if block_size is None else block_size
    return from_pattern(pattern, tau, rule="allowed", scope="head", block_size=size)


def _rises(
    loss_under: LossUnder, by_share: Mapping[str, Sequence[PruneMask]], dense_loss: float, progress: bool | None
) -> dict[str, Tensor]:
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
        found[site][layer, head, share] = loss_under({site: mask.with_pruned(alone)}) - dense_loss
    return found


def _search(
    by_share: Mapping[str, Sequence[PruneMask]],
    patterns: Mapping[str, AttentionPattern],
    rises: Mapping[str, Tensor],
) -> _Search:
    use = []
    for site, masks in by_share.items():
        use_qk = block_sum(patterns[site].count * patterns[site].visible, masks[0].block_size)
        use.append(torch.stack([(mask.pruned * use_qk).sum((-2, -1)) for mask in masks], -1).flatten(0, 1))
    return _Search(torch.cat(use), torch.cat([rise.flatten(0, 1) for rise in rises.values()]))


def _joint(
    by_share: Mapping[str, Sequence[PruneMask]], chosen: Sequence[int], tried: Sequence[float]
) -> tuple[dict[str, PruneMask], dict[str, Tensor]]:
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

"""How many sequences a pattern needs: how much masks from little data prune in common with others.

A pattern has seen enough once its mask no longer depends on which sequences it has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..accumulate import PatternAccumulator
from ..agreement import Agreement
from ..errors import InputError
from ..make import from_pattern
from ..mask import PruneMask
from ..processes import process_count
from .collect import accumulated
from .collector import Collector

#: What :meth:`PatternAccumulator.state` gives.
_State = tuple[Tensor, Tensor, dict[str, object]]


def mask_agreement(
    model: PreTrainedModel,
    dataloader: Iterable[Mapping[str, Tensor]],
    sites: Iterable[str] | None = None,
    *,
    batches: Sequence[int] = (1, 10, 100, 1000),
    taus: Sequence[float] = (0.5, 0.9),
    lengths: int | Mapping[str, tuple[int, int]] | None = None,
    block_size: int = 1,
    max_batches: int | None = None,
    progress: bool | None = None,
    **recipe: object,
) -> list[Agreement]:
    """One pass over data, and how much the masks of its first batches prune in common with those of others.

    Parameters
    ----------
    model, dataloader, sites, lengths, block_size, max_batches, progress
        As of ``collect_patterns``.
    batches : sequence of int
        From how many batches masks are made. Half of the data joins them where its length is known. Numbers of which
        the data holds less than twice as many are compared with all of it alone; larger ones are left out.
    taus : sequence of float
        Shares to prune.
    **recipe
        The other arguments of ``make.from_pattern``, such as rule and scope.

    Returns
    -------
    list of Agreement
        By site, tau and batches. ``cli.agreement_plot.plot_agreement`` draws it.

    Raises
    ------
    InputError
        If numbers are none, there are several processes, or for what ``collect_patterns`` refuses.
    """
    if process_count() > 1:
        raise InputError(f"mask_agreement: expected one process, found {process_count()}")
    if not batches or not all(isinstance(number, int) and number > 0 for number in batches):
        raise InputError(f"batches: expected whole numbers of 1 or more, found {batches!r}")
    numbers, done, states = set(batches), 0, {}
    known = len(dataloader) if hasattr(dataloader, "__len__") else 0
    if (half := min(known, max_batches or known) // 2) > 0:
        numbers.add(half)
    wanted = numbers | {2 * number for number in numbers}

    def keep(collectors: Mapping[str, Collector]) -> None:
        nonlocal done
        done += 1
        if done in wanted:
            states[done] = {site: _copy(one.accumulator.state()) for site, one in collectors.items()}

    options = {"lengths": lengths, "block_size": block_size, "max_batches": max_batches, "progress": progress}
    collectors = accumulated(model, dataloader, sites, **options, after=keep)
    patterns = {site: collector.finish({}) for site, collector in collectors.items()}
    found = []
    for site, pattern in patterns.items():
        whole = collectors[site].accumulator
        for tau in taus:
            final = from_pattern(pattern, tau, block_size=block_size, **recipe)
            for number in sorted(number for number in numbers if number < done):
                own = _mask(whole, states[number][site], None, tau, recipe)
                sequences = states[number][site][2]["sequences"]
                if 2 * number <= done:
                    others = _mask(whole, states[2 * number][site], states[number][site], tau, recipe)
                    found.append(Agreement.of(own, others, tau, number, sequences, "others"))
                found.append(Agreement.of(own, final, tau, number, sequences, "all"))
    return found


def _copy(state: _State) -> _State:
    return state[0].clone(), state[1].clone(), dict(state[2])


def _mask(
    like: PatternAccumulator, state: _State, before: _State | None, tau: float, recipe: Mapping[str, object]
) -> PruneMask:
    """The mask of what was seen up to a state, or between two of them."""
    sums, corners, facts = state
    if before is not None:
        sums = sums - before[0]
        corners = torch.cat([corners, before[1] * torch.tensor([1, 1, 1, -1])])
        facts = facts | {name: facts[name] - before[2][name] for name in ("sequences", "tokens")}
    part = PatternAccumulator(*like.arguments())
    part.restore(sums.clamp(min=0), corners, facts)
    return from_pattern(part.finalize(), tau, block_size=like.block_size, **recipe)

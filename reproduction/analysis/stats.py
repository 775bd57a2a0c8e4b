"""Models side by side on the seeds that they share: paired differences, and what n of them can say.

A seed is an experiment of its own: models of one seed began alike and saw the same batches, so only they are compared.
Every contrast of figures, captions and tables is made here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import pandas as pd

from attention_pruning import InputError

#: How often an interval holds the true mean, if paired differences are normal.
CONFIDENCE = 0.95
#: Fewer differences are shown one by one: the t interval of two reaches 13 standard errors to either side.
FEWEST = 3
#: Columns that tell one model of a panel from another.
MODEL = ("variant", "sites", "tau")


@dataclass(frozen=True)
class Difference:
    """Paired differences, first minus second.

    Attributes
    ----------
    seeds : tuple of int
        Ascending.
    values : tuple of float
        One a seed.
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return fmean(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The t interval of the mean; None for fewer than :data:`FEWEST`."""
        return t_interval(self.values)

    def told(self, places: int = 2) -> str:
        """The mean, then the interval, or all differences where there are too few, and how many there are."""
        mean = f"{self.mean:+.{places}f}"
        if len(self.values) == 1:
            return f"{mean} (1 seed)"
        if self.interval is None:
            each = ", ".join(f"{value:+.{places}f}" for value in self.values)
            return f"{mean} ({each}; {len(self.values)} seeds)"
        low, high = self.interval
        return f"{mean} ({CONFIDENCE:.0%} CI {low:+.{places}f} to {high:+.{places}f}; {len(self.values)} seeds)"


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The interval of Student's t distribution for the mean of values; None for fewer than :data:`FEWEST`."""
    count = len(values)
    if count < FEWEST:
        return None
    from scipy.stats import t  # takes a second to import

    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * stdev(values) / math.sqrt(count)
    return fmean(values) - half, fmean(values) + half


def paired(first: pd.DataFrame, second: pd.DataFrame, column: str = "value") -> Difference:
    """First minus second, over the seeds that both have.

    Parameters
    ----------
    first, second : pandas.DataFrame
        Columns ``table.COLUMNS``, each the rows of one model, one a seed.
    column : str

    Raises
    ------
    InputError
        If they have no seed in common, or a model has several rows of one.
    """
    ours, theirs = (_by_seed(rows, column) for rows in (first, second))
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        kinds = " and ".join(rows["variant"].iloc[0] if len(rows) else "nothing" for rows in (first, second))
        raise InputError(f"expected {kinds} of the same seed, found none")
    return Difference(tuple(seeds), tuple(ours[seed] - theirs[seed] for seed in seeds))


def _by_seed(rows: pd.DataFrame, column: str) -> dict[int, float]:
    seeded = rows[rows["seed"].notna()]
    if (again := seeded["seed"].duplicated()).any():
        first = seeded[again].iloc[0]
        raise InputError(f"expected one row of {first['variant']} a seed, found several of seed {first['seed']}")
    return {int(seed): float(value) for seed, value in zip(seeded["seed"], seeded[column], strict=True)}


def on_common_seeds(rows: pd.DataFrame, model: Sequence[str] = MODEL) -> pd.DataFrame:
    """Keep the rows of those seeds that every model has; rows without a seed stay.

    Parameters
    ----------
    rows : pandas.DataFrame
        Columns ``table.COLUMNS``.
    model : sequence of str
        Columns that tell one model from another.

    Raises
    ------
    InputError
        If no seed is common to all.
    """
    seeded = rows[rows["seed"].notna()]
    seeds = [set(part["seed"]) for _, part in seeded.groupby(list(model), dropna=False)]
    common = set.intersection(*seeds) if seeds else set()
    if seeds and not common:
        models = ", ".join(sorted(seeded["variant"].unique()))
        raise InputError(f"expected a seed that all of {models} have, found none")
    return rows[rows["seed"].isna() | rows["seed"].isin(common)]


def named_seeds(rows: pd.DataFrame) -> str:
    """The seeds of rows, ascending: ``seed 1``, ``seeds 1, 2``."""
    seeds = sorted(rows["seed"].dropna().unique())
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds)) or 'none'}"

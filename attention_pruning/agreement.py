"""How much masks that were made from different data agree."""

from __future__ import annotations

from dataclasses import dataclass

from .mask import PruneMask


@dataclass(frozen=True)
class Agreement:
    """How much two masks prune in common.

    Attributes
    ----------
    site : str
    tau : float
        Of both masks.
    batches, sequences : int
        The first mask is from so many.
    compared_with : str
        ``others``: as many batches, those that follow. ``all``: all batches, these among them.
    overlap, lowest : float
        ``mask.overlap``: the mean over layers and heads, and that of the head with the least.
    by_chance : float
        The overlap of two random masks that prune as much.
    """

    site: str
    tau: float
    batches: int
    sequences: int
    compared_with: str
    overlap: float
    lowest: float
    by_chance: float

    @classmethod
    def of(
        cls, mask: PruneMask, other: PruneMask, tau: float, batches: int, sequences: int, compared_with: str
    ) -> Agreement:
        """That of two masks."""
        overlap = mask.overlap(other)
        first, second = mask.effective_sparsity, other.effective_sparsity
        both, either = first * second, first + second - first * second
        by_chance = both / either if either else 1.0
        shares = (float(overlap.mean()), float(overlap.min()), by_chance)
        return cls(mask.site, tau, batches, sequences, compared_with, *shares)

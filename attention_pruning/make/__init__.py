"""From a pattern to a mask: the rules of the paper, and the controls that a mask is compared with."""

from .controls import distance_like, random_like, shuffled_heads_like, window_like
from .distances import by_distance
from .rules import from_pattern
from .within_budget import Calibration, Sensitivities, within_budget

__all__ = [
    "Calibration",
    "Sensitivities",
    "by_distance",
    "distance_like",
    "from_pattern",
    "random_like",
    "shuffled_heads_like",
    "window_like",
    "within_budget",
]

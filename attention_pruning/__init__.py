"""Attention Pruning: average attention over data, prune its lowest cells everywhere at once, retrain.

The method of "Data-Informed Global Sparseness in Attention Mechanisms for Deep Neural Networks" (arXiv 2012.02030), as
a library for anyone's model: collect an :class:`AttentionPattern` with a :class:`PatternAccumulator`, turn it into a
:class:`PruneMask`, and attend under it with :func:`masked_attention`.
"""

from .accumulator import PatternAccumulator
from .attention import masked_attention
from .errors import InputError
from .mask import PruneMask
from .pattern import AttentionPattern

__all__ = ["AttentionPattern", "InputError", "PatternAccumulator", "PruneMask", "masked_attention"]

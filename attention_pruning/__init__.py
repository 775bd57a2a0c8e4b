"""Attention Pruning: average attention over data, prune its lowest cells everywhere at once, retrain.

The method of "Data-Informed Global Sparseness in Attention Mechanisms for Deep Neural Networks" (arXiv 2012.02030), as
a library for anyone's model: :func:`collect` an :class:`AttentionPattern` (or feed a :class:`PatternAccumulator`), turn
it into a :class:`PruneMask` (:mod:`attention_pruning.make`), and attend under it with :func:`pruned_attention`;
:func:`explain` says what computed each layer.
"""

from . import make
from .accumulate import PatternAccumulator
from .collect import collect
from .deprecated import block_sparse_attention, masked_attention
from .distance_mask import DistanceMask
from .errors import InputError
from .mask import PruneMask
from .ops import BlockLayout, DenseAttentionWarning, LayerMask, PrunedAttention, explain, pruned_attention
from .pattern import AttentionPattern
from .recipe import MaskRecipe

__all__ = [
    "AttentionPattern",
    "BlockLayout",
    "DenseAttentionWarning",
    "DistanceMask",
    "InputError",
    "LayerMask",
    "MaskRecipe",
    "PatternAccumulator",
    "PruneMask",
    "PrunedAttention",
    "block_sparse_attention",
    "collect",
    "explain",
    "make",
    "masked_attention",
    "pruned_attention",
]

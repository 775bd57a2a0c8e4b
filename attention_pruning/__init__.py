"""Attention Pruning: average attention over data, prune its lowest cells everywhere at once, retrain.

The method of "Data-Informed Global Sparseness in Attention Mechanisms for Deep Neural Networks" (arXiv 2012.02030), as
a library for anyone's model: :func:`collect` an :class:`AttentionPattern` (or feed a :class:`PatternAccumulator`), turn
it into a :class:`PruneMask`, and attend under it with :func:`masked_attention`, or with
:func:`block_sparse_attention` under a mask of whole blocks.
"""

from .accumulate import PatternAccumulator
from .collect import collect
from .errors import InputError
from .mask import PruneMask
from .ops import BlockLayout, block_sparse_attention
from .ops.eager import masked_attention
from .pattern import AttentionPattern

__all__ = [
    "AttentionPattern",
    "BlockLayout",
    "InputError",
    "PatternAccumulator",
    "PruneMask",
    "block_sparse_attention",
    "collect",
    "masked_attention",
]

"""Attention Pruning: average attention over data, prune its lowest cells everywhere at once, retrain.

The method of "Data-Informed Global Sparseness in Attention Mechanisms for Deep Neural Networks" (arXiv 2012.02030), as
a library for anyone's model: collect an :class:`AttentionPattern` with a :class:`PatternAccumulator`, turn it into a
:class:`PruneMask` with :func:`make.from_pattern`, and attend under it with :func:`masked_attention`, or with
:func:`block_sparse_attention` under a mask of whole blocks.
"""

from . import deprecated, make  # noqa: F401  gives the old names to what is here
from .accumulate import PatternAccumulator
from .errors import InputError
from .mask import PruneMask
from .ops import BlockLayout, block_sparse_attention
from .ops.eager import masked_attention
from .pattern import AttentionPattern
from .recipe import MaskRecipe

__all__ = [
    "AttentionPattern",
    "BlockLayout",
    "InputError",
    "MaskRecipe",
    "PatternAccumulator",
    "PruneMask",
    "block_sparse_attention",
    "make",
    "masked_attention",
]

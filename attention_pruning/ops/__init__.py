"""Attention under one layer of a mask: the operator, and what computes it."""

from .attention import PrunedAttention, pruned_attention
from .choice import BACKENDS
from .layer_mask import LayerMask
from .layout import BlockLayout
from .reasons import DenseAttentionWarning, Explained, explain

__all__ = [
    "BACKENDS",
    "BlockLayout",
    "DenseAttentionWarning",
    "Explained",
    "LayerMask",
    "PrunedAttention",
    "explain",
    "pruned_attention",
]

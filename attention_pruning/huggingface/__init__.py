"""Attention pruning for the models of Hugging Face transformers, without a fork of any of them.

Importing this package registers the attention implementation ``"attention_pruning"`` (an AttentionInterface function
with its AttentionMaskInterface entry) and makes ``save_pretrained`` and ``from_pretrained`` carry the masks. It is the
only part of the library that needs transformers. How to use it, and what is supported: docs/transformers.md.
"""

from ..make.within_budget import Calibration
from ..ops.choice import BACKENDS
from .agreement import Agreement, mask_agreement
from .cache import PrunedCache
from .calibrate import calibrate
from .collect import collect_patterns
from .forward import IMPLEMENTATION, register
from .prune import model_masks, prune_model, unprune_model
from .saving import extend_saving
from .sites import AttentionStack, find_stacks

__all__ = [
    "BACKENDS",
    "IMPLEMENTATION",
    "Agreement",
    "AttentionStack",
    "Calibration",
    "PrunedCache",
    "calibrate",
    "collect_patterns",
    "find_stacks",
    "mask_agreement",
    "model_masks",
    "prune_model",
    "unprune_model",
]

register()
extend_saving()

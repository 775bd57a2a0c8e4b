"""Why a pruned model leaves ``output_attentions=True`` unanswered.

transformers' own SDPA returns no probabilities either and warns; that warning sends people to "eager", which knows no
masks. Models differ in what they hand on to their attention, so the models themselves are listened to.
"""

from __future__ import annotations

import warnings

from torch import nn
from transformers import PreTrainedModel

from .forward import IMPLEMENTATION

#: Under this name a model holds the handle of its hook.
_HANDLE = "_attention_pruning_tells"


def tell_of_attentions(model: PreTrainedModel) -> None:
    """Let a model, and each model that is a part of it, warn when it is asked for attentions; twice changes nothing."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and not hasattr(part, _HANDLE):
            setattr(part, _HANDLE, part.register_forward_pre_hook(_tell, with_kwargs=True))


def stop_telling(model: PreTrainedModel) -> None:
    """Take back :func:`tell_of_attentions`."""
    for part in model.modules():
        if hasattr(part, _HANDLE):
            getattr(part, _HANDLE).remove()
            delattr(part, _HANDLE)


def _tell(model: nn.Module, args: tuple, kwargs: dict[str, object]) -> None:
    asked = kwargs.get("output_attentions")
    asked = getattr(model.config, "output_attentions", False) if asked is None else asked
    if asked and model.config._attn_implementation == IMPLEMENTATION:
        warnings.warn(
            "attention_pruning: output_attentions=True gives no attentions: like SDPA, pruned attention keeps no "
            "probabilities, and 'eager' would run the dense model; collect_patterns averages those of the pruned model",
            RuntimeWarning,
            stacklevel=2,
        )

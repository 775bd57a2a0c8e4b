"""Every architecture of fairseq's transformer, once more with prunable attention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_INV_REGISTRY, register_model_architecture

from . import model  # noqa: F401  (an architecture needs its model registered)
from .flags import RECORD, PruneFlags, check_device
from .site_masks import load_site_masks, model_shapes

PREFIX = "ap_"


def pruned_twin(name: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register an architecture of fairseq's transformer a second time, for the model ``ap_transformer``.

    The twin's name is ``ap_`` and the architecture's. It completes fairseq's namespace as the architecture does, then
    checks the flags of pruning and their files: while the command line is read, before any process is started.
    """

    def register(architecture: Callable[[Any], None]) -> Callable[[Any], None]:
        @register_model_architecture("ap_transformer", PREFIX + name)
        @functools.wraps(architecture)
        def twin(args: Any) -> None:
            architecture(args)
            if getattr(args, RECORD, None) is None:  # a checkpoint's namespace needs no files and no GPU
                check_device(args)
                load_site_masks(PruneFlags.read(args), model_shapes(args))

        return twin

    return register


for _name in tuple(ARCH_MODEL_INV_REGISTRY["transformer"]):
    pruned_twin(_name)(ARCH_CONFIG_REGISTRY[_name])

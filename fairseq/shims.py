"""What PyPI's fairseq 0.12.2, unedited, needs from outside to run on today's Python and torch.

Scripts call :func:`install` when they are imported, not only when they are run: a worker process that fairseq spawns
imports the script first.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_pruning import InputError

PLUGIN = Path(__file__).resolve().parent / "plugin"
FAIRSEQ_VERSION = "0.12.2"
#: What fairseq's checkpoints hold beside tensors, numbers, strings and containers.
SAFE_IN_CHECKPOINTS = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    np.dtypes.Int64DType,
    np.dtypes.Float64DType,
    np._core.multiarray._reconstruct,
    np._core.multiarray.scalar,
    # under the names of numpy 1
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
]
#: What those of 2018 and 2019 hold too, in their record of the training: numbers with names.
OLD_METERS = ("AverageMeter", "TimeMeter", "StopwatchMeter")


def install() -> None:
    """Make fairseq importable and runnable, import it, and register the plug-in. May be called more than once.

    1. Python 3.11 and later refuse instances of unhashable dataclasses as defaults, which fairseq's configuration is
       full of: its dataclasses get the hash of ordinary objects.
    2. torch 2.6 and later read checkpoints with ``weights_only=True``, which refuses what might run code. fairseq's
       hold an ``argparse.Namespace``, and numpy arrays after ``--eval-bleu``; old ones, as the published archives of
       the WMT models, hold fairseq's meters: these are declared safe, and the default stands. For a file that holds
       more and that you trust, set ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1``.
    3. fairseq's inference fast path of the encoder layer crashes on today's torch and knows no masks: it is never
       taken.

    4. torch looks at no checksum of what it reads: wherever fairseq reads a checkpoint, ``plugin.checkpoint`` looks
       first, and refuses in one line.

    And two where fairseq is at odds with itself: ``interactive.py`` gets sources padded as the task says, and a
    checkpoint that is copied from another is there whole or not at all, as one that is written.

    Raises
    ------
    InputError
        If fairseq is not installed or has another version.
    """
    if not hasattr(dataclasses.dataclass, "fairseq_is_hashable"):
        dataclasses.dataclass = _with_hashable_fairseq(dataclasses.dataclass)
    torch.serialization.add_safe_globals(SAFE_IN_CHECKPOINTS)
    # fairseq calls hydra by names that later versions call old, at every start.
    warnings.filterwarnings("ignore", category=UserWarning, module="hydra")
    _require_fairseq()

    from fairseq.file_io import PathManager
    from fairseq.logging import meters
    from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
    from fairseq.tasks.translation import TranslationTask

    from fairseq import checkpoint_utils, utils

    for each in (getattr(meters, name) for name in OLD_METERS):
        torch.serialization.add_safe_globals([each, (each, f"fairseq.meters.{each.__name__}")])
    if not hasattr(TransformerEncoderLayerBase.__init__, "__wrapped__"):
        TransformerEncoderLayerBase.__init__ = _without_fast_path(TransformerEncoderLayerBase.__init__)
    if not hasattr(TranslationTask.build_dataset_for_inference, "__wrapped__"):
        TranslationTask.build_dataset_for_inference = _padded_as_told(TranslationTask.build_dataset_for_inference)
    if not hasattr(checkpoint_utils.load_checkpoint_to_cpu, "__wrapped__"):
        checkpoint_utils.load_checkpoint_to_cpu = _read_before(checkpoint_utils.load_checkpoint_to_cpu)
    if not hasattr(PathManager.copy, "__wrapped__"):
        PathManager.copy = staticmethod(_whole_copies(PathManager))
    utils.import_user_module(argparse.Namespace(user_dir=str(PLUGIN)))


def _with_hashable_fairseq(dataclass: Callable) -> Callable:
    @functools.wraps(dataclass)
    def decorator(cls: type | None = None, /, **options: Any) -> Any:
        def process(cls: type) -> type:
            made = dataclass(cls, **options)
            if made.__module__.partition(".")[0] == "fairseq" and made.__hash__ is None:
                made.__hash__ = object.__hash__
            return made

        return process if cls is None else process(cls)

    decorator.fairseq_is_hashable = True
    return decorator


def _require_fairseq() -> None:
    remedy = f"pip install --no-deps fairseq=={FAIRSEQ_VERSION} (needs a C++ compiler)"
    try:
        import fairseq
    except ModuleNotFoundError as error:
        raise InputError(
            f"fairseq: expected version {FAIRSEQ_VERSION}, found no module {error.name!r}: {remedy}"
        ) from error
    # Where it is not installed, this repository's folder of the same name is found as a namespace package.
    found = getattr(fairseq, "__version__", "none")
    if found != FAIRSEQ_VERSION:
        raise InputError(f"fairseq: expected version {FAIRSEQ_VERSION}, found {found}: {remedy}")


def _without_fast_path(init: Callable) -> Callable:
    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.can_use_fastpath = False

    return wrapper


def _padded_as_told(build: Callable) -> Callable:
    @functools.wraps(build)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        dataset = build(self, *args, **kwargs)
        dataset.left_pad_source = self.cfg.left_pad_source
        return dataset

    return wrapper


def _read_before(load: Callable) -> Callable:
    @functools.wraps(load)
    def wrapper(path: str, *args: Any, **kwargs: Any) -> Any:
        from plugin.checkpoint import read_checkpoint

        read_checkpoint(path)
        return load(path, *args, **kwargs)

    return wrapper


def _whole_copies(manager: type) -> Callable:
    copy = manager.copy

    @functools.wraps(copy)
    def wrapper(source: str, target: str, overwrite: bool = False) -> Any:
        if not manager.supports_rename(target):
            return copy(source, target, overwrite)
        # An interruption in the midst of checkpoint_last.pt would leave nothing to go on from.
        copied = copy(source, f"{target}.tmp", overwrite=True)
        manager.rename(f"{target}.tmp", target)
        return copied

    return wrapper

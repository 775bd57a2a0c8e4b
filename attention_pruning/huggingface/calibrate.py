"""How much can go without training: masks for a model within a budget of loss (``make.within_budget``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import InputError
from ..make.within_budget import TAUS, Calibration, check_budget, checked_taus, within_budget
from ..mask import PruneMask
from ..pattern import AttentionPattern
from .collect import collect_patterns
from .prune import model_masks, prune_model, unprune_model


def calibrate(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    budget: float,
    *,
    patterns: Mapping[str, AttentionPattern] | None = None,
    taus: Sequence[float | str] = TAUS,
    block_size: int | None = None,
    progress: bool | None = None,
) -> Calibration:
    """Masks that raise the loss of a model by at most a budget, without any training.

    It takes one pass over the batches for each head and share, and some more: keep them few, and other ones than those
    that patterns were made of, or than what the masks are judged by later.

    Parameters
    ----------
    model : PreTrainedModel
        Dense. It is left as it was; ``prune_model(model, found.masks)`` applies what was found.
    batches : iterable of mappings
        Held-out batches with ``labels``, so that the model gives its ``loss``. Gone through many times.
    budget : float
        How much the loss may rise, in its own unit, such as 0.02 nats a token.
    patterns : mapping, optional
        By site, such as ``collect_patterns`` returns, of sites that are to be pruned. By default all, from the batches.
    taus : sequence of float or str
        The shares that are tried: rule "allowed" of ``make.from_pattern``, within each head.
    block_size : int, optional
        The side of the blocks that go whole; by default the patterns' pool.
    progress : bool, optional
        As in ``collect_patterns``.

    Returns
    -------
    Calibration

    Raises
    ------
    InputError
        For a model that is pruned or not supported, a budget below 0, no share above 0, no batches, or batches for
        which the model gives no loss.
    """
    check_budget(budget)
    checked_taus(taus)
    if model_masks(model):
        raise InputError(f"{type(model).__name__}: expected a dense model to calibrate, found a pruned one")
    held_out = list(batches)
    if not held_out:
        raise InputError("batches: expected at least one, found none")
    if patterns is None:
        patterns = collect_patterns(model, held_out, block_size=block_size or 1, progress=progress)
    options = {"taus": taus, "block_size": block_size, "progress": progress}
    with _LossUnder(model, held_out) as loss_under:
        return within_budget(loss_under, patterns, budget, **options)


class _LossUnder:
    """The loss of a model under whatever masks it is given; after it the model is as it was."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> None:
        self.model, self.batches = model, batches

    def __enter__(self) -> _LossUnder:
        self.implementation, self.training = self.model.config._attn_implementation, self.model.training
        self.model.eval()
        return self

    def __call__(self, masks: Mapping[str, PruneMask]) -> float:
        if masks:
            prune_model(self.model, masks)
        return _loss(self.model, self.batches)

    def __exit__(self, *exception: object) -> None:
        unprune_model(self.model, self.implementation)
        self.model.train(self.training)


def _loss(model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """The mean loss over all labels that count; over batches where labels are no tokens."""
    total, weight = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            moved = {name: x.to(model.device) if isinstance(x, Tensor) else x for name, x in batch.items()}
            loss = getattr(model(**moved), "loss", None)
            if loss is None:
                raise InputError(
                    f"batches: expected labels, for which {type(model).__name__} gives a loss, found {sorted(batch)}"
                )
            labels = moved.get("labels")
            number = int((labels != -100).sum()) if isinstance(labels, Tensor) and not labels.is_floating_point() else 1
            total += float(loss) * number
            weight += number
    if not math.isfinite(total):
        raise InputError(f"batches: expected a finite loss of {type(model).__name__}, found {total / max(1, weight)}")
    return total / max(1, weight)

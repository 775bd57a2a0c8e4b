"""What a trained dense model has to offer, so that masks can be judged on it before and after fine-tuning."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from attention_pruning import AttentionPattern, InputError, PruneMask

#: What a loss is measured on: shares are chosen on the one, masks are judged on the other.
PARTS = ("valid", "test")


class TrainedModel(ABC):
    """A dense model of a run of the workflow, with its data.

    Attributes
    ----------
    name : str
    unit : str
        Of the loss: nats a word, or a sentence.
    model : nn.Module
    """

    name: str
    unit: str
    model: nn.Module

    def remember(self) -> None:
        """Keep the dense weights, to which ``restore`` goes back."""
        self._dense = copy.deepcopy(self.model.state_dict())

    def restore(self) -> None:
        """Make the model dense again, with the weights that it came with."""
        self.prune({})
        self.model.load_state_dict(self._dense)
        self.model.eval()

    @property
    @abstractmethod
    def batch_count(self) -> int:
        """Batches of the training data."""

    @abstractmethod
    def patterns(self, batches: range | None = None) -> dict[str, AttentionPattern]:
        """Average attention by site over some batches of the training data; by default over all, as the run has it."""

    @abstractmethod
    def shifted_patterns(self) -> dict[str, AttentionPattern]:
        """Average attention by site over out-of-distribution data, which the run prepared for ``ood_table``."""

    @abstractmethod
    def prune(self, masks: Mapping[str, PruneMask]) -> None:
        """Put the model under masks by site; under none it is dense."""

    @abstractmethod
    def loss(self, part: str) -> float:
        """The mean loss over a part of the held-out data, one of ``PARTS``."""

    @abstractmethod
    def training_losses(self, seed: int) -> Iterator[Tensor]:
        """Losses of training batches, one after another without an end, in an order that the seed draws."""

    def loss_under(self, masks: Mapping[str, PruneMask], part: str = "valid") -> float:
        """The loss of the model under masks."""
        self.prune(masks)
        return self.loss(part)

    def fine_tune(self, steps: int, lr: float, seed: int) -> None:
        """Train the model as it is pruned: AdamW, a linear warm-up over a tenth of the steps and a fall to zero."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / max(1, steps // 10), (steps - step) / steps)
        )
        torch.manual_seed(seed)
        self.model.train()
        losses = self.training_losses(seed)
        for _ in range(steps):
            optimizer.zero_grad()
            next(losses).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        self.model.eval()


def one_of(folder: Path, pattern: str) -> Path:
    """The one file that a pattern finds.

    Raises
    ------
    InputError
        If it finds none, or several.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise InputError(f"{folder}: expected one {pattern}, found {len(found)}")
    return found[0]

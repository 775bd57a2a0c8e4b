"""What a Trainer knows of its training loss between two logs, kept in its checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class LossState(TrainerCallback, ExportableState):
    """The loss summed since it was last logged, and over all steps before.

    A Trainer begins both at 0 when it resumes: it would log the mean of fewer steps, and divide the loss of the last
    steps by the number of all in ``train_loss``. In several processes the sums are those of the first.

    Attributes
    ----------
    trainer : Trainer
        Of a class of its own, see :meth:`of`: --restore_callback_states_from_checkpoint makes callbacks anew.
    """

    trainer: Trainer

    @classmethod
    def of(cls, trainer: Trainer) -> LossState:
        """The callback of a Trainer; it has to know whose it is."""
        return type(cls.__name__, (cls,), {"trainer": trainer})()

    def state(self) -> dict[str, Any]:
        """As of now, for a checkpoint."""
        trainer, sums = self.trainer, None
        if hasattr(trainer, "_tr_loss"):  # it has begun to train
            sums = {
                "since_log": trainer._tr_loss.item(),
                "before": trainer._total_loss_scalar,
                "last_logged": trainer._globalstep_last_logged,
            }
        return {"args": {}, "attributes": {"sums": sums}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from what the checkpoint says, if there is one."""
        saved = state.stateful_callbacks.get(type(self).__name__, {})
        if state.global_step and (sums := saved.get("attributes", {}).get("sums")):
            self.trainer._tr_loss = torch.tensor(sums["since_log"], device=args.device)
            self.trainer._total_loss_scalar = sums["before"]
            self.trainer._globalstep_last_logged = sums["last_logged"]

"""One training run of Transformer-XL: steps, checkpoints, validation, and an exact restart."""

from __future__ import annotations

import contextlib
import math
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from attention_pruning import InputError
from attention_pruning.processes import gathered
from data_utils import LMOrderedIterator
from evaluation import evaluate
from mem_transformer import Memory, MemTransformerLM
from model_file import save_model
from reproduction.runs.checkpoint import (
    Interruption,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from reproduction.runs.step_log import StepLog
from schedules import learning_rate
from train_flags import validation_lengths

#: Steps between two exchanges of signals among several processes: each is a blocking all-reduce.
SIGNAL_STEPS = 10


def build_optimizer(model: torch.nn.Module, args: Namespace) -> torch.optim.Optimizer:
    """The optimiser that ``--optim`` names, over all parameters."""
    if args.optim == "adam":
        return torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    if args.optim == "sgd":
        return torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.mom)
    return torch.optim.Adagrad(model.parameters(), lr=args.lr)


class Trainer:
    """Train for ``args.max_step`` updates; keep the best weights by validation loss in ``model.safetensors``.

    Parameters
    ----------
    args : Namespace
        The flags of ``train.py``.
    accelerator : Accelerator
    model : MemTransformerLM
    train, valid : LMOrderedIterator
        This process's rows of the training text and of the validation text.
    origin : dict
        What the model is made from, for its file: ``corpus`` (fingerprint), ``mask`` (description or None) and more.

    Attributes
    ----------
    log : StepLog or None
        Where numbers go beside the printed lines; None in all processes but one.
    """

    def __init__(
        self,
        args: Namespace,
        accelerator: Accelerator,
        model: MemTransformerLM,
        train: LMOrderedIterator,
        valid: LMOrderedIterator,
        origin: dict[str, Any],
    ) -> None:
        self.args, self.accelerator, self.train, self.valid, self.origin = args, accelerator, train, valid, origin
        self.model, self.optimizer = accelerator.prepare(model, build_optimizer(model, args))
        self.step, self.segment = 0, 0
        self.memories: list[Memory | None] = [None] * args.batch_chunk
        self.best_loss = math.inf
        self.seconds_before = 0.0
        self.losses: list[float] = []
        self.log: StepLog | None = None
        self.checkpoint_path = Path(args.work_dir) / "checkpoint.pt"

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> int | None:
        """Train to the end, or to an interruption; returns the exit status of the latter."""
        started, log_time, log_tokens = time.time(), time.time(), 0
        self._started = started
        bar = tqdm(total=self.args.max_step, initial=self.step, disable=None, unit="step")
        with Interruption() as interruption, bar:
            while self.step < self.args.max_step:
                loss, tokens = self._update()
                bar.update()
                log_tokens += tokens * self.accelerator.num_processes
                self.losses.append(loss)
                if self.step % self.args.log_interval == 0 or self.step == self.args.max_step:
                    self._log(log_tokens / (time.time() - log_time))
                    log_time, log_tokens = time.time(), 0
                if self.step % self.args.eval_interval == 0 or self.step == self.args.max_step:
                    self._validate()
                if self._stops(interruption.requested):
                    self.write_checkpoint()
                    self.accelerator.print(f"| interrupted at step {self.step}; the same command continues from there")
                    return interruption.exit_status
                if self.step % self.args.checkpoint_interval == 0:
                    self.write_checkpoint()
        self.write_checkpoint()
        return None

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a restart included."""
        return self.seconds_before + time.time() - self._started

    def _update(self) -> tuple[float, int]:
        """One optimiser step over ``batch_chunk`` parts of the batch."""
        args = self.args
        self.model.train()
        data_BT, target_BT = self.train.segment(self.segment)
        rate = learning_rate(
            self.step + 1,
            scheduler=args.scheduler,
            lr=args.lr,
            warmup_step=args.warmup_step,
            max_step=args.max_step,
            eta_min=args.eta_min,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        total = 0.0
        parts = list(zip(data_BT.chunk(args.batch_chunk), target_BT.chunk(args.batch_chunk), strict=True))
        for index, (data, target) in enumerate(parts):
            with self._synchronise(index == len(parts) - 1):
                device = self.accelerator.device
                with self.accelerator.autocast():
                    nll, self.memories[index] = self.model(data.to(device), target.to(device), self.memories[index])
                    loss = nll.float().mean() / args.batch_chunk
                self.accelerator.backward(loss)
            total += loss.item()
        if args.clip > 0:
            self.accelerator.clip_grad_norm_(self.model.parameters(), args.clip)
        self.optimizer.step()
        self.step += 1
        self.segment += 1
        if self.segment == len(self.train):  # the streams begin again: what they remember is the text's end
            self.segment, self.memories = 0, [None] * args.batch_chunk
        if not math.isfinite(total):
            raise InputError(f"training diverged: loss {total} at step {self.step}; try a smaller --lr, now {args.lr}")
        return total, data_BT.numel()

    def _synchronise(self, last: bool):
        """Gradients are averaged over processes once, after the last part of the batch."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)

    def _log(self, tokens_per_second: float) -> None:
        own = torch.tensor(sum(self.losses) / len(self.losses), device=self.accelerator.device)
        loss = self.accelerator.reduce(own, "mean").item()
        self.losses.clear()
        rate = self.optimizer.param_groups[0]["lr"]
        self.accelerator.print(
            f"| step {self.step:6d}/{self.args.max_step} | lr {rate:.3g} | {tokens_per_second:6.0f} tokens/s "
            f"| loss {loss:5.3f} | ppl {math.exp(min(loss, 30.0)):9.3f}",
            flush=True,
        )
        if self.log is not None:
            mask = self.origin["mask"]
            numbers = {"loss": loss, "learning_rate": rate, "tokens_per_second": tokens_per_second}
            self.log.add(
                self.step, "train", numbers | {"effective_sparsity": mask["effective_sparsity"] if mask else 0.0}
            )

    def _validate(self) -> None:
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast(), model.at_lengths(*validation_lengths(self.args)):
            result = evaluate(model, self.valid, self.accelerator.device)
        if self.accelerator.num_processes > 1:  # each read rows of its own
            nll, tokens = gathered_mean(result["nll"], result["tokens"])
            result = {"nll": nll, "perplexity": math.exp(min(nll, 700.0)), "tokens": tokens}
        if not math.isfinite(result["nll"]):
            raise InputError(
                f"validation diverged: loss {result['nll']} at step {self.step}; try a smaller --lr, now {self.args.lr}"
            )
        better = result["nll"] < self.best_loss
        self.accelerator.print(
            f"| valid at step {self.step} | loss {result['nll']:.4f} | ppl {result['perplexity']:.3f}"
            + (" | best" if better else ""),
            flush=True,
        )
        if self.log is not None:
            self.log.add(self.step, "valid", {"loss": result["nll"], "perplexity": result["perplexity"]})
        if better:
            self.best_loss = result["nll"]
            if self.accelerator.is_main_process:
                save_model(Path(self.args.work_dir) / "model.safetensors", model, step=self.step, **self.origin)

    def _stops(self, requested: bool) -> bool:
        """Whether a signal came. It may reach processes between different steps, so now and then they agree on it."""
        if self.accelerator.num_processes == 1:
            return requested
        if self.step % SIGNAL_STEPS and self.step != self.args.max_step:
            return False
        count = torch.tensor(int(requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(count, "sum").item())

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def write_checkpoint(self) -> None:
        """Everything that the next step depends on, in one file."""
        memories = [_pack(memory) for memory in self.memories]
        own = {"random": random_state(), "memories": memories, "losses": list(self.losses)}
        everyone = gather_object([own])
        if not self.accelerator.is_main_process:
            return
        save_checkpoint(
            self.checkpoint_path,
            {
                "step": self.step,
                "segment": self.segment,
                "best_loss": self.best_loss,
                "seconds": self.seconds,
                "model": self.accelerator.unwrap_model(self.model).state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
                "processes": everyone,
            },
        )

    def read_checkpoint(self) -> None:
        """Continue from the work folder's checkpoint.

        Raises
        ------
        InputError
            If it is damaged, or another program's. That it is of this recipe says the folder, see ``run_folder``.
        """
        state = load_checkpoint(self.checkpoint_path)
        if "processes" not in state:
            raise InputError(f"{self.checkpoint_path}: expected a checkpoint of train.py, found another program's")
        try:
            self._restore(state)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            found = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{self.checkpoint_path}: expected a checkpoint of this training, found another one's ({found})"
            ) from error
        self.accelerator.print(f"| restart from {self.checkpoint_path} at step {self.step}")

    def _restore(self, state: dict[str, Any]) -> None:
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.segment, self.best_loss = state["step"], state["segment"], state["best_loss"]
        self.seconds_before = state["seconds"]
        own = state["processes"][self.accelerator.process_index]
        self.losses = own["losses"]
        self.memories = [_unpack(memory, self.accelerator.device) for memory in own["memories"]]
        restore_random_state(own["random"])


def gathered_mean(mean: float, weight: int) -> tuple[float, int]:
    """The mean over all processes of means of so many values, and how many they are together."""
    found = gathered((mean, weight))
    total = sum(weight for _, weight in found)
    return sum(mean * weight for mean, weight in found) / total, total


def _pack(memory: Memory | None) -> list[Tensor] | None:
    return None if memory is None or memory.states is None else [state.cpu().contiguous() for state in memory.states]


def _unpack(states: list[Tensor] | None, device: torch.device) -> Memory | None:
    if states is None:
        return None
    return Memory(states[0].size(1), states=[state.to(device) for state in states])

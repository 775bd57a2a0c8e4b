"""The dense encoder that a run of the workflow fine-tuned on one of its tasks of GLUE."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from attention_pruning import AttentionPattern, PruneMask
from attention_pruning.huggingface import collect_patterns, prune_model, unprune_model
from reproduction.data.tasks.glue import find_task, load_task

from .interface import TrainedModel, one_of

BATCH = 8


class Classifier(TrainedModel):
    """The task has no third part: one half of its validation rows are the test, a quarter what shares are chosen on."""

    unit = "nats a sentence pair"

    def __init__(self, run: Path, seed: int, task: str) -> None:
        self.name = task
        self.folder = folder = run / "glue" / task / f"dense/tau0/seed{seed}"
        length = json.loads((folder / "run.json").read_text())["max_seq_length"]
        self.model = AutoModelForSequenceClassification.from_pretrained(folder / "model", attn_implementation="sdpa")
        self.model.eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        task = find_task(task)
        rows = load_task(task, str(run / "glue" / "stand-ins"))

        def inputs(rows: Dataset) -> dict[str, Tensor]:
            texts = [list(rows[column]) for column in task.columns]
            found = tokenizer(*texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            return dict(found) | {"labels": torch.tensor(rows["label"])}

        self.train, held_out = inputs(rows["train"]), inputs(rows["validation"])
        self.shifted = lambda: inputs(load_task(task, str(one_of(folder.parents[2], "away/*/rows")))["validation"])
        half = len(held_out["labels"]) // 2
        few = half // 2  # shares are chosen by a pass for each head and share
        self.parts = {
            "valid": {name: x[:few] for name, x in held_out.items()},
            "test": {name: x[half:] for name, x in held_out.items()},
        }
        self.remember()

    def _batches(self, rows: Mapping[str, Tensor], order: Tensor) -> Iterator[dict[str, Tensor]]:
        for chosen in order.split(BATCH):
            yield {name: x[chosen] for name, x in rows.items()}

    @property
    def batch_count(self) -> int:
        """See ``TrainedModel``."""
        return -(-len(self.train["labels"]) // BATCH)

    def patterns(self, batches: range | None = None) -> dict[str, AttentionPattern]:
        """See ``TrainedModel``."""
        if batches is None:
            return {"self": AttentionPattern.load(self.folder / "pattern.safetensors")}
        order = torch.arange(len(self.train["labels"]))
        return self._averaged(list(self._batches(self.train, order))[batches.start : batches.stop])

    def shifted_patterns(self) -> dict[str, AttentionPattern]:
        """See ``TrainedModel``."""
        rows = self.shifted()
        return self._averaged(self._batches(rows, torch.arange(len(rows["labels"]))))

    def _averaged(self, batches: Iterable[dict[str, Tensor]]) -> dict[str, AttentionPattern]:
        return collect_patterns(self.model, batches, progress=False)

    def prune(self, masks: Mapping[str, PruneMask]) -> None:
        """See ``TrainedModel``."""
        if masks:
            prune_model(self.model, masks)
        else:
            unprune_model(self.model, "sdpa")

    @torch.no_grad()
    def loss(self, part: str) -> float:
        """See ``TrainedModel``."""
        rows = self.parts[part]
        total, number = 0.0, len(rows["labels"])
        for batch in self._batches(rows, torch.arange(number)):
            total += float(self.model(**batch).loss) * len(batch["labels"])
        return total / number

    def training_losses(self, seed: int) -> Iterator[Tensor]:
        """See ``TrainedModel``."""
        generator, number = torch.Generator().manual_seed(seed), len(self.train["labels"])
        while True:
            for batch in self._batches(self.train, torch.randperm(number, generator=generator)):
                yield self.model(**batch).loss

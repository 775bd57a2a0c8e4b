"""The dense translation model of a run of the workflow."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fairseq"))

import launcher

launcher.prepare()

from attention_pruning import AttentionPattern, PruneMask  # noqa: E402
from plugin.attention import MASK_NAME  # noqa: E402
from plugin.averaging import Lengths, average_attention  # noqa: E402
from plugin.batches import collated, load_split, plan_batches  # noqa: E402
from plugin.checkpoint import load_model  # noqa: E402
from plugin.model import adopt_attention  # noqa: E402

from .interface import TrainedModel, one_of  # noqa: E402

TOKENS = 512
CPU = torch.device("cpu")


class Translation(TrainedModel):
    """Sentences of like lengths lie in one batch; beyond the longest ones of a pattern nothing is pruned."""

    unit = "nats a subword"

    def __init__(self, run: Path, seed: int, held_out: int = 60) -> None:
        folder = one_of(run / "translation", "*/binarised").parent
        self.name = "translation"
        self.folder = folder / f"dense/tau0/seed{seed}"
        loaded = load_model(self.folder / "checkpoint.pt", data=str(folder / "binarised"))
        self.model, self.task = loaded.model, loaded.task
        self.padding = self.task.source_dictionary.pad()
        self.data = {split: load_split(self.task, split) for split in ("train", "valid", "test")}
        limits = {"train": -1, "valid": held_out, "test": held_out}
        self.batches = {
            split: plan_batches(self.task, data, self.model, TOKENS, limits[split]) for split, data in self.data.items()
        }
        order = torch.randperm(len(self.batches["train"]), generator=torch.Generator().manual_seed(0)).tolist()
        self.batches["train"] = [self.batches["train"][number] for number in order]
        self.attention = adopt_attention(self.model)
        for module in (module for modules in self.attention.values() for module in modules):
            module.beyond_pattern = "dense"
        self.remember()

    def _read(self, split: str, batches: Sequence[Sequence[int]]) -> Iterator[dict]:
        return collated(self.data[split], batches, CPU)

    @property
    def batch_count(self) -> int:
        """See ``TrainedModel``."""
        return len(self.batches["train"])

    def patterns(self, batches: range | None = None) -> dict[str, AttentionPattern]:
        """See ``TrainedModel``."""
        if batches is None:
            return {site: AttentionPattern.load(self.folder / f"pattern-{site}.safetensors") for site in self.attention}
        chosen = [self.batches["train"][index] for index in batches]
        return self._averaged(self._read("train", chosen))

    def shifted_patterns(self) -> dict[str, AttentionPattern]:
        """See ``TrainedModel``. Sentences longer than all of the training are left out."""
        task = load_model(
            self.folder / "checkpoint.pt", data=str(one_of(self.folder.parents[2], "away/*/binarised"))
        ).task
        data = load_split(task, "test")
        longest = Lengths.of(self.data["train"], self.batches["train"])
        fits = (data.src_sizes <= longest.source) & (data.tgt_sizes <= longest.target)
        batches = [[index for index in batch if fits[index]] for batch in plan_batches(task, data, self.model, TOKENS)]
        return self._averaged(collated(data, [batch for batch in batches if batch], CPU))

    def _averaged(self, samples: Iterator[dict]) -> dict[str, AttentionPattern]:
        lengths = Lengths.of(self.data["train"], self.batches["train"])
        found = average_attention(self.model, samples, list(self.attention), lengths, self.padding)
        return {site: one.finalize({}) for site, one in found.items()}

    def prune(self, masks: Mapping[str, PruneMask]) -> None:
        """See ``TrainedModel``."""
        for site, modules in self.attention.items():
            for layer, module in enumerate(modules):
                setattr(module, MASK_NAME, masks[site].cells(layer).clone() if site in masks else None)

    def _loss(self, sample: dict, reduction: str) -> Tensor:
        logits, _ = self.model(**sample["net_input"])
        return F.cross_entropy(
            logits.flatten(0, 1).float(), sample["target"].flatten(), ignore_index=self.padding, reduction=reduction
        )

    @torch.no_grad()
    def loss(self, part: str) -> float:
        """See ``TrainedModel``."""
        total, number = 0.0, 0
        for sample in self._read(part, self.batches[part]):
            total += float(self._loss(sample, "sum"))
            number += sample["ntokens"]
        return total / number

    def training_losses(self, seed: int) -> Iterator[Tensor]:
        """See ``TrainedModel``."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.batches["train"]), generator=generator).tolist()
            for sample in self._read("train", [self.batches["train"][number] for number in order]):
                yield self._loss(sample, "mean")

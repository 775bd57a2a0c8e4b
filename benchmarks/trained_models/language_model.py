"""The dense Transformer-XL of a run of the workflow."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "transformer-xl"))

from attention_pruning import AttentionPattern, PruneMask
from compute_mask import average_attention
from data_utils import LMOrderedIterator
from evaluation import evaluate
from model_file import load_model
from reproduction.data.language.corpus import Corpus

from .interface import TrainedModel, one_of

STREAMS = 8


class LanguageModel(TrainedModel):
    """Segments follow one another with memory, as in its training."""

    unit = "nats a word"

    def __init__(self, run: Path, seed: int, segments: int = 40, tuning_segments: int = 20) -> None:
        folder = one_of(run / "language_modelling", "*/corpus").parent
        self.name = "language model"
        self.corpus, self.shifted = Corpus.load(folder / "corpus"), folder / "away"
        self.segments = {"valid": tuning_segments, "test": segments}
        self.folder = folder / f"dense/tau0/seed{seed}"
        self.model = load_model(self.folder / "model.safetensors").model
        self.remember()

    def _text(self, split: str, segments: int) -> LMOrderedIterator:
        length = self.model.config.tgt_len
        return LMOrderedIterator(self.corpus.split(split), STREAMS, length, name=split, max_steps=segments)

    @property
    def batch_count(self) -> int:
        """See ``TrainedModel``. A batch is a segment of each stream."""
        return len(self._text("train", -1))

    def patterns(self, batches: range | None = None) -> dict[str, AttentionPattern]:
        """See ``TrainedModel``."""
        if batches is None:
            return {"self": AttentionPattern.load(self.folder / "pattern.safetensors")}
        text = self._text("train", -1)
        return {"self": average_attention(self.model, [text.segment(index) for index in batches]).finalize({})}

    def shifted_patterns(self) -> dict[str, AttentionPattern]:
        """See ``TrainedModel``."""
        corpus = Corpus.load(one_of(self.shifted, "*/corpus"))
        text = LMOrderedIterator(corpus.split("test"), STREAMS, self.model.config.tgt_len)
        return {"self": average_attention(self.model, text).finalize({})}

    def prune(self, masks: Mapping[str, PruneMask]) -> None:
        """See ``TrainedModel``."""
        self.model.set_pruned(None)
        for mask in masks.values():
            self.model.prune(mask)

    def loss(self, part: str) -> float:
        """See ``TrainedModel``."""
        return evaluate(self.model, self._text(part, self.segments[part]), torch.device("cpu"))["nll"]

    def training_losses(self, seed: int) -> Iterator[Tensor]:
        """See ``TrainedModel``. The seed draws the segment to start with."""
        text = self._text("train", -1)
        start = int(torch.randint(len(text), (), generator=torch.Generator().manual_seed(seed)))
        memory = None
        while True:
            for index in range(start, len(text)):
                nll, memory = self.model(*text.segment(index), memory)
                yield nll.mean()
            start, memory = 0, None

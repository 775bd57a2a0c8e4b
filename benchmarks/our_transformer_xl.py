"""This repository's Transformer-XL, dense or pruned, as steps that are timed."""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from interleave import Step, Walk
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[1]

# Shape A, the anchor of all comparisons: change it and no figure can be compared with an earlier one.
N_TOKEN, CUTOFFS = 10_000, [2_000, 6_000]
SHAPE = {"n_layer": 6, "n_head": 8, "d_model": 256, "d_head": 32, "d_inner": 1024, "div_val": 1}
DROPOUT, LEARNING_RATE, CLIP = 0.1, 2.5e-4, 0.25
TAU, SEED = 0.9, 1

#: Width, heads and inner width of the published base model, with layers enough to measure.
WIDE = {"n_head": 10, "d_model": 410, "d_head": 41, "d_inner": 2100, "div_val": 1}


@dataclass(frozen=True)
class Lengths:
    """Segment, memory and batch of one measurement."""

    tgt_len: int
    mem_len: int
    batch: int
    clamp_len: int = -1

    def __str__(self) -> str:
        return f"{self.tgt_len}/{self.mem_len} batch {self.batch}"


def draw_segments(lengths: Lengths, count: int) -> list[tuple[Tensor, Tensor]]:
    """Consecutive segments [B, T] with their targets, ids as frequent as words are (Zipf): it sets what tails cost."""
    generator = torch.Generator().manual_seed(SEED)
    frequency = 1.0 / torch.arange(1, N_TOKEN + 1)
    size, steps = lengths.tgt_len, count * lengths.tgt_len
    ids = torch.multinomial(frequency, lengths.batch * (steps + 1), replacement=True, generator=generator)
    ids = ids.view(lengths.batch, steps + 1)
    return [
        (ids[:, start : start + size].contiguous(), ids[:, start + 1 : start + size + 1].contiguous())
        for start in range(0, steps, size)
    ]


def load_ours() -> SimpleNamespace:
    """Import this repository's model, after :func:`load_upstream`: the modules have the same names."""
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "transformer-xl")]
    model, trainer = importlib.import_module("mem_transformer"), importlib.import_module("trainer")
    library = importlib.import_module("attention_pruning")
    return SimpleNamespace(
        ModelConfig=model.ModelConfig,
        MemTransformerLM=model.MemTransformerLM,
        build_optimizer=trainer.build_optimizer,
        AttentionPattern=library.AttentionPattern,
        PatternAccumulator=library.PatternAccumulator,
        from_pattern=library.make.from_pattern,
        without_attention=importlib.import_module("measure_language_model").without_attention,
    )


def random_mask(ours: SimpleNamespace, lengths: Lengths, shape: dict[str, int], block_size: int) -> Any:
    """A prune mask at TAU of a random pattern: cells by the published rule, or whole blocks of what a query may see."""
    queries, keys = lengths.tgt_len, lengths.mem_len + lengths.tgt_len
    count = torch.ones(queries, keys, dtype=torch.int64).tril(lengths.mem_len)
    generator = torch.Generator().manual_seed(SEED)
    average = torch.rand(shape["n_layer"], shape["n_head"], queries, keys, generator=generator) * count
    pattern = ours.AttentionPattern(average, count, site="self", causal=True)
    if block_size == 1:
        return ours.from_pattern(pattern, TAU, rule="published", crop=False)
    return ours.from_pattern(pattern, TAU, rule="allowed", block_size=block_size)


def build_ours(
    ours: SimpleNamespace, lengths: Lengths, block_size: int | None = None, shape: dict[str, int] = SHAPE
) -> Any:
    """This repository's model, dense or pruned in blocks of this side; every call gives the same weights."""
    config = ours.ModelConfig(
        n_token=N_TOKEN,
        cutoffs=list(CUTOFFS),
        dropout=DROPOUT,
        tgt_len=lengths.tgt_len,
        mem_len=lengths.mem_len,
        clamp_len=lengths.clamp_len,
        **shape,
    )
    torch.manual_seed(SEED)
    mask = None if block_size is None else random_mask(ours, lengths, shape, block_size)
    model = ours.MemTransformerLM(config, mask)
    model.initialize()
    return model


def our_training(ours: SimpleNamespace, model: Any, segments: list[tuple[Tensor, Tensor]]) -> Step:
    """One update of ``train.py``: forward, backward, clipping, Adam."""
    walk = Walk(segments, None)
    optimizer = ours.build_optimizer(model, argparse.Namespace(optim="adam", lr=LEARNING_RATE))

    def step() -> None:
        model.train()
        data_BT, target_BT = walk.next()
        optimizer.zero_grad()
        nll, walk.memory = model(data_BT, target_BT, walk.memory)
        loss = nll.float().mean()
        loss.backward()
        loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


def our_evaluation(model: Any, segments: list[tuple[Tensor, Tensor]]) -> Step:
    """One segment of ``eval.py``."""
    walk = Walk(segments, None)

    def step() -> None:
        model.eval()
        data_BT, target_BT = walk.next()
        with torch.no_grad():
            nll, walk.memory = model(data_BT, target_BT, walk.memory)
        nll.double().sum().item()

    return step


def averaging(ours: SimpleNamespace, model: Any, segments: list[tuple[Tensor, Tensor]]) -> Step:
    """One segment of ``compute_mask.py``: an evaluation in which each layer's attention is added to a pattern."""
    config = model.config
    keys = config.mem_len + config.tgt_len
    accumulator = ours.PatternAccumulator(config.n_layer, config.n_head, config.tgt_len, keys, site="self", causal=True)

    def observe(layer: int, probabilities_BHTK: Tensor) -> None:
        # A short memory fills the last slots.
        accumulator.update(layer, probabilities_BHTK, key_offset=keys - probabilities_BHTK.size(-1))

    for index, layer in enumerate(model.layers):
        layer.dec_attn.observer = functools.partial(observe, index)
    return our_evaluation(model, segments)

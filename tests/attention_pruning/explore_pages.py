"""Patterns for the tests of the explorer."""

from __future__ import annotations

import numpy as np

from attention_pruning import AttentionPattern
from attention_pruning.structure import visible_cells


def random_pattern(layers, heads, queries, keys, causal, seed, levels=1000, holes=0.0):
    """A pattern of averages at some levels, so that some are equal, with cells that were never observed."""
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 5, (queries, keys)) * (rng.random((queries, keys)) >= holes)
    count[queries - 1, 0] = 1
    allowed = visible_cells(queries, keys, causal).numpy() & (count > 0)
    average = rng.integers(0, levels, (layers, heads, queries, keys)) / levels * allowed
    return AttentionPattern(average, count, "self", causal, metadata={"model": "a <b>", "seed": seed})

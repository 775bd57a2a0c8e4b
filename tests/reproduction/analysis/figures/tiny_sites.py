"""Made-up patterns and masks of two sites, as files and as ``site_patterns.read_sites`` reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from attention_pruning import AttentionPattern
from attention_pruning.make import from_pattern

TAUS = (0.5, 0.8)


def pattern(site: str, layers: int, heads: int, queries: int, keys: int, seed: int = 0) -> AttentionPattern:
    """Rows that sum to one over what a query sees; later queries are seen less often."""
    rng = np.random.default_rng(seed)
    count = np.repeat(np.arange(queries, 0, -1)[:, None], keys, 1)
    causal = site == "dec-self"
    visible = np.tril(np.ones((queries, keys), bool), keys - queries) if causal else np.ones((queries, keys), bool)
    average = rng.exponential(size=(layers, heads, queries, keys)) * visible
    return AttentionPattern(average / average.sum(-1, keepdims=True), count * visible, site)


def write_site(folder: Path, made: AttentionPattern, taus: tuple[float, ...] = TAUS, **how: object) -> list[str]:
    """Write a pattern and its masks; return what follows a title in --site."""
    folder.mkdir(parents=True)
    made.save(folder / "pattern.safetensors")
    files = [folder / "pattern.safetensors"]
    for tau in taus:
        files.append(folder / f"mask{tau:g}.safetensors")
        from_pattern(made, tau, **how).save(files[-1])
    return [str(file) for file in files]


def write_two_sites(folder: Path) -> list[list[str]]:
    """A decoder's self-attention, causal, of two layers and one head, and cross-attention of five layers and three."""
    decoder = write_site(folder / "decoder", pattern("dec-self", 2, 1, 6, 6))
    cross = write_site(folder / "cross", pattern("enc-dec", 5, 3, 6, 9, seed=1))
    return [["decoder", *decoder], ["cross", *cross]]

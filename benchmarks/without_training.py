"""How much attention can go without training: masks within a budget of loss beside others that prune as much.

On the dense models of a run of the workflow (language model, translation, one task of GLUE) ``within_budget`` chooses a
share for each head on validation data. Beside it: one tau for all, ranked by layer and by head, a window, a window with
the first position, and random cells. All prune the same share of the attention that the training data uses. The loss is
that of the test data: under the mask as it comes, and after some steps of fine-tuning under it, which the dense model
gets, too.

    snakemake language_modelling translation glue --cores 2 --configfile config/quick.yaml --notemp
    python benchmarks/without_training.py --run runs/quick --out results/benchmarks
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from trained_models.comparison import Judge, run_comparison

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attention_pruning import AttentionPattern, PruneMask
from attention_pruning.make import Sensitivities, from_pattern, random_like, window_like

#: Rises of the loss on validation data that are allowed.
BUDGETS = (0.02, 0.1)
COLUMNS = ("budget", "mask", "sparsity")


def used_share(masks: Mapping[str, PruneMask], patterns: Mapping[str, AttentionPattern]) -> float:
    """The pruned share of all attention that the patterns saw."""
    pruned = used = 0.0
    for site, pattern in patterns.items():
        weight = int(pattern.count.sum()) * pattern.layers * pattern.heads
        used += weight
        pruned += weight * masks[site].evaluated_sparsity(pattern.count)
    return pruned / used


def as_sparse(share: float, patterns: Mapping[str, AttentionPattern], scope: str) -> dict[str, PruneMask]:
    """Masks of one tau for all sites, such that they prune this share of all attention that was seen."""
    low, high = 0.0, 1.0
    for _ in range(12):
        tau = (low + high) / 2
        masks = {site: from_pattern(pattern, tau, rule="allowed", scope=scope) for site, pattern in patterns.items()}
        low, high = (tau, high) if used_share(masks, patterns) < share else (low, tau)
    return masks


def masks_to_compare(
    found: Mapping[str, PruneMask], patterns: Mapping[str, AttentionPattern], seed: int
) -> Iterator[tuple[str, dict[str, PruneMask]]]:
    """Masks of every kind that prune as much as those that were found."""
    yield "within budget", dict(found)
    share = used_share(found, patterns)
    by_layer = as_sparse(share, patterns, "layer")
    yield "tau by layer", by_layer
    yield "tau by head", as_sparse(share, patterns, "head")
    use = {site: pattern.count for site, pattern in patterns.items()}
    yield "window", {site: window_like(mask, use[site]) for site, mask in by_layer.items()}
    if not any(mask.causal and mask.key_length > mask.query_length for mask in by_layer.values()):
        sinks = {site: window_like(mask, use[site], sinks=1) for site, mask in by_layer.items()}
        yield "window, first position", sinks
    yield "random", {site: random_like(mask, seed, use[site]) for site, mask in by_layer.items()}


def compare(judge: Judge) -> Iterator[dict[str, object]]:
    """Rows of the csv."""
    patterns = judge.model.patterns()
    sensitivities = Sensitivities.measure(judge.model.loss_under, patterns, progress=True)
    for budget in BUDGETS:
        found = sensitivities.within(budget)
        for kind, masks in masks_to_compare(found.masks, patterns, judge.seed):
            yield judge.row(masks, budget=budget, mask=kind, sparsity=round(used_share(masks, patterns), 4))


if __name__ == "__main__":
    run_comparison(__doc__, "without_training", COLUMNS, compare)

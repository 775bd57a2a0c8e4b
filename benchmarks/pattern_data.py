"""How much data a pattern needs, on trained models: masks from little data, and from other data.

On the dense models of a run of the workflow (language model, translation, one task of GLUE) masks are made from the
first 1, 10, 100 and 1000 batches of the training data, from each half of it, from all of it, and from data that is
out-of-distribution. Each is compared with the mask of all of the data: how much of what either prunes both prune, and
the loss on test data under it, as it comes and after some steps of fine-tuning under it.

    snakemake figure ood_table --cores 2 --configfile config/quick.yaml --notemp
    python benchmarks/pattern_data.py --run runs/quick --out results/benchmarks
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from trained_models.comparison import Judge, run_comparison
from trained_models.interface import TrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attention_pruning import AttentionPattern, PruneMask
from attention_pruning.agreement import Agreement
from attention_pruning.make import from_pattern

COLUMNS = ("tau", "data", "batches", "sequences", "overlap", "lowest", "by_chance")
NUMBERS, TAUS = (1, 10, 100, 1000), (0.5, 0.9)


def patterns_of(model: TrainedModel) -> Iterator[tuple[str, int, dict[str, AttentionPattern]]]:
    """What was observed, how many batches of the training data it is, and the patterns by site."""
    count = model.batch_count
    for number in (number for number in NUMBERS if number < count // 2):
        yield f"first {number}", number, model.patterns(range(number))
    yield "first half", count // 2, model.patterns(range(count // 2))
    yield "second half", count - count // 2, model.patterns(range(count // 2, count))
    yield "out-of-distribution", 0, model.shifted_patterns()
    yield "all", count, model.patterns()


def overlap(masks: Mapping[str, PruneMask], others: Mapping[str, PruneMask], tau: float) -> dict[str, float]:
    """The mean over all heads, that of the head with the least, and the mean of random masks."""
    found = [Agreement.of(masks[site], others[site], tau, 0, 0, "all") for site in masks]
    heads = [masks[site].layers * masks[site].heads for site in masks]

    def mean(name: str) -> float:
        return sum(getattr(one, name) * number for one, number in zip(found, heads, strict=True)) / sum(heads)

    shares = {"overlap": mean("overlap"), "lowest": min(one.lowest for one in found), "by_chance": mean("by_chance")}
    return {name: round(share, 4) for name, share in shares.items()}


def compare(judge: Judge) -> Iterator[dict[str, object]]:
    """Rows of the csv."""
    observed = list(patterns_of(judge.model))
    for tau in TAUS:
        made = [
            {site: from_pattern(pattern, tau, rule="allowed") for site, pattern in patterns.items()}
            for *_, patterns in observed
        ]
        for (data, batches, patterns), masks in zip(observed, made, strict=True):
            sequences = max(int(pattern.count.max()) for pattern in patterns.values())
            facts = {"tau": tau, "data": data, "batches": batches, "sequences": sequences}
            yield judge.row(masks, **facts, **overlap(masks, made[-1], tau))


if __name__ == "__main__":
    run_comparison(__doc__, "pattern_data", COLUMNS, compare)

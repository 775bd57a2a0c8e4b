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

import argparse
import csv
import importlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from trained_models.interface import TrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attention_pruning import AttentionPattern, PruneMask
from attention_pruning.files.tensors import written_whole
from attention_pruning.make import from_pattern, random_like, window_like, within_budget

#: Name on the command line: module, class, further arguments, rises of the loss that are allowed, steps and rate of
#: fine-tuning.
MODELS = {
    "language_modelling": ("language_model", "LanguageModel", {}, (0.02, 0.1), 100, 1e-3),
    "translation": ("translation", "Translation", {}, (0.02, 0.1), 100, 5e-4),
    "glue": ("classifier", "Classifier", {"task": "Bible-Paraphrase"}, (0.02, 0.1), 60, 5e-5),
}
COLUMNS = ("model", "unit", "seed", "budget", "mask", "sparsity", "dense", "loss", "dense_tuned", "loss_tuned", "steps")
KINDS = ("within budget", "by layer", "by head", "window", "window, first position", "random")


def open_model(name: str, run: Path, seed: int) -> TrainedModel:
    """The dense model of that name and seed."""
    module, title, further = MODELS[name][:3]
    return getattr(importlib.import_module(f"trained_models.{module}"), title)(run, seed, **further)


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
    yield "by layer", by_layer
    yield "by head", as_sparse(share, patterns, "head")
    use = {site: pattern.count for site, pattern in patterns.items()}
    yield "window", {site: window_like(mask, use[site]) for site, mask in by_layer.items()}
    if not any(mask.causal and mask.key_length > mask.query_length for mask in by_layer.values()):
        sinks = {site: window_like(mask, use[site], sinks=1) for site, mask in by_layer.items()}
        yield "window, first position", sinks
    yield "random", {site: random_like(mask, seed, use[site]) for site, mask in by_layer.items()}


def compare(model: TrainedModel, seed: int, budgets: tuple[float, ...], steps: int, lr: float) -> Iterator[dict]:
    """Rows of the csv."""

    def tuned(masks: Mapping[str, PruneMask]) -> float:
        model.restore()
        model.prune(masks)
        model.fine_tune(steps, lr, seed)
        loss = model.loss("test")
        model.restore()
        return loss

    patterns = model.patterns()
    dense, dense_tuned = model.loss_under({}, "test"), tuned({})
    for budget in budgets:
        found = within_budget(model.loss_under, patterns, budget, progress=True)
        for kind, masks in masks_to_compare(found.masks, patterns, seed):
            yield {
                "model": model.name, "unit": model.unit, "seed": seed, "budget": budget, "mask": kind,
                "sparsity": round(used_share(masks, patterns), 4), "dense": dense,
                "loss": model.loss_under(masks, "test"), "dense_tuned": dense_tuned, "loss_tuned": tuned(masks),
                "steps": steps,
            }  # fmt: skip


def write(rows: list[dict], path: Path) -> None:
    """The csv, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Compare, and write what there is after each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a run of the workflow with its dense models, as runs/quick")
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), help="(default: all)")
    add("--seeds", type=int, nargs="+", default=[1, 2], help="(default: 1 and 2)")
    add("--out", type=Path, help="folder for without_training.csv; models that it holds are left as they are there")
    add("--threads", type=int, default=1, help="of torch (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = None if arguments.out is None else arguments.out / "without_training.csv"
    rows = list(csv.DictReader(path.open())) if path is not None and path.exists() else []
    for name in arguments.models:
        *_, budgets, steps, lr = MODELS[name]
        for seed in arguments.seeds:
            model = open_model(name, arguments.run, seed)
            if any((row["model"], row["seed"]) == (model.name, str(seed)) for row in rows):
                continue
            started = time.time()
            for row in compare(model, seed, budgets, steps, lr):
                rows.append(row)
                rises = (row["loss"] - row["dense"], row["loss_tuned"] - row["dense_tuned"])
                what = f"{model.name}, seed {seed}, budget {row['budget']:g}, {row['mask']}"
                rise = "loss {:+.4f}, fine-tuned {:+.4f}".format(*rises)
                print(f"{what}: {row['sparsity']:.1%} pruned, {rise}, {time.time() - started:.0f} s", flush=True)
            if path is not None:
                write(rows, path)


if __name__ == "__main__":
    main()

"""Comparisons of masks on trained models: which models, how long they are fine-tuned, and the table that grows."""

from __future__ import annotations

import argparse
import csv
import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from attention_pruning import PruneMask
from attention_pruning.files.whole import written_whole

from .interface import TrainedModel


@dataclass(frozen=True)
class Choice:
    """A model to compare on: its class in this package, and how long, and how fast, it is fine-tuned."""

    module: str
    title: str
    steps: int
    lr: float
    arguments: tuple[str, ...] = ()


MODELS = {
    "language_modelling": Choice("language_model", "LanguageModel", 100, 1e-3),
    "translation": Choice("translation", "Translation", 100, 5e-4),
    "glue": Choice("classifier", "Classifier", 60, 5e-5, ("Bible-Paraphrase",)),
}
#: What every row says: the test loss of the dense model and under the mask, as they come and fine-tuned.
MODEL_COLUMNS, LOSS_COLUMNS = ("model", "unit", "seed"), ("dense", "loss", "dense_tuned", "loss_tuned", "steps")


class Judge:
    """Puts masks on a model and says what its losses are."""

    def __init__(self, model: TrainedModel, seed: int, choice: Choice) -> None:
        self.model, self.seed, self.choice = model, seed, choice
        self.dense, self.dense_tuned = self._losses({})

    def _losses(self, masks: Mapping[str, PruneMask]) -> tuple[float, float]:
        model = self.model
        before = model.loss_under(masks, "test")
        model.fine_tune(self.choice.steps, self.choice.lr, self.seed)
        after = model.loss("test")
        model.restore()
        return before, after

    def row(self, masks: Mapping[str, PruneMask], **facts: object) -> dict[str, object]:
        """A row of the table: what is known of the masks, and the losses."""
        loss, loss_tuned = self._losses(masks)
        known = dict(zip(MODEL_COLUMNS, (self.model.name, self.model.unit, self.seed), strict=True))
        losses = (self.dense, loss, self.dense_tuned, loss_tuned, self.choice.steps)
        return known | facts | dict(zip(LOSS_COLUMNS, losses, strict=True))


def run_comparison(
    description: str, name: str, columns: Sequence[str], compare: Callable[[Judge], Iterator[dict[str, object]]]
) -> None:
    """The command: compare on each model and seed, and write ``NAME.csv``, which grows model by model.

    Parameters
    ----------
    columns : sequence of str
        What ``compare`` tells beside the columns of every row.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a run of the workflow with its dense models, as runs/quick")
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), help="(default: all)")
    add("--seeds", type=int, nargs="+", default=[1, 2], help="(default: 1 and 2)")
    add("--out", type=Path, help=f"folder for {name}.csv; models that it holds are left as they are there")
    add("--threads", type=int, default=1, help="of torch (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = None if arguments.out is None else arguments.out / f"{name}.csv"
    rows = list(csv.DictReader(path.open())) if path is not None and path.exists() else []
    for title in arguments.models:
        choice = MODELS[title]
        build = getattr(importlib.import_module(f"trained_models.{choice.module}"), choice.title)
        for seed in arguments.seeds:
            model = build(arguments.run, seed, *choice.arguments)
            if any((row["model"], row["seed"]) == (model.name, str(seed)) for row in rows):
                continue
            started = time.time()
            for row in compare(Judge(model, seed, choice)):
                rows.append(row)
                facts = ", ".join(f"{column} {row[column]}" for column in columns)
                rises = (row["loss"] - row["dense"], row["loss_tuned"] - row["dense_tuned"])
                told = "loss {:+.4f}, fine-tuned {:+.4f}".format(*rises)
                print(f"{model.name}, seed {seed}, {facts}: {told}, {time.time() - started:.0f} s", flush=True)
            if path is not None:
                _write(rows, path, (*MODEL_COLUMNS, *columns, *LOSS_COLUMNS))


def _write(rows: Sequence[Mapping[str, object]], path: Path, columns: Sequence[str]) -> None:
    """The csv, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)

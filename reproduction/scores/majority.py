"""The majority-class baseline: the score of always giving the most frequent answer of the training split.

Run ``python -m reproduction.scores.majority --help``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attention_pruning import InputError
from reproduction.data.sources import DATA_DIR_VARIABLE
from reproduction.data.tasks.glue import Task, find_task, load_task
from reproduction.runs.command import run_main
from reproduction.runs.metrics import parse_labels, write_metrics
from reproduction.runs.record import RunRecord
from reproduction.scores.glue import glue_metrics, glue_score


def majority_class(labels: Sequence[float], task: Task) -> float:
    """The majority class, the lowest of several; of a task without classes, the mean."""
    if task.labels is None:
        return float(np.mean(labels))
    return float(np.bincount(np.asarray(labels), minlength=len(task.labels)).argmax())


def evaluate(task: Task, data_dir: str | None, other_dir: str | None = None) -> dict[str, dict[str, float]]:
    """GLUE's metrics of that answer on each evaluation split, and ``glue_score`` under ``validation``.

    Parameters
    ----------
    other_dir : str, optional
        Folder with other rows to evaluate on; the answer is still that of the training split in ``data_dir``.

    Raises
    ------
    InputError
        If the task lacks a split.
    """
    known = load_task(task, data_dir)
    rows = known if other_dir is None else load_task(task, other_dir)
    for split, found in (("train", known), *((split, rows) for split in task.evaluation_splits)):
        if split not in found:
            raise InputError(f"{task.name}: expected a split {split} in the data, found {', '.join(found)}")
    answer = majority_class(known["train"]["label"], task)
    metrics = {}
    for split in task.evaluation_splits:
        labels = np.asarray(rows[split]["label"])
        metrics[split] = glue_metrics(task, np.full(labels.shape, answer, labels.dtype), labels)
    score = glue_score(task, metrics)
    return metrics | {"validation": {**metrics.get("validation", {}), "glue_score": score}}


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.scores.majority",
        description="Score the majority class of a GLUE task's training split on its evaluation splits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--task_name", required=True, default=argparse.SUPPRESS, help="a task of GLUE, or of data.bible_glue")
    add(
        "--data_dir",
        default=os.environ.get(DATA_DIR_VARIABLE) or None,
        help=f"local folder with the data; {DATA_DIR_VARIABLE} sets the default; None: the Hugging Face hub",
    )
    add("--evaluate_dir", help="folder with other rows to evaluate on, in the task's layout; None: those of --data_dir")
    add("--out", type=Path, help="metrics.json to write, with .run.json beside it; None: print only")
    add("--label", action="append", default=[], metavar="KEY=VALUE", help="copied into metrics.json; may be repeated")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    labels, task = parse_labels(args.label), find_task(args.task_name)
    record = RunRecord("reproduction.scores.majority", vars(args))
    metrics = evaluate(task, args.data_dir, args.evaluate_dir)
    for split, values in metrics.items():
        print(f"{task.name} {split}: " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))
    if args.out is not None:
        write_metrics(args.out, {"experiment": "glue", "dataset": task.name, "variant": "majority"} | labels, metrics)
        record.write(args.out.with_suffix(".run.json"))
    return 0


if __name__ == "__main__":
    run_main(main)

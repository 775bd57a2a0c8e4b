"""GLUE's metrics, and the one number that stands for a task (Wang et al., 2018, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats
from sklearn import metrics

from attention_pruning import InputError

if TYPE_CHECKING:
    from reproduction.data.tasks.glue import Task


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of the predictions that are right."""
    return float(metrics.accuracy_score(labels, predictions))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1; 0 where neither the predictions nor the labels have it."""
    return float(metrics.f1_score(labels, predictions, zero_division=0.0))


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation coefficient; 0 for constant predictions or labels, the value of a coin."""
    if _is_constant(predictions, labels):
        return 0.0
    return float(metrics.matthews_corrcoef(labels, predictions))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation.

    It is undefined where either side is constant. The value here is 0: a constant says nothing about the labels, and a
    curve over runs must not break where one run collapses.
    """
    return _correlation(stats.pearsonr, predictions, labels)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where either side is constant, as in :func:`pearson`."""
    return _correlation(stats.spearmanr, predictions, labels)


def _correlation(function: Callable, predictions: np.ndarray, labels: np.ndarray) -> float:
    if _is_constant(predictions, labels):
        return 0.0
    return float(function(predictions, labels).statistic)


def _is_constant(predictions: np.ndarray, labels: np.ndarray) -> bool:
    return np.ptp(predictions) == 0 or np.ptp(labels) == 0


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    function.__name__: function for function in (accuracy, f1, matthews_correlation, pearson, spearman)
}


def glue_metrics(
    task: Task, predictions: Sequence[float] | np.ndarray, labels: Sequence[float] | np.ndarray
) -> dict[str, float]:
    """Return a task's metrics, each a share or a correlation.

    Parameters
    ----------
    task : Task
        Its ``metrics`` are those that are computed.
    predictions, labels : sequence
        Numbers of classes; for a task without classes, numbers.

    Raises
    ------
    InputError
        If there are none, their numbers differ, a label is missing (-1), or a prediction is no finite number.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or labels.ndim != 1 or not labels.size:
        raise InputError(
            f"{task.name}: expected one prediction for each label, found shapes {predictions.shape} and {labels.shape}"
        )
    if np.any(labels < 0):
        raise InputError(f"{task.name}: expected labels, found {int(np.sum(labels < 0))} rows without one")
    if not np.all(np.isfinite(predictions)):
        raise InputError(f"{task.name}: expected finite predictions, found nan or infinity")
    if task.labels is None:
        predictions, labels = predictions.astype(np.float64), labels.astype(np.float64)
    return {name: METRICS[name](predictions, labels) for name in task.metrics}


def glue_score(task: Task, metrics_by_split: Mapping[str, Mapping[str, float]]) -> float:
    """Return the number that stands for a task, in percent.

    As Wang et al. (2018) do: the unweighted mean of a task's metrics where there are several (STS-B: Pearson and
    Spearman; MRPC and QQP: accuracy and F1), and the mean of both accuracies of MNLI; CoLA's is Matthews' correlation,
    every other task's the accuracy.

    Parameters
    ----------
    metrics_by_split : mapping
        What :func:`glue_metrics` gave for each of the task's evaluation splits; other splits are passed over.

    Raises
    ------
    InputError
        If a split is missing.
    """
    if missing := [split for split in task.evaluation_splits if split not in metrics_by_split]:
        raise InputError(f"{task.name}: expected the metrics of {missing[0]}, found {', '.join(metrics_by_split)!r}")
    values = [metrics_by_split[split][name] for split in task.evaluation_splits for name in task.metrics]
    return 100 * sum(values) / len(values)

"""GLUE's metrics against formulas by hand and the libraries, and the score of each task."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from attention_pruning import InputError
from reproduction.data.tasks.glue import TASKS
from reproduction.scores.glue import METRICS, glue_metrics, glue_score

laws = settings(deadline=None, max_examples=100)
CLASSES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)
NUMBERS = st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 5)), min_size=2, max_size=30)


@given(CLASSES)
@laws
def test_metrics_of_two_classes_are_those_of_the_table_of_counts(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = zip(*pairs, strict=True)
    hits, false_alarms, misses, rejections = (pairs.count(cell) for cell in ((1, 1), (1, 0), (0, 1), (0, 0)))
    found = glue_metrics(TASKS["MRPC"], predictions, labels) | glue_metrics(TASKS["CoLA"], predictions, labels)
    sides = (hits + false_alarms) * (hits + misses) * (rejections + false_alarms) * (rejections + misses)
    wrong = false_alarms + misses
    expected = {
        "accuracy": (hits + rejections) / len(pairs),
        "f1": 2 * hits / (2 * hits + wrong) if hits + wrong else 0.0,
        "matthews_correlation": (hits * rejections - false_alarms * misses) / math.sqrt(sides) if sides else 0.0,
    }
    assert found == pytest.approx(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["f1"] == metrics.f1_score(labels, predictions)
        assert found["matthews_correlation"] == metrics.matthews_corrcoef(labels, predictions)


@given(NUMBERS)
@laws
def test_correlations_are_covariances_of_values_and_of_ranks(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = (np.array(side) / 4 for side in zip(*pairs, strict=True))
    found = glue_metrics(TASKS["STS-B"], predictions, labels)
    for name, transform in (("pearson", np.asarray), ("spearman", stats.rankdata)):
        a, b = (transform(side) - transform(side).mean() for side in (predictions, labels))
        norm = math.sqrt((a @ a) * (b @ b))
        assert found[name] == pytest.approx(a @ b / norm if norm else 0.0, abs=1e-9)
    if np.ptp(predictions) and np.ptp(labels):
        assert found["pearson"] == stats.pearsonr(predictions, labels)[0]
        assert found["spearman"] == stats.spearmanr(predictions, labels)[0]


@pytest.mark.parametrize("name", TASKS)
def test_constant_predictions_have_a_defined_score_and_no_warning(name: str) -> None:
    task = TASKS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = glue_metrics(task, [0, 0, 0, 0], [1, 0, 1, 0])
    assert list(found) == list(task.metrics)
    assert found == {metric: 0.5 if metric == "accuracy" else 0.0 for metric in task.metrics}


def test_three_classes_are_counted_alike() -> None:
    assert glue_metrics(TASKS["MNLI"], [0, 1, 2, 2], [0, 1, 2, 1]) == {"accuracy": 0.75}


@pytest.mark.parametrize(
    ("name", "by_split", "score"),
    [
        ("CoLA", {"validation": {"matthews_correlation": -0.25}}, -25),
        ("SST-2", {"validation": {"accuracy": 0.9}}, 90),
        ("MRPC", {"validation": {"accuracy": 0.8, "f1": 0.9}}, 85),
        ("QQP", {"validation": {"accuracy": 0.8, "f1": 0.7}}, 75),
        ("STS-B", {"validation": {"pearson": 0.5, "spearman": 0.7}}, 60),
        ("MNLI", {"validation_matched": {"accuracy": 0.8}, "validation_mismatched": {"accuracy": 0.6}}, 70),
        ("RTE", {"validation": {"accuracy": 0.6}, "test": {"accuracy": 0.1}}, 60),
        ("Bible-Acceptability", {"validation": {"matthews_correlation": 1.0}}, 100),
    ],
)
def test_the_score_of_a_task(name: str, by_split: dict, score: float) -> None:
    assert glue_score(TASKS[name], by_split) == pytest.approx(score)


def test_every_metric_is_some_tasks() -> None:
    assert set(METRICS) == {metric for task in TASKS.values() for metric in task.metrics}


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([1, 0], [1], "expected one prediction for each label"),
        ([], [], "expected one prediction for each label"),
        ([[1, 0]], [[1, 0]], "expected one prediction for each label"),
        ([1, 0, 1], [1, -1, -1], "expected labels, found 2 rows without one"),
        ([1, math.nan], [1, 0], "expected finite predictions"),
    ],
)
def test_what_cannot_be_scored_is_refused(predictions: list, labels: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        glue_metrics(TASKS["STS-B"], predictions, labels)
    with pytest.raises(InputError, match="MNLI: expected the metrics of validation_mismatched, found 'validation_mat"):
        glue_score(TASKS["MNLI"], {"validation_matched": {"accuracy": 1.0}})

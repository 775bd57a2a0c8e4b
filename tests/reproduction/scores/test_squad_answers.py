"""Answers from logits: the best of all spans, the list of the best, and no answer."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import InputError
from reproduction.scores.squad_answers import ranked_answers

laws = settings(deadline=None, max_examples=100)


def best_answers(*reading, version2: bool = False, null_threshold: float = 0.0, **options) -> dict:
    ranked = ranked_answers(*reading, **options)
    return {key: answers.chosen(version2, null_threshold) for key, answers in ranked.items()}


def spans(features: dict, key: str, start: np.ndarray, end: np.ndarray, n_best: int, longest: int) -> list[tuple]:
    """Score and offsets of every span of a question that may be an answer."""
    found = []
    for of, offsets, starts, ends in zip(features["example_id"], features["offset_mapping"], start, end, strict=True):
        inside = [i for i, offset in enumerate(offsets) if of == key and offset not in (None, (-1, -1))]
        for i in inside:
            for j in inside:
                better = [sum(side[k] > side[at] for k in inside) for side, at in ((starts, i), (ends, j))]
                if i <= j < i + longest and max(better) < n_best:
                    found.append((starts[i] + ends[j], offsets[i][0], offsets[j][1]))
    return found


@st.composite
def readings(draw: st.DrawFn) -> tuple:
    """Questions with one to three overlapping features, padded, and their logits."""
    examples: dict[str, list] = {"id": [], "context": []}
    features: dict[str, list] = {"example_id": [], "offset_mapping": []}
    for key in ("x", "y")[: draw(st.integers(1, 2))]:
        words = draw(st.integers(1, 12))
        examples["id"].append(key)
        examples["context"].append(" ".join(f"{key}{i}" for i in range(words)))
        ends = np.cumsum([len(f"{key}{i}") + 1 for i in range(words)]) - 1
        bounds = [(int(stop) - len(f"{key}{i}"), int(stop)) for i, stop in enumerate(ends)]
        outside = draw(st.sampled_from([None, (-1, -1)]))
        for first in range(0, words, 4)[: draw(st.integers(1, 3))]:
            features["example_id"].append(key)
            features["offset_mapping"].append([outside] * 3 + bounds[first : first + 6] + [outside] * 2)
    seed = draw(st.integers(0, 2**32 - 1))
    start, end = np.random.default_rng(seed).normal(size=(2, len(features["example_id"]), 12))
    return examples, features, start, end


@given(readings(), st.integers(1, 12), st.integers(1, 5), st.booleans())
@laws
def test_the_best_answer_is_the_best_of_all_spans(reading: tuple, n_best: int, longest: int, as_dataset: bool) -> None:
    examples, features, start, end = reading
    given_features = datasets.Dataset.from_dict(features) if as_dataset else features
    found = best_answers(examples, given_features, start, end, n_best=n_best, max_answer_length=longest)
    assert list(found) == examples["id"]
    for key, context in zip(examples["id"], examples["context"], strict=True):
        allowed = spans(features, key, start, end, n_best, longest)
        if not allowed:
            assert found[key] == {"text": "", "score": -np.inf}
            continue
        score, first, last = max(allowed)
        assert found[key]["score"] == pytest.approx(score) and found[key]["text"] == context[first:last]


@given(readings(), st.sampled_from([-2.0, 0.0, 2.0]))
@laws
def test_no_answer_is_given_above_the_threshold(reading: tuple, threshold: float) -> None:
    examples, features, start, end = reading
    plain = best_answers(examples, features, start, end)
    found = best_answers(examples, features, start, end, version2=True, null_threshold=threshold)
    for key, answer in found.items():
        null = min(start[i, 0] + end[i, 0] for i, of in enumerate(features["example_id"]) if of == key)
        assert answer["null_score"] == pytest.approx(null) and answer["score"] == plain[key]["score"]
        assert answer["text"] == ("" if null - answer["score"] > threshold else plain[key]["text"])


ONE = {"id": ["x"], "context": ["one two"]}
TOKENS = {"example_id": ["x"], "offset_mapping": [[None, (0, 3), (4, 7)]]}


def test_of_equal_spans_the_earlier_is_taken() -> None:
    assert best_answers(ONE, TOKENS, np.zeros((1, 3)), np.zeros((1, 3)))["x"] == {"text": "one", "score": 0.0}


@pytest.mark.parametrize(
    ("features", "start", "message"),
    [
        (TOKENS, np.zeros((2, 3)), "expected a row for each of 1 features"),
        (TOKENS, np.full((1, 3), np.nan), "expected numbers, found nan"),
        (TOKENS, np.zeros((1, 2)), "expected tokens of a known question, found 3 of 'x'"),
        (TOKENS | {"example_id": ["y"]}, np.zeros((1, 3)), "expected tokens of a known question, found 3 of 'y'"),
        ({"example_id": [], "offset_mapping": []}, np.zeros((0, 3)), "expected some for every question.* for x"),
    ],
)
def test_what_does_not_belong_together_is_refused(features: dict, start: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        best_answers(ONE, features, start, start)


@given(readings(), st.integers(1, 12))
@laws
def test_the_best_are_listed_best_first_with_their_shares(reading: tuple, n_best: int) -> None:
    examples, features, start, end = reading
    found = ranked_answers(*reading, n_best=n_best, max_answer_length=3)
    for key, context in zip(examples["id"], examples["context"], strict=True):
        allowed = sorted(spans(features, key, start, end, n_best, 3), reverse=True)[:n_best]
        rows = found[key].n_best(n_best)
        assert [row["text"] for row in rows] == [context[first:last] for _, first, last in allowed]
        assert [row["start_logit"] + row["end_logit"] for row in rows] == pytest.approx([span[0] for span in allowed])
        weights = np.exp([span[0] for span in allowed])
        assert [row["probability"] for row in rows] == pytest.approx(list(weights / weights.sum()))

        null = found[key].null.score
        with_null = found[key].n_best(n_best, version2=True)
        assert sum(row["text"] == "" for row in with_null) == 1
        kept = [row["start_logit"] + row["end_logit"] for row in with_null]
        assert kept == sorted(kept, reverse=True) and null in kept
        assert len(with_null) == min(len(allowed), n_best) + (len(allowed) < n_best or null <= allowed[-1][0])
        assert found[key].null_odds == pytest.approx(null - max((span[0] for span in allowed), default=-np.inf))

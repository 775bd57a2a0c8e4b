"""Exact match, F1 and the choice of an answer: hard cases by hand, laws, and brute force over all spans."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import InputError
from reproduction.scores.squad import exact_match, f1, normalise, squad_metrics

laws = settings(deadline=None, max_examples=100)
WORDS = ["a", "The", "an", "cat", "Cat's", "sat,", "café", "é", "--", " ", "\n"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Cat", "cat"),
        ("  a\tcat \n an  the sat ", "cat sat"),
        ("cats' cat's", "cats cats"),
        ("the-cat", "thecat"),  # punctuation goes before the articles
        ("A.M.", "am"),
        ("A. cat", "cat"),
        ("$1,000.50", "100050"),
        ("theatre an-other", "theatre another"),
        ("Ça VA", "ça va"),
        ("“the” – 50°", "“ ” – 50°"),  # only ASCII punctuation goes
        ("a\u00a0cat", "cat"),
        ("the", ""),
        ("", ""),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "overlap"),
    [
        ("the Broncos!", "Broncos", 1, 1),
        ("Denver Broncos", "Broncos", 0, 2 / 3),
        ("Broncos Denver", "Denver Broncos", 0, 1),  # order does not count in F1
        ("new new york", "new york york", 0, 2 / 3),  # words count as often as both have them
        ("in 1066", "1066", 0, 2 / 3),
        ("café", "cafe", 0, 0),
        ("1,000", "1000", 1, 1),
        ("", "Broncos", 0, 0),
        ("a", "Broncos", 0, 0),
    ],
)
def test_hard_pairs(prediction: str, answer: str, exact: float, overlap: float) -> None:
    assert exact_match(prediction, answer) == exact
    assert f1(prediction, answer) == pytest.approx(overlap)
    assert f1(prediction, answer, version2=True) == pytest.approx(overlap)


def test_two_texts_without_words_differ_between_the_versions() -> None:
    assert exact_match("the", "a") == 1
    assert f1("the", "a") == 0 and f1("the", "a", version2=True) == 1


@given(TEXTS, TEXTS, st.booleans())
@laws
def test_f1_is_symmetric_and_at_least_the_exact_match(a: str, b: str, version2: bool) -> None:
    assert f1(a, b, version2) == f1(b, a, version2)
    assert 0 <= f1(a, b, version2) <= 1
    if version2 or normalise(a):
        assert exact_match(a, b) <= f1(a, b, version2)
        assert f1(a, a, version2) == 1
    assert normalise(normalise(a)) == normalise(a)


def row(key: str, *texts: str) -> dict:
    return {"id": key, "answers": {"text": list(texts), "answer_start": [0] * len(texts)}}


@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=5))
@laws
def test_the_best_answer_counts_and_questions_count_alike(questions: list[tuple[str, list[str]]]) -> None:
    references = [row(str(i), *answers) for i, (_, answers) in enumerate(questions)]
    found = squad_metrics(references, {str(i): prediction for i, (prediction, _) in enumerate(questions)})
    for name, metric in (("exact_match", exact_match), ("f1", f1)):
        best = [max(metric(prediction, answer) for answer in answers) for prediction, answers in questions]
        assert found[name] == pytest.approx(100 * sum(best) / len(best))
    assert found["total"] == len(questions)


def test_a_missing_prediction_scores_nothing_in_the_first_version_and_is_refused_in_the_second() -> None:
    references = [row("1", "cat"), row("2", "sat")]
    assert squad_metrics(references, {"1": "the cat"}) == {"exact_match": 50.0, "f1": 50.0, "total": 2.0}
    with pytest.raises(InputError, match="expected a prediction for every question, found none for 2"):
        squad_metrics(references, {"1": "the cat"}, version2=True)
    with pytest.raises(InputError, match="expected a probability for every question, found none for 1"):
        squad_metrics(references, {"1": "a", "2": "b"}, version2=True, no_answer_probability={"2": 0.5})
    with pytest.raises(InputError, match="expected questions to score, found none"):
        squad_metrics([], {})


SECOND = [row("1", "cat"), row("2", "sat down", "the"), row("3"), row("4")]


def test_no_answer_is_an_answer_in_the_second_version() -> None:
    found = squad_metrics(SECOND, {"1": "a cat", "2": "sat", "3": "", "4": "dog"}, version2=True)
    assert found == pytest.approx(
        {
            "exact_match": 50.0,
            "f1": (1 + 2 / 3 + 1 + 0) * 25,
            "total": 4,
            "has_answer_exact_match": 50.0,
            "has_answer_f1": (1 + 2 / 3) * 50,
            "has_answer_total": 2,
            "no_answer_exact_match": 50.0,
            "no_answer_f1": 50.0,
            "no_answer_total": 2,
        }
    )
    only = squad_metrics(SECOND[2:], {"3": "", "4": "."}, version2=True)
    # A prediction without words equals no answer, as in the official script.
    assert only["f1"] == 100.0 and not any(key.startswith("has_answer") for key in only)


def test_a_probability_above_one_takes_the_prediction_back() -> None:
    predictions = {"1": "a cat", "2": "sat down", "3": "dog", "4": ""}
    doubt = {"1": 1.0, "2": 1.5, "3": 2.0, "4": 0.0}
    found = squad_metrics(SECOND, predictions, version2=True, no_answer_probability=doubt)
    assert found["exact_match"] == 75.0 and found["has_answer_f1"] == 50.0 and found["no_answer_f1"] == 100.0


def score_at(threshold: float, metric: str, predictions: Mapping[str, str], doubt: Mapping[str, float]) -> float:
    cut = {key: "" if doubt[key] > threshold else text for key, text in predictions.items()}
    return squad_metrics(SECOND, cut, version2=True)[metric]


@given(
    st.tuples(*[st.sampled_from(["", "cat", "sat", "sat down"])] * 4),
    st.permutations([0.1, 0.2, 0.5, 0.9]),
    st.sampled_from(["exact_match", "f1"]),
)
@laws
def test_the_best_threshold_is_the_best_of_all(texts: tuple[str, ...], doubts: list[float], metric: str) -> None:
    predictions, doubt = ({str(i): value for i, value in enumerate(values, 1)} for values in (texts, doubts))
    found = squad_metrics(SECOND, predictions, version2=True, no_answer_probability=doubt)
    best, threshold = found[f"best_{metric}"], found[f"best_{metric}_threshold"]
    assert best == pytest.approx(max(score_at(value, metric, predictions, doubt) for value in (0.0, *doubts)))
    assert best == pytest.approx(score_at(threshold, metric, predictions, doubt))


#: Names of the official script, which transformers' copy of it uses.
OFFICIAL = {"exact": "exact_match", "HasAns": "has_answer", "NoAns": "no_answer", "thresh": "threshold"}


QUESTION = st.tuples(TEXTS, st.lists(TEXTS, max_size=2), st.sampled_from([0.0, 0.3, 1.0, 1.2]))


@given(st.lists(QUESTION, min_size=1, max_size=6))
@laws
def test_the_second_version_equals_transformers_copy_of_the_official_script(questions: list[tuple]) -> None:
    from transformers.data.metrics.squad_metrics import squad_evaluate

    rows = [row(str(i), *answers) for i, (_, answers, _) in enumerate(questions)]
    predictions = {str(i): prediction for i, (prediction, _, _) in enumerate(questions)}
    doubt = {str(i): value for i, (_, _, value) in enumerate(questions)}
    examples = [
        SimpleNamespace(qas_id=row["id"], answers=[{"text": text} for text in row["answers"]["text"]]) for row in rows
    ]
    expected = squad_evaluate(examples, predictions, dict(doubt))
    names = {key: "_".join(OFFICIAL.get(part, part) for part in key.split("_")) for key in expected}
    found = squad_metrics(rows, predictions, version2=True, no_answer_probability=doubt)
    assert found == pytest.approx({names[key]: value for key, value in expected.items()})

"""SQuAD's metrics, exact match and F1.

Written from the definitions in Rajpurkar et al. (2016 and 2018) to agree with the official scripts, evaluate-v1.1 and
evaluate-v2.0, in every case, odd ones included.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from attention_pruning import InputError

ARTICLE = re.compile(r"\b(?:a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
NO_ANSWER = ""


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, then without English articles, single blanks.

    >>> normalise("The  U.S.-led coalition")
    'usled coalition'
    """
    return " ".join(ARTICLE.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 if both are the same when normalised, else 0."""
    return float(normalise(prediction) == normalise(answer))


def f1(prediction: str, answer: str, version2: bool = False) -> float:
    """Harmonic mean of precision and recall of the prediction's words, each counted as often as both have it.

    Where a side has no words, SQuAD 1.1 gives 0, and SQuAD 2.0 gives 1 if the other has none either.
    """
    predicted, expected = normalise(prediction).split(), normalise(answer).split()
    if version2 and not (predicted and expected):
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected)) if shared else 0.0


def squad_metrics(
    references: Iterable[Mapping[str, Any]],
    predictions: Mapping[str, str],
    version2: bool = False,
    no_answer_probability: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return exact match and F1 in percent, the mean over questions of the best over each one's answers.

    Parameters
    ----------
    references : iterable
        Questions: ``id`` and ``answers`` with the list ``text``; a data set's rows serve.
    predictions : mapping
        Id -> text; in SQuAD 2.0, an empty one says that there is no answer.
    version2 : bool
        As in SQuAD 2.0: a question without answers expects none, and the metrics are also given for the questions with
        (``has_answer_...``) and without answers (``no_answer_...``).
    no_answer_probability : mapping, optional
        SQuAD 2.0 only: id -> how sure the model is that there is no answer, in any unit. Adds the best metrics that a
        threshold gives, and the threshold (``best_exact_match``, ``best_exact_match_threshold``, ``best_f1`` ...). A
        question above 1 counts as predicted to have no answer in all metrics, as in the official script.

    Returns
    -------
    dict of str to float
        ``exact_match``, ``f1`` and ``total`` (the number of questions), and what is said above.

    Raises
    ------
    InputError
        If there are no questions. If a prediction or a probability is missing in SQuAD 2.0; in SQuAD 1.1 the question
        scores 0.
    """
    texts = {row["id"]: row["answers"]["text"] for row in references}
    golds = {key: _gold_answers(answers, version2) for key, answers in texts.items()}
    if not golds:
        raise InputError("squad: expected questions to score, found none")
    if not version2:
        return _percent(_scores(golds, predictions, version2))
    for what, given in (("a prediction", predictions), ("a probability", no_answer_probability)):
        if given is not None and (missing := [key for key in golds if key not in given]):
            raise InputError(f"squad: expected {what} for every question, found none for {missing[0]}")

    scores = _scores(golds, predictions, version2)
    answerable = np.array([len(answers) > 0 for answers in texts.values()])
    thresholds: dict[str, float] = {}
    if no_answer_probability is not None:
        doubt = np.array([no_answer_probability[key] for key in golds])
        said_none = np.array([not predictions[key] for key in golds])
        for name, values in scores.items():
            best, threshold = _best_threshold(values, doubt, answerable, said_none)
            thresholds |= {f"best_{name}": best, f"best_{name}_threshold": threshold}
        scores = {name: np.where(doubt > 1.0, ~answerable, values) for name, values in scores.items()}
    result = _percent(scores)
    for prefix, chosen in (("has_answer_", answerable), ("no_answer_", ~answerable)):
        if chosen.any():
            result |= {prefix + key: value for key, value in _percent(scores, chosen).items()}
    return result | thresholds


def _gold_answers(texts: Sequence[str], version2: bool) -> list[str]:
    if not version2:
        return list(texts)
    return [text for text in texts if normalise(text)] or [NO_ANSWER]


def _scores(golds: Mapping[str, list[str]], predictions: Mapping[str, str], version2: bool) -> dict[str, np.ndarray]:
    exact, overlap = np.zeros(len(golds)), np.zeros(len(golds))
    for i, (key, answers) in enumerate(golds.items()):
        if key in predictions:
            exact[i] = max(exact_match(predictions[key], answer) for answer in answers)
            overlap[i] = max(f1(predictions[key], answer, version2) for answer in answers)
    return {"exact_match": exact, "f1": overlap}


def _percent(scores: Mapping[str, np.ndarray], chosen: np.ndarray | slice = slice(None)) -> dict[str, float]:
    result = {name: 100 * float(np.mean(values[chosen])) for name, values in scores.items()}
    return result | {"total": float(len(scores["f1"][chosen]))}


def _best_threshold(
    scores: np.ndarray, doubt: np.ndarray, answerable: np.ndarray, said_none: np.ndarray
) -> tuple[float, float]:
    """Best score in percent if the questions of least doubt keep their predictions and the others get no answer.

    Starts from no answer anywhere, threshold 0. Questions of equal doubt are taken one after the other, as in the
    official script.
    """
    gain = np.where(answerable, scores, np.where(said_none, 0.0, -1.0))
    order = np.argsort(doubt, kind="stable")
    totals = np.concatenate([[0.0], np.cumsum(gain[order])]) + np.sum(~answerable)
    best = int(np.argmax(totals))
    return 100 * float(totals[best]) / len(scores), float(doubt[order[best - 1]]) if best else 0.0

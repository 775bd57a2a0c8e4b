"""From a model's logits to answers, as Devlin et al. (2019, section 4.2) choose them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from attention_pruning import InputError
from reproduction.scores.squad import NO_ANSWER


class Span(NamedTuple):
    """An answer to a question, or that there is none."""

    text: str
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        """The sum of the logits of its first and its last token."""
        return self.start_logit + self.end_logit


#: What a question has before any feature of it is read: it is above every other score of that kind.
_NEVER = Span(NO_ANSWER, np.inf, np.inf)


@dataclass
class RankedAnswers:
    """What may answer a question.

    Attributes
    ----------
    spans : list of Span
        The best ones, best first; of equal ones the earlier. Empty where no span can be an answer.
    null : Span
        That there is no answer: the logits of the first token, of the feature where their sum is least.
    """

    spans: list[Span] = field(default_factory=list)
    null: Span = _NEVER

    @property
    def score(self) -> float:
        """The best span's; -inf where there is none."""
        return self.spans[0].score if self.spans else -np.inf

    @property
    def null_odds(self) -> float:
        """How far the score of no answer is above the best span's."""
        return self.null.score - self.score

    def chosen(self, version2: bool = False, null_threshold: float = 0.0) -> dict[str, Any]:
        """The answer that is given.

        Parameters
        ----------
        version2 : bool
            Whether a question may have no answer.
        null_threshold : float
            No answer is given if its score is more than this above the best span's.

        Returns
        -------
        dict
            ``text`` and ``score``, of SQuAD 2.0 also ``null_score``. ``score`` is the best span's even where the text
            is empty.
        """
        answer = {"text": self.spans[0].text if self.spans else NO_ANSWER, "score": self.score}
        if not version2:
            return answer
        if self.null_odds > null_threshold:
            answer["text"] = NO_ANSWER
        return answer | {"null_score": self.null.score}

    def n_best(self, number: int, version2: bool = False) -> list[dict[str, Any]]:
        """The best answers as transformers' scripts list them: ``text start_logit end_logit probability``.

        Probabilities are over this list. Of SQuAD 2.0 it has the empty answer too, as one more if that is not among the
        best.
        """
        spans = sorted([*self.spans, *([self.null] if version2 else [])], key=lambda span: -span.score)[:number]
        if version2 and not any(span is self.null for span in spans):
            spans.append(self.null)
        if not spans:
            return []
        weights = np.exp(np.array([span.score for span in spans]) - max(span.score for span in spans))
        shares = weights / weights.sum()
        return [span._asdict() | {"probability": float(share)} for span, share in zip(spans, shares, strict=True)]


def ranked_answers(
    examples: Mapping[str, Sequence],
    features: Mapping[str, Sequence],
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
) -> dict[str, RankedAnswers]:
    """The best answers to each question.

    Considered are the spans that start at one of the ``n_best`` best starts of a feature and end at one of its
    ``n_best`` best ends, within the context.

    Parameters
    ----------
    examples : mapping of columns, or Dataset
        ``id`` and ``context``.
    features : mapping of columns, or Dataset
        ``example_id`` and ``offset_mapping``: for each token (start, end) in characters of the context; None or an
        empty range, (-1, -1) say, for a token that is not of the context. A long context has several features.
    start_logits, end_logits : ndarray
        (features, tokens); what is padded behind the tokens of ``offset_mapping`` is passed over.
    n_best, max_answer_length : int
        The former is also how many spans are kept; the latter is in tokens.

    Returns
    -------
    dict of str to RankedAnswers
        By the question's id.

    Raises
    ------
    InputError
        If features, examples and logits do not belong together, or a logit is nan.
    """
    contexts = dict(zip(examples["id"], examples["context"], strict=True))
    start_logits, end_logits = (np.asarray(logits, dtype=np.float64) for logits in (start_logits, end_logits))
    count = len(features["example_id"])
    if start_logits.ndim != 2 or start_logits.shape != end_logits.shape or len(start_logits) != count:
        raise InputError(
            f"logits: expected a row for each of {count} features, found {start_logits.shape} and {end_logits.shape}"
        )
    if np.isnan(start_logits).any() or np.isnan(end_logits).any():
        raise InputError("logits: expected numbers, found nan")
    answers: dict[str, RankedAnswers] = {}
    rows = zip(features["example_id"], features["offset_mapping"], start_logits, end_logits, strict=True)
    for key, offsets, start, end in rows:
        if key not in contexts or len(offsets) > len(start):
            raise InputError(f"features: expected tokens of a known question, found {len(offsets)} of {key!r}")
        bounds = np.array([(-1, -1) if offset is None else offset for offset in offsets])
        answer = answers.setdefault(key, RankedAnswers())
        answer.null = min(answer.null, Span(NO_ANSWER, float(start[0]), float(end[0])), key=lambda span: span.score)
        answer.spans += [
            Span(contexts[key][bounds[first, 0] : bounds[last, 1]], float(start[first]), float(end[last]))
            for first, last in _best_spans(start[: len(bounds)], end[: len(bounds)], bounds, n_best, max_answer_length)
        ]
    if missing := contexts.keys() - answers.keys():
        raise InputError(f"features: expected some for every question, found none for {min(missing)}")
    for answer in answers.values():
        answer.spans = sorted(answer.spans, key=lambda span: -span.score)[:n_best]
    return answers


def _best_spans(
    start: np.ndarray, end: np.ndarray, bounds: np.ndarray, n_best: int, max_answer_length: int
) -> list[tuple[int, int]]:
    """First and last token of a feature's best spans, best first, ``n_best`` at most; none if there is none."""
    inside = np.flatnonzero(bounds[:, 1] > bounds[:, 0])
    firsts, lasts = (np.sort(inside[np.argsort(-logits[inside], kind="stable")[:n_best]]) for logits in (start, end))
    tokens = lasts[None, :] - firsts[:, None] + 1
    scores_FL = start[firsts][:, None] + end[lasts][None, :]
    allowed = np.flatnonzero((tokens >= 1) & (tokens <= max_answer_length) & (scores_FL > -np.inf))
    best = allowed[np.argsort(-scores_FL.ravel()[allowed], kind="stable")[:n_best]]
    rows, columns = np.unravel_index(best, tokens.shape)
    return list(zip(firsts[rows].tolist(), lasts[columns].tolist(), strict=True))

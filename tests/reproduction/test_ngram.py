"""The Kneser-Ney bigram against a dictionary implementation of the same formulas."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning.errors import InputError
from reproduction import ngram
from reproduction.corpus import SPLITS, encode, write_corpus

VOCABULARY_SIZE = 6
STREAMS = st.lists(st.integers(0, VOCABULARY_SIZE - 1), min_size=2, max_size=60)
laws = settings(deadline=None, max_examples=150)


def brute_discount(counts: Counter) -> float:
    once, twice = list(counts.values()).count(1), list(counts.values()).count(2)
    return once / (once + 2 * twice) if once else 0.5


def brute_unigram(counts: Counter, word: int) -> float:
    taken, total = brute_discount(counts), sum(counts.values())
    return max(counts[word] - taken, 0) / total + taken * len(counts) / total / VOCABULARY_SIZE


def brute_bigram(stream: list[int], history: int, word: int) -> float:
    pairs = Counter(zip(stream, stream[1:], strict=False))
    lower = brute_unigram(Counter(pair[1] for pair in pairs), word)
    seen = sum(count for pair, count in pairs.items() if pair[0] == history)
    if not seen:
        return lower
    kinds = sum(pair[0] == history for pair in pairs)
    taken = brute_discount(pairs)
    return max(pairs[history, word] - taken, 0) / seen + taken * kinds / seen * lower


def table(stream: list[int]) -> np.ndarray:
    """P(column | row) for every pair of symbols."""
    model = ngram.KneserNeyBigram.fit(np.array(stream, dtype=np.int32), VOCABULARY_SIZE)
    histories, words = np.divmod(np.arange(VOCABULARY_SIZE**2), VOCABULARY_SIZE)
    return model.probability(histories, words).reshape(VOCABULARY_SIZE, VOCABULARY_SIZE)


@given(STREAMS)
@laws
def test_bigram_equals_brute_force(stream: list[int]) -> None:
    symbols = range(VOCABULARY_SIZE)
    expected = [[brute_bigram(stream, history, word) for word in symbols] for history in symbols]
    np.testing.assert_allclose(table(stream), expected, rtol=1e-12)


@given(STREAMS)
@laws
def test_every_history_has_a_distribution_without_zeros(stream: list[int]) -> None:
    probabilities = table(stream)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    assert (probabilities > 0).all()


@given(STREAMS)
@laws
def test_unigram_equals_brute_force(stream: list[int]) -> None:
    probabilities = ngram.smoothed_unigram(np.bincount(stream, minlength=VOCABULARY_SIZE))
    expected = [brute_unigram(Counter(stream), word) for word in range(VOCABULARY_SIZE)]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12)
    assert math.isclose(probabilities.sum(), 1, rel_tol=1e-12) and (probabilities > 0).all()


LINES = st.lists(st.lists(st.sampled_from("abcz"), min_size=1), min_size=1, max_size=9)


@given(st.fixed_dictionaries(dict.fromkeys(SPLITS, LINES)))
@laws
def test_evaluation_predicts_every_token_but_the_first(texts: dict) -> None:
    known = [[word for word in line if word != "z"] for line in texts["train"]]
    corpus = encode("t", {**texts, "train": [list("abcab"), *known]})
    metrics = ngram.evaluate(corpus)
    for split in ngram.EVALUATED_SPLITS:
        stream = corpus.ids[split].tolist()
        model = ngram.KneserNeyBigram.fit(corpus.ids["train"], len(corpus.vocabulary))
        pairs = list(zip(stream, stream[1:], strict=False))
        nll = -sum(math.log(model.probability(np.array(h), np.array(w))) for h, w in pairs) / len(pairs)
        assert metrics[split]["tokens"] == len(stream) - 1
        assert math.isclose(metrics[split]["nll"], nll, rel_tol=1e-9)
        assert math.isclose(metrics[split]["perplexity"], math.exp(nll), rel_tol=1e-9)


def test_order_is_worth_something_only_where_there_is_order() -> None:
    rng = np.random.default_rng(0)
    ordered = [list("abcdefgh")] * 200
    shuffled = [list(rng.permutation(list("abcdefgh"))) for _ in range(200)]
    found = [ngram.evaluate(encode("t", dict.fromkeys(SPLITS, lines)))["test"] for lines in (ordered, shuffled)]
    assert all(test["unigram_perplexity"] == pytest.approx(9, rel=0.01) for test in found)
    assert found[0]["perplexity"] == pytest.approx(1, abs=0.02)
    # All that is left of order: a letter does not follow itself, and lines end after eight.
    assert 6 < found[1]["perplexity"] < 9


def test_a_single_token_is_refused() -> None:
    with pytest.raises(InputError, match="expected a training text of at least 2 tokens, found 1"):
        ngram.KneserNeyBigram.fit(np.array([0]), 2)
    one = encode("t", {"train": [["a", "b"]], "valid": [["a", "b"]], "test": [["a"]]}, eos=False)
    with pytest.raises(InputError, match="expected at least 2 tokens in test, found 1"):
        ngram.evaluate(one)


def test_the_command_writes_metrics_with_labels(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", "tiny", dict.fromkeys(SPLITS, [["a", "b"], ["b"]]))
    out = tmp_path / "run" / "metrics.json"
    ngram.main(["--data", str(tmp_path / "c"), "--out", str(out), "--label", "config=smoke", "--label", "tau=0"])
    content = json.loads(out.read_text())
    assert content["metrics"] == ngram.evaluate(corpus)
    named = {key: content[key] for key in ("config", "experiment", "dataset", "variant", "tau", "rule")}
    assert named == {
        "config": "smoke",
        "experiment": "language_modelling",
        "dataset": "tiny",
        "variant": "kneser-ney",
        "tau": 0,
        "rule": None,
    }
    assert json.loads((out.parent / "run.json").read_text())["data_fingerprint"] == corpus.fingerprint


@pytest.mark.parametrize("label", ["config", "=smoke", "", "colour=red"])
def test_a_label_without_key_or_value_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(InputError, match="--label: expected KEY=VALUE .*, found"):
        ngram.main(["--data", str(tmp_path), "--out", str(tmp_path / "m.json"), "--label", label])
    assert not list(tmp_path.iterdir())

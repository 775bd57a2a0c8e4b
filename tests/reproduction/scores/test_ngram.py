"""Kneser-Ney n-grams against a dictionary implementation of the same formulas."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning.errors import InputError
from reproduction.analysis.table import collect
from reproduction.data.language.corpus import SPLITS, encode, write_corpus
from reproduction.scores import ngram

VOCABULARY_SIZE = 6
STREAMS = st.lists(st.integers(0, VOCABULARY_SIZE - 1), min_size=2, max_size=60)
laws = settings(deadline=None, max_examples=150)


def brute_discount(counts: Counter) -> float:
    once, twice = list(counts.values()).count(1), list(counts.values()).count(2)
    return once / (once + 2 * twice) if once else 0.5


def brute_unigram(counts: Counter, word: int) -> float:
    taken, total = brute_discount(counts), sum(counts.values())
    return max(counts[word] - taken, 0) / total + taken * len(counts) / total / VOCABULARY_SIZE


def brute(stream: list[int], history: tuple[int, ...], word: int, highest: bool = True) -> float:
    """P(word | history) by dictionaries, order by order."""
    n = len(history) + 1
    grams = Counter(tuple(stream[i : i + n]) for i in range(len(stream) - n + 1))
    if not highest:
        longer = {tuple(stream[i : i + n + 1]) for i in range(len(stream) - n)}
        grams = Counter(gram[1:] for gram in longer)
    if n == 1:
        return brute_unigram(Counter({gram[0]: count for gram, count in grams.items()}), word)
    lower = brute(stream, history[1:], word, highest=False)
    seen = sum(count for gram, count in grams.items() if gram[:-1] == history)
    if not seen:
        return lower
    kinds = sum(gram[:-1] == history for gram in grams)
    taken = brute_discount(grams)
    return max(grams[*history, word] - taken, 0) / seen + taken * kinds / seen * lower


def table(stream: list[int], order: int) -> np.ndarray:
    """P(word | history) for every history of order - 1 symbols, and every word."""
    model = ngram.KneserNey.fit(np.array(stream, dtype=np.int32), VOCABULARY_SIZE, order)
    symbols = range(VOCABULARY_SIZE)
    texts = itertools.product(symbols, repeat=order)
    last = [model.probabilities(np.array(text, dtype=np.int32))[-1] for text in texts]
    return np.array(last).reshape(-1, VOCABULARY_SIZE)


@given(STREAMS)
@settings(deadline=None, max_examples=50)
def test_bigram_equals_brute_force(stream: list[int]) -> None:
    symbols = range(VOCABULARY_SIZE)
    expected = [[brute(stream, (history,), word) for word in symbols] for history in symbols]
    np.testing.assert_allclose(table(stream, 2), expected, rtol=1e-12)


@given(st.lists(st.integers(0, VOCABULARY_SIZE - 1), min_size=5, max_size=40), STREAMS)
@settings(deadline=None, max_examples=25)
def test_five_gram_equals_brute_force(stream: list[int], text: list[int]) -> None:
    """At every token of a text, the first ones too, which have fewer than four before them."""
    model = ngram.KneserNey.fit(np.array(stream), VOCABULARY_SIZE, order=5)
    text = [*text[:9], *stream[:9]]
    found = model.probabilities(np.array(text))
    for place in range(1, len(text)):
        history = tuple(text[max(0, place - 4) : place])
        expected = brute(stream, history, text[place], highest=len(history) == 4)
        assert math.isclose(found[place - 1], expected, rel_tol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
@given(st.lists(st.integers(0, VOCABULARY_SIZE - 1), min_size=3, max_size=60))
@settings(deadline=None, max_examples=10)
def test_every_history_has_a_distribution_without_zeros(order: int, stream: list[int]) -> None:
    probabilities = table(stream, order)
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
        train = corpus.ids["train"].tolist()
        size = len(corpus.vocabulary)
        model = ngram.KneserNey.fit(np.array(train), size)
        nll = -np.log([model.probabilities(np.array(pair))[0] for pair in zip(stream, stream[1:], strict=False)]).mean()
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


def test_a_longer_history_is_worth_something_where_two_words_do_not_tell_the_third() -> None:
    rng = np.random.default_rng(0)
    lines = [list("abcxdb" + "ey" * pick) if pick else list("dbcyabex") for pick in rng.integers(0, 2, 400)]
    corpus = encode("t", dict.fromkeys(SPLITS, lines))
    two, five = (ngram.evaluate(corpus, order)["test"]["perplexity"] for order in (2, 5))
    assert five < 0.8 * two


def test_a_single_token_is_refused() -> None:
    with pytest.raises(InputError, match="expected a training text of at least 2 tokens, found 1"):
        ngram.KneserNey.fit(np.array([0]), 2)
    with pytest.raises(InputError, match="expected a training text of at least 5 tokens, found 4"):
        ngram.KneserNey.fit(np.array([0, 1, 0, 1]), 2, order=5)
    with pytest.raises(InputError, match="--order: expected 2 or more, found 1"):
        ngram.KneserNey.fit(np.array([0, 1, 0, 1]), 2, order=1)
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


def test_another_order_is_a_variant_of_its_own(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", "tiny", dict.fromkeys(SPLITS, [["a", "b"], ["b", "a", "a"]]))
    out = tmp_path / "run" / "metrics.json"
    ngram.main(["--data", str(tmp_path / "c"), "--order", "5", "--out", str(out), "--label", "config=smoke"])
    content = json.loads(out.read_text())
    assert content["variant"] == "kneser-ney-5" and content["metrics"] == ngram.evaluate(corpus, 5)
    assert collect([out])["variant"].unique().tolist() == ["kneser-ney-5"]


@pytest.mark.parametrize("label", ["config", "=smoke", "", "colour=red"])
def test_a_label_without_key_or_value_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(InputError, match="--label: expected KEY=VALUE .*, found"):
        ngram.main(["--data", str(tmp_path), "--out", str(tmp_path / "m.json"), "--label", label])
    assert not list(tmp_path.iterdir())

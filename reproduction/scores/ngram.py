"""Interpolated Kneser-Ney n-grams: a baseline without attention for every neural language model here.

The formulas follow Kneser and Ney (1995) in the interpolated form of Chen and Goodman (1999). With c(h w) the count of
an n-gram, D the discount of its order, N1+ a number of distinct neighbours, h' the history h without its first word,

    P(w | h) = max(c(h w) - D, 0) / c(h .)  +  D N1+(h .) / c(h .) * P(w | h')
    P(w)     = max(c(w) - D, 0) / c(.)  +  D |{w: c(w) > 0}| / c(.) / V

The highest order counts how often an n-gram is in the training stream, every lower one its left neighbours there:
c(h w) = N1+(. h w). So a word of the vocabulary that was never seen still has a probability, and a history that was
never seen leaves P(w | h'). Run ``python -m reproduction.scores.ngram --help``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attention_pruning.errors import InputError
from reproduction.data.language.corpus import Corpus
from reproduction.data.language.encoding import UNKNOWN
from reproduction.runs.command import run_main
from reproduction.runs.metrics import LABELS, parse_labels, write_metrics
from reproduction.runs.record import RunRecord

EVALUATED_SPLITS = ("valid", "test")


def discount(counts: np.ndarray) -> float:
    """Return n1 / (n1 + 2 n2), n1 and n2 the number of entries of ``counts`` equal to 1 and 2.

    Where nothing occurs once the estimate would leave no mass for the unseen; one half is used then.
    """
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once else 0.5


def smoothed_unigram(counts_V: np.ndarray) -> np.ndarray:
    """Discount counts and spread what is taken off evenly over the vocabulary.

    Parameters
    ----------
    counts_V : numpy.ndarray
        Non-negative counts, one a symbol, not all zero.

    Returns
    -------
    numpy.ndarray
        float64 [V], positive, sums to one.
    """
    taken = discount(counts_V[counts_V > 0])
    total = counts_V.sum()
    spread = taken * (counts_V > 0).sum() / total / counts_V.size
    return np.maximum(counts_V - taken, 0.0) / total + spread


@dataclass(frozen=True)
class Order:
    """The counts of one order n; see the module for the formulas.

    Attributes
    ----------
    grams : numpy.ndarray
        int64 [G], ascending: h * V + w of each distinct n-gram h w, with h the place of the history among the grams of
        the order below (for n = 2: the word itself).
    counts : numpy.ndarray
        int64 [G]: c(h w)
    history_counts, history_kinds : numpy.ndarray
        int64 [H]: c(h .) and N1+(h .)
    discount : float
        D
    """

    grams: np.ndarray
    counts: np.ndarray
    history_counts: np.ndarray
    history_kinds: np.ndarray
    discount: float

    @classmethod
    def of(cls, grams: np.ndarray, counts: np.ndarray, histories: int, vocabulary_size: int) -> Order:
        """Sum over the words after each of so many histories."""
        history = grams // vocabulary_size
        # The weights are counts far below 2**53, so that bincount's float64 is exact.
        sums = np.bincount(history, weights=counts, minlength=histories).astype(np.int64)
        kinds = np.bincount(history[counts > 0], minlength=histories)
        return cls(grams, counts, sums, kinds, discount(counts))

    def interpolate(self, history: np.ndarray, grams: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P(w | h) from P(w | h'), and the places of the n-grams among those that were seen, -1 for others.

        Parameters
        ----------
        history : numpy.ndarray
            int64 [N]: place of each history, -1 for one that was never seen.
        grams : numpy.ndarray
            int64 [N]: h * V + w
        lower : numpy.ndarray
            float64 [N]: P(w | h')
        """
        place = np.minimum(np.searchsorted(self.grams, grams), self.grams.size - 1)
        known = history >= 0
        found = known & (self.grams[place] == grams)
        counts = np.where(found, self.counts[place], 0)
        seen = np.where(known, self.history_counts[history], 0)
        # A history never seen: the n-gram's own term is 0, and the whole mass goes to the lower order.
        direct = np.maximum(counts - self.discount, 0.0) / np.maximum(seen, 1)
        back_off = np.where(seen > 0, self.discount * self.history_kinds[history] / np.maximum(seen, 1), 1.0)
        return direct + back_off * lower, np.where(found, place, -1)


@dataclass(frozen=True)
class KneserNey:
    """A fitted model; see the module for the formulas.

    Attributes
    ----------
    orders : tuple of Order
        From bigrams up.
    lower_V : numpy.ndarray
        float64 [V]: P(w), the distribution for a history that was never seen.
    """

    orders: tuple[Order, ...]
    lower_V: np.ndarray

    @classmethod
    def fit(cls, ids: np.ndarray, vocabulary_size: int, order: int = 2) -> KneserNey:
        """Count the n-grams up to an order in one stream of ids (integers [N], N >= order, below the size).

        Raises
        ------
        InputError
            If the order is below 2, or the stream is shorter than it.
        """
        if order < 2:
            raise InputError(f"--order: expected 2 or more, found {order}")
        if ids.size < order:
            raise InputError(f"expected a training text of at least {order} tokens, found {ids.size}")
        # The n-gram that ends at a token is the one before it, of the order below, and the token.
        ends = [ids.astype(np.int64)]
        kinds: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        for n in range(2, order + 1):
            grams, first, place, found = np.unique(
                ends[-1][:-1] * vocabulary_size + ids[n - 1 :],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            # Without its first word, an n-gram of the order above ends one place later in the list of the order below.
            size = kinds[-1].size if kinds else vocabulary_size
            counts.append(np.bincount(ends[-1][first + 1], minlength=size))
            ends.append(place)
            kinds.append(grams)
        counts.append(found)
        sizes = [vocabulary_size, *(grams.size for grams in kinds)]
        orders = [Order.of(*of_order, vocabulary_size) for of_order in zip(kinds, counts[1:], sizes[:-1], strict=True)]
        return cls(tuple(orders), smoothed_unigram(counts[0]))

    def probabilities(self, ids: np.ndarray) -> np.ndarray:
        """P of every token of a stream but the first, each after as many of those before it as the model knows.

        Parameters
        ----------
        ids : numpy.ndarray
            Integers [N].

        Returns
        -------
        numpy.ndarray
            float64 [N - 1]
        """
        found = self.lower_V[ids[1:]]
        end = ids.astype(np.int64)
        for n, order in enumerate(self.orders, start=2):
            history, grams = end[:-1], end[:-1] * self.lower_V.size + ids[n - 1 :]
            found[n - 2 :], end = order.interpolate(history, grams, found[n - 2 :])
        return found


def evaluate(corpus: Corpus, order: int = 2) -> dict[str, dict[str, float]]:
    """Fit on the training split and evaluate the others as a language model sees them.

    Every token but a split's first is predicted from those before it, ``<eos>`` and ``<unk>`` included.

    Returns
    -------
    dict
        For ``valid`` and ``test``: ``perplexity`` and ``nll`` (nats a token) of the n-gram, ``unigram_perplexity``,
        ``tokens``, the number of predictions, and ``unknown_share``, how many of the tokens are ``<unk>``.
    """
    model = KneserNey.fit(corpus.ids["train"], len(corpus.vocabulary), order)
    unigram_V = smoothed_unigram(np.bincount(corpus.ids["train"], minlength=len(corpus.vocabulary)))
    metrics = {}
    for split in EVALUATED_SPLITS:
        ids = corpus.ids[split]
        if ids.size < 2:
            raise InputError(f"{corpus.name}: expected at least 2 tokens in {split}, found {ids.size}")
        nll = -float(np.log(model.probabilities(ids)).mean())
        unigram_nll = -float(np.log(unigram_V[ids[1:]]).mean())
        metrics[split] = {
            "perplexity": math.exp(nll),
            "nll": nll,
            "unigram_perplexity": math.exp(unigram_nll),
            "tokens": int(ids.size - 1),
            "unknown_share": float((ids == corpus.vocabulary.index(UNKNOWN)).mean()),
        }
    return metrics


def variant(order: int) -> str:
    """What an order is called in metrics: a bigram has no number."""
    return "kneser-ney" if order == 2 else f"kneser-ney-{order}"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.scores.ngram",
        description="Perplexity of an interpolated Kneser-Ney n-gram (and a unigram) on a prepared corpus.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        required=True,
        default=argparse.SUPPRESS,
        help="prepared corpus, or a folder of raw train.txt valid.txt test.txt",
    )
    parser.add_argument("--order", type=int, default=2, help="n: predict each token from the n - 1 before it")
    parser.add_argument(
        "--out", required=True, default=argparse.SUPPRESS, help="metrics.json to write; run.json goes beside it"
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"label to write into metrics.json, one of {', '.join(LABELS)}; may be repeated",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    arguments = build_parser().parse_args(argv)
    labels = parse_labels(arguments.label)
    record = RunRecord("reproduction.scores.ngram", vars(arguments))
    corpus = Corpus.load(arguments.data)
    metrics = evaluate(corpus, arguments.order)
    identity = {"experiment": "language_modelling", "dataset": corpus.name, "variant": variant(arguments.order)}
    write_metrics(arguments.out, {**identity, **labels}, metrics)
    record.write(Path(arguments.out).parent / "run.json", data_fingerprint=corpus.fingerprint)
    for split, values in metrics.items():
        unigram = values["unigram_perplexity"]
        print(f"{corpus.name} {split}: {arguments.order}-gram {values['perplexity']:.2f}, unigram {unigram:.2f}")
    return 0


if __name__ == "__main__":
    run_main(main)

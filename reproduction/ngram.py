"""Interpolated Kneser-Ney bigram: what counting alone reaches, a floor under every neural language model here.

The formulas follow Kneser and Ney (1995) in the interpolated form of Chen and Goodman (1999). With c(v w) the count of
a pair in the training stream, D its discount and N1+ the number of distinct neighbours,

    P(w | v) = max(c(v w) - D, 0) / c(v .)  +  D N1+(v .) / c(v .) * P(w)
    P(w)     = max(N1+(. w) - D', 0) / N1+(. .)  +  D' |{w: N1+(. w) > 0}| / N1+(. .) / V

so a word of the vocabulary that was never seen still has a probability, and a history that was never seen leaves P(w).
Run ``python -m reproduction.ngram --help``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attention_pruning.errors import InputError
from reproduction.corpus import Corpus
from reproduction.encoding import UNKNOWN
from reproduction.metrics import LABELS, parse_labels, write_metrics
from reproduction.training import RunRecord, run_main

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
class KneserNeyBigram:
    """A fitted model; see the module for the formulas.

    Attributes
    ----------
    pairs : numpy.ndarray
        int64 [P], ascending: history * V + word of each distinct pair.
    pair_counts : numpy.ndarray
        int64 [P]
    history_counts, history_kinds : numpy.ndarray
        int64 [V]: c(v .) and N1+(v .)
    lower_V : numpy.ndarray
        float64 [V]: P(w), the distribution for a history that was never seen.
    discount : float
        D
    """

    pairs: np.ndarray
    pair_counts: np.ndarray
    history_counts: np.ndarray
    history_kinds: np.ndarray
    lower_V: np.ndarray
    discount: float

    @classmethod
    def fit(cls, ids: np.ndarray, vocabulary_size: int) -> KneserNeyBigram:
        """Count the pairs of neighbours in one stream of ids (integers [N], N >= 2, below ``vocabulary_size``)."""
        if ids.size < 2:
            raise InputError(f"expected a training text of at least 2 tokens, found {ids.size}")
        pairs, pair_counts = np.unique(_pair_codes(ids[:-1], ids[1:], vocabulary_size), return_counts=True)
        histories, words = np.divmod(pairs, vocabulary_size)
        # The weights are counts far below 2**53, so that bincount's float64 is exact.
        history_counts = np.bincount(histories, weights=pair_counts, minlength=vocabulary_size).astype(np.int64)
        return cls(
            pairs=pairs,
            pair_counts=pair_counts,
            history_counts=history_counts,
            history_kinds=np.bincount(histories, minlength=vocabulary_size),
            lower_V=smoothed_unigram(np.bincount(words, minlength=vocabulary_size)),
            discount=discount(pair_counts),
        )

    def probability(self, histories: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Return P(word | history), float64, for two integer arrays of one shape."""
        wanted = _pair_codes(histories, words, self.lower_V.size)
        place = np.minimum(np.searchsorted(self.pairs, wanted), self.pairs.size - 1)
        counts = np.where(self.pairs[place] == wanted, self.pair_counts[place], 0)
        seen = self.history_counts[histories]
        # A history never seen: the pair's own term is 0, and the whole mass goes to the lower order.
        direct = np.maximum(counts - self.discount, 0.0) / np.maximum(seen, 1)
        back_off = np.where(seen > 0, self.discount * self.history_kinds[histories] / np.maximum(seen, 1), 1.0)
        return direct + back_off * self.lower_V[words]


def _pair_codes(histories: np.ndarray, words: np.ndarray, vocabulary_size: int) -> np.ndarray:
    return histories.astype(np.int64) * vocabulary_size + words


def evaluate(corpus: Corpus) -> dict[str, dict[str, float]]:
    """Fit on the training split and evaluate the others as a language model sees them.

    Every token but a split's first is predicted from the one before it, ``<eos>`` and ``<unk>`` included.

    Returns
    -------
    dict
        For ``valid`` and ``test``: ``perplexity`` and ``nll`` (nats a token) of the bigram, ``unigram_perplexity``,
        ``tokens``, the number of predictions, and ``unknown_share``, how many of the tokens are ``<unk>``.
    """
    model = KneserNeyBigram.fit(corpus.ids["train"], len(corpus.vocabulary))
    unigram_V = smoothed_unigram(np.bincount(corpus.ids["train"], minlength=len(corpus.vocabulary)))
    metrics = {}
    for split in EVALUATED_SPLITS:
        ids = corpus.ids[split]
        if ids.size < 2:
            raise InputError(f"{corpus.name}: expected at least 2 tokens in {split}, found {ids.size}")
        nll = -float(np.log(model.probability(ids[:-1], ids[1:])).mean())
        unigram_nll = -float(np.log(unigram_V[ids[1:]]).mean())
        metrics[split] = {
            "perplexity": math.exp(nll),
            "nll": nll,
            "unigram_perplexity": math.exp(unigram_nll),
            "tokens": int(ids.size - 1),
            "unknown_share": float((ids == corpus.vocabulary.index(UNKNOWN)).mean()),
        }
    return metrics


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.ngram",
        description="Perplexity of an interpolated Kneser-Ney bigram (and a unigram) on a prepared corpus.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        required=True,
        default=argparse.SUPPRESS,
        help="prepared corpus, or a folder of raw train.txt valid.txt test.txt",
    )
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
    record = RunRecord("reproduction.ngram", vars(arguments))
    corpus = Corpus.load(arguments.data)
    metrics = evaluate(corpus)
    identity = {"experiment": "language_modelling", "dataset": corpus.name, "variant": "kneser-ney"}
    write_metrics(arguments.out, {**identity, **labels}, metrics)
    record.write(Path(arguments.out).parent / "run.json", data_fingerprint=corpus.fingerprint)
    for split, values in metrics.items():
        print(f"{corpus.name} {split}: bigram {values['perplexity']:.2f}, unigram {values['unigram_perplexity']:.2f}")
    return 0


if __name__ == "__main__":
    run_main(main)

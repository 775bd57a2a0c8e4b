"""Stand-ins for three of GLUE's tasks, made of two Bible versions that install with pip. They are not GLUE.

- Bible-Paraphrase, in MRPC's format: the same verse in two versions, or another one nearby that shares as many words.
- Bible-Order, in RTE's: two neighbouring clauses of a verse, in their order or swapped.
- Bible-Acceptability, in CoLA's: a clause as it is written, or with three adjacent words in another order.

Whole books are held out. Run ``python -m reproduction.data.tasks.bible_glue --help``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from attention_pruning import InputError
from reproduction.data.language.bible import CANON, VERSIONS, book_of, split_books
from reproduction.data.preparation import run_preparation
from reproduction.data.tasks.glue import MRPC_FORMAT, TASKS, Task
from reproduction.data.translation.bible_pairs import CLAUSE_END, aligned_verses
from reproduction.runs.command import run_main
from reproduction.runs.files import atomic_path, make_folder, write_json

DESCRIPTION_FILE = "tasks.json"
FILES = {"train": "train.tsv", "valid": "dev.tsv", "test": "test.tsv"}
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
MARKS_AROUND = re.compile(r"^\W+|\W+$")
MIN_WORDS = 5
#: Neighbouring words whose order is changed in Bible-Acceptability.
SPAN = 3
#: In Bible-Paraphrase: how many verses away the other one may be, how far the overlaps of the two pairs may differ, and
#: from what overlap on two verses of one version count as the same.
NEIGHBOURS, OVERLAP_TOLERANCE, SAME_VERSE = 40, 0.05, 0.5

#: Verse id and text in both versions.
Verse = tuple[int, str, str]


@dataclass(frozen=True)
class Example:
    """A row to be: ids of its verses, sentences, and the number of its class."""

    verses: tuple[int, ...]
    sentences: tuple[str, ...]
    label: int


@cache
def words(text: str) -> tuple[str, ...]:
    """The words of a text in lower case."""
    return tuple(WORD.findall(text.lower()))


@cache
def word_set(text: str) -> frozenset[str]:
    """The different words of a text."""
    return frozenset(words(text))


def overlap(first: str, second: str) -> float:
    """Share of the words of two texts that both have."""
    a, b = word_set(first), word_set(second)
    shared = len(a & b)
    return shared / max(len(a) + len(b) - shared, 1)


def usable(sentences: Iterable[str], max_words: int) -> Callable[[str], bool]:
    """Whether a sentence has a fit length and its words occur but once in ``sentences``.

    What the Bible says twice would be in two splits, or be a wrong counter-example.
    """
    counts = Counter(map(words, sentences))
    return lambda sentence: MIN_WORDS <= len(words(sentence)) <= max_words and counts[words(sentence)] == 1


def paraphrases(verses: Sequence[Verse], max_words: int, random: Random) -> list[Example]:
    """Pairs of verses, the second in the other version: the same verse (class 1) or one nearby (class 0).

    Every first verse comes twice, with itself and with another that shares about as many words with it: neither it
    alone nor the number of common words tells the class. Verses that have no such neighbour are left out.
    """
    is_usable = usable((text for _, *texts in verses for text in texts), max_words)
    kept = [verse for verse in verses if is_usable(verse[1]) and is_usable(verse[2])]
    candidates = [
        (difference, verse, other)
        for place, verse in enumerate(kept)
        for other in kept[max(place - NEIGHBOURS, 0) : place + NEIGHBOURS + 1]
        if book_of(verse[0]) == book_of(other[0])
        and (difference := abs(overlap(verse[1], other[2]) - overlap(verse[1], verse[2]))) <= OVERLAP_TOLERANCE
        and overlap(verse[2], other[2]) <= SAME_VERSE  # which leaves out the verse itself
    ]
    # The pairs that differ least in overlap are taken first, each verse once on either side.
    random.shuffle(candidates)
    candidates.sort(key=lambda candidate: candidate[0])
    firsts, seconds = set(), set()
    examples = []
    for _, verse, other in candidates:
        if verse[0] not in firsts and other[0] not in seconds:
            firsts.add(verse[0])
            seconds.add(other[0])
            examples.append(Example((verse[0], verse[0]), (verse[1], verse[2]), 1))
            examples.append(Example((verse[0], other[0]), (verse[1], other[2]), 0))
    return examples


def clause_order(verses: Sequence[Verse], max_words: int, random: Random) -> list[Example]:
    """Two neighbouring clauses of a verse, in order (class 0) or swapped (class 1), one pair a verse.

    The marks around them and the case of their first letters go: these would tell which came first.
    """
    cut = {i: [MARKS_AROUND.sub("", clause) for clause in CLAUSE_END.split(text)] for i, _, text in verses}
    is_usable = usable((clause for clauses in cut.values() for clause in clauses), max_words)
    examples = []
    for verse_id, clauses in cut.items():
        if pairs := [pair for pair in pairwise(clauses) if all(map(is_usable, pair))]:
            pair = tuple(clause[0].upper() + clause[1:] for clause in random.choice(pairs))
            swapped = random.randrange(2)
            examples.append(Example((verse_id,), pair[::-1] if swapped else pair, swapped))
    return examples


def acceptability(verses: Sequence[Verse], max_words: int, random: Random) -> list[Example]:
    """A clause with three adjacent words in another order (class 0), or as it stands (class 1), each clause once."""
    clauses = [(verse_id, clause) for verse_id, _, text in verses for clause in CLAUSE_END.split(text)]
    is_usable = usable((clause for _, clause in clauses), max_words)
    examples = []
    for verse_id, clause in clauses:
        # Both classes come from clauses that could be changed: that there is a place to change tells nothing.
        if is_usable(clause) and (changed := reordered(clause, random)):
            label = random.randrange(2)
            examples.append(Example((verse_id,), (clause if label else changed,), label))
    return examples


def reordered(clause: str, random: Random) -> str | None:
    """A clause with three adjacent words in another order; None if no three are different and without a mark.

    The first and the last word stay: a capital or a full stop within would give the change away.
    """
    tokens = clause.split()
    places = [
        place
        for place in range(1, len(tokens) - SPAN)
        if all(map(str.isalpha, tokens[place : place + SPAN])) and len(set(tokens[place : place + SPAN])) == SPAN
    ]
    if not places:
        return None
    place = random.choice(places)
    before = after = tokens[place : place + SPAN]
    while after == before:
        after = random.sample(before, SPAN)
    return " ".join(tokens[:place] + after + tokens[place + SPAN :])


MAKERS: dict[str, Callable[[Sequence[Verse], int, Random], list[Example]]] = {
    "Bible-Paraphrase": paraphrases,
    "Bible-Order": clause_order,
    "Bible-Acceptability": acceptability,
}


def balanced(examples: Sequence[Example], limit: int | None, random: Random) -> list[Example]:
    """As many examples of each class, at most ``limit`` in all, in a random order.

    Raises
    ------
    InputError
        If none are left.
    """
    classes = [[example for example in examples if example.label == label] for label in (0, 1)]
    pairs = list(zip(*classes, strict=False))  # in Bible-Paraphrase, the two rows of a first verse
    if not pairs:
        raise InputError("--max-words: expected a limit that leaves rows of both classes in every split, found none")
    random.shuffle(pairs)
    chosen = [example for pair in pairs[: limit and limit // 2] for example in pair]
    random.shuffle(chosen)
    return chosen


def file_lines(task: Task, split: str, examples: Sequence[Example]) -> Iterator[str]:
    """The lines of a file in the format of the task that the stand-in resembles; here the test set has labels too."""
    headerless = task.headerless is not None and split != "test"
    with_ids = task.label_field == MRPC_FORMAT["label_field"]
    if with_ids:
        yield "\t".join((task.label_field, "#1 ID", "#2 ID", *task.text_fields))
    elif not headerless:
        yield "\t".join(("index", *task.text_fields, task.label_field))
    for index, example in enumerate(examples):
        label = task.labels[example.label] if task.named_labels else str(example.label)
        if with_ids:
            yield "\t".join((label, *map(str, example.verses), *example.sentences))
        elif headerless:
            yield "\t".join((str(example.verses[0]), label, "" if example.label else "*", *example.sentences))
        else:
            yield "\t".join((str(index), *example.sentences, label))


def baselines(splits: Mapping[str, Sequence[Example]]) -> dict[str, float]:
    """Accuracy on the validation split of what looks at words only, learned on the training split.

    A threshold on the overlap (of pairs), and logistic regression on the counts of words in each sentence.
    """
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression

    labels = {split: np.array([example.label for example in splits[split]]) for split in ("train", "valid")}
    found = {"majority": float(max(np.mean(labels["valid"] == label) for label in (0, 1)))}
    if len(splits["valid"][0].sentences) == 2:
        shared = {split: np.array([overlap(*example.sentences) for example in splits[split]]) for split in labels}
        candidates = [(level, sign) for level in np.linspace(0, 1, 21) for sign in (False, True)]
        level, sign = max(candidates, key=lambda c: np.mean(((shared["train"] > c[0]) ^ c[1]) == labels["train"]))
        found["word_overlap"] = float(np.mean(((shared["valid"] > level) ^ sign) == labels["valid"]))
    vectorizer = DictVectorizer()
    counts = {
        split: [
            Counter((str(place), word) for place, sentence in enumerate(example.sentences) for word in words(sentence))
            for example in splits[split]
        ]
        for split in labels
    }
    model = LogisticRegression(max_iter=500).fit(vectorizer.fit_transform(counts["train"]), labels["train"])
    found["bag_of_words"] = float(model.score(vectorizer.transform(counts["valid"]), labels["valid"]))
    return {name: round(value, 4) for name, value in found.items()}


def shared_verses(versions: Sequence[str], seed: int) -> tuple[list[Verse], dict[str, list[int]]]:
    """Verses that both versions have, and the books of each split.

    Raises
    ------
    InputError
        If there are not two different versions, or one is not installed.
    """
    if len(set(versions)) != 2 or len(versions) != 2:
        raise InputError(f"--versions: expected two different ones, found {' '.join(versions)}")
    verses = [verse for verse in aligned_verses(*versions) if book_of(verse[0]) in CANON]
    return verses, split_books(Counter(book_of(verse_id) for verse_id, *_ in verses), seed)


def check_limits(**limits: int | None) -> None:
    """Refuse a flag's value below 2, which is what a balanced split of two classes needs.

    Raises
    ------
    InputError
        Naming the flag.
    """
    for flag, limit in limits.items():
        if limit is not None and limit < 2:
            raise InputError(f"--{flag.replace('_', '-')}: expected at least 2, found {limit}")


def prepare(
    out: str | os.PathLike[str],
    versions: Sequence[str] = ("ylt", "bbe"),
    *,
    max_train: int | None = None,
    max_eval: int | None = 500,
    max_words: int = 25,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the tasks to the folder ``out``; the arguments are the command's flags. Returns their description."""
    check_limits(max_train=max_train, max_eval=max_eval)
    if max_words < MIN_WORDS:
        raise InputError(f"--max-words: expected at least {MIN_WORDS}, found {max_words}")
    verses, books = shared_verses(versions, seed)
    limits = {"train": max_train, "valid": max_eval, "test": max_eval}
    folder = make_folder(out)
    (folder / DESCRIPTION_FILE).unlink(missing_ok=True)  # an interrupted replacement is not described as another
    digest, tasks = hashlib.sha256(), {}
    for name, make in MAKERS.items():
        examples = make(verses, max_words, Random(seed))
        splits = {}
        for split, file in FILES.items():
            of_split = [example for example in examples if book_of(example.verses[0]) in books[split]]
            splits[split] = balanced(of_split, limits[split], Random(seed))
            text = "".join(f"{line}\n" for line in file_lines(TASKS[name], split, splits[split]))
            digest.update(f"{name}/{file}\n{text}".encode())
            with atomic_path(folder / name / file) as temporary:
                temporary.write_text(text, encoding="utf-8")
        tasks[name] = {
            "rows": {split: len(rows) for split, rows in splits.items()},
            "baseline_accuracy": baselines(splits),
        }
    description = {
        "what": "stand-ins for tasks of GLUE, made of Bible verses; not GLUE",
        "source": [f"{VERSIONS[version]}, PyPI package pythonbible-{version}" for version in versions],
        "split_rule": "whole books, about 1/11 of the verses each for dev and test",
        "books": books,
        "max_words": max_words,
        "seed": seed,
        "tasks": tasks,
        "fingerprint": digest.hexdigest()[:16],
    }
    write_json(folder / DESCRIPTION_FILE, description)
    return description


def report(description: Mapping[str, Any]) -> tuple[str, str]:
    """Fingerprint of the tasks, and one line about them."""
    counts = ", ".join(f"{name} {task['rows']['train']:,}" for name, task in description["tasks"].items())
    return description["fingerprint"], f"training rows: {counts} ({description['fingerprint']})"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.data.tasks.bible_glue",
        description="Write replacements for tasks of GLUE (not GLUE), in its layout, from two Bible versions.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, default=argparse.SUPPRESS, help="folder to write; it serves as a data folder")
    add(
        "--versions",
        nargs=2,
        default=("ylt", "bbe"),
        choices=VERSIONS,
        help="the two versions; the tasks that need but one are made of the second",
    )
    add("--max-train", type=int, help="training rows to keep of each task, drawn with the seed; None: all")
    add("--max-eval", type=int, default=500, help="rows of dev and test to keep, each, drawn with the seed")
    add("--max-words", type=int, default=25, help="longest sentence; a word is one to two word pieces")
    add("--seed", type=int, default=0, help="seed of the draw of books and of all else")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_preparation(build_parser(), prepare, report, argv)


if __name__ == "__main__":
    run_main(main)

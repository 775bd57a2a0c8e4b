"""Other rows for a model that is fine-tuned already on a task of GLUE, in the layout of that task.

- ``HANS`` (McCoy et al., 2019) for RTE: ``hans/hans_eval_30000.tsv`` of the local data folder. Premise and hypothesis
  share all words, and in half of the rows nothing follows; "non-entailment" is RTE's "not_entailment".
- ``PAWS`` (Zhang et al., 2019) for MRPC: ``paws/dev.tsv``. Sentences with the same words in another order.
- ``bible-VERSION-VERSION`` for the stand-ins: the same task made of the same held-out books in two other versions.

Run ``python -m reproduction.data.shifted.tasks --help``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from attention_pruning import InputError
from reproduction.data.language.bible import VERSIONS, book_of
from reproduction.data.language.raw_text import text_lines
from reproduction.data.preparation import run_preparation
from reproduction.data.shifted.text import add_data_flags, check_limit, other_file
from reproduction.data.tasks.bible_glue import DESCRIPTION_FILE as TASKS_FILE
from reproduction.data.tasks.bible_glue import MAKERS, Example, balanced, file_lines, shared_verses
from reproduction.data.tasks.glue import find_task
from reproduction.runs.command import run_main
from reproduction.runs.files import atomic_path, make_folder, write_json
from reproduction.runs.json_file import read_json

DESCRIPTION_FILE = "away.json"
SPLIT, SPLIT_FILE = "valid", "dev.tsv"
HANS_SOURCE = "github.com/tommccoy1/hans, heuristics_evaluation_set.txt"
PAWS_SOURCE = "github.com/google-research-datasets/paws, PAWS-Wiki Labeled (Final)"
#: RTE's class of HANS's labels.
HANS_LABELS = {"entailment": 0, "non-entailment": 1}
_VERSION = "|".join(VERSIONS)
BIBLE = re.compile(rf"bible-({_VERSION})-({_VERSION})")


def tab_rows(path: Path, fields: int) -> list[tuple[int, list[str]]]:
    """Number and fields of every line of a file whose fields are between tabs, quotes meaning nothing.

    Raises
    ------
    InputError
        If it is not UTF-8, a line has another number of fields, or there is none.
    """
    rows = [(number, line.split("\t")) for number, line in enumerate(text_lines(path), 1) if line.strip()]
    for number, row in rows:
        if len(row) != fields:
            raise InputError(f"{path}, line {number}: expected {fields} fields between tabs, found {len(row)}")
    if not rows:
        raise InputError(f"{path}: expected lines of {fields} fields between tabs, found none")
    return rows


def example(path: Path, number: int, sentences: Sequence[str], label: str, classes: Mapping[str, int]) -> Example:
    """A row of a file as an example; its number stands for where it is from.

    Raises
    ------
    InputError
        If the label is none of the classes.
    """
    if label not in classes:
        raise InputError(f"{path}, line {number}: expected {' or '.join(classes)} as label, found {label!r}")
    return Example((number, number), tuple(sentences), classes[label])


def hans(data_dir: str | os.PathLike[str] | None) -> list[Example]:
    """The rows of HANS, entailed or not.

    Raises
    ------
    InputError
        If the file is missing or is something else.
    """
    path = other_file(data_dir, "hans/hans_eval_30000.tsv", HANS_SOURCE)
    header, *rows = tab_rows(path, 4)
    expected = ["gold_label", "sentence1", "sentence2", "heuristic"]
    if header[1] != expected:
        raise InputError(f"{path}, line 1: expected the fields {', '.join(expected)}, found {', '.join(header[1])}")
    return [example(path, number, row[1:3], row[0], HANS_LABELS) for number, row in rows]


def paws(data_dir: str | os.PathLike[str] | None) -> list[Example]:
    """The rows of PAWS, paraphrases or not; the file has no header.

    Raises
    ------
    InputError
        If the file is missing or is something else.
    """
    path = other_file(data_dir, "paws/dev.tsv", PAWS_SOURCE)
    return [example(path, number, row[1:3], row[3], {"0": 0, "1": 1}) for number, row in tab_rows(path, 4)]


#: Name -> the task that it is for, what reads it, and where it is from.
PUBLISHED: dict[str, tuple[str, Callable[..., list[Example]], str]] = {
    "HANS": ("RTE", hans, HANS_SOURCE),
    "PAWS": ("MRPC", paws, PAWS_SOURCE),
}


def home_description(folder: str | os.PathLike[str] | None, file: str, name: str) -> dict[str, Any]:
    """What a folder of stand-ins says of itself: held-out books, lengths and seed.

    Raises
    ------
    InputError
        If no folder is named, or it has no such description.
    """
    if folder is None:
        raise InputError(f"{name}: expected the stand-ins of the training with --trained, found none")
    path = Path(folder) / file
    expected = "the description of stand-ins"
    description = read_json(path, expected)
    found = description if isinstance(description, dict) else {}
    books = found.get("books")
    by_split = isinstance(books, dict) and all(isinstance(books.get(split), list) for split in ("valid", "test"))
    if not by_split or not all(type(found.get(name)) is int for name in ("max_words", "seed")):
        raise InputError(f"{path}: expected {expected}, found something else")
    return description


def sample(rows: Sequence[Any], limit: int | None, seed: int) -> list[Any]:
    """As many rows as ``limit`` says, drawn with the seed, in their order; all of them if there are no more."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[place] for place in sorted(Random(seed).sample(range(len(rows)), limit))]


def bible_rows(task: str, versions: Sequence[str], home: Mapping[str, Any], limit: int | None) -> list[Example]:
    """A stand-in made of two other versions, of the books that were held out for validation.

    Raises
    ------
    InputError
        If there is no such stand-in, or no row is left.
    """
    if task not in MAKERS:
        raise InputError(f"bible-{'-'.join(versions)}: expected a task of {', '.join(MAKERS)}, found {task}")
    verses, _ = shared_verses(versions, home["seed"])
    examples = MAKERS[task](verses, home["max_words"], Random(home["seed"]))
    held_out = set(home["books"]["valid"])
    kept = [row for row in examples if book_of(row.verses[0]) in held_out]
    if {row.label for row in kept} != {0, 1}:
        raise InputError(f"bible-{'-'.join(versions)}: expected rows of both classes of {task}, found {len(kept)} rows")
    return balanced(kept, limit, Random(home["seed"]))


def prepare(
    out: str | os.PathLike[str],
    task: str,
    name: str,
    *,
    trained: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the rows to the folder ``out``; the arguments are the command's flags. Returns their description."""
    check_limit(limit)
    found = find_task(task)
    if match := BIBLE.fullmatch(name):
        home = home_description(trained, TASKS_FILE, name)
        examples = bible_rows(found.name, match.groups(), home, limit)
        source = ", ".join(f"{VERSIONS[version]} (PyPI package pythonbible-{version})" for version in match.groups())
    elif name in PUBLISHED:
        wanted, read, source = PUBLISHED[name]
        if found.name != wanted:
            raise InputError(f"{name}: expected the task {wanted}, found {found.name}")
        examples = sample(read(data_dir), limit, seed)
    else:
        raise InputError(f"--name: expected bible-VERSION-VERSION or one of {', '.join(PUBLISHED)}, found {name!r}")
    if not examples:
        raise InputError(f"{name}: expected rows, found none")
    text = "".join(f"{line}\n" for line in file_lines(found, SPLIT, examples))
    classes = Counter(found.labels[row.label] for row in examples)
    description = {
        "name": name,
        "task": found.name,
        "source": source,
        "rows": len(examples),
        "classes": dict(sorted(classes.items())),
        "limit": limit,
        "seed": seed,
        "fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16],
    }
    return write_file(out, f"{found.name}/{SPLIT_FILE}", text, description)


def write_file(out: str | os.PathLike[str], file: str, text: str, description: dict[str, Any]) -> dict[str, Any]:
    """Write a data folder of one file, and what it is last of all; return the latter."""
    folder = make_folder(out)
    (folder / DESCRIPTION_FILE).unlink(missing_ok=True)  # an interrupted replacement is not described as another
    with atomic_path(folder / file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(folder / DESCRIPTION_FILE, description)
    return description


def report(description: Mapping[str, Any]) -> tuple[str, str]:
    """Fingerprint of the rows, and one line about them."""
    classes = ", ".join(f"{label} {number:,}" for label, number in description.get("classes", {}).items())
    rows = f"{description['rows']:,} rows" + (f" ({classes})" if classes else "")
    return description["fingerprint"], f"{description['name']} for {description['task']}: {rows}"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.data.shifted.tasks",
        description="Write out-of-distribution rows for a fine-tuned model, in the layout of its task of GLUE.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--task", required=True, default=argparse.SUPPRESS, help="task that the model was fine-tuned on")
    add_other_flags(parser, f"bible-VERSION-VERSION, or {', '.join(PUBLISHED)}")
    return parser


def add_other_flags(parser: argparse.ArgumentParser, names: str) -> None:
    """Add what other tasks and other questions share."""
    add = parser.add_argument
    add("--name", required=True, default=argparse.SUPPRESS, help=names)
    add("--out", required=True, default=argparse.SUPPRESS, help="folder to write; it serves as a data folder")
    add("--trained", help="folder of the Bible tasks that the model was fine-tuned on, for bible-VERSION-VERSION")
    add_data_flags(parser, "rows to keep, drawn with the seed; None: all")
    add("--seed", type=int, default=0, help="seed of that draw; for Bible versions it is that of the Bible tasks")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_preparation(build_parser(), prepare, report, argv)


if __name__ == "__main__":
    run_main(main)

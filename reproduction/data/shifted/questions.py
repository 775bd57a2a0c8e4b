"""Other questions for a model that is fine-tuned already on SQuAD or its stand-in, in SQuAD's JSON.

- ``adversarial-qa`` (Bartolo et al., 2020): ``adversarial_qa/adversarialqa_validation.jsonl`` of the local data folder.
  Questions about SQuAD's passages, written so that a model in the loop failed.
- ``bible-VERSION-VERSION`` for the stand-in: the held-out books in two other versions.

Run ``python -m reproduction.data.shifted.questions --help``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from attention_pruning import InputError
from reproduction.data.language.bible import VERSIONS, book_of
from reproduction.data.language.raw_text import text_lines
from reproduction.data.preparation import run_preparation
from reproduction.data.shifted.tasks import BIBLE, add_other_flags, home_description, report, sample, write_file
from reproduction.data.shifted.text import check_limit, other_file
from reproduction.data.tasks.bible_glue import shared_verses, usable
from reproduction.data.tasks.bible_squad import DESCRIPTION_FILE as QUESTIONS_FILE
from reproduction.data.tasks.bible_squad import as_json, draw, passages
from reproduction.data.tasks.squad import check_questions
from reproduction.runs.command import run_main
from reproduction.runs.json_file import parse_json

ADVERSARIAL = "adversarial-qa"
ADVERSARIAL_FILE = "adversarial_qa/adversarialqa_validation.jsonl"
ADVERSARIAL_SOURCE = "huggingface.co/datasets/UCLNLP/adversarial_qa, adversarialQA"
SPLIT_FILE = "dev-v1.1.json"
#: Questions about a context of the stand-in, at most: those of `reproduction.data.tasks.bible_squad` by default.
QUESTIONS = 4


def adversarial(path: Path, limit: int | None, seed: int) -> tuple[str, int]:
    """Questions of a file of JSON lines as SQuAD's JSON, and how many they are; each has its context beside it.

    Raises
    ------
    InputError
        If a line is something else.
    """
    rows, asked = [], []
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}, line {number}: expected a question as JSON")
        try:
            answers = [
                {"text": text, "answer_start": start}
                for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
            ]
            question = {"id": row["id"], "question": row["question"], "answers": answers}
            rows.append({"title": row.get("title", ""), "context": row["context"], "question": question})
            asked.append({**rows[-1], **question, "answers": row["answers"]})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{path}, line {number}: expected a question as JSON, found: {found}") from error
    check_questions(asked, path)
    kept = sample(rows, limit, seed)
    data = [
        {"title": row["title"], "paragraphs": [{"context": row["context"], "qas": [row["question"]]}]} for row in kept
    ]
    return json.dumps({"version": "1.1", "data": data}, ensure_ascii=False), len(kept)


def bible_questions(versions: Sequence[str], home: Mapping[str, Any], limit: int | None) -> tuple[str, int]:
    """Questions about passages of the held-out books in two other versions, and how many they are.

    Raises
    ------
    InputError
        If no question is left.
    """
    if type(home.get("passage_words")) is not int:
        raise InputError(f"bible-{'-'.join(versions)}: expected stand-ins that say their passage_words, found others")
    verses, _ = shared_verses(versions, home["seed"])
    is_usable = usable((text for _, *texts in verses for text in texts), home["max_words"])
    held_out = {*home["books"]["valid"], *home["books"]["test"]}
    kept = [verse for verse in verses if book_of(verse[0]) in held_out]
    cut = list(passages(kept, home["passage_words"]))
    asked = draw(cut, is_usable, QUESTIONS, limit, Random(home["seed"]))
    return as_json(asked), sum(len(chosen) for _, chosen in asked)


def prepare(
    out: str | os.PathLike[str],
    name: str,
    *,
    trained: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the questions to the folder ``out``; the arguments are the command's flags. Returns their description."""
    check_limit(limit)
    if match := BIBLE.fullmatch(name):
        home = home_description(trained, QUESTIONS_FILE, name)
        text, count = bible_questions(match.groups(), home, limit)
        source = ", ".join(f"{VERSIONS[version]} (PyPI package pythonbible-{version})" for version in match.groups())
    elif name == ADVERSARIAL:
        text, count = adversarial(other_file(data_dir, ADVERSARIAL_FILE, ADVERSARIAL_SOURCE), limit, seed)
        source = ADVERSARIAL_SOURCE
    else:
        raise InputError(f"--name: expected bible-VERSION-VERSION or {ADVERSARIAL}, found {name!r}")
    if not count:
        raise InputError(f"{name}: expected questions, found none")
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    description = {"name": name, "task": "SQuAD", "source": source, "rows": count, "limit": limit, "seed": seed}
    return write_file(out, SPLIT_FILE, text, description | {"fingerprint": fingerprint})


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.data.shifted.questions",
        description="Write out-of-distribution questions for a fine-tuned model, in SQuAD's JSON.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_other_flags(parser, f"bible-VERSION-VERSION, or {ADVERSARIAL}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_preparation(build_parser(), prepare, report, argv)


if __name__ == "__main__":
    run_main(main)

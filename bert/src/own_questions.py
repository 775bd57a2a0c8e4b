"""Questions that a user brings, in SQuAD's own JSON or a row a question, as transformers' run_qa.py takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from attention_pruning import InputError
from own_data import load_own, own_files, read_file
from reproduction.data.tasks.squad import as_dataset, check_questions, read_questions
from reproduction.runs.json_file import read_json
from run_flags import Flags

_TEXTS = ("id", "context", "question")


def own_questions(flags: Flags) -> DatasetDict:
    """The questions of --dataset_name or of files, as ``reproduction.data.tasks.squad.load_squad`` gives SQuAD's.

    A file has SQuAD's JSON, or rows with ``id question context answers``: in csv and tsv the answers are JSON in their
    cell, ``{"text": [...], "answer_start": [...]}``. A test file may do without answers.

    Raises
    ------
    InputError
        If a column is missing, an answer is not where it says, or a question without answers is not in SQuAD 2.0.
    """
    if flags.data.dataset_name is not None:
        splits = load_own(flags)
        return DatasetDict({split: _checked(rows, split, split, flags) for split, rows in splits.items()})
    return DatasetDict({split: _read(path, split, flags) for split, path in own_files(flags.data).items()})


def _read(path: Path, split: str, flags: Flags) -> Dataset:
    may_lack_answers = flags.data.version_2_with_negative or split == "test"
    data = _json_data(path)
    if isinstance(data, list) and any("paragraphs" in entry for entry in data if isinstance(entry, dict)):
        rows = read_questions(path, may_lack_answers)
        return as_dataset(rows, split, f"{path.name}, {len(rows)} questions")
    options = {} if data is None else {"field": "data"}
    return _checked(read_file(path, split, flags, **options), str(path), split, flags)


def _json_data(path: Path) -> Any:
    """What stands under ``data`` in a file that is one JSON object; None of any other file."""
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        content = read_json(path)
    except InputError:  # an object a line; or whatever, which the reader will say
        return None
    return content.get("data") if isinstance(content, dict) else None


def _checked(rows: Dataset, where: str, split: str, flags: Flags) -> Dataset:
    needed = _TEXTS if split == "test" else (*_TEXTS, "answers")
    if missing := [column for column in needed if column not in rows.column_names]:
        raise InputError(f"{where}: expected a column {missing[0]}, found {', '.join(rows.column_names)}")
    for name in _TEXTS:
        if rows.data.column(name).null_count:
            raise InputError(f"{where}: expected a value in every row of {name}, found one without")
    questions = [
        {name: str(row[name]) for name in _TEXTS}
        | {"title": str(row.get("title") or ""), "answers": _answers(row.get("answers"), where, row["id"])}
        for row in rows
    ]
    check_questions(questions, where, flags.data.version_2_with_negative or split == "test")
    return as_dataset(questions, split, rows.info.description)


def _answers(value: Any, where: str, key: Any) -> dict[str, list]:
    """The lists ``text`` and ``answer_start``, of equal lengths, whatever form they came in."""
    if value in (None, ""):
        return {"text": [], "answer_start": []}
    try:
        found = json.loads(value) if isinstance(value, str) else value
        if isinstance(found, list):  # as in SQuAD's JSON: an object an answer
            found = {name: [answer[name] for answer in found] for name in ("text", "answer_start")}
        if isinstance(found["text"], str) or any(start != int(start) for start in found["answer_start"]):
            raise ValueError("one text for a list, or a part of a character")
        answers = {"text": list(found["text"]), "answer_start": [int(start) for start in found["answer_start"]]}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InputError(
            f'{where}: expected {{"text": [...], "answer_start": [...]}} as answers of question {key}, found {value!r}'
        ) from error
    if len(answers["text"]) != len(answers["answer_start"]):
        raise InputError(f"{where}: expected a start for each answer to question {key}, found {value!r}")
    return answers

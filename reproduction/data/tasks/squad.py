"""SQuAD 1.1 and 2.0 (Rajpurkar et al., 2016 and 2018): questions whose answers are spans of a paragraph.

From a local folder if one is named, in the published JSON, else from the Hugging Face hub at a pinned revision.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_pruning import InputError
from reproduction.data.sources import load_from_hub
from reproduction.runs.json_file import read_json

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

#: Version -> name on the hub, configuration and revision. Others have pinned these; not tried from here.
HUB = {
    "v1.1": ("rajpurkar/squad", "plain_text", "7b6d24c440a36b6815f21b70d25016731768db1f"),
    "v2.0": ("rajpurkar/squad_v2", "squad_v2", "3ffb306f725f7d2ce8394bc1873b24868140c412"),
}
FOLDER = "squad"
#: Split -> its files, the first that is there is read. A subset is never taken silently.
FILES = {"train": ("train-{}.json", "train-{}-subset.json"), "validation": ("dev-{}.json",)}

logger = logging.getLogger(__name__)


def load_squad(data_dir: str | os.PathLike[str] | None, version2: bool = False, **hub: str) -> DatasetDict:
    """Return the splits of SQuAD that there are.

    Parameters
    ----------
    data_dir : path, optional
        Folder that holds ``train-v1.1.json`` and ``dev-v1.1.json``, or ``squad/`` with them. Where there is no training
        file, ``train-v1.1-subset.json`` serves, and a warning says so. None: the Hugging Face hub.
    version2 : bool
        SQuAD 2.0, with questions that have no answer; the names then end in ``-v2.0.json``.
    hub
        ``cache_dir`` and ``token`` for the hub.

    Returns
    -------
    datasets.DatasetDict
        ``train`` and ``validation``, a row a question: ``id title context question answers``, the last a dict of the
        lists ``text`` and ``answer_start`` (in characters of the context), as on the hub.
        ``dataset[split].info.description`` says where the rows come from, a subset included.

    Raises
    ------
    InputError
        If there is no file, or one is malformed.
    """
    # Imported here because it takes seconds and the metrics do not need it.
    from datasets import DatasetDict

    version = "v2.0" if version2 else "v1.1"
    if data_dir is None:
        loaded = load_from_hub(*HUB[version], FOLDER, **hub)
        for part in loaded.values():
            part.info.description = " ".join(HUB[version])
        return loaded
    for folder in (Path(data_dir) / FOLDER, Path(data_dir)):
        found = {split: [folder / name.format(version) for name in names] for split, names in FILES.items()}
        found = {split: [path for path in paths if path.is_file()] for split, paths in found.items()}
        if any(found.values()):
            return DatasetDict({split: _read(paths[0], split, version2) for split, paths in found.items() if paths})
    names = ", ".join(name.format(version) for names in FILES.values() for name in names)
    raise InputError(f"{data_dir}: expected {names} in it or in its folder {FOLDER}, found none of them")


def _read(path: Path, split: str, version2: bool) -> Dataset:
    rows = read_questions(path, version2)
    part = ", a part of the published set" if "subset" in path.name else ""
    if part:
        logger.warning("%s: %d questions%s", path, len(rows), part)
    return as_dataset(rows, split, f"{path.name}, {len(rows)} questions{part}")


def as_dataset(rows: Sequence[Mapping[str, Any]], split: str, description: str) -> Dataset:
    """Questions as a split of SQuAD, which says where they come from."""
    from datasets import Dataset, Features, List, NamedSplit, Value

    features = Features(
        {
            **dict.fromkeys(("id", "title", "context", "question"), Value("string")),
            "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
        }
    )
    columns = {name: [row[name] for row in rows] for name in features}
    dataset = Dataset.from_dict(columns, features=features, split=NamedSplit(split))
    dataset.info.description = description
    return dataset


def read_questions(path: Path, version2: bool = False) -> list[dict[str, Any]]:
    """Return the questions of a file in SQuAD's JSON, each with its context.

    Raises
    ------
    InputError
        If the file is not such JSON, an answer is not where it says, or a question without answers is not in SQuAD 2.0.
    """
    content = read_json(path, "SQuAD's JSON")
    try:
        rows = [
            {
                "id": question["id"],
                "title": article.get("title", ""),
                "context": paragraph["context"],
                "question": question["question"],
                "answers": {key: [answer[key] for answer in question["answers"]] for key in ("text", "answer_start")},
            }
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: expected SQuAD's JSON, found: {type(error).__name__} {found}") from error
    check_questions(rows, path, version2)
    return rows


def check_questions(rows: Sequence[Mapping[str, Any]], where: str | Path, version2: bool = False) -> None:
    """Refuse what is no text, two questions of one id, answers that are not where they say, and a question without
    answers outside SQuAD 2.0.

    Raises
    ------
    InputError
        Its message begins with ``where``.
    """
    ids = set()
    for row in rows:
        for name in ("id", "title", "context", "question"):
            require_text(row[name], name, where)
        if row["id"] in ids:
            raise InputError(f"{where}: expected questions with ids of their own, found two of {row['id']!r}")
        ids.add(row["id"])
        answers = row["answers"]
        if not answers["text"] and not version2:
            raise InputError(f"{where}: expected an answer to question {row['id']}, found none (SQuAD 2.0?)")
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            require_text(text, f"answer to question {row['id']}", where)
            if type(start) is not int or start < 0:
                raise InputError(
                    f"{where}: expected a character's number where an answer to question {row['id']} starts, found "
                    f"{start!r}"
                )
            if not text or not row["context"].startswith(text, start):
                at = row["context"][start : start + len(text)]
                raise InputError(
                    f"{where}: expected answer {text!r} of question {row['id']} at character {start}, found {at!r}"
                )


def require_text(value: object, what: str, where: str | Path) -> None:
    """Refuse what is no text, or holds halves of characters, which JSON can say and no file can.

    Raises
    ------
    InputError
        Its message begins with ``where``.
    """
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{where}: expected text as {what}, found {value!r}")

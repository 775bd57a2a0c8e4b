"""The nine tasks of GLUE (Wang et al., 2018), and the stand-ins for them that install with pip, through one loader.

A task is described by a :class:`Task`; its files, or those that the Hugging Face hub has, become one set of columns.
The stand-ins are written by ``python -m reproduction.data.tasks.bible_glue`` in the format of the task that they
resemble.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attention_pruning import InputError
from reproduction.data.sources import load_from_hub

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

HUB_DATASET = "nyu-mll/glue"
#: The revision whose files are parquet, as others have pinned it. Not tried from here: no connection to the hub.
HUB_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
FOLDER = "glue"
NO_LABEL = -1
#: Of float32, in which a model learns numbers.
_LARGEST = (2 - 2**-23) * 2.0**127
SENTENCES = ("sentence1", "sentence2")

#: A row of a file by the names of its fields.
Fields = Mapping[str, str]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What a task is and how its files are laid out.

    Parameters
    ----------
    name : str
        As GLUE spells it; also the name of its folder.
    columns : tuple of str
        ``("sentence1",)`` or ``("sentence1", "sentence2")``.
    labels : tuple of str, optional
        Names of the classes in the order of their numbers. None: the label is a number to predict.
    metrics : tuple of str
        What is reported; the task's score is their mean.
    evaluation_splits : tuple of str
        Where it is reported.
    hub_config : str, optional
        Name on the hub. None: the files are prepared by a command of this repository.
    text_fields : tuple of str
        The columns' names in the header of a file.
    label_field : str
        The label's.
    named_labels : bool
        Whether a file has the names of the classes, not their numbers.
    headerless : tuple of str, optional
        Fields of the training and validation files, which then have no header.
    broken_rows : bool
        Whether the published files have rows with another number of fields than the header. They are left out, counted
        and reported; in any other task such a row is an error.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...] = ("accuracy",)
    evaluation_splits: tuple[str, ...] = ("validation",)
    hub_config: str | None = None
    text_fields: tuple[str, ...] = SENTENCES
    label_field: str = "label"
    named_labels: bool = False
    headerless: tuple[str, ...] | None = None
    broken_rows: bool = False

    @property
    def splits(self) -> dict[str, str]:
        """Split -> file name."""
        files = {"train": "train.tsv"}
        for split in self.evaluation_splits:
            part = split.removeprefix("validation")
            files |= {split: f"dev{part}.tsv", f"test{part}": f"test{part}.tsv"}
        return files


MRPC_FORMAT: dict[str, Any] = {
    "columns": SENTENCES,
    "metrics": ("accuracy", "f1"),
    "text_fields": ("#1 String", "#2 String"),
    "label_field": "Quality",
}
RTE_FORMAT: dict[str, Any] = {"columns": SENTENCES, "named_labels": True}
COLA_FORMAT: dict[str, Any] = {
    "columns": SENTENCES[:1],
    "metrics": ("matthews_correlation",),
    "text_fields": ("sentence",),
    "headerless": ("source", "label", "mark", "sentence"),
}
ENTAILMENT = ("entailment", "not_entailment")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("CoLA", labels=("unacceptable", "acceptable"), hub_config="cola", **COLA_FORMAT),
        Task("SST-2", SENTENCES[:1], ("negative", "positive"), hub_config="sst2", text_fields=("sentence",)),
        Task("MRPC", labels=("not_equivalent", "equivalent"), hub_config="mrpc", **MRPC_FORMAT),
        Task("STS-B", SENTENCES, None, ("pearson", "spearman"), hub_config="stsb", label_field="score"),
        Task(
            "QQP",
            SENTENCES,
            ("not_duplicate", "duplicate"),
            ("accuracy", "f1"),
            hub_config="qqp",
            text_fields=("question1", "question2"),
            label_field="is_duplicate",
            broken_rows=True,
        ),
        Task(
            "MNLI",
            SENTENCES,
            ("entailment", "neutral", "contradiction"),
            evaluation_splits=("validation_matched", "validation_mismatched"),
            hub_config="mnli",
            label_field="gold_label",
            named_labels=True,
        ),
        Task(
            "QNLI",
            SENTENCES,
            ENTAILMENT,
            hub_config="qnli",
            text_fields=("question", "sentence"),
            named_labels=True,
        ),
        Task("RTE", labels=ENTAILMENT, hub_config="rte", **RTE_FORMAT),
        Task("WNLI", SENTENCES, ENTAILMENT[::-1], hub_config="wnli"),
        Task("Bible-Paraphrase", labels=("other_verse", "same_verse"), **MRPC_FORMAT),
        Task("Bible-Order", labels=("in_order", "swapped"), **RTE_FORMAT),
        Task("Bible-Acceptability", labels=("reordered", "as_written"), **COLA_FORMAT),
    )
}


def find_task(name: str) -> Task:
    """Return the task of a name, whatever its case and hyphens: ``sst2`` is SST-2.

    Raises
    ------
    InputError
        If there is none.
    """
    for task in TASKS.values():
        if _plain(task.name) == _plain(name):
            return task
    raise InputError(f"task: expected one of {', '.join(TASKS)}, found {name!r}")


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def load_task(task: Task, data_dir: str | os.PathLike[str] | None, **hub: str) -> DatasetDict:
    """Return the splits of a task that there are.

    Parameters
    ----------
    data_dir : path, optional
        Folder that holds ``glue/TASK/`` or ``TASK/`` in GLUE's layout. None: the Hugging Face hub.
    hub
        ``cache_dir`` and ``token`` for the latter.

    Returns
    -------
    datasets.DatasetDict
        ``train``, ``validation`` and ``test`` (MNLI: ``validation_matched`` and so on). Columns: the task's, ``label``
        (class or number; -1 where a test set has none) and ``idx``, the number of the row in its file from 0, as
        GLUE's leaderboard counts. ``dataset[split].info.description`` says where the rows come from.

    Raises
    ------
    InputError
        If the folder or all files are missing, or a row is malformed; the message has file and line.
    """
    # Imported here because it takes seconds and reading the table of tasks does not need it.
    from datasets import DatasetDict

    if data_dir is not None:
        files = _files(task, _task_folder(task, Path(data_dir)))
        return DatasetDict({split: _load_file(task, split, *file) for split, file in files.items()})
    if task.hub_config is None:
        raise InputError(
            f"{task.name}: expected the local folder that python -m reproduction.data.tasks.bible_glue --out FOLDER "
            "wrote, found none named"
        )
    loaded = load_from_hub(HUB_DATASET, task.hub_config, HUB_REVISION, f"{FOLDER}/{task.name}", **hub)
    texts = [column for column in next(iter(loaded.values())).column_names if column not in ("label", "idx")]
    loaded = loaded.rename_columns(dict(zip(texts, task.columns, strict=True)))
    for part in loaded.values():
        part.info.description = f"{HUB_DATASET} {task.hub_config} {HUB_REVISION}"
    return loaded


def _task_folder(task: Task, data_dir: Path) -> Path:
    for parent in (data_dir / FOLDER, data_dir):
        if parent.is_dir():
            for folder in sorted(parent.iterdir()):
                if folder.is_dir() and _plain(folder.name) == _plain(task.name):
                    return folder
    raise InputError(f"{data_dir}: expected a folder {FOLDER}/{task.name} or {task.name} in it, found neither")


def _every_row(fields: Fields) -> bool:
    return True


def _files(task: Task, folder: Path) -> dict[str, tuple[Path, Callable[[Fields], bool]]]:
    """Split -> its file, and which of the file's rows belong to it."""
    present = {split: (folder / name, _every_row) for split, name in task.splits.items() if (folder / name).is_file()}
    published = folder / "msr_paraphrase_train.txt"
    if task.name == "MRPC" and "train" not in present and published.is_file():
        return _microsoft_files(published)
    if not present:
        raise InputError(f"{folder}: expected some of {', '.join(task.splits.values())}, found none of them")
    return present


def _microsoft_files(published: Path) -> dict[str, tuple[Path, Callable[[Fields], bool]]]:
    """MRPC as Microsoft publishes it; GLUE's list of pairs of ids takes the validation rows from the training file."""
    names = ("dev_ids.tsv", "mrpc_dev_ids.tsv")
    lists = [published.with_name(name) for name in names if published.with_name(name).is_file()]
    if not lists:
        raise InputError(f"{published}: expected GLUE's {' or '.join(names)} beside it, found neither")
    held_out = {tuple(line.split("\t")) for _, line in _lines(lists[0])}

    def is_held_out(fields: Fields) -> bool:
        return (fields["#1 ID"], fields["#2 ID"]) in held_out

    files = {"train": (published, lambda fields: not is_held_out(fields)), "validation": (published, is_held_out)}
    test = published.with_name("msr_paraphrase_test.txt")
    return files | ({"test": (test, _every_row)} if test.is_file() else {})


def _load_file(task: Task, split: str, path: Path, belongs: Callable[[Fields], bool]) -> Dataset:
    from datasets import ClassLabel, Dataset, Features, NamedSplit, Value

    label = Value("float32") if task.labels is None else ClassLabel(names=list(task.labels))
    features = Features({**dict.fromkeys(task.columns, Value("string")), "label": label, "idx": Value("int32")})
    columns: dict[str, list] = {name: [] for name in features}
    broken = []
    for number, (line, fields) in enumerate(_rows(task, split, path)):
        if fields is None:
            broken.append(line)
        elif belongs(fields):
            for column, name in zip(task.columns, task.text_fields, strict=True):
                columns[column].append(fields[name])
            columns["label"].append(_label(task, fields.get(task.label_field), f"{path}, line {line}"))
            columns["idx"].append(number)
    if broken:
        logger.warning("%s: %d broken rows left out, the first in line %d", path, len(broken), broken[0])
    dataset = Dataset.from_dict(columns, features=features, split=NamedSplit(split))
    left_out = f", {len(broken)} broken rows left out" if broken else ""
    dataset.info.description = f"{path.name}, {len(dataset)} rows{left_out}"
    return dataset


def number_of(value: object) -> float | None:
    """A label that is a number: the finite float32 that a text or a number says, else None."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= _LARGEST else None


def _label(task: Task, text: str | None, where: str) -> int | float:
    if text is None:
        return NO_LABEL
    if task.labels is None:
        value = number_of(text)
        if value is None:
            raise InputError(f"{where}: expected a number as {task.label_field}, found {text!r}")
        return value
    known = task.labels if task.named_labels else [str(number) for number in range(len(task.labels))]
    if text not in known:
        raise InputError(f"{where}: expected {' or '.join(known)} as {task.label_field}, found {text!r}")
    return known.index(text)


def _rows(task: Task, split: str, path: Path) -> Iterator[tuple[int, Fields | None]]:
    """Number of each line and its fields by name; None instead of them, if a broken row may be passed over.

    Tabs separate and nothing quotes: the files have single quotation marks within their text.
    """
    lines = _lines(path)
    is_test = split.startswith("test")
    names = None if is_test else task.headerless
    if names is None:
        _, header = next(lines, (1, ""))
        names = [name.strip('"') for name in header.split("\t")]  # one of MRPC's files begins with "Quality
        needed = [*task.text_fields, *([] if is_test else [task.label_field])]
        for name in needed:
            if (found := names.count(name)) != 1:
                expected = "one field" if found else "a field"
                raise InputError(f"{path}, line 1: expected {expected} {name!r}, found {', '.join(names)!r}")
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) == len(names):
            yield number, dict(zip(names, fields, strict=True))
        elif task.broken_rows:
            yield number, None
        else:
            raise InputError(f"{path}, line {number}: expected {len(names)} fields between tabs, found {len(fields)}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line; only a newline ends one, and those that are empty are passed over."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if text := line.removesuffix("\n").removesuffix("\r"):
                    yield number, text
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found an invalid byte at offset {error.start}") from error

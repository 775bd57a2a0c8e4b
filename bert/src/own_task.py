"""Sequences to classify, or to give a number, that a user brings: which columns are read, and what the classes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Value
from transformers import PreTrainedConfig

from attention_pruning import InputError
from reproduction.data.tasks.glue import NO_LABEL, SENTENCES, Task, number_of

#: Columns that number rows, whatever is in them.
_NUMBERS = ("idx", "id", "guid", "index")
_LABEL = "label"


def own_task(splits: DatasetDict, config: PreTrainedConfig, name: str) -> tuple[Task, DatasetDict]:
    """The task that rows of a user's own are, as transformers' run_glue.py takes them.

    The texts are the columns sentence1 and sentence2, else the first two columns of text, else the one there is. Where
    the column label has floats it is a number to predict; else its values are the classes, sorted. Without training
    rows the classes are those that the model knows.

    Parameters
    ----------
    config : PreTrainedConfig
        The model's.
    name : str
        What messages and records call the task.

    Returns
    -------
    Task, datasets.DatasetDict
        The rows have the task's columns, ``label`` (class or number, -1 where a test split has none) and ``idx``.

    Raises
    ------
    InputError
        If there is no text or no label, a text is missing, or a label is unknown.
    """
    first = splits.get("train", next(iter(splits.values())))
    columns = _text_columns(first, name)
    labels = _class_names(first, "train" in splits, config, name)
    metrics = ("pearson", "spearman") if labels is None else ("accuracy",)
    task = Task(name, columns, labels, metrics)
    return task, DatasetDict({split: _as_rows(rows, split, task) for split, rows in splits.items()})


def _text_columns(rows: Dataset, name: str) -> tuple[str, ...]:
    if set(SENTENCES) <= set(rows.column_names):
        return SENTENCES
    texts = [
        column
        for column, feature in rows.features.items()
        if column not in (_LABEL, *_NUMBERS) and getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    if not texts:
        raise InputError(f"{name}: expected a column of text, found {', '.join(rows.column_names)}")
    return tuple(texts[:2])


def _class_names(rows: Dataset, is_train: bool, config: PreTrainedConfig, name: str) -> tuple[str, ...] | None:
    """Names of the classes; None where the label is a number."""
    if not is_train:  # a test file may have no labels at all
        known = [config.id2label[number] for number in sorted(config.id2label)]
        return None if config.problem_type == "regression" or len(known) == 1 else tuple(known)
    if _LABEL not in rows.column_names:
        raise InputError(f"{name}: expected a column {_LABEL}, found {', '.join(rows.column_names)}")
    feature = rows.features[_LABEL]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    if not isinstance(getattr(feature, "dtype", None), str):
        raise InputError(f"{name}: expected text or numbers in the column {_LABEL}, found {feature}")
    if feature.dtype.startswith("float"):
        return None
    found = rows.unique(_LABEL)
    if None in found:
        raise InputError(f"{name}: expected a label in every row to train on, found one without")
    return tuple(str(value) for value in sorted(found))


def _as_rows(rows: Dataset, split: str, task: Task) -> Dataset:
    if missing := [column for column in task.columns if column not in rows.column_names]:
        raise InputError(f"{task.name}, {split}: expected a column {missing[0]}, found {', '.join(rows.column_names)}")
    for column in task.columns:
        feature = rows.features[column]
        if not isinstance(getattr(feature, "dtype", None), str):
            raise InputError(f"{task.name}, {split}: expected text in the column {column}, found {feature}")
        if rows.data.column(column).null_count:
            raise InputError(f"{task.name}, {split}: expected text in every row of {column}, found one without")
    if _LABEL in rows.column_names:
        feature, values = rows.features[_LABEL], rows[_LABEL][:]
        if isinstance(feature, ClassLabel):
            values = [feature.int2str(value) if value not in (None, NO_LABEL) else NO_LABEL for value in values]
    elif split != "test":
        raise InputError(f"{task.name}, {split}: expected a column {_LABEL}, found {', '.join(rows.column_names)}")
    else:
        values = [NO_LABEL] * len(rows)
    description = rows.info.description
    kept = rows.select_columns(list(dict.fromkeys(task.columns)))
    for column in task.columns:
        kept = kept.cast_column(column, Value("string"))
    kept = kept.add_column(_LABEL, _numbers(values, split, task)).add_column("idx", list(range(len(rows))))
    kept.info.description = description
    return kept


def _numbers(values: Sequence[Any], split: str, task: Task) -> list[int] | list[float]:
    """Labels as the model learns them."""
    if task.labels is None:
        numbers = [number_of(value) for value in values]
        if None in numbers:
            found = values[numbers.index(None)]
            raise InputError(f"{task.name}, {split}: expected a number as every label, found {found!r}")
        return numbers
    number = {label: place for place, label in enumerate(task.labels)}
    if split == "test":
        number |= dict.fromkeys(("", "None", str(NO_LABEL)), NO_LABEL) | number
    for value in values:
        if str(value) not in number:
            raise InputError(f"{task.name}, {split}: expected {' or '.join(task.labels)} as label, found {value!r}")
    return [number[str(value)] for value in values]

"""metrics.json: what one run measured, and the labels that tell it from the others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attention_pruning import InputError
from reproduction.runs.files import write_json

#: Labels of a run, in the order of metrics.csv's columns. A label that does not apply is null.
LABELS = ("config", "experiment", "dataset", "variant", "sites", "rule", "scope", "block_size", "tau", "seed")
#: What the prune mask removed; null where there is no attention to prune.
SPARSITIES = ("effective_sparsity", "evaluated_sparsity", "block_sparsity")


def parse_labels(labels: Iterable[str]) -> dict[str, Any]:
    """Read ``key=value`` labels; a value is JSON where it can be, else text.

    Raises
    ------
    InputError
        If one has no key or no ``=``, or its key is not one of :data:`LABELS`.
    """
    parsed: dict[str, Any] = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals or key not in LABELS:
            raise InputError(f"--label: expected KEY=VALUE with a key of {', '.join(LABELS)}, found {label!r}")
        try:
            parsed[key] = json.loads(value, parse_constant=_refuse_constant)
        except ValueError:
            parsed[key] = value
    return parsed


def _refuse_constant(name: str) -> None:
    """NaN and Infinity are words here: a file of JSON has no such numbers."""
    raise ValueError(name)


def write_metrics(
    path: str | Path, labels: Mapping[str, Any], metrics: Mapping[str, Mapping[str, float]], **sparsities: float | None
) -> None:
    """Write metrics.json.

    Parameters
    ----------
    labels : mapping
        Some of :data:`LABELS`; the rest become null.
    metrics : mapping
        Split -> metric -> value.
    sparsities
        Some of :data:`SPARSITIES`.
    """
    unknown = set(sparsities) - set(SPARSITIES)
    if unknown:
        raise ValueError(f"sparsities: expected some of {SPARSITIES}, found {sorted(unknown)}")
    content = {**dict.fromkeys(LABELS + SPARSITIES), **labels, **sparsities, "metrics": metrics}
    write_json(path, content)

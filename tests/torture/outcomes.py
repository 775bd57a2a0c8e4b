"""What a run leaves, in a form that is the same for two runs that computed the same: all its files, by name."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

#: Numbers of clocks and of memory, and how a run came about: no two runs have the same.
_CLOCKS = re.compile(
    r"seconds|started|.*_(seconds|bytes|runtime|per_second|wall)|continued_from|code|command|git_commit|host|flags"
)
#: TensorBoard's: each start of a training adds one.
_OF_EVERY_START = re.compile(r"events\.out\.tfevents\.")
#: Names in steps.csv that are clocks.
_CLOCKED = re.compile(r"wps|ups|(train_)?wall|gb_free|\w*(time|seconds|per_second)")
#: What run.json says of how something is computed, and where files are.
_OF_THE_MACHINE = ("attention", "versions", "prepared")
#: Files of transformers that say how long something took, or average a loss since the last start.
_NOT_COMPARED = re.compile(r"(.*_results|trainer_state)\.json|.*\.(bin|pth)|(optimizer|scheduler)\.pt")
#: Of fairseq's checkpoints: its meters and its history are clocks, too.
_FAIRSEQ = ("model", "last_optimizer_state")
#: What computes nothing in its models: copies of weights for a fast path that is never taken, made whenever a
#: checkpoint is loaded, and memory that nobody has filled.
_UNUSED = re.compile(r".*\._float_tensor|encoder\.layers\.\d+\.(in_proj|out_proj|fc\d)_(weight|bias)")


def outcome(folder: Path) -> dict[str, Any]:
    """Relative path -> what is in it that two equal runs share; None of files that only have to be there."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() and not _OF_EVERY_START.match(path.name))
    found = {str(path.relative_to(folder)): content(path) for path in files}
    return found | {f"{path.relative_to(folder)}/": None for path in folder.rglob("*") if path.is_dir()}


def content(path: Path) -> Any:
    """What two runs that computed the same have in a file of this name."""
    if path.name == "run.json" or path.name.endswith(".run.json"):
        return _results(json.loads(path.read_text()))
    if _NOT_COMPARED.fullmatch(path.name):
        return None
    if path.suffix == ".json":
        return _without_clocks(json.loads(path.read_text()))
    if path.suffix == ".pt":
        state = torch.load(path, map_location="cpu", weights_only=False)
        return _digest(_fairseq(state) if "last_optimizer_state" in state else _xl(state))
    if path.name == "steps.csv":
        with path.open(newline="") as file:
            return [row for row in csv.reader(file) if not _CLOCKED.fullmatch(row[2])]
    if path.suffix == ".safetensors":
        return tensors(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors(path: Path) -> str:
    """A hash of all that a file holds: safetensors writes its header in a random order."""
    with safe_open(path, framework="pt") as file:
        return _digest({"": file.metadata(), **{name: file.get_tensor(name) for name in file.keys()}})  # noqa: SIM118


def half_written(folder: Path, unfinished: re.Pattern[str]) -> list[str]:
    """Files that are not whole under the names that they have in the end, but for those whose path says so."""
    found = []
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_dir() or unfinished.fullmatch(name):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
            elif path.suffix == ".pt" and not zipfile.is_zipfile(path):
                raise ValueError("no archive")
        except (ValueError, OSError, SafetensorError):
            found.append(name)
    return found


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of files that one of two outcomes lacks, or whose contents differ."""
    names = sorted(found.keys() | expected.keys())
    lacks = [f"{name} is left" for name in names if name not in expected]
    lacks += [f"{name} is missing" for name in names if name not in found]
    both = [name for name in names if name in found and name in expected]
    return lacks + [f"{name} differs" for name in both if found[name] != expected[name]]


def _results(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _without_clocks(record).items() if name not in _OF_THE_MACHINE}


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_clocks(inner) for name, inner in value.items() if not _CLOCKS.fullmatch(name)}
    return [_without_clocks(inner) for inner in value] if isinstance(value, list) else value


def _fairseq(state: dict[str, Any]) -> dict[str, Any]:
    weights = {name: weight for name, weight in state["model"].items() if not _UNUSED.fullmatch(name)}
    return {name: state[name] for name in _FAIRSEQ} | {"model": weights}


def _xl(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != "seconds"}


def _digest(value: Any) -> str:
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in sorted(value.items(), key=lambda item: str(item[0])):
                digest.update(str(name).encode())
                add(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                add(inner)
        elif isinstance(value, torch.Tensor):
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())

    add(value)
    return digest.hexdigest()

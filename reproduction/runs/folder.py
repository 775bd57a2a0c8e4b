"""Whose run a training folder holds: one rule for all training scripts.

A folder carries the recipe of its run in ``recipe.json``: every argument but a free list (paths, logging, devices), the
fingerprints of data and mask, and a fingerprint of all that. Called again, the same recipe resumes. Another recipe is
refused, unless the caller says what becomes of the old run: nothing is ever trained partly by one recipe and partly by
another without a record of it. As long as a process trains in a folder, it holds it, and no other can.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_pruning import InputError
from attention_pruning.files.whole import clear_rooms
from reproduction.runs.files import make_folder, write_json
from reproduction.runs.json_file import read_json

RECIPE_FILE = "recipe.json"
RECIPE_FORMAT = "reproduction/recipe/1"
#: What becomes of a run of another recipe: the call is refused, the folder gets another name, or its files go.
WAYS = ("refuse", "set_aside", "overwrite")


def make_recipe(
    script: str, arguments: Mapping[str, Any], *, free: Collection[str] = (), **facts: Any
) -> dict[str, Any]:
    """What makes a run this run.

    Parameters
    ----------
    script : str
        Name of the script.
    arguments : mapping
        All its arguments, defaults included.
    free : collection of str
        Arguments that may differ between a run and its continuation: paths, logging, devices. Nothing else is left out,
        so that an argument which is new tomorrow counts from the start.
    facts
        What arguments do not say: fingerprints of data and mask, the number of processes.

    Returns
    -------
    dict
        As it is after a journey through JSON.
    """
    kept = {name: value for name, value in arguments.items() if name not in free}
    return json.loads(json.dumps({"script": script, "arguments": kept, **facts}, sort_keys=True, default=str))


def recipe_fingerprint(recipe: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class RunFolder:
    """A folder that is this run's.

    Attributes
    ----------
    path : Path
    fingerprint : str
        Of the recipe.
    resumes : bool
        Whether it holds an earlier part of the same run.
    grown : list of dict
        Arguments as earlier parts of the run had them, where a continuation may have more, such as ``max_step``.
    set_aside : Path or None
        The new name of the folder of another recipe.
    """

    path: Path
    fingerprint: str
    resumes: bool
    grown: list[dict[str, Any]]
    set_aside: Path | None = None

    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says of it."""
        facts: dict[str, Any] = {"recipe_fingerprint": self.fingerprint}
        return facts | ({"grown_from": self.grown} if self.grown else {})


def claim_folder(
    folder: str | Path,
    recipe: Mapping[str, Any],
    *,
    traces: Collection[str],
    other: str = "refuse",
    may_grow: Collection[str] = (),
) -> RunFolder:
    """Make a folder this run's, or say that it is already; a job of several processes does so in one.

    Parameters
    ----------
    folder : path
        Made where there is none.
    recipe : mapping
        See :func:`make_recipe`.
    traces : collection of str
        Patterns of the names that a training leaves: a folder with none of them is free.
    other : {"refuse", "set_aside", "overwrite"}
        What becomes of a run of another recipe. "overwrite" removes an earlier part of the same run, too.
    may_grow : collection of str
        Arguments that a continuation by hand may raise, noted in the folder. With "set_aside" they make another run.

    Raises
    ------
    InputError
        If the folder holds a run of another recipe, or of none that is known, and ``other`` is "refuse"; or if another
        process trains in it.
    """
    if other not in WAYS:
        raise InputError(f"other: expected one of {', '.join(WAYS)}, found {other!r}")
    folder, fingerprint, grown = Path(folder), recipe_fingerprint(recipe), []
    hold_folder(folder)
    occupied, found, aside = _holds_run(folder, traces), _read(folder), None
    if occupied and other == "overwrite":
        _clear(folder, traces)
        occupied = False
    elif occupied and (difference := _difference(found, recipe) or _growth(found, other)):
        grows = found is not None and _grows(found["recipe"], recipe, may_grow)
        if grows and other == "refuse":
            earlier = found["recipe"]["arguments"]
            grown = [*found.get("grown", []), {name: earlier[name] for name in may_grow if name in earlier}]
        elif other == "refuse":
            _release(folder)
            raise InputError(
                f"{folder}: expected a folder without a run, or one of this recipe, found {difference}; --overwrite "
                "replaces that run, --set_aside keeps it under another name"
            )
        else:
            aside, occupied = _set_aside(folder), False
            print(f"| {folder}: held a run of another recipe ({difference}), now in {aside}; starting anew", flush=True)
    elif occupied:
        grown = found.get("grown", [])
    make_folder(folder)
    hold_folder(folder)
    remove_strays(folder)
    content = {"format": RECIPE_FORMAT, "fingerprint": fingerprint, "recipe": dict(recipe)}
    write_json(folder / RECIPE_FILE, content | ({"grown": grown} if grown else {}))
    return RunFolder(folder, fingerprint, occupied, grown, aside)


#: Folders that this process holds: an open handle for each.
_HELD: list[int] = []


def hold_folder(folder: str | Path) -> None:
    """Keep a folder, if it exists, from other processes until this one ends; on a file system that locks no folders
    (NFS) nothing is kept from anybody.

    Raises
    ------
    InputError
        If another process holds it.
    """
    if not Path(folder).is_dir():
        return
    handle = os.open(folder, os.O_RDONLY)
    if any(os.path.samestat(os.fstat(handle), os.fstat(held)) for held in _HELD):
        os.close(handle)
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(f"{folder}: expected a folder that no other process trains in, found one that does") from None
    except OSError:  # no locks here
        os.close(handle)
        return
    _HELD.append(handle)


def _release(folder: Path) -> None:
    """Let others have a folder that this process will not train in."""
    for handle in [held for held in _HELD if os.path.samestat(os.fstat(held), folder.stat())]:
        os.close(handle)
        _HELD.remove(handle)


def _let_go() -> None:
    """In a forked process: a worker that outlives its training for a moment holds nothing."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_let_go)


def remove_strays(folder: Path) -> None:
    """Remove what killed runs have left in a folder that is held: rooms, and the temporary files of others, fairseq's
    ``NAME.tmp`` and safetensors' ``.tmpNAME``."""
    clear_rooms(folder)
    for path in _files(folder, ("*.tmp", ".tmp*")):
        if path.is_file():
            path.unlink(missing_ok=True)


def require_recipe(folder: str | Path, recipe: Mapping[str, Any]) -> None:
    """Refuse a folder whose run is of another recipe, such as that of a checkpoint to continue from.

    Raises
    ------
    InputError
    """
    if difference := _difference(_read(Path(folder)), recipe):
        raise InputError(f"{folder}: expected a run of this recipe, found {difference}")


def add_folder_flags(group: argparse._ArgumentGroup) -> None:
    """``--overwrite`` and ``--set_aside``, of which :func:`way` makes ``other``."""
    add = group.add_mutually_exclusive_group().add_argument
    add("--overwrite", action="store_true", help="start from scratch, and remove the run that the folder holds, if any")
    add(
        "--set_aside",
        "--set-aside",
        action="store_true",
        help="if the folder holds a run of another recipe, rename that folder and start from scratch",
    )


def way(args: argparse.Namespace) -> str:
    """What the flags of :func:`add_folder_flags` say becomes of a run of another recipe."""
    return "overwrite" if args.overwrite else "set_aside" if args.set_aside else "refuse"


def _holds_run(folder: Path, traces: Collection[str]) -> bool:
    return any(True for _ in _files(folder, traces))


def _files(folder: Path, patterns: Collection[str]) -> Iterator[Path]:
    return (path for pattern in patterns for path in folder.glob(pattern))


def _read(folder: Path) -> dict[str, Any] | None:
    """``recipe.json``; None where there is none that is whole."""
    try:
        found = read_json(folder / RECIPE_FILE)
    except InputError:
        return None
    known = isinstance(found, dict) and found.get("format") == RECIPE_FORMAT and isinstance(found.get("recipe"), dict)
    return found if known else None


def _difference(found: Mapping[str, Any] | None, recipe: Mapping[str, Any]) -> str | None:
    """The first difference between the folder's recipe and this one, in a few words; None if there is none."""
    if found is None:
        return f"files of a run and no {RECIPE_FILE} that says which"
    before, now = _flat(found["recipe"]), _flat(recipe)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            return f"{name} {before.get(name)!r} there and {now.get(name)!r} here"
    return None


def _growth(found: Mapping[str, Any], other: str) -> str | None:
    """What of a run of this recipe began as another's, where runs are each of one recipe; None if nothing."""
    return f"a run that grew from {found['grown'][0]}" if other == "set_aside" and found.get("grown") else None


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by their own names, nested facts by dotted ones."""
    flat: dict[str, Any] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                visit(f"{name}.{key}" if name else str(key), inner)
        else:
            flat[name] = value

    visit("", recipe.get("arguments", {}))
    for name, value in recipe.items():
        if name != "arguments":
            visit(name, value)
    return flat


def _grows(before: Mapping[str, Any], now: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether two recipes differ in nothing but arguments that may grow, and these grow."""
    old, new = _flat(before), _flat(now)
    differing = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
    return all(name in names and name in old and name in new and new[name] > old[name] for name in differing)


def _clear(folder: Path, traces: Collection[str]) -> None:
    """Remove a run's files, what says whose it is last: until then the folder is the old run's."""
    for path in list(_files(folder, traces)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / RECIPE_FILE).unlink(missing_ok=True)


def _set_aside(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    os.rename(folder, aside)
    return aside

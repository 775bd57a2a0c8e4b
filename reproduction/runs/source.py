"""Which source code made a run, and which runs were made by another version of it than the one here now.

python -m reproduction.runs.source --runs runs/quick
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

#: The folders above the packages of this repository: one, unless the library is installed elsewhere. The library is not
#: imported for it, since the workflow asks, too, and torch takes a second.
ROOTS = tuple(
    {
        Path(importlib.util.find_spec(package).origin).resolve().parents[1]: None
        for package in ("reproduction", "attention_pruning")
    }
)
#: What is compiled, and so no module.
_COMPILED = "attention_pruning/ops/cpu/csrc"
#: Where what a run loads stands.
_PARTS = ("attention_pruning", "reproduction", "transformer-xl", "fairseq", "bert")
#: What gives no number: a run is not of another version because these changed.
_APART = ("reproduction/runs/source.py", "attention_pruning/cli")
#: How many changed files a sentence names.
_NAMED = 3


def loaded_source() -> dict[str, str]:
    """The files of this repository that this process has loaded, and the kernel's: each with a hash of its text."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    names = {name for file in files if file and (name := _name(Path(file)))}
    if "attention_pruning.ops.cpu.native" in sys.modules:
        names |= {name for root in ROOTS for file in (root / _COMPILED).glob("*.*") if (name := _name(file))}
    return {name: _hash(name) for name in sorted(names) if not name.startswith(_APART)}


def _name(file: Path) -> str | None:
    """A file as seen from the repository; None for what is not of it, such as an installed package."""
    file = file.resolve()
    if file.suffix not in (".py", ".h", ".cpp") or "site-packages" in file.parts:
        return None
    for root in ROOTS:
        if file.is_relative_to(root) and file.relative_to(root).parts[0] in _PARTS:
            return file.relative_to(root).as_posix()
    return None


@functools.cache
def _hash(name: str) -> str:
    """8 hexadecimal digits of a file's content; "none" where there is no such file."""
    for root in ROOTS:
        if (root / name).is_file():
            return hashlib.sha256((root / name).read_bytes()).hexdigest()[:8]
    return "none"


def other_source(runs: str | Path) -> str:
    """A sentence on the runs below a folder that another version of the source code made; "" if there are none.

    A run's record (``run.json``) has the files that it loaded. Records of versions before that have none, and count.

    Raises
    ------
    InputError
        If a record is not JSON.
    """
    records = sorted(Path(runs).rglob("*run.json"))
    others, changed = 0, set()
    for path in records:
        try:
            code = json.loads(path.read_text(encoding="utf-8")).get("code")
        except (ValueError, AttributeError, RecursionError) as error:
            from attention_pruning import InputError

            raise InputError(f"{path}: expected a run's record, found something else ({error})") from error
        differing = {name for name, found in (code or {}).items() if _hash(name) != found}
        others += code is None or bool(differing)
        changed |= differing
    if not others:
        return ""
    named = sorted(changed)[:_NAMED] + ([f"{len(changed) - _NAMED} more"] if len(changed) > _NAMED else [])
    files = f" ({', '.join(named)} changed since)" if named else " (of a version that did not record it)"
    return f"Made by another version of the source code than this repository's: {others} of {len(records)} runs{files}."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.runs.source",
        description="List the runs that another version of the source code made; print nothing if there are none.",
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder of runs, with their run.json")
    if found := other_source(parser.parse_args(argv).runs):
        print(f"{found} `make figure FRESH=1` makes all of them again.")
    return 0


if __name__ == "__main__":
    from reproduction.runs.command import run_main

    run_main(main)

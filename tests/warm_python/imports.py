"""What a program will import of packages outside this repository: read from its source, imported before it starts."""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Where those of others are: tests may hand on all of their path.
INSTALLED = {os.path.realpath(part) for part in sys.path[1:]}
#: Where our modules are, beside a program's own folder and PYTHONPATH.
FOLDERS = [ROOT, ROOT / "transformer-xl", ROOT / "bert" / "src", ROOT / "benchmarks"]
#: What processes that tests spawn are made of.
SPAWNED = ROOT / "tests" / "attention_pruning" / "tiny_models.py"
#: What they do when they are imported is for their own programs to see.
NEVER = {"__future__", "fairseq", "fairseq_cli", "pytest"}
#: What programs of installed packages import. Snakemake looks for its plug-ins by every package that is installed, once
#: in a process.
LATE = {
    "snakemake": (
        "import snakemake.workflow, snakemake.executors.local, snakemake.report, jsonschema, pandas",
        "import snakemake.cli; snakemake.cli.get_argument_parser()",
    ),
    "torch.distributed.run": ("import torch.distributed.launcher.api, torch.distributed.elastic.rendezvous.registry",),
}


class Imports:
    """The import statements that programs have needed so far."""

    def __init__(self) -> None:
        self.read: set[Path] = set()
        self.done: set[str] = set()

    def warm(self, request: dict, family: str) -> None:
        """Import what a program needs and no other did. What cannot be imported is left to the program."""
        if family == "fairseq":
            _install_fairseq()
        for line in self._needed(request):
            if line not in self.done:
                self.done.add(line)
                with contextlib.suppress(Exception), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    exec(line, {})
        gc.freeze()

    def _needed(self, request: dict) -> Iterator[str]:
        argv, cwd = request["argv"], Path(request["cwd"])
        given = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
        paths = [Path(cwd, part) for part in given if part and os.path.realpath(Path(cwd, part)) not in INSTALLED]
        if "--multiprocessing-fork" in argv:
            yield from self._of_file(SPAWNED, [SPAWNED.parent, *paths])
        elif argv[0] == "-c":
            yield from self._of_source(argv[1], None, [cwd, *paths])
        elif argv[0] != "-m":
            script = Path(cwd, argv[0])
            yield from self._of_file(script, [script.parent, *paths])
        elif own := _own(argv[1], [cwd, *paths]):
            yield from self._of_file(own, [cwd, *paths])
        else:
            # The module itself is left out: run as a program, it should not have been imported before.
            yield from LATE.get(argv[1], ())

    def _of_file(self, file: Path, paths: list[Path]) -> Iterator[str]:
        if file not in self.read and file.is_file():
            self.read.add(file)
            yield from self._of_source(file.read_text(encoding="utf-8"), file, paths)

    def _of_source(self, source: str, file: Path | None, paths: list[Path]) -> Iterator[str]:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self._of_module(alias.name, f"import {alias.name}", paths)
            elif isinstance(node, ast.ImportFrom) and node.level:
                if file is not None:
                    package = [file.parents[node.level - 1]]
                    for name in (node.module, *(_joined(node.module, alias.name) for alias in node.names)):
                        if name and (own := _own(name, package, [])):
                            yield from self._of_file(own, paths)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield from self._of_module(node.module, f"from {node.module} import {alias.name}", paths)
                    if own := _own(_joined(node.module, alias.name), paths):
                        yield from self._of_file(own, paths)

    def _of_module(self, name: str, line: str, paths: list[Path]) -> Iterator[str]:
        package = name.partition(".")[0]
        if own := _own(name, paths):
            yield from self._of_file(own, paths)
        elif package not in NEVER and not _own(package, paths) and not (ROOT / package).is_dir():
            yield line


def _joined(module: str | None, name: str) -> str:
    return f"{module}.{name}" if module else name


def _own(name: str, paths: list[Path], more: list[Path] = FOLDERS) -> Path | None:
    """The file of a module that is ours or a test's."""
    for folder in (*paths, *more):
        place = folder.joinpath(*name.split("."))
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
    return None


def _install_fairseq() -> None:
    if "shims" not in sys.modules:
        before = list(sys.path)
        sys.path[:0] = [str(ROOT / "fairseq"), str(ROOT)]
        importlib.import_module("shims").install()
        sys.path[:] = before

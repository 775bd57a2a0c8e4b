"""A Python for tests that start many: a fork of a process that has already imported what programs import.

An interpreter that imports torch and transformers uses four to ten seconds of a core, and the tests start hundreds.
:func:`python` is the path of a program that takes Python's place: what it is given (``script.py ...``,
``-m module ...`` or ``-c code ...``) runs in a process of its own, forked from one that has imported the packages that
the program names. That one has run none of this repository's code, except for what makes fairseq importable.

What differs from a Python that is newly started: packages that another program asked for are in ``sys.modules``, hash
seeds and what ``MALLOC_...`` says are those of the first process, and peaks of memory count its imports. A test of such
things takes ``sys.executable``. With ``AP_COLD_PYTHON=1`` every test does.
"""

from __future__ import annotations

import atexit
import functools
import json
import multiprocessing.spawn
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: fairseq changes what others find: where logs go, dataclasses. So its programs have a first process of their own.
FAMILIES = ("fairseq", "other")


@functools.cache
def python() -> str:
    """The program that takes Python's place, whose processes end with the process that called this first."""
    if os.environ.get("AP_COLD_PYTHON") or not hasattr(os, "fork"):
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="warm_python_"))  # short, as addresses of sockets have to be
    (folder / "settings.json").write_text(json.dumps({"python": sys.executable, "environment": dict(os.environ)}))
    program = folder / "bin" / "python"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{HERE / "client.py"}" "{folder}" "$@"\n')
    program.chmod(0o755)
    (program.parent / "python3").symlink_to(program)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    servers = [
        subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), str(folder), family],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"{family}.log").open("w"),
            env=environment | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        for family in FAMILIES
    ]
    atexit.register(_end, servers)
    while not all((folder / f"{family}.ready").exists() for family in FAMILIES):
        if any(server.poll() is not None for server in servers):
            raise RuntimeError("".join(path.read_text() for path in folder.glob("*.log")))
        time.sleep(0.01)
    return str(program)


def spawn(function: Callable[..., None], arguments: tuple, processes: int) -> None:
    """:func:`torch.multiprocessing.spawn`, with processes of :func:`python`."""
    import torch.multiprocessing

    before = multiprocessing.spawn.get_executable()
    multiprocessing.spawn.set_executable(python())
    try:
        torch.multiprocessing.spawn(function, arguments, nprocs=processes)
    finally:
        multiprocessing.spawn.set_executable(before)


def _end(servers: list[subprocess.Popen]) -> None:
    for server in servers:
        server.stdin.close()
        server.wait()

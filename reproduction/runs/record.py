"""``run.json``: what was run, with what, where, and what it took."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from reproduction.runs.files import write_json
from reproduction.runs.source import loaded_source

_PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "accelerate",
    "transformers",
    "datasets",
    "fairseq",
    "entmax",
    "sacrebleu",
    "snakemake",
)


def peak_memory_bytes() -> dict[str, int]:
    """Peak resident memory of this process, and of the accelerator if there is one, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["cuda"] = torch.cuda.max_memory_allocated()
    return peak


def git_commit() -> str | None:
    """The commit of the checkout this file is in; None outside a checkout or without git."""
    where = Path(__file__).resolve().parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


class RunRecord:
    """``run.json``: what was run, with what, where, and what it took.

    Parameters
    ----------
    script : str
        Name of the script.
    flags : dict
        Its parsed flags.
    seconds_before : float
        Seconds that interrupted runs of the same work took.
    """

    def __init__(self, script: str, flags: dict[str, Any], seconds_before: float = 0.0) -> None:
        self.started = time.time()
        self.seconds_before = seconds_before
        self.content: dict[str, Any] = {
            "script": script,
            "flags": {k: str(v) if isinstance(v, Path) else v for k, v in flags.items()},
            "command": _without_tokens(sys.argv),
            "git_commit": git_commit(),
            "host": {
                "system": platform.platform(),
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                "threads": torch.get_num_threads(),
            },
            "versions": {"python": platform.python_version(), **_versions()},
        }

    @property
    def seconds(self) -> float:
        """Seconds so far, earlier interrupted runs included."""
        return self.seconds_before + time.time() - self.started

    def write(self, path: str | Path, **more: Any) -> None:
        """Add what came out, and the source that made it, and write the record."""
        write_json(
            path,
            {
                **self.content,
                **more,
                "code": loaded_source(),
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
                "seconds": round(self.seconds, 3),
                "peak_memory_bytes": peak_memory_bytes(),
            },
        )


def _without_tokens(command: list[str]) -> list[str]:
    """A command line without the values of --token, --hub_token and the like: a record is read by others."""
    text = "\0".join(command)
    return re.sub(r"(?<![^\0])(--[\w-]*token)([=\0])[^\0]*", r"\1\2<TOKEN>", text).split("\0")


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            # A module that is loaded tells its build, too: 2.13.0+cu130, where the metadata of PyPI's torch has 2.13.0.
            found[name] = getattr(sys.modules.get(name), "__version__", None) or importlib.metadata.version(name)
    return found

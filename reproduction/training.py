"""What every long run here needs: seeds, atomic files, checkpoints, interruption, and a record of what was done."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pickle
import platform
import random
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attention_pruning import InputError
from attention_pruning.files.tensors import written_whole
from reproduction.device_pool import take_device
from reproduction.source import loaded_source

CHECKPOINT_FORMAT = "reproduction/checkpoint/1"
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


def run_main(main: Callable[[], int | None], takes_device: bool = False) -> None:
    """Run a command's main function: an :class:`InputError` becomes one line on stderr and exit status 2.

    Parameters
    ----------
    main : callable
        Returns the exit status, or None for 0.
    takes_device : bool
        The command runs a model, so it takes a GPU of its own where processes share several.
    """
    try:
        if takes_device:
            take_device()
        sys.exit(main() or 0)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def limit_threads(threads: int) -> None:
    """Let torch use this many threads; 0 keeps its own choice (OMP_NUM_THREADS)."""
    if threads < 0:
        raise InputError(f"--threads: expected 0 (torch's choice) or more, found {threads}")
    if threads:
        torch.set_num_threads(threads)


def make_folder(path: str | Path) -> Path:
    """Make a folder, and those above it, unless it is there.

    Raises
    ------
    InputError
        If that is impossible, or the folder cannot be written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: expected a folder that can be written to, found: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{path}: expected a folder that can be written to, found one that cannot")
    return path


def prepare_output(path: str | Path) -> None:
    """Make the folder of a file that will be written after long work, so that a bad name shows before it.

    Raises
    ------
    InputError
        If the file could not be written.
    """
    make_folder(Path(path).parent)
    if Path(path).is_dir():
        raise InputError(f"{path}: expected the name of a file to write, found a folder")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` that becomes ``path`` if the block ends well, and is removed if not.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    make_folder(Path(path).parent)
    with written_whole(path) as temporary:
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors leaves a file that only its owner can read


def write_json(path: str | Path, content: Any) -> None:
    """Write indented JSON atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write a training state (tensors, numbers, strings, lists and dicts of them) atomically."""
    with atomic_path(path) as temporary:
        torch.save({"format": CHECKPOINT_FORMAT, **state}, temporary)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a state written by :func:`save_checkpoint`, without unpickling code.

    Raises
    ------
    InputError
        If the file is missing, truncated, or not such a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a training checkpoint, found no such file")
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # also what it will not read safely
        raise InputError(f"{path}: expected a training checkpoint, found a foreign file") from error
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        found = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: expected a training checkpoint, found a damaged file ({found})") from error
    if not isinstance(state, dict) or state.pop("format", None) != CHECKPOINT_FORMAT:
        raise InputError(f"{path}: expected a training checkpoint, found no training state in it")
    return state


def _check_archive(path: Path) -> None:
    """Refuse what is no whole zip file: torch checks no sums, and takes what is not one for an old format."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise zipfile.BadZipFile("not an archive")
        with zipfile.ZipFile(file) as archive:
            if (name := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {name}")


def random_state() -> dict[str, Any]:
    """State of the generators that a training step of this process draws from: the CPU's, and its own GPU's."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class Interruption:
    """Turn SIGTERM and SIGINT into a request that the training loop honours between two steps.

    Used as a context manager; a second signal of the same kind has its usual effect.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        signal.signal(number, self._before[number])

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """128 + the signal, as a shell reports it."""
        return 128 + (self.signal or signal.SIGTERM)


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
            found[name] = importlib.metadata.version(name)
    return found

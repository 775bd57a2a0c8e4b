"""Who works in a folder of the workflow: after a crash Snakemake's own lock stays, and nobody would be let in again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

#: Snakemake's, below the folder that it works in.
RECORDS, LOCKS = Path(".snakemake"), Path("locks")
_HELD: list[int] = []


def join(folder: str | Path = ".") -> bool:
    """Note that this process works in a folder until it ends; remove what Snakemake has locked if no other does.

    The system lifts a lock when the process that holds it ends, in whatever way, which it does not do with the files
    that Snakemake takes for locks. On a file system that cannot lock folders (NFS) nothing is removed.

    Returns
    -------
    bool
        Whether locks that were left behind were removed.
    """
    records = Path(folder) / RECORDS
    with contextlib.suppress(OSError):
        records.mkdir(exist_ok=True)
        handle = os.open(records, os.O_RDONLY)
        _HELD.append(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        left = (records / LOCKS).is_dir() and any((records / LOCKS).iterdir())
        shutil.rmtree(records / LOCKS, ignore_errors=True)
        (records / LOCKS).mkdir(exist_ok=True)
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return left
    return False

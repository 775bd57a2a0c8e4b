# Who works in a folder of the workflow: after a crash Snakemake's own lock stays, and nobody would be let in again.
import contextlib
import fcntl
import os
import shutil
import sys
from pathlib import Path

# The system lifts a lock when the process that holds it ends, in whatever way, which it does not do with the files that Snakemake takes
# for locks. On a file system that cannot lock folders (NFS) nothing is removed.
WORKING = []


def work_in(folder):
    """Note that this process works in a folder until it ends; remove what Snakemake has locked if no other does."""
    records = Path(folder) / ".snakemake"
    with contextlib.suppress(OSError):
        records.mkdir(exist_ok=True)
        handle = os.open(records, os.O_RDONLY)
        WORKING.append(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(records / "locks", ignore_errors=True)
            (records / "locks").mkdir(exist_ok=True)
        except BlockingIOError:
            pass
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)


# Not in the processes that Snakemake starts for its jobs, on other machines maybe.
if "--nolock" not in sys.argv:
    work_in(".")

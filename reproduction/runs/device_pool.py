"""One GPU for each process, of the GPUs that several processes on a machine share.

``AP_DEVICES`` names them, as ``CUDA_VISIBLE_DEVICES`` does (``0,1,2``); the workflow sets it for ``--resources gpu=3``.
A process takes the first that is free by locking a file, and keeps it until it and its children have ended, in
whatever way.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from pathlib import Path

POOL, TAKEN = "AP_DEVICES", "AP_DEVICE"
#: Seconds between two looks for a free device.
PAUSE = 1.0


def take_device() -> None:
    """Start this process anew with a free device of ``AP_DEVICES`` as its only one; nothing without ``AP_DEVICES``.

    Anew, since whatever was imported so far may have looked at all devices. Waits until one is free. A process that
    ``torchrun`` started shares its devices already, and takes none.
    """
    named = [name for name in os.environ.get(POOL, "").split(",") if name]
    if not named or TAKEN in os.environ or "LOCAL_RANK" in os.environ:
        return
    taken = free_device(named)
    while taken is None:
        time.sleep(PAUSE)
        taken = free_device(named)
    os.environ |= {TAKEN: taken, "CUDA_VISIBLE_DEVICES": taken}
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def free_device(named: list[str]) -> str | None:
    """Lock the first device that nobody has locked; None if all are. The lock outlives ``exec``."""
    folder = Path(tempfile.gettempdir()) / f"attention-pruning-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in named:
        file = os.open(folder / f"{name.replace('/', '_')}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            continue
        os.set_inheritable(file, True)
        return name
    return None

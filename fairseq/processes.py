"""Several training processes on one CPU machine: fairseq itself starts them only on GPUs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

#: What works without a GPU, given unless the command says otherwise.
CPU_BACKENDS = {"--distributed-backend": "gloo", "--ddp-backend": "legacy_ddp"}

#: A process that waits for one that failed gets so long to end by itself.
SECONDS_TO_END = 20.0


def run_processes(script: str | Path, arguments: Sequence[str], number: int) -> int:
    """Start a script once for each process, as ``torchrun`` does, and wait for all of them.

    Returns
    -------
    int
        0, or the exit status of the first that failed; the others are ended then, as they would wait for it for ever.
    """
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(number)}
    command = [sys.executable, str(script), *arguments]
    workers: list[subprocess.Popen] = []
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, lambda number, _: sys.exit(128 + number))
    try:
        for rank in range(number):
            workers.append(subprocess.Popen(command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}))
        status = _first_failure(workers)
    except SystemExit:
        # Asked to stop, the workers save what they have after their update, however long that takes.
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        raise
    for worker in workers:
        worker.terminate()
        try:
            worker.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    return status


def _first_failure(workers: Sequence[subprocess.Popen]) -> int:
    while True:
        states = [worker.poll() for worker in workers]
        failed = [state for state in states if state]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if None not in states:
            return 0
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]

"""What stands in Python's place: asks the server for a process, passes signals on to it, and ends as it ends.

Called with ``-IS``, as it starts hundreds of times: the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys

#: Packages read variables of these names when they are imported, which the server has done.
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "TRITON_", "MPL", "LD_", "PYTHON")
HARMLESS = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
#: A message between processes holds no more.
MOST_FDS = 250
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def read_at_import(environment: dict[str, str]) -> dict[str, str]:
    return {n: v for n, v in environment.items() if n.startswith(READ_AT_IMPORT) and n not in HARMLESS}


def can_be_forked(argv: list[str], settings: dict) -> bool:
    """Whether the server can do what is asked for: no options of the interpreter, nothing that imports have read."""
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-c", "-m")):
        return False
    return read_at_import(dict(os.environ)) == read_at_import(settings["environment"])


def inherited() -> list[int]:
    """File descriptors from whoever started this: its streams, and more where they were handed on."""
    found = []
    for fd in range(MOST_FDS):
        with contextlib.suppress(OSError):
            if os.get_inheritable(fd):
                found.append(fd)
    return found


def main() -> None:
    folder, argv = sys.argv[1], sys.argv[2:]
    with open(f"{folder}/settings.json", encoding="utf-8") as file:
        settings = json.load(file)
    if not can_be_forked(argv, settings):
        os.execv(settings["python"], [settings["python"], *argv])
    family = "fairseq" if "/fairseq/" in os.path.abspath(argv[0]) and argv[0].endswith(".py") else "other"
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    leads = os.getpgrp() == os.getpid()
    request = {
        "argv": argv,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "umask": os.umask(0),
        "ignored": [number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN],
        "leads": leads,
        "fds": inherited(),
    }
    body = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(f"{folder}/{family}.socket")
        socket.send_fds(server, [struct.pack("!I", len(body))], request["fds"])
        server.sendall(body)
        answers = server.makefile()
        process = int(answers.readline())

        def pass_on(number: int, frame: object) -> None:
            # What is sent to a whole group reaches only this process of it, since the other is in a group of its own.
            (os.killpg if leads else os.kill)(process, number)

        for number in PASSED_ON:
            if number not in request["ignored"]:
                signal.signal(number, pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        status = os.waitstatus_to_exitcode(int(answers.readline() or 9))
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
        signal.pause()
    os._exit(status)


if __name__ == "__main__":
    main()

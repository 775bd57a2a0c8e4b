"""The first process: imports what programs ask for, and forks one process for each of them.

It has one thread and runs nothing but imports, so that what is forked is as good as new.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import sys
from pathlib import Path

import program
from imports import Imports

sys.path.pop(0)  # this folder, which programs do not see
PATH = list(sys.path)


class Server:
    """Takes requests at ``folder/family.socket`` until its standard input is closed.

    Parameters
    ----------
    folder : Path
        What the programs of one :func:`warm_python.python` share.
    family : str
        Which of them come here.
    """

    def __init__(self, folder: Path, family: str) -> None:
        self.folder, self.family = folder, family
        self.selector = selectors.DefaultSelector()
        self.imports = Imports()
        self.clients: dict[int, tuple[socket.socket, bool]] = {}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / f"{family}.socket"))
        self.listener.listen(64)
        self.woken, self.waker = socket.socketpair()
        self.woken.setblocking(False)
        self.waker.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.selector.register(self.woken, selectors.EVENT_READ, self.reap)
        self.selector.register(sys.stdin, selectors.EVENT_READ, self.stop)

    def run(self) -> None:
        (self.folder / f"{self.family}.ready").touch()
        while True:
            for key, _ in self.selector.select():
                key.data(key.fileobj)

    def stop(self, _: object) -> None:
        for process in list(self.clients):
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)  # here, as who asked may have been killed
        os._exit(0)

    def accept(self, _: object) -> None:
        client, _ = self.listener.accept()
        head, fds, *_ = socket.recv_fds(client, 4, 250)
        (size,) = struct.unpack("!I", head)
        body = b""
        while len(body) < size:
            body += client.recv(size - len(body))
        request = json.loads(body)
        self.imports.warm(request, self.family)
        process = os.fork()
        if not process:
            self.become(request, fds)
        for fd in fds:
            os.close(fd)
        if request["leads"]:
            with contextlib.suppress(OSError):  # it may have done so itself, or ended
                os.setpgid(process, process)
        self.clients[process] = client, request["leads"]
        client.sendall(f"{process}\n".encode())
        # Nothing more is sent, so that readable means gone: as where the program itself was killed.
        self.selector.register(client, selectors.EVENT_READ, lambda _: self.killed(process))

    def killed(self, process: int) -> None:
        if process in self.clients:
            client, leads = self.clients.pop(process)
            self.selector.unregister(client)
            client.close()
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if leads else os.kill)(process, signal.SIGKILL)

    def reap(self, _: object) -> None:
        with contextlib.suppress(BlockingIOError):
            self.woken.recv(4096)
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                process, status = found
                if process in self.clients:
                    client, _ = self.clients.pop(process)
                    self.selector.unregister(client)
                    with contextlib.suppress(OSError), client:
                        client.sendall(f"{status}\n".encode())

    def become(self, request: dict, fds: list[int]) -> None:
        """In the forked process: the program, from its first line to its exit status."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for open_socket in (self.listener, self.woken, self.waker, *(client for client, _ in self.clients.values())):
            open_socket.close()
        if request["leads"]:
            os.setpgid(0, 0)
        program.run(request, fds, str(self.folder / "bin" / "python"), PATH)


if __name__ == "__main__":
    gc.disable()  # until a process is forked: less is copied
    Server(Path(sys.argv[1]), sys.argv[2]).run()

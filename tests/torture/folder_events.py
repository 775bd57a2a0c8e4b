"""What the kernel tells of a folder while a process writes to it (Linux: inotify)."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time
from collections.abc import Callable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_MODIFY, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _IS_FOLDER = 0x2, 0x40, 0x80, 0x100, 0x200, 0x40000000
_EVENTS = _MODIFY | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_HEADER = struct.Struct("iIII")


class FolderEvents:
    """Writes, renamings and removals below a folder, counted; used as a context manager.

    Attributes
    ----------
    seen : int
        Events so far. Those in a folder that is being made may be missed until it is known.
    """

    def __init__(self, folder: Path) -> None:
        self.seen = 0
        self._folders: dict[int, Path] = {}
        self._handle = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._handle < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._add(folder)

    def __enter__(self) -> FolderEvents:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._handle)

    def wait(self, number: int, ended: Callable[[], bool], seconds: float = 600.0) -> bool:
        """Until so many events were seen: True, or False if it has ended before."""
        until = time.monotonic() + seconds
        while self.seen < number:
            if ended() or time.monotonic() > until:
                return False
            select.select([self._handle], [], [], 0.05)
            self.read()
        return True

    def read(self) -> int:
        """Take note of what has happened; returns how many events there were so far."""
        try:
            content = os.read(self._handle, 65536)
        except BlockingIOError:
            return self.seen
        position = 0
        while position < len(content):
            watch, mask, _, length = _HEADER.unpack_from(content, position)
            name = content[position + _HEADER.size : position + _HEADER.size + length].rstrip(b"\0")
            position += _HEADER.size + length
            self.seen += 1
            if mask & _IS_FOLDER and mask & (_CREATE | _MOVED_TO) and watch in self._folders:
                self._add(self._folders[watch] / os.fsdecode(name))
        return self.seen

    def _add(self, folder: Path) -> None:
        watch = _LIBC.inotify_add_watch(self._handle, os.fsencode(folder), _EVENTS)
        if watch < 0:
            return  # it is gone again
        self._folders[watch] = folder
        try:
            inner = [path for path in folder.iterdir() if path.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return  # by now
        for path in inner:
            self._add(path)

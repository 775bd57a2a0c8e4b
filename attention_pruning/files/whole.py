"""Files and folders that are written whole or not at all, whatever ends the process that writes them.

What is being written lies in a hidden folder beside its place, a room, which its writer holds locked. A process that is
killed holds nothing any more, so that whoever comes next sees which rooms nobody uses, and removes them.
On a file system that cannot lock folders (NFS) rooms of killed processes stay.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_ENDING = ".tmp"


def file_name(path: str | Path) -> Path:
    """The name of a file as a Path.

    Raises
    ------
    InputError
        For anything else, such as a mask where its file is expected.
    """
    try:
        return Path(path)
    except TypeError as error:
        raise InputError(f"path: expected the name of a file, found {type(path).__name__}") from error


@contextmanager
def written_whole(path: str | Path, ending: str | None = None) -> Iterator[Path]:
    """Give a temporary name near ``path``; move it there when the block ends well, remove it when it does not. The file
    has the permissions that ``open`` would give it.

    Raises
    ------
    InputError
        If the folder does not exist or cannot be written, or if ``path`` is itself a folder or has another ending.
    """
    path = file_name(path)
    if path.is_dir():
        raise InputError(f"{path}: expected the name of a file to write, found a folder")
    if ending is not None and path.suffix != ending:
        raise InputError(f"{path}: expected the name of a {ending} file to write, found {path.suffix or 'no ending'}")
    with room_beside(path) as room:
        temporary = room / f"file{_ENDING}"  # no name that somebody looks for
        temporary.touch()
        yield temporary
        os.replace(temporary, path)


@contextmanager
def room_beside(path: Path) -> Iterator[Path]:
    """A new folder on the disk of ``path`` that no other process, thread or machine comes upon, removed at the end.

    Rooms for the same path that killed processes have left are removed first.

    Raises
    ------
    InputError
        If the folder of ``path`` does not exist or cannot be written.
    """
    clear_rooms(path.parent, path.name)
    handle, room = None, None
    try:
        while handle is None:
            room = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{_ENDING}")
            try:
                room.mkdir()
                handle = os.open(room, os.O_RDONLY) if fcntl else -1
            except FileNotFoundError:  # cleared away before it was locked, or no folder to make it in
                if path.parent.is_dir():
                    continue
                raise
            if not _still_there(room, handle):
                os.close(handle)
                handle = None
    except OSError as error:
        raise InputError(f"{path}: expected a folder that can be written to, found: {error.strerror}") from error
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


def clear_rooms(folder: str | Path, name: str | None = None) -> None:
    """Remove the rooms in a folder that nobody uses any more, all of them or those for one name."""
    if fcntl is None:
        return
    beginning = "." if name is None else f".{name[:100]}."
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(beginning) and entry.name.endswith(_ENDING) and entry.is_dir():
                _clear(entry.path)


def _clear(room: str) -> None:
    with suppress(OSError):
        handle = os.open(room, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(room, ignore_errors=True)
        finally:
            os.close(handle)


def _still_there(room: Path, handle: int) -> bool:
    """Lock a room that was just made; False if it was cleared away before."""
    if handle < 0:
        return True
    with suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        return os.path.samestat(os.stat(room), os.fstat(handle))
    except FileNotFoundError:
        return False

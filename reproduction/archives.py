"""Text inside the archives that translation corpora are published as: read, never unpacked to disk."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attention_pruning import InputError

SEGMENT = re.compile(r'<seg id="[^"]*">\s*(.*?)\s*</seg>')


@contextmanager
def opened_archive(path: str | Path, remedy: str) -> Iterator[tarfile.TarFile]:
    """A tar archive, compressed or not.

    Raises
    ------
    InputError
        If it is missing or damaged; the message ends with ``remedy``.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected an archive, found no such file; {remedy}")
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(
            f"{path}: expected a whole tar archive, found a damaged or foreign file ({error}); {remedy}"
        ) from error


def member_lines(archive: tarfile.TarFile, name: str) -> list[str]:
    """The lines of a text file in an archive; only a newline ends a line.

    Raises
    ------
    InputError
        If there is no such file in it.
    """
    try:
        member = archive.extractfile(name)
    except KeyError:
        member = None
    if member is None:
        raise InputError(f"{archive.name}: expected {name} in the archive, found no such file")
    text = io.TextIOWrapper(member, encoding="utf-8", newline="\n").read()
    return text.removesuffix("\n").split("\n")


def segments(lines: list[str]) -> list[str]:
    """The sentences of an XML or SGML test set: its ``<seg>`` elements, typographic apostrophes made plain."""
    return [match[1].replace("’", "'") for line in lines if (match := SEGMENT.search(line))]

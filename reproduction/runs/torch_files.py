"""Files that ``torch.save`` wrote, read without running anything in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from attention_pruning import InputError

#: How a zip file begins; before torch 1.6 files were no archives.
_ARCHIVE = b"PK\x03\x04"


def read_torch_file(
    path: str | Path,
    expected: str,
    *,
    unsafe: str = "objects that might run code",
    only_archives: bool = False,
    mmap: bool = False,
    may_be_trusted: bool = False,
) -> Any:
    """What a file of ``torch.save`` holds, on the CPU: tensors, numbers, text, containers, and what was declared safe.

    Every byte of an archive is held against its checksum first, for torch itself looks at none.

    Parameters
    ----------
    path : path
    expected : str
        What the file should be, for messages.
    unsafe : str
        What a message calls objects that are not declared safe.
    only_archives : bool
        Whether to refuse the format of torch before 1.6, which has no checksums.
    mmap : bool
        Whether the tensors of an archive stay in the file until they are used.
    may_be_trusted : bool
        Whether torch's environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD lets it run what the file says.

    Raises
    ------
    InputError
        If the file is missing, damaged or something else, or holds objects that are not declared safe.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected {expected}, found no such file")
    try:
        archive = is_archive(path)
        if archive:
            check_archive(path)
        elif only_archives:
            raise zipfile.BadZipFile("not an archive")
        return torch.load(
            path, map_location="cpu", mmap=mmap and archive, weights_only=None if may_be_trusted else True
        )
    except pickle.UnpicklingError as error:  # torch's own text would advise to read it unsafely
        found = unsafe if "GLOBAL" in str(error) else "a foreign file"
        raise InputError(f"{path}: expected {expected}, found {found}") from error
    except Exception as error:
        # Of bytes that are no such file torch lets out whatever the reading of them runs into, from AttributeError to
        # MemoryError.
        found = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(f"{path}: expected {expected}, found a damaged or foreign file ({found})") from error


def is_archive(path: Path) -> bool:
    """Whether a file begins as a zip file, as all have since torch 1.6."""
    with path.open("rb") as file:
        return file.read(len(_ARCHIVE)) == _ARCHIVE


def check_archive(path: Path) -> None:
    """Hold every byte of an archive against its checksum.

    Raises
    ------
    zipfile.BadZipFile
        If one differs, or the file is no archive as torch writes them.
    """
    with zipfile.ZipFile(path) as archive:
        # torch packs nothing: what is packed could be of any size when it is unpacked.
        if packed := [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]:
            raise zipfile.BadZipFile(f"{packed[0]} is compressed")
        if (name := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {name}")

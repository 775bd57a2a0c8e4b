"""Files of this library: safetensors whose header says what they are, written whole or not at all.

A file's header holds strings only: ``format`` as it is, every other value JSON-encoded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError

#: What may stand in the metadata of a pattern or a mask.
MetadataValue = str | int | float | bool | None


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary name in the folder of ``path``; move it there when the block ends well, remove it when it does
    not.

    Raises
    ------
    InputError
        If the folder does not exist or cannot be written, or if ``path`` is itself a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: expected the name of a file to write, found a folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
    except OSError as error:
        raise InputError(f"{path}: expected a folder that can be written to, found: {error.strerror}") from error
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(
    path: str | Path, format_name: str, tensors: Mapping[str, Tensor], fields: Mapping[str, object]
) -> None:
    """Write tensors and header fields. The same content always gives the same bytes."""
    header = {"format": format_name} | {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(contiguous, metadata=header)
    with written_whole(path) as temporary:
        temporary.write_bytes(_with_sorted_header(content))


def _with_sorted_header(content: bytes) -> bytes:
    # safetensors writes the metadata in a random order; its layout is 8 bytes of header length, the JSON header, the
    # data.
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data stays aligned
    return len(header).to_bytes(8, "little") + header + content[start:]


def read_header(path: str | Path) -> dict[str, str]:
    """The header of a safetensors file, its strings undecoded.

    Raises
    ------
    InputError
        If there is no such file, or if it is not a whole safetensors file.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


def load_tensors(
    path: str | Path, format_name: str, dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read a file written by :func:`save_tensors`: its tensors, and its header fields decoded.

    Parameters
    ----------
    format_name : str
        What the header must say.
    dtypes : mapping
        The tensors that must be there, no others, each with its dtype.

    Raises
    ------
    InputError
        If the file is missing, truncated, of another format, or holds other tensors.
    """
    with _opened(path) as file:
        header = dict(file.metadata() or {})
        found_format = header.pop("format", None)
        if found_format != format_name:
            raise InputError(f"{path}: expected a file of format {format_name!r}, found {found_format!r}")
        if set(file.keys()) != set(dtypes):
            raise InputError(f"{path}: expected the tensors {sorted(dtypes)}, found {sorted(file.keys())}")
        # clone: the tensors of safe_open live in the file, and a file may change under a running process
        tensors = {name: file.get_tensor(name).clone() for name in dtypes}
    for name, dtype in dtypes.items():
        if tensors[name].dtype != dtype:
            raise InputError(f"{path}: expected {name!r} to be {dtype}, found {tensors[name].dtype}")
    try:
        return tensors, {name: json.loads(value) for name, value in header.items()}
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: expected JSON values in the header, found: {error}") from error


def require_fields(path: str | Path, fields: Mapping[str, object], names: tuple[str, ...]) -> None:
    """Refuse a header that lacks one of ``names`` or has others."""
    if set(fields) != set(names):
        raise InputError(f"{path}: expected the header fields {sorted(names)}, found {sorted(fields)}")


@contextmanager
def _opened(path: str | Path) -> Iterator[safe_open]:
    if not Path(path).exists():
        raise InputError(f"{path}: expected a safetensors file, found no such file")
    if not Path(path).is_file():
        raise InputError(f"{path}: expected a safetensors file, found a folder or a device")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(f"{path}: expected a whole safetensors file, found: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: expected a file that can be read, found: {error}") from error


def fingerprint(tensors: Mapping[str, Tensor], **facts: object) -> str:
    """First 16 hexadecimal digits of a sha256 over names, shapes, dtypes and bytes of tensors, and over some facts."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def checked_metadata(metadata: Mapping[str, MetadataValue] | None) -> dict[str, MetadataValue]:
    """A copy of ``metadata``, refused with InputError unless it maps strings to strings, numbers, bools or None."""
    metadata = dict(metadata or {})
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, MetadataValue):
            raise InputError(f"metadata: expected strings, numbers, bools or None by name, found {name!r}: {value!r}")
    return metadata

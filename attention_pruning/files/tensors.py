"""Files of this library: safetensors whose header says what they are, written whole or not at all.

A file's header holds strings only: ``format`` and ``content_sha256`` as they are, every other value JSON-encoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError
from .whole import file_name, written_whole

#: What may stand in the metadata of a pattern or a mask.
MetadataValue = str | int | float | bool | None
#: The header's name for a hash of all else. Files of older versions have none.
HASH = "content_sha256"
#: So many rows of a tensor are hashed at a time: counts of cells are written out no faster than they are used.
_ROWS = 64


@dataclass(frozen=True)
class FileKind:
    """What a file of one format holds: its tensors, each with its dtype, and its header fields, no others."""

    format: str
    dtypes: Mapping[str, torch.dtype]
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Stored:
    """What was read from a file of ``kind``: tensors on the CPU, header fields decoded."""

    path: Path
    kind: FileKind
    tensors: Mapping[str, Tensor]
    fields: Mapping[str, object]


def save_tensors(path: str | Path, kind: FileKind, tensors: Mapping[str, Tensor], fields: Mapping[str, object]) -> None:
    """Write tensors and header fields. The same content always gives the same bytes.

    Raises
    ------
    InputError
        If ``path`` does not end in .safetensors, or cannot be written.
    """
    header = {"format": kind.format} | {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}
    header[HASH] = _digest(tensors, header)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(contiguous, metadata=header)
    with written_whole(path, ".safetensors") as temporary:
        temporary.write_bytes(_with_sorted_header(content))


def _with_sorted_header(content: bytes) -> bytes:
    # safetensors writes the metadata in a random order; its layout is 8 bytes of header length, the JSON header, the
    # data.
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data stays aligned
    return len(header).to_bytes(8, "little") + header + content[start:]


def read_stored(path: str | Path, *kinds: FileKind) -> Stored:
    """Open a file once, tell which of some kinds it is, and read it whole.

    Raises
    ------
    InputError
        If the file is missing, truncated, of none of these kinds, holds other tensors or fields, or is not what was
        written: its content has another hash than its header says. Files of older versions have no hash.
    """
    path = file_name(path)
    with _opened(path) as file:
        header = dict(file.metadata() or {})
        kind = _told_apart(path, header.get("format"), kinds)
        if set(file.keys()) != set(kind.dtypes):
            raise InputError(f"{path}: expected the tensors {sorted(kind.dtypes)}, found {sorted(file.keys())}")
        mapped = {name: file.get_tensor(name) for name in kind.dtypes}
        for name, dtype in kind.dtypes.items():
            if mapped[name].dtype != dtype:
                raise InputError(f"{path}: expected {name!r} to be {dtype}, found {mapped[name].dtype}")
        recorded = header.pop(HASH, None)
        if recorded is not None and recorded != (found := _digest(mapped, header)):
            raise InputError(f"{path}: expected content of sha256 {recorded}, as its header says, found {found}")
        # clone: these tensors live in the file, and a file may change under a running process
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
    return Stored(path, kind, tensors, _decoded(path, kind, header))


def _told_apart(path: Path, found: str | None, kinds: tuple[FileKind, ...]) -> FileKind:
    for kind in kinds:
        if kind.format == found:
            return kind
    formats = " or ".join(repr(kind.format) for kind in kinds)
    raise InputError(f"{path}: expected a file of format {formats}, found {found!r}")


def _decoded(path: Path, kind: FileKind, header: Mapping[str, str]) -> dict[str, object]:
    try:
        fields = {name: json.loads(value) for name, value in header.items() if name != "format"}
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON values in the header, found: {error}") from error
    if set(fields) != set(kind.fields):
        raise InputError(f"{path}: expected the header fields {sorted(kind.fields)}, found {sorted(fields)}")
    return fields


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    if not path.exists():
        raise InputError(f"{path}: expected a safetensors file, found no such file")
    if not path.is_file():
        raise InputError(f"{path}: expected a safetensors file, found a folder or a device")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(f"{path}: expected a whole safetensors file, found: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: expected a file that can be read, found: {error}") from error


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> str:
    """sha256 over names, shapes, dtypes and bytes of tensors, and over some facts: hexadecimal."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in tensor.split(_ROWS) if len(tensor.shape) else (tensor,):
            digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


def fingerprint(tensors: Mapping[str, Tensor], **facts: object) -> str:
    """First 16 hexadecimal digits of a sha256 over names, shapes, dtypes and bytes of tensors, and over some facts."""
    return _digest(tensors, facts)[:16]


def checked_metadata(metadata: Mapping[str, MetadataValue] | None) -> dict[str, MetadataValue]:
    """A copy of ``metadata``, refused with InputError unless it maps strings to strings, numbers, bools or None."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InputError(f"metadata: expected values by name, found {type(metadata).__name__}")
    metadata = dict(metadata or {})
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, MetadataValue):
            raise InputError(f"metadata: expected strings, numbers, bools or None by name, found {name!r}: {value!r}")
    return metadata

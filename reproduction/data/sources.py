"""Where published data comes from: the data folder, the Hugging Face hub, archives that are read without unpacking."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from attention_pruning import InputError

if TYPE_CHECKING:
    from datasets import DatasetDict

DATA_DIR_VARIABLE = "AP_DATA_DIR"
SEGMENT = re.compile(r'<seg id="[^"]*">\s*(.*?)\s*</seg>')


def load_from_hub(dataset: str, config: str, revision: str, folder: str, **options: str) -> DatasetDict:
    """Return all splits of a data set, from the hub or from its cache on this machine.

    Parameters
    ----------
    folder : str
        What a local folder would hold instead; the message of the error names it.
    options
        ``cache_dir`` and ``token``, if they are not the user's own.

    Raises
    ------
    InputError
        If the hub cannot be reached and the cache has no copy.
    """
    # Imported here because it takes seconds and the local folder does not need it.
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return datasets.load_dataset(dataset, config, revision=revision, **options)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{folder}: expected {dataset} ({config}) from the Hugging Face hub, found: {reason}; connect, or name a "
            f"local folder that holds {folder}/ with {DATA_DIR_VARIABLE}"
        ) from error


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

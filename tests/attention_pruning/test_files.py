"""Damaged files are noticed, whole or not at all is what is written, and old files stay readable."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file

from attention_pruning import AttentionPattern, InputError, PruneMask
from attention_pruning.files import tensors, whole
from attention_pruning.files.load import load_any, load_mask, load_pattern
from attention_pruning.files.published import read_published, write_published
from attention_pruning.files.whole import written_whole
from attention_pruning.make import from_pattern

AVERAGE = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(1))
PATTERN = AttentionPattern(AVERAGE, torch.ones(8, 9), "enc-dec", metadata={"model": "tiny", "seed": 3})
MASK = from_pattern(PATTERN, 0.5)


def damaged(content: bytes, seed: int, bytes_from: int = 0) -> bytes:
    """The content with one to three bytes changed, from some place on, or cut short."""
    draw = random.Random(seed)
    if seed % 5 == 0:
        return content[: draw.randrange(bytes_from, len(content))]
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(bytes_from, len(content))
        changed[place] = (changed[place] + draw.randint(1, 255)) % 256
    return bytes(changed)


@pytest.mark.parametrize("thing", [PATTERN, MASK], ids=["pattern", "mask"])
@pytest.mark.parametrize("part", ["anywhere", "tensors"])
def test_damaged_files_are_refused(tmp_path, thing, part):
    path = tmp_path / "file.safetensors"
    thing.save(path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little") if part == "tensors" else 0
    for seed in range(400):
        path.write_bytes(damaged(content, seed, start))
        with pytest.raises(InputError) as caught:
            load_any(path)
        assert str(caught.value).startswith(f"{path}: expected ") and "\n" not in str(caught.value), seed
    path.write_bytes(content)
    assert load_any(path).fingerprint == thing.fingerprint


@pytest.mark.parametrize("part", ["header", "anywhere"])
def test_damaged_npy_files_are_refused_or_read(tmp_path, part):
    path = tmp_path / "average.npy"
    write_published(PATTERN, path, "bert")
    content = path.read_bytes()
    header = 10 + int.from_bytes(content[8:10], "little")
    refused = 0
    for seed in range(400):
        whole = damaged(content[:header], seed) + content[header:] if part == "header" else damaged(content, seed)
        path.write_bytes(whole)
        try:
            assert isinstance(read_published(path, site="enc-dec"), AttentionPattern)
        except InputError as error:
            refused += 1
            assert str(error).startswith(f"{path}: expected ") and "\n" not in str(error), seed
    assert refused > 40


def test_a_npy_header_that_python_cannot_even_read_is_refused(tmp_path):
    path = tmp_path / "average.npy"
    write_published(PATTERN, path, "bert")
    content = path.read_bytes()
    for old, new in ((b"(2, 1, ", b"(2L,1L "), (b"shape': (", b"shape': ["), (b"}", b" "), (b"(2, 1,", b"(2,9**9")):
        path.write_bytes(content.replace(old, new, 1))
        with pytest.raises(InputError, match="expected a whole .npy file of plain numbers, found: "):
            read_published(path, site="enc-dec")


def test_what_is_too_large_for_an_average_is_refused(tmp_path):
    path = tmp_path / "average.npy"
    np.save(path, np.full((2, 1, 3, 4, 5), 1e200))
    with pytest.raises(InputError, match="average.npy: expected finite averages"):
        read_published(path, site="enc-dec")
    np.save(path, np.full((2, 1, 3, 4, 5), 1.5))
    with pytest.raises(InputError, match="average.npy: expected averages of probabilities, of at most 1, found 1.5"):
        read_published(path, site="enc-dec")
    np.save(path, np.full((2, 1, 3, 4, 5), 1.0009))
    assert read_published(path, site="enc-dec").average.max() > 1


@pytest.mark.parametrize("thing", [PATTERN, MASK], ids=["pattern", "mask"])
def test_a_file_of_an_older_version_has_no_hash(tmp_path, thing):
    path = tmp_path / "new.safetensors"
    thing.save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata()
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert len(header.pop("content_sha256")) == 64
    save_file(content, tmp_path / "old.safetensors", header)
    loaded = load_any(tmp_path / "old.safetensors")
    assert loaded.fingerprint == thing.fingerprint and loaded.metadata == thing.metadata
    save_file(content, tmp_path / "other.safetensors", header | {"content_sha256": "0" * 64})
    with pytest.raises(InputError, match="expected content of sha256 0+, as its header says, found [0-9a-f]{64}"):
        load_any(tmp_path / "other.safetensors")


def test_a_file_is_opened_once(tmp_path, monkeypatch):
    PATTERN.save(tmp_path / "pattern.safetensors")
    MASK.save(tmp_path / "mask.safetensors")
    opened, safe_open = [], tensors.safe_open
    monkeypatch.setattr(tensors, "safe_open", lambda path, **how: opened.append(path.name) or safe_open(path, **how))
    assert isinstance(load_any(tmp_path / "pattern.safetensors"), AttentionPattern)
    assert isinstance(load_any(tmp_path / "mask.safetensors"), PruneMask)
    assert load_mask(tmp_path / "mask.safetensors") == load_mask(tmp_path / "pattern.safetensors", 0.5)
    assert load_pattern(tmp_path / "pattern.safetensors").fingerprint == PATTERN.fingerprint
    assert opened == [f"{name}.safetensors" for name in ("pattern", "mask", "mask", "pattern", "pattern")]
    opened.clear()
    with pytest.raises(
        InputError, match="expected a file of format 'attention-pruning/pattern/1' or .*, found .*mask/1'"
    ):
        load_pattern(tmp_path / "mask.safetensors")
    assert opened == ["mask.safetensors"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_has_the_permissions_that_open_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        MASK.save(tmp_path / "mask.safetensors")
        write_published(PATTERN, tmp_path / "average.npy", "bert")
        (tmp_path / "plain").write_bytes(b"")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~umask}


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file.txt"
    with written_whole(path) as first, written_whole(path) as second:
        assert first != second and {first.parent.parent, second.parent.parent} == {tmp_path}
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_what_fails_while_it_is_written_leaves_nothing(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), written_whole(path) as temporary:
        Path(temporary).write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


_KILLED = """
import os, signal, sys
from pathlib import Path
from attention_pruning.files.whole import written_whole
with written_whole(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_has_left_goes_with_the_next_writing(tmp_path):
    path = tmp_path / "file.txt"
    root = Path(whole.__file__).parents[2]
    subprocess.run([sys.executable, "-c", _KILLED, path], env=os.environ | {"PYTHONPATH": str(root)}, check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".file.txt.") and not path.exists()
    with written_whole(tmp_path / "other.txt") as temporary:  # another file's are nobody's business
        temporary.touch()
    assert left.exists()
    with written_whole(path) as first:
        assert not left.exists()
        with written_whole(path):  # nor is what a living writer has
            assert first.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file.txt", "other.txt"]


def test_without_locks_nothing_is_cleared(tmp_path, monkeypatch):
    """A file system that cannot lock folders: a writer works, and what looks like a left room stays."""

    def refuse(*_):
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr(whole.fcntl, "flock", refuse)
    (tmp_path / ".file.txt.00.tmp").mkdir()
    with written_whole(tmp_path / "file.txt") as temporary:
        temporary.write_text("whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".file.txt.00.tmp", "file.txt"]

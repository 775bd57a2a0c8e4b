"""Damaged patterns, masks, sums of a collection and published arrays."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_pruning import AttentionPattern, DistanceMask, InputError, PruneMask
from attention_pruning.cli.main import main as command
from attention_pruning.files.load import load_any
from attention_pruning.files.published import read_published
from attention_pruning.files.tensors import save_tensors
from attention_pruning.make import by_distance, from_pattern
from attention_pruning.ops.layout import BlockLayout
from attention_pruning.structure import visible_cells
from mutations import STRANGE, answer, damaged, fuzzed, strange, written


def a_pattern(pool: int = 1) -> AttentionPattern:
    average = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(1)) * visible_cells(8, 8, True)
    count = torch.full((8, 8), 3).tril()
    return AttentionPattern(average, count, "dec-self", metadata={"model": "tiny", "sequences": 3}).pooled(pool)


THINGS = {
    "pattern": a_pattern(),
    "pooled": a_pattern(8),
    "mask": from_pattern(a_pattern(), 0.5),
    "blocks": from_pattern(a_pattern(4), 0.4, block_size=4),
    "distance": by_distance(a_pattern(), 0.5),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("things")
    found = {}
    for name, thing in THINGS.items():
        thing.save(folder / "thing.safetensors")
        found[name] = (folder / "thing.safetensors").read_bytes()
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "thing.safetensors"


def use(thing: object) -> None:
    """What is done with a file that was read without complaint."""
    if isinstance(thing, AttentionPattern):
        answer(from_pattern, thing, 0.5)
    elif isinstance(thing, DistanceMask):
        answer(thing.at, 8)
        thing.effective_sparsity  # noqa: B018
        thing.layer(0)
    elif isinstance(thing, PruneMask):
        thing.layer(0).layout(16)
        thing.empty_rows  # noqa: B018


@pytest.mark.parametrize("name", THINGS)
@fuzzed(0.5)
@given(st.data())
def test_damaged_bytes(name, stored, path, data):
    found = answer(load_any, written(path, data.draw(damaged(stored[name]))))
    if found is not None:  # what is not refused is what was written
        assert type(found) is type(THINGS[name]) and found.fingerprint == THINGS[name].fingerprint
        assert found.metadata == THINGS[name].metadata


def rewritten(content: bytes, path: Path, edit) -> None:
    """Write a file whose header and hash agree and whose content was edited."""
    from safetensors.torch import load

    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])["__metadata__"]
    header.pop("content_sha256")
    kind = type("Kind", (), {"format": header.pop("format")})
    tensors, fields = edit(load(content), {name: json.loads(value) for name, value in header.items()})
    save_tensors(path, kind, tensors, fields)


@st.composite
def other_tensor(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with another number in it, or of another shape or type."""
    kind = draw(st.sampled_from(["number", "number", "number", "axes", "cut", "type", "empty"]))
    if kind == "axes":
        return tensor[None] if draw(st.booleans()) else tensor.flatten()
    if kind == "cut":
        return tensor[..., :-1].clone()
    if kind == "type":
        return tensor.to(draw(st.sampled_from([torch.float64, torch.int32, torch.float16, torch.bool])))
    if kind == "empty":
        return tensor[:0].clone()
    tensor = tensor.clone()
    numbers = (
        [float("nan"), float("inf"), -1.0, 1e9, 0.25] if tensor.is_floating_point() else [-1, 1 << 62, 1 << 40, 0, 7]
    )
    tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from(numbers))
    return tensor


@pytest.mark.parametrize("name", THINGS)
@fuzzed(0.5)
@given(st.data())
def test_strange_values_whose_hash_is_right(name, stored, path, data):
    def edit(tensors, fields):
        if data.draw(st.booleans()):
            key = data.draw(st.sampled_from(sorted(tensors)))
            return tensors | {key: data.draw(other_tensor(tensors[key]))}, fields
        return tensors, {str(name): value for name, value in data.draw(strange(fields)).items()}

    try:
        rewritten(stored[name], path, edit)
    except (UnicodeEncodeError, AttributeError):  # what no header can hold
        return
    found = answer(load_any, path)
    if isinstance(found, AttentionPattern):
        assert torch.isfinite(found.average).all() and (found.average >= 0).all() and found.average.max() < 1.01
        assert all((part >= 0).all() for part in found._count.split(64))
    use(found)


# Published arrays


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


PUBLISHED = npy(np.linspace(0, 1, 2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 1, 3, 4, 5))


@st.composite
def npy_files(draw: st.DrawFn) -> bytes:
    """Damaged bytes, or a whole header that claims something."""
    if draw(st.booleans()):
        return draw(damaged(PUBLISHED))
    size = st.sampled_from([0, 1, 3, -1, 1 << 20, 1 << 31, 1 << 62, 10**30])
    shape = draw(st.one_of(st.lists(size, max_size=6).map(tuple), STRANGE))
    kinds = ["<f4", ">f8", "<f2", "|O", "<i8", "|b1", "<U9", "<f4,<f4", "(1000000,)<f4", "<V8", "", "x"]
    header = {"descr": draw(st.sampled_from(kinds)), "fortran_order": draw(st.sampled_from([True, False, 0, None]))}
    text = f"{header | {'shape': shape}!r}\n".encode("utf-8", "replace")
    return b"\x93NUMPY\x01\x00" + (len(text) % 65536).to_bytes(2, "little") + text + PUBLISHED[-480:]


@pytest.fixture(scope="module")
def npy_path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "average.npy"


@fuzzed()
@given(npy_files(), st.sampled_from([None, "fairseq", "transformer-xl"]), st.sampled_from(["enc-dec", "dec-self"]))
def test_published_arrays(npy_path, content, layout, site):
    found = answer(read_published, written(npy_path, content), layout, site=site)
    if found is not None:
        assert torch.isfinite(found.average).all() and 0 <= found.average.min() <= found.average.max() < 1.01


@fuzzed(0.5)
@given(st.data())
def test_the_command(stored, path, data):
    name = data.draw(st.sampled_from(sorted(THINGS)))
    written(path, data.draw(damaged(stored[name], edits=1)))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = command(["inspect", str(path)])
        except SystemExit as end:
            status = end.code
    lines = said.getvalue().splitlines()
    assert status in (0, None) or (status == 2 and [line.startswith("error: ") for line in lines] == [True])


# Layouts


@fuzzed()
@given(st.data())
def test_layouts_made_of_strange_numbers(data):
    pruned = torch.rand(2, 40, 50, generator=torch.Generator().manual_seed(2)) < 0.5
    whole = BlockLayout.from_cells(~pruned, 16)
    parts = {name: getattr(whole, name) for name in ("row_start", "column", "part", "bits")}
    sizes = {"block_size": 16, "query_length": 40, "key_length": 50}
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(parts)))
        if parts[name].dtype == torch.uint8:
            parts[name] = parts[name][:-1].clone()
        else:
            parts[name] = parts[name].clone()
            place = data.draw(st.integers(0, parts[name].numel() - 1))
            parts[name].view(-1)[place] = data.draw(
                st.sampled_from([-2, -1, 0, 1, 3, 1 << 20, (1 << 31) - 1, -(1 << 31)])
            )
    else:
        name = data.draw(st.sampled_from(sorted(sizes)))
        sizes[name] = data.draw(st.one_of(STRANGE, st.integers(-200, 200)))
    layout = answer(BlockLayout, **sizes, **parts)
    if layout is not None:  # whatever it says lies within its arrays
        kept = layout.cells
        assert kept.shape == (2, layout.query_length, layout.key_length)


def test_what_is_claimed_and_not_there_takes_no_memory(path, stored):
    """A header of 2^62 bytes."""
    for name, content in stored.items():
        written(path, (1 << 62).to_bytes(8, "little") + content[8:])
        with pytest.raises(InputError, match="whole safetensors file"):
            load_any(path)
        assert name

"""Laws of seeds, atomic files, checkpoints, interruptions and records."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import InputError
from reproduction.runs.checkpoint import (
    Interruption,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
    seed_everything,
)
from reproduction.runs.command import limit_threads, run_main
from reproduction.runs.files import atomic_path, make_folder, prepare_output, write_json
from reproduction.runs.record import RunRecord, peak_memory_bytes

law = settings(deadline=None, max_examples=60)
STATE = {
    "step": 3,
    "weights": {"a": torch.arange(40.0), "b": torch.zeros(2, 3, dtype=torch.bool)},
    "losses": [0.5, 1.25],
    "flags": {"lr": 0.1, "name": "x", "none": None, "on": True},
}


def same(one, other):
    """Whether two states are equal, tensors bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return torch.equal(one, other) and one.dtype == other.dtype if isinstance(one, torch.Tensor) else one == other


# -- seeds -------------------------------------------------------------------------------------------------------------


def draw():
    return random.random(), np.random.random(), torch.rand(1).item()


@pytest.mark.parametrize("seed", [0, 1111, 2**40])
def test_a_seed_fixes_every_generator(seed):
    seed_everything(seed)
    first, second = draw(), draw()
    seed_everything(seed)
    assert (draw(), draw()) == (first, second)
    seed_everything(seed + 1)
    assert all(one != other for one, other in zip(draw(), first, strict=True))


def test_a_restored_state_draws_the_same_again():
    seed_everything(1)
    torch.rand(5)
    state = random_state()
    expected = torch.rand(5)
    torch.manual_seed(2)
    restore_random_state(state)
    assert torch.equal(torch.rand(5), expected)


def test_each_process_keeps_the_state_of_its_own_gpu(monkeypatch):
    """A checkpoint of a machine with more GPUs restarts on one with fewer."""
    states = {"set": torch.tensor([1])}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: states["set"])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: states.update(set=state))
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: pytest.fail("all GPUs"))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda _: pytest.fail("all GPUs"))
    saved = random_state()
    states["set"] = torch.tensor([2])
    restore_random_state(saved)
    assert states["set"].item() == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    restore_random_state(saved)  # a machine without


def test_threads():
    before = torch.get_num_threads()
    try:
        limit_threads(1)
        assert torch.get_num_threads() == 1
        limit_threads(2)
        limit_threads(0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    with pytest.raises(InputError, match="--threads: expected 0 .* found -1"):
        limit_threads(-1)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_file_is_there_whole_or_as_it_was(error, tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    for content in ("first", "second"):
        before = path.read_text() if path.exists() else None
        try:
            with atomic_path(path) as temporary:
                assert temporary.parent.parent == path.parent
                temporary.write_text(content)
                assert (path.read_text() if path.exists() else None) == before
                if error:
                    raise error
        except (ValueError, KeyboardInterrupt):
            assert error
        assert (path.read_text() if path.exists() else None) == (before if error else content)
    assert [file.name for file in path.parent.iterdir()] == ([] if error else ["file"])


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_may_be_read_by_those_whom_the_umask_lets(umask, mode, tmp_path):
    """Even if what writes it makes a private file of it, as safetensors does."""
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "file") as temporary:
            temporary.unlink()
            temporary.touch(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/nowhere/below"])
def test_a_folder_that_cannot_be_made(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="expected a folder that can be written to, found"):
        make_folder(tmp_path / name)
    with pytest.raises(InputError, match="expected a folder that can be written to, found"):
        write_json(tmp_path / name / "x.json", {})
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_an_output_that_is_a_folder(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: expected the name of a file to write, found a folder"):
        prepare_output(tmp_path)
    prepare_output(tmp_path / "new" / "file")
    assert [file.name for file in tmp_path.iterdir()] == ["new"] and not list((tmp_path / "new").iterdir())


def test_json_is_read_back(tmp_path):
    content = {"b": [1, None, "ä"], "a": {"x": 0.1}}
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text()) == content
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == content
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content():
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "checkpoint", STATE)
        return (Path(folder) / "checkpoint").read_bytes()


def load_bytes(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        path.write_bytes(content)
        try:
            return load_checkpoint(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: expected a training checkpoint") and "found" in str(error)
            assert "\n" not in str(error)
            return None


def test_a_checkpoint_is_read_back(tmp_path):
    save_checkpoint(tmp_path / "checkpoint", STATE)
    assert same(load_checkpoint(tmp_path / "checkpoint"), STATE)


@law
@given(data=st.data())
def test_a_truncated_checkpoint_is_refused(content, data):
    assert load_bytes(content[: data.draw(st.integers(0, len(content) - 1))]) is None
    assert load_bytes(content[data.draw(st.integers(1, len(content) - 1)) :]) is None


@law
@given(data=st.data())
def test_a_damaged_checkpoint_is_refused_unless_nothing_is_lost(content, data):
    position = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[position] ^= data.draw(st.integers(1, 255))
    found = load_bytes(bytes(damaged))
    table = zipfile.ZipFile(io.BytesIO(content)).start_dir  # the archive's table of contents has no checksum
    assert found is None or same(found, STATE) or position >= table


@law
@given(st.binary(max_size=300))
def test_anything_else_is_refused(content):
    assert load_bytes(content) is None
    assert load_bytes(b"PK\x03\x04" + content) is None
    assert load_bytes(b"\x80\x02" + content) is None


@pytest.mark.parametrize("state", [5, [1, 2], {"step": 1}, {"format": "other/1", "step": 1}, {"w": torch.zeros(2)}])
def test_what_torch_saved_for_something_else_is_refused(state, tmp_path):
    torch.save(state, tmp_path / "file")
    with pytest.raises(InputError, match="file: expected a training checkpoint, found no training state"):
        load_checkpoint(tmp_path / "file")


@pytest.mark.parametrize("name", ["missing", "folder"])
def test_no_checkpoint_is_refused(name, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=f"{name}: expected a training checkpoint, found no such file"):
        load_checkpoint(tmp_path / name)


# -- interruptions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def usual_handlers():
    """A shell that starts the tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual_handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_request(number):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    with Interruption() as interruption:
        assert not interruption.requested
        os.kill(os.getpid(), number)
        assert interruption.requested and interruption.exit_status == 128 + number
        assert signal.getsignal(number) == before[number]  # a second one has its usual effect
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert {n: signal.getsignal(n) for n in before} == before


def test_without_a_signal_nothing_remains():
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(ZeroDivisionError), Interruption():
        assert all(signal.getsignal(n) != handler for n, handler in before.items())
        raise ZeroDivisionError
    assert {n: signal.getsignal(n) for n in before} == before


# -- commands and records ----------------------------------------------------------------------------------------------


def raise_input_error():
    raise InputError("thing: expected a, found b")


@pytest.mark.parametrize(
    "main, status, printed",
    [
        (lambda: None, 0, ""),
        (lambda: 0, 0, ""),
        (lambda: 143, 143, ""),
        (raise_input_error, 2, "error: thing: expected a, found b\n"),
    ],
)
def test_a_command_ends_with_a_status_and_one_line(main, status, printed, capsys):
    with pytest.raises(SystemExit) as caught:
        run_main(main)
    assert caught.value.code == status
    assert capsys.readouterr() == ("", printed)


def test_another_error_is_no_bad_input():
    """A defect keeps its traceback."""
    with pytest.raises(ValueError, match="defect"):
        run_main(lambda: (_ for _ in ()).throw(ValueError("defect")))


def test_a_record_tells_what_was_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "0.1"])
    record = RunRecord("train.py", {"lr": 0.1, "data": Path("text"), "cutoffs": [1, 2]}, seconds_before=1000.0)
    record.write(tmp_path / "run.json", loss=0.5)
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["script"] == "train.py" and content["command"] == ["train.py", "--lr", "0.1"]
    assert content["flags"] == {"lr": 0.1, "data": "text", "cutoffs": [1, 2]} and content["loss"] == 0.5
    assert 1000.0 <= content["seconds"] < 2000.0
    assert content["versions"]["torch"] == torch.__version__ and content["versions"]["numpy"] == np.__version__
    assert content["host"]["threads"] == torch.get_num_threads()
    assert content["peak_memory_bytes"]["host"] > 10**7
    where = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True, check=False)
    assert content["git_commit"] == (git.stdout.strip() or None)


def test_peak_memory_is_in_bytes_and_of_the_past():
    held = np.ones(2**23)
    peak = peak_memory_bytes()["host"]
    assert held.nbytes <= peak < 2**50
    del held
    assert peak_memory_bytes()["host"] >= peak

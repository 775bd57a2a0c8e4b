"""Processes that share several devices take one each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Holds its device until the file FREE is there. What it sees stands in its own file.
TAKES_ONE = """
import os, sys, time
from pathlib import Path
from reproduction.runs.device_pool import take_device
take_device()
own, free = map(Path, sys.argv[1:])
own.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
while not free.exists():
    time.sleep(0.05)
"""


def start(folder: Path, name: str, **environment: str) -> subprocess.Popen[bytes]:
    program = folder / "takes_one.py"
    program.write_text(TAKES_ONE)
    command = [sys.executable, program, folder / name, folder / f"free-{name}"]
    cleared = {key: value for key, value in os.environ.items() if key not in ("AP_DEVICE", "LOCAL_RANK")}
    return subprocess.Popen(command, env=cleared | {"TMPDIR": str(folder)} | environment)


def seen(folder: Path, name: str) -> str:
    """The devices that a process sees, once it has started anew."""
    for _ in range(1200):
        if (folder / name).exists() and (text := (folder / name).read_text()):
            return text
        time.sleep(0.05)
    raise AssertionError(f"{name} never got a device")


def test_two_processes_have_two_devices_and_a_third_waits_for_one_that_was_killed(tmp_path: Path) -> None:
    started = {name: start(tmp_path, name, AP_DEVICES="3,GPU-7f/1") for name in "ab"}
    try:
        taken = {name: seen(tmp_path, name) for name in "ab"}
        assert sorted(taken.values()) == ["3", "GPU-7f/1"]
        started["c"] = start(tmp_path, "c", AP_DEVICES="3,GPU-7f/1")
        time.sleep(1.5)
        assert not (tmp_path / "c").exists() and started["c"].poll() is None
        started["a"].kill()
        assert seen(tmp_path, "c") == taken["a"]
    finally:
        for process in started.values():
            process.kill()
            process.wait()


@pytest.mark.parametrize("environment", ({}, {"AP_DEVICES": "0,1", "LOCAL_RANK": "0"}), ids=("alone", "torchrun"))
def test_who_shares_none_sees_all(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "free-one").touch()
    process = start(tmp_path, "one", CUDA_VISIBLE_DEVICES="0,1", **environment)
    assert process.wait(60) == 0 and (tmp_path / "one").read_text() == "0,1"

"""The kill battery in short: a few tries of the fastest scripts, with those moments that have found something."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COLUMNS = ["kind", "what", "tries", "passed", "seconds", "note"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="the kernel of Linux tells what happens in a folder"
    ),
]


@pytest.mark.parametrize("of, name", [("transformer-xl", "train.py"), ("library", "collect_patterns")])
def test_a_run_that_is_killed_ends_as_one_that_is_not(of, name, tmp_path):
    table = tmp_path / "reliability.csv"
    command = [sys.executable, HERE / "battery.py", "--of", of, "--only", name, "--tries", "2", "--out", table]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS and len(rows) == 4
    assert all(row["passed"] == row["tries"] and name in row["what"] for row in rows)


def test_what_is_wrong_is_seen(tmp_path, monkeypatch):
    """A battery that could not fail would show nothing."""
    monkeypatch.syspath_prepend(str(HERE))
    import outcomes

    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({"loss": 1.0, "seconds": random.random()}))
    expected = outcomes.outcome(tmp_path / "one")
    assert outcomes.differences(outcomes.outcome(tmp_path / "other"), expected) == []
    (tmp_path / "other" / "metrics.json").write_text('{"loss": 1.0000001, "seconds": 3}')
    (tmp_path / "other" / ".metrics.json.0a.tmp").mkdir()
    found = outcomes.differences(outcomes.outcome(tmp_path / "other"), expected)
    assert found == [".metrics.json.0a.tmp/ is left", "metrics.json differs"]
    (tmp_path / "other" / "metrics.json").write_text('{"loss": 1.0')
    (tmp_path / "other" / "model.safetensors").write_bytes(b"half")
    half = outcomes.half_written(tmp_path / "other", re.compile("(?!)"))
    assert sorted(half) == ["metrics.json", "model.safetensors"]

"""Runs summed up: time and memory by script, and the versions of the software."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from attention_pruning import InputError
from reproduction.analysis.run_summary import main, read_records


def write(
    path: Path, script: str, seconds: float, host: float, cuda: float | None = None, torch: str = "2.13.0"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    memory = {"host": host * 1e9} | ({} if cuda is None else {"cuda": cuda * 1e9})
    device = "cpu" if cuda is None else "cuda"
    record = {"script": script, "seconds": seconds, "peak_memory_bytes": memory, "host": {"device": device}}
    path.write_text(json.dumps(record | {"versions": {"torch": torch, "numpy": "2.4.6"}}))


def test_scripts_and_software_are_summed_up(tmp_path: Path) -> None:
    write(tmp_path / "a" / "run.json", "train.py", 3600, 1.0)
    write(tmp_path / "b" / "run.json", "train.py", 1800, 2.0, cuda=5.0, torch="2.13.0+cpu")
    write(tmp_path / "b" / "pattern.run.json", "average.py", 60, 0.5)
    out, software = tmp_path / "runs.csv", tmp_path / "software.csv"
    assert main(["--runs", str(tmp_path), "--out", str(out), "--software", str(software)]) == 0
    average, train = pd.read_csv(out).to_dict("records")
    assert (train["runs"], train["hours"], train["longest_minutes"]) == (2, 1.5, 60)
    assert (train["peak_host_gb"], train["peak_gpu_gb"], train["devices"]) == (2, 5, "cpu, cuda")
    assert average["script"] == "average.py" and average["hours"] == pytest.approx(0.017)
    assert pd.isna(average["peak_gpu_gb"])
    found = {(row.package, row.version): row.runs for row in pd.read_csv(software).itertuples()}
    assert found == {("numpy", "2.4.6"): 3, ("torch", "2.13.0"): 2, ("torch", "2.13.0+cpu"): 1}


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder with the run.json of runs, found none"):
        read_records(tmp_path)
    file = tmp_path / "run.json"
    for text, message in (("{", "expected JSON"), ("[]", "found no script"), ('{"script": "a"}', "found no seconds")):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_records(tmp_path)

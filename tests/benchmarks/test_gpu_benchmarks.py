"""What is to run on a GPU some day runs here in Triton's interpreter, tiny: not to be broken when the day comes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from attention_pruning.ops.triton import availability
from warm_python import python

REPOSITORY = Path(__file__).resolve().parents[2]
installed = pytest.mark.skipif(availability.missing() is not None, reason="Triton is not installed")


def run(*command):
    environment = os.environ | {"PYTHON": python(), "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


@installed
@pytest.mark.slow
def test_one_command_measures_attention_and_models(tmp_path):
    found = run("sh", "benchmarks/gpu.sh", "--dry_run", "--out", str(tmp_path))
    assert found.returncode == 0, found.stdout + found.stderr
    attention, models = (pd.read_csv(*tmp_path.glob(f"{name}-*.csv")) for name in ("block_sparse_gpu", "models_gpu"))
    assert set(attention["model"]) == {"dense", "masked", "triton"} and (attention["milliseconds"] > 0).all()
    assert {"gpu_milliseconds", "gpu_times_dense", "roofline_milliseconds", "memory_mb"} <= set(attention)
    assert set(attention["kind"]) == {"forward", "forward+backward"}
    assert set(models["name"]) == {"eager", "dense", "tau 0.5", "attention_removed"}
    assert set(models["step"]) == {"inference", "training"} and (models["seconds"] > 0).all()
    assert "times SDPA" in next(tmp_path.glob("models_gpu-*.md")).read_text()


@installed
@pytest.mark.slow
def test_the_table_of_configurations_is_written_by_a_command():
    found = run(python(), "benchmarks/triton_tune.py", "--dry_run")
    assert found.returncode == 0 and not found.stderr, found.stdout + found.stderr
    lines = [line.split(":")[0].strip() for line in found.stdout.splitlines()]
    assert lines == [f'("{kernel}", 4, 64)' for kernel in ("forward", "queries", "keys")]


def load(name):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_roofline_is_arithmetic_or_memory():
    roofline = load("roofline")
    name = "NVIDIA H100 80GB HBM3"
    rows, size, dense = 96 * 4096, 64, 96 * 4096 * 4096
    by_arithmetic = roofline.seconds(name, dense, size, rows, 2, gradients=False)
    assert by_arithmetic == pytest.approx(4 * dense * size / 989e12)
    assert roofline.seconds(name, dense, size, rows, 2, gradients=True) == pytest.approx(3.5 * by_arithmetic)
    by_memory = roofline.seconds(name, dense // 1000, size, rows, 2, gradients=False)
    assert by_memory == pytest.approx(4 * rows * size * 2 / 3.35e12)
    assert roofline.seconds("a card of another maker", dense, size, rows, 2, gradients=False) is None

"""train.py on a GPU: a few steps of a pruned model, as a user starts it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny_xl import read_json, read_tensors, training_flags

TRAIN = Path(__file__).resolve().parents[2] / "transformer-xl" / "train.py"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, found none")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_it_trains_a_pruned_model_like_the_cpu(words, pattern_file, tmp_path, precision):
    steps = {"max_step": 3, "eval_interval": 3, "log_interval": 1, "dropout": 0, "dropatt": 0}
    losses, steps = {}, steps | {"fn": pattern_file, "th": 0.7}
    for device in ("cpu", "cuda"):
        changes = steps | {"device": device, "mixed_precision": precision if device == "cuda" else "no"}
        command = [sys.executable, str(TRAIN), *training_flags(words, tmp_path / device, **changes)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        losses[device] = read_json(tmp_path / device / "run.json")["valid_nll"]
    assert all(torch.isfinite(x).all() for x in read_tensors(tmp_path / "cuda" / "model.safetensors").values())
    assert math.isclose(losses["cuda"], losses["cpu"], rel_tol=1e-3 if precision == "no" else 2e-2)

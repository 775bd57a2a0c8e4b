"""The Triton kernels, in processes of their own: their laws, and what the library does where Triton is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attention_pruning import BlockLayout, InputError, pruned_attention
from attention_pruning.ops.triton import availability

REPOSITORY = Path(__file__).resolve().parents[2]
installed = pytest.mark.skipif(availability.missing() is not None, reason="Triton is not installed")


@pytest.mark.slow
@installed
def test_the_laws_hold():
    """On a GPU compiled, elsewhere in the interpreter."""
    environment = dict(os.environ) if torch.cuda.is_available() else os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/attention_pruning/triton_laws.py"]
    found = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_triton_is_not_imported_before_it_is_needed():
    code = "import sys, attention_pruning.cli; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def inputs(dtype=torch.float32, size=16):
    return [torch.zeros(1, 1, 32, size, dtype=dtype) for _ in range(3)]


LAYOUT = BlockLayout.from_blocks(torch.ones(1, 2, 2, dtype=torch.bool), 16)


def test_without_triton_a_reason_is_given(monkeypatch):
    monkeypatch.setattr(availability, "INSTALLED", False)
    with pytest.raises(InputError, match="backend triton: .* Triton is not installed: pip install triton"):
        pruned_attention(*inputs(), LAYOUT, backend="triton")


@installed
def test_what_the_kernels_cannot_compute_is_refused(monkeypatch):
    with pytest.raises(InputError, match="backend triton: .* needs tensors on a GPU, found cpu"):
        pruned_attention(*inputs(), LAYOUT, backend="triton")
    monkeypatch.setattr(availability, "INTERPRETED", True)
    for changed, message in [
        ({"dtype": torch.float64}, "float32, bfloat16 or float16, found torch.float64"),
        ({"dtype": torch.bfloat16}, "float16 in Triton's interpreter, found torch.bfloat16"),
        ({"size": 257}, "a head size of at most 256, found 257"),
    ]:
        with pytest.raises(InputError, match=message):
            pruned_attention(*inputs(**changed), LAYOUT, backend="triton")
    q, k, v = inputs()
    with pytest.raises(InputError, match="values of the size of the queries, 16, found 8"):
        pruned_attention(q, k, v[..., :8], LAYOUT, backend="triton")

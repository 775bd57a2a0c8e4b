"""Whether the Triton kernels can compute a call: asked without importing Triton, which takes a second."""

from __future__ import annotations

import importlib.util
import os

import torch

from ..call import Call

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_HEAD = 256
#: Whether kernels are interpreted, on CPU tensors: Triton decides it once for a process, by this variable.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


INSTALLED = importlib.util.find_spec("triton") is not None


def missing() -> str | None:
    """What is to be said where Triton is not installed; None where it is."""
    return None if INSTALLED else "Triton is not installed: pip install triton"


#: Whether a GPU is one that the kernels are written for, asked once: Ampere or later, of NVIDIA.
_capable: dict[torch.device, bool] = {}


def _is_capable(device: torch.device) -> bool:
    if device not in _capable:
        _capable[device] = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return _capable[device]


# A constant of the machine: while torch.compile makes a graph it is looked up, instead of being traced.
_is_capable._dynamo_marked_constant = True


def refusal(call: Call) -> str | None:
    """What the kernels would need to compute a call, or None."""
    q, v = call.q, call.v
    if q.device.type != "cuda" and not (INTERPRETED and q.device.type == "cpu"):
        return f"tensors on a GPU, found {q.device}"
    if q.device.type == "cuda" and not _is_capable(q.device):
        return "an NVIDIA GPU of compute capability 8.0 or later, found another"
    if q.dtype not in DTYPES:
        return f"float32, bfloat16 or float16, found {q.dtype}"
    if INTERPRETED and q.dtype == torch.bfloat16:
        return "float32 or float16 in Triton's interpreter, found torch.bfloat16"
    if v.shape[-1] != q.shape[-1]:
        return f"values of the size of the queries, {q.shape[-1]}, found {v.shape[-1]}"
    if q.shape[-1] > LARGEST_HEAD:
        return f"a head size of at most {LARGEST_HEAD}, found {q.shape[-1]}"
    return None

"""Launching kernels: what a launch needs is found once for calls that are alike, and kept.

Triton's own way to a kernel looks at every argument and asks its caches, some tens of microseconds. Here a call that
was made before, of the same shapes, strides and options, goes straight to the compiled kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

#: Launches that are kept. Generation makes one for every length; then all are forgotten and found again.
KEPT = 1024


class Launch:
    """One kernel, its grid and its constants, compiled at the first call.

    Parameters
    ----------
    kernel : triton.JITFunction
    programs : int
    constants : tuple
        What follows the tensors in the kernel's signature: numbers, and what it is compiled for.
    warps, stages : int
    """

    def __init__(self, kernel: Any, programs: int, constants: tuple, warps: int, stages: int) -> None:
        self.kernel, self.grid, self.constants = kernel, (programs, 1, 1), constants
        self.options = {"num_warps": warps, "num_stages": stages}
        self.run: Callable[..., None] | None = None

    def __call__(self, *tensors: Tensor | None) -> None:
        if self.run is not None:
            self.run(*tensors, *self.constants)
            return
        compiled = self.kernel[self.grid](*tensors, *self.constants, **self.options)
        if compiled is not None:  # the interpreter gives nothing
            self.run = compiled[self.grid]


_launches: dict[Hashable, Launch] = {}


def launch_of(key: Hashable, make: Callable[[], Launch]) -> Launch:
    """The launch with this key, made at the first call."""
    found = _launches.get(key)
    if found is None:
        if len(_launches) >= KEPT:
            _launches.clear()
        found = _launches[key] = make()
    return found


def alike(*tensors: Tensor | None) -> tuple:
    """What compiled code may rely on: format, shape, strides, and whether they begin at a multiple of 16 bytes."""
    return tuple(
        None if x is None else (x.dtype, x.shape, x.stride(), x.data_ptr() % 16, x.device.index) for x in tensors
    )


def on_device_of(x: Tensor) -> Any:
    """A context in which kernels run where a tensor is."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()

"""What the processes of ``torch.distributed`` tell one another; a process alone hears itself."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def together() -> bool:
    """Whether this process is one of several (or the only one) of an initialised ``torch.distributed``."""
    return distributed.is_available() and distributed.is_initialized()


def exchanged(value: object) -> list:
    """The value of every process, by rank. Values are pickled, so let them be small."""
    if not together():
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def meeting_device() -> torch.device:
    """Where tensors have to lie for this process group."""
    backend = distributed.get_backend()
    on_cpu = "gloo" in backend or "mpi" in backend
    return torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on the device that it came from."""
    shared = tensor.to(meeting_device(), copy=True).contiguous()
    distributed.all_reduce(shared)
    return shared.to(tensor.device)

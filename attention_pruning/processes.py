"""What the processes of ``torch.distributed`` do together, so that none waits for one that has given up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from .errors import InputError

T = TypeVar("T")


def process_count() -> int:
    """How many processes there are; 1 without an initialised ``torch.distributed``."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_first_process() -> bool:
    """Whether this is process 0, or the only one: the one that talks."""
    return process_count() == 1 or torch.distributed.get_rank() == 0


def gathered(value: T) -> list[T]:
    """What every process gives, by rank; each has to call it. The values have to be picklable."""
    values = [value] * process_count()
    if len(values) > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on the device that it came from."""
    shared = tensor.to(meeting_device(), copy=True).contiguous()
    torch.distributed.all_reduce(shared)
    return shared.to(tensor.device)


def meeting_device() -> torch.device:
    """Where tensors have to lie for this process group."""
    backend = torch.distributed.get_backend()
    on_cpu = "gloo" in backend or "mpi" in backend
    return torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())


@contextmanager
def together() -> Iterator[None]:
    """A block that every process runs, without collective calls in it; if it fails in one, it fails in all.

    At the end of the block the processes wait for one another. One that failed raises its own error then.

    Raises
    ------
    InputError
        If another process failed: which one, and the first line of its error.
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    failures = gathered(None if error is None else _first_line(error))
    if error is not None:
        raise error
    for rank, failure in enumerate(failures):
        if failure is not None:
            raise InputError(f"process {rank} failed, so all processes stop: {failure}")


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "")
    return line if isinstance(error, InputError) else f"{type(error).__name__}: {line}"


def longest(
    title: str, arguments: object, sizes: Mapping[str, tuple[int, ...] | None]
) -> dict[str, tuple[int, ...] | None]:
    """The largest sizes that any process has, by name; None where none has any.

    Parameters
    ----------
    title : str
        Who asks, for the error message.
    arguments : object
        What has to be the same in all processes.
    sizes : mapping
        Of the same names everywhere.

    Raises
    ------
    InputError
        In every process, if the arguments are not the same in all.
    """
    found = gathered((arguments, dict(sizes)))
    for rank, (other, _) in enumerate(found):
        if other != found[0][0]:
            raise InputError(
                f"{title}: expected all processes to collect the same, found {found[0][0]} in process 0 and {other} in "
                f"process {rank}"
            )
    largest = {}
    for name in sizes:
        known = [others[name] for _, others in found if others[name] is not None]
        largest[name] = tuple(map(max, zip(*known, strict=True))) if known else None
    return largest

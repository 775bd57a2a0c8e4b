"""A bound on the memory that a test of this folder may ask for."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator

import pytest

#: What reading a file of some kilobytes may take beside what the process has already.
_BYTES = 3 << 30


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Let no test reserve more: the allocation fails, which no reader may answer with a traceback."""
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    bound = pages * resource.getpagesize() + _BYTES
    allowed = [limit for limit in before if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([bound, *allowed]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)

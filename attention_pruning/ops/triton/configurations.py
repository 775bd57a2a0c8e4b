"""How the kernels cut their work: tiles, warps and stages, by what they compute, head size, number format and GPU.

**Estimated, not measured yet**: chosen so that the shared memory which the compiler asks for fits, and so that what a
program holds in registers (sums of floats, scores) stays within 255 for each thread. ``benchmarks/triton_tune.py``
measures the candidates on a GPU and prints this table.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch


class Configuration(NamedTuple):
    """Queries and keys of a tile at most (a tile lies within a block), warps of a program, and stages of its loop."""

    queries: int
    keys: int
    warps: int
    stages: int


#: By kernel, bytes of a number, and the width of a head at most (a power of two). 16-bit tiles of 64 x 64 keep 64 x 64
#: scores in 4 warps, 32 registers a thread, beside sums of as many; what is fetched ahead, a stage each of keys and
#: values, takes 2 x 64 x 64 x 2 bytes = 16 KB of shared memory at a head size of 64. In float32 all of this doubles.
TABLE: dict[tuple[str, int, int], Configuration] = {
    ("forward", 2, 64): Configuration(64, 64, 4, 3),
    ("forward", 2, 128): Configuration(64, 64, 4, 3),
    ("forward", 2, 256): Configuration(64, 32, 8, 2),
    ("forward", 4, 64): Configuration(64, 32, 8, 2),
    ("forward", 4, 128): Configuration(32, 16, 8, 2),
    ("forward", 4, 256): Configuration(32, 16, 8, 2),
    ("queries", 2, 64): Configuration(64, 64, 4, 2),
    ("queries", 2, 128): Configuration(64, 32, 4, 2),
    ("queries", 2, 256): Configuration(32, 32, 4, 1),
    ("queries", 4, 64): Configuration(64, 32, 8, 2),
    ("queries", 4, 128): Configuration(32, 16, 8, 1),
    ("queries", 4, 256): Configuration(16, 16, 8, 1),
    ("keys", 2, 64): Configuration(64, 64, 4, 2),
    ("keys", 2, 128): Configuration(32, 64, 8, 2),
    ("keys", 2, 256): Configuration(32, 32, 8, 1),
    ("keys", 4, 64): Configuration(32, 64, 8, 1),
    ("keys", 4, 128): Configuration(32, 32, 8, 1),
    ("keys", 4, 256): Configuration(16, 16, 4, 1),
}
#: Cards on which a program may take less shared memory than that fetch nothing ahead: an H100 lets it have 227 KB, an
#: A100 163, consumer cards 99.
LARGE_SHARED_MEMORY = 160 * 1024


#: With a relative term tiles are squares, and a window of position keys is held beside them: by bytes of a number, the
#: widest head for tiles of 64; others are of 32.
RELATIVE_TILE_64 = {2: 64, 4: 0}


@functools.cache
def configuration(
    kernel: str, dtype: torch.dtype, width: int, block: int, device: torch.device, relative: bool = False
) -> Configuration:
    """What to take for a kernel ("forward", "queries", "keys"), heads of a width, and blocks of a side."""
    if relative:
        tile = min(block, 64 if width <= RELATIVE_TILE_64[dtype.itemsize] else 32)
        return Configuration(tile, tile, 8 if tile == 64 or dtype.itemsize == 4 else 4, 1)
    found = TABLE[kernel, dtype.itemsize, max(64, width)]
    stages = found.stages if _shared_memory(device) >= LARGE_SHARED_MEMORY else 1
    return Configuration(min(found.queries, block), min(found.keys, block), found.warps, stages)


def _shared_memory(device: torch.device) -> int:
    """Bytes that a program may take."""
    if device.type != "cuda":  # the interpreter
        return LARGE_SHARED_MEMORY
    card = torch.cuda.get_device_properties(device)
    # Not every build of torch tells more than what each card has.
    return getattr(card, "shared_memory_per_block_optin", card.shared_memory_per_block)

"""Measure how the Triton kernels should cut their work on a GPU, and print the table of ops/triton/configurations.py.

Every kernel is timed by itself, under tiles, warps and stages of :func:`candidates`, on the blocks of one mask.

    python benchmarks/triton_tune.py                        # all of them, some minutes
    python benchmarks/triton_tune.py --dtypes bf16 --sizes 64
    python benchmarks/triton_tune.py --dry_run              # tiny, on the CPU: that nothing is broken
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from block_sparse import BATCH, HEADS, SEED, Shape, draw_layout
from block_sparse_gpu import interpret
from torch import Tensor

from attention_pruning.ops.call import Call
from attention_pruning.ops.triton.configurations import TABLE, Configuration

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
KERNELS = {"forward": "forward", "queries": "backward_queries", "keys": "backward_keys"}
SIZES = (64, 128, 256)
#: Milliseconds that a kernel is warmed up, and timed, for.
WARM_UP, TIMED = 5, 20


def candidates(kernel: str, dtype: str, size: int, block: int) -> list[Configuration]:
    """What is tried: the table's own, its neighbours in tiles, and other warps and stages for them."""
    own = TABLE[kernel, DTYPES[dtype].itemsize, size]

    def near(tile: int) -> list[int]:
        return sorted({min(max(x, 16), block) for x in (tile // 2, tile, tile * 2)})

    tiles = itertools.product(near(own.queries), near(own.keys))
    stages = sorted({1, 2, 3} if dtype == "bf16" else {1, 2})
    return [Configuration(*pair, warps, n) for pair in tiles for warps in (4, 8) for n in stages]


@contextmanager
def captured(chosen: Configuration | None) -> Iterator[dict[str, Callable[[], None]]]:
    """Within, every kernel that is launched is kept here by its name, to be launched again; all take one configuration,
    or that of the table."""
    from attention_pruning.ops.triton import kernel_calls, launch

    found: dict[str, Callable[[], None]] = {}
    before = launch.Launch.__call__, kernel_calls.configuration

    def call(self: Any, *arguments: Any) -> None:
        before[0](self, *arguments)
        found[self.kernel.__name__] = lambda: before[0](self, *arguments)

    def configuration(kernel: str, dtype: torch.dtype, width: int, block: int, *others: Any) -> Configuration:
        return before[1](kernel, dtype, width, block, *others) if chosen is None else chosen

    launch._launches.clear()
    launch.Launch.__call__, kernel_calls.configuration = call, configuration
    try:
        yield found
    finally:
        launch.Launch.__call__, kernel_calls.configuration = before
        launch._launches.clear()


def draw_inputs(args: argparse.Namespace, dtype: str, size: int) -> list[Tensor]:
    """q, k, v and a gradient of the output."""
    device, batch, heads = ("cpu", 1, 1) if args.dry_run else ("cuda", BATCH, HEADS)
    generator = torch.Generator(device=device).manual_seed(SEED)
    shape = (batch, args.length, heads, size)
    tensors = [torch.randn(shape, generator=generator, device=device).to(DTYPES[dtype]) for _ in range(4)]
    return [x.transpose(1, 2).requires_grad_() for x in tensors]


def run_all(args: argparse.Namespace, inputs: list[Tensor], kernel: str, chosen: Configuration) -> Callable[[], None]:
    """Launch forward and backward once; what launches one of the kernels again."""
    from attention_pruning.ops.triton import op

    q, k, v, g = inputs
    layout = draw_layout(Shape(args.length, args.block, args.sparsity), q.shape[1])
    if kernel == "forward":
        with captured(chosen) as found, torch.no_grad():
            op.attend(Call.check(q, k, v, layout), layout)
        return found[KERNELS[kernel]]
    with captured(None):
        out = op.attend(Call.check(q, k, v, layout), layout)
    with captured(chosen) as found:
        torch.autograd.grad(out, (q, k, v), g)
    return found[KERNELS[kernel]]


def milliseconds(launch: Callable[[], None], on_gpu: bool) -> float:
    """The median time of a launch."""
    if on_gpu:
        from triton.testing import do_bench

        return do_bench(launch, warmup=WARM_UP, rep=TIMED, return_mode="median")
    started = time.perf_counter()
    launch()
    return 1e3 * (time.perf_counter() - started)


def tune(args: argparse.Namespace, dtype: str, size: int, kernel: str, part: slice) -> dict[Configuration, float]:
    """Milliseconds of every candidate that the GPU can run."""
    inputs, found = draw_inputs(args, dtype, size), {}
    for chosen in candidates(kernel, dtype, size, args.block)[part][: 1 if args.dry_run else None]:
        try:
            found[chosen] = milliseconds(run_all(args, inputs, kernel, chosen), inputs[0].is_cuda)
        except Exception as error:  # too much shared memory, or what a version of Triton cannot compile
            print(f"# {kernel}, {dtype}, {size}, {chosen}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
    return found


def compile_beforehand(args: argparse.Namespace) -> None:
    """Fill Triton's cache of compiled kernels, several at a time."""
    command = [sys.executable, *sys.argv]
    parts = [[*command, "--part", str(index)] for index in range(args.processes)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for process in [subprocess.Popen(part, **quiet) for part in parts]:
        process.wait()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="number formats")
    add("--sizes", nargs="+", type=int, choices=SIZES, default=[64, 128], help="head sizes")
    add("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), help="what to tune")
    add("--length", type=int, default=2048, help="positions")
    add("--block", type=int, default=64, help="side of a block")
    add("--sparsity", type=float, default=0.9, help="share of blocks pruned")
    add("--processes", type=int, default=12, help="that compile at the same time")
    add("--dry_run", action="store_true", help="one candidate at a tiny shape, in Triton's interpreter")
    add("--part", type=int, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run the command; returns the exit status."""
    args = parse_arguments()
    if args.dry_run:
        interpret()
        args.dtypes, args.sizes, args.length, args.block, args.sparsity = ["fp32"], [64], 32, 16, 0.5
    elif not torch.cuda.is_available():
        print("error: expected a CUDA device, found none (--dry_run needs none)", file=sys.stderr)
        return 2
    part = slice(args.part, None, args.processes if args.part is not None else None)
    if args.part is None and not args.dry_run:
        compile_beforehand(args)
    for dtype, size, kernel in itertools.product(args.dtypes, args.sizes, args.kernels):
        found = tune(args, dtype, size, kernel, part)
        if not found:
            continue
        best = min(found, key=found.get)
        own = found.get(TABLE[kernel, DTYPES[dtype].itemsize, size])
        line = (
            f'    ("{kernel}", {DTYPES[dtype].itemsize}, {size}): Configuration{tuple(best)},  # {found[best]:.4f} ms'
        )
        print(line + ("" if own is None else f", was {own:.4f}"), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

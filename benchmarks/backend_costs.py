"""Measure the table by which ``backend="auto"`` chooses on a CPU: ``attention_pruning/ops/choice.py`` takes it over.

For every build of the kernel that this processor runs: its time with every block kept over that of torch's dense
attention, for whole blocks and for blocks of single cells; what few queries cost beside that; from how many keys on a
mask of cells gains; and the kernel of few queries, which goes over kept keys one by one, over torch's attention under a
mask that keeps nearly all. The same with a relative term, over torch's attention with the term as a bias: half as many
queries as keys, causal, as a language model with a memory has them. One thread, interleaved, medians. A build is
measured in a process whose torch is held to the same instructions, as on the processors that the build is for.

    python benchmarks/backend_costs.py                              # some minutes; prints the table
    python benchmarks/backend_costs.py --out results/benchmarks     # and writes backend_costs-DATE.csv
    python benchmarks/backend_costs.py --only relative              # the rows with a relative term alone
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from interleave import BenchmarkError, processor
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attention_pruning import LayerMask
from attention_pruning.ops import fused
from attention_pruning.ops.call import Call
from attention_pruning.ops.cpu import few_queries, native, op
from attention_pruning.ops.layout import BLOCK_SIZES

#: What holds torch, MKL and oneDNN to the instructions of a build.
INSTRUCTIONS = {
    "portable": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {},
}
SEED, HEADS, SIZE, LENGTH = 1, 12, 64, 1024
QUERIES = (1, 4, 16, 64)
#: Of calls without a gradient, which go over kept keys one by one.
FEW_QUERIES = (1, 4, 8)
#: And of these, query heads that share keys.
GROUPS = 4
KEYS = (32, 64, 96, 128, 192, 256)
#: Of single cells these many are kept: blocks are full of them, each in part.
KEPT = 0.5


def inputs(batch: int, queries: int, keys: int, gradients: bool) -> list[Tensor]:
    """q, k, v in the memory that a projection makes: (batch, length, head, size)."""
    generator = torch.Generator().manual_seed(SEED)
    tensors = [torch.randn(batch, n, HEADS, SIZE, generator=generator).transpose(1, 2) for n in (queries, keys, keys)]
    return [x.requires_grad_(gradients) for x in tensors]


def relative_inputs(batch: int, keys: int, gradients: bool) -> list[Tensor]:
    """q, k, v, position_q and position_keys; these in the memory of a projection too, (distance, head, size)."""
    generator = torch.Generator().manual_seed(SEED)
    position_q = torch.randn(batch, keys // 2, HEADS, SIZE, generator=generator).transpose(1, 2)
    position_keys = torch.randn(keys, HEADS, SIZE, generator=generator).transpose(0, 1)
    relative = [x.requires_grad_(gradients) for x in (position_q, position_keys)]
    return [*inputs(batch, keys // 2, keys, gradients), *relative]


def ratio(own: Callable[..., Tensor], other: Callable[..., Tensor], tensors: list[Tensor], rounds: int) -> float:
    """Median of the time of one over that of the other, round by round."""

    def seconds(attention: Callable[..., Tensor]) -> float:
        started = time.process_time()  # what other programs take is not counted
        out = attention(*tensors)
        if tensors[0].requires_grad:
            torch.autograd.grad(out, tensors, torch.ones_like(out))
        return time.process_time() - started

    with torch.set_grad_enabled(tensors[0].requires_grad):
        seconds(own), seconds(other)
        found = []
        for index in range(rounds):
            first, second = (own, other) if index % 2 else (other, own)
            times = {first: seconds(first), second: seconds(second)}
            found.append(times[own] / times[other])
    return statistics.median(found)


def kernel(mask: LayerMask, block: int, offset: int = 0) -> Callable[..., Tensor]:
    """The compiled kernel with blocks of this side, whatever "auto" would take."""
    layout = mask.layout(block)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        call = Call.check(q, k, v, mask, query_offset=offset)
        return op.block_sparse(q, k, v, layout, causal=False, query_offset=offset, scale=call.scale)

    return attention


def relative_pair(mask: LayerMask, block: int) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The compiled kernel with a relative term, and torch's attention with it as a bias."""
    layout = mask.layout(block)

    def own(q: Tensor, k: Tensor, v: Tensor, *relative: Tensor) -> Tensor:
        call = Call.check(q, k, v, mask, relative=relative)
        return op.block_sparse(q, k, v, layout, causal=True, relative=call.relative, scale=call.scale)

    def other(q: Tensor, k: Tensor, v: Tensor, *relative: Tensor) -> Tensor:
        return fused.attend(Call.check(q, k, v, mask, relative=relative))

    return own, other


def every_cell(side: int, memory: bool = False) -> LayerMask:
    """All of a square, or, causal, of as many keys and half as many queries."""
    queries = side // 2 if memory else side
    return LayerMask(torch.zeros(HEADS, 1, 1, dtype=torch.bool), side, queries, side, causal=memory)


def some_cells(side: int, memory: bool = False) -> LayerMask:
    queries, generator = side // 2 if memory else side, torch.Generator().manual_seed(SEED)
    pruned = torch.rand(HEADS, queries, side, generator=generator) >= KEPT
    pruned[..., 0] = False
    return LayerMask(pruned, 1, queries, side, causal=memory)


def measure(build: str, rounds: int, only: str | None) -> Iterator[dict[str, object]]:
    """Rows of the csv for the build that the environment names, as they are measured."""
    if only in (None, "plain"):
        yield from measure_plain(build, rounds)
    if only in (None, "plain", "kept-keys"):
        yield from measure_kept_keys(build, rounds)
    if only in (None, "relative"):
        yield from measure_relative(build, rounds)


def measure_kept_keys(build: str, rounds: int) -> Iterator[dict[str, object]]:
    """Of few queries without a gradient."""
    pruned = torch.zeros(HEADS, LENGTH, LENGTH, dtype=torch.bool)
    pruned[:, :, 0] = True
    mask = LayerMask(pruned, 1, LENGTH, LENGTH)
    for queries in FEW_QUERIES:
        offset = LENGTH - queries

        def own(q: Tensor, k: Tensor, v: Tensor, offset: int = offset) -> Tensor:
            return few_queries.few_queries(q, k, v, mask, causal=False, query_offset=offset, scale=SIZE**-0.5)

        def other(q: Tensor, k: Tensor, v: Tensor, offset: int = offset) -> Tensor:
            return fused.attend(Call.check(q, k, v, mask, query_offset=offset, enable_gqa=True))

        for what, groups in (("kept keys", 1), ("kept keys, shared", GROUPS)):
            q, k, v = inputs(4, queries, LENGTH, False)
            tensors = [q, *(x[:, ::groups].contiguous() for x in (k, v))]
            found = ratio(own, other, tensors, max(31, rounds))
            yield {"build": build, "what": what, "at": queries, "gradients": 0, "ratio": found}


def measure_relative(build: str, rounds: int) -> Iterator[dict[str, object]]:
    """With a relative term."""
    for kind, mask in (("whole", every_cell(LENGTH, True)), ("cells", some_cells(LENGTH, True))):
        for block in BLOCK_SIZES:
            for gradients in (False, True):
                found = ratio(*relative_pair(mask, block), relative_inputs(2, LENGTH, gradients), rounds)
                yield {
                    "build": build, "what": f"relative {kind}", "at": block, "gradients": int(gradients),
                    "ratio": found,
                }  # fmt: skip
    for keys in KEYS:
        for gradients in (False, True):
            pair, tensors = relative_pair(some_cells(keys, True), 16), relative_inputs(8, keys, gradients)
            found = ratio(*pair, tensors, max(31, rounds))
            yield {"build": build, "what": "relative keys", "at": keys, "gradients": int(gradients), "ratio": found}


def measure_plain(build: str, rounds: int) -> Iterator[dict[str, object]]:
    """Without one."""
    dense = F.scaled_dot_product_attention
    for kind, mask in (("whole", every_cell(LENGTH)), ("cells", some_cells(LENGTH))):
        for block in BLOCK_SIZES:
            for gradients in (False, True):
                found = ratio(kernel(mask, block), dense, inputs(2, LENGTH, LENGTH, gradients), rounds)
                yield {"build": build, "what": kind, "at": block, "gradients": int(gradients), "ratio": found}
    for queries in QUERIES:
        mask, tensors = every_cell(LENGTH), inputs(4, queries, LENGTH, False)
        found = ratio(kernel(mask, 32, LENGTH - queries), dense, tensors, max(51, rounds))
        yield {"build": build, "what": "queries", "at": queries, "gradients": 0, "ratio": found}
    for keys in KEYS:
        mask = some_cells(keys)

        def masked(q: Tensor, k: Tensor, v: Tensor, mask: LayerMask = mask) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.additive(q.device, q.dtype)[None])

        for gradients in (False, True):
            found = ratio(kernel(mask, 32), masked, inputs(8, keys, keys, gradients), max(31, rounds))
            yield {"build": build, "what": "keys", "at": keys, "gradients": int(gradients), "ratio": found}


def measure_apart(build: str, rounds: int, only: str | None) -> Iterator[dict[str, object]]:
    """The same in a process of its own, held to the instructions of the build."""
    command = [sys.executable, __file__, "--build", build, "--rounds", str(rounds)]
    command += [] if only is None else ["--only", only]
    environment = os.environ | {native.VARIABLE: build, "OMP_NUM_THREADS": "1"} | INSTRUCTIONS[build]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise BenchmarkError(f"{build}: expected its process to end well, found status {process.returncode}")


def write_csv(folder: Path, rows: list[dict[str, object]]) -> Path:
    """Write ``backend_costs-DATE.csv``, whole or not at all."""
    today = datetime.date.today().isoformat()
    made = {"torch": torch.__version__, "machine": processor(), "date": today}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"backend_costs-{today}.csv"
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *made])
        writer.writeheader()
        writer.writerows({**row, "ratio": f"{row['ratio']:.3f}", **made} for row in rows)
    os.replace(temporary, path)
    return path


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds")
    parser.add_argument("--only", choices=("plain", "kept-keys", "relative"), help="some of the rows alone")
    parser.add_argument("--out", type=Path, default=None, help="folder to write backend_costs-DATE.csv into")
    parser.add_argument("--build", choices=native.BUILDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {args.rounds}")
    torch.set_num_threads(1)
    if args.build is not None:
        for row in measure(args.build, args.rounds, args.only):
            print(json.dumps(row), flush=True)
        return 0
    try:
        if not native.runnable_builds():
            raise BenchmarkError("expected a compiled kernel, found none")
        rows = []
        for build in native.runnable_builds():
            for row in measure_apart(build, args.rounds, args.only):
                rows.append(row)
                kind = "forward+backward" if row["gradients"] else "forward"
                print(f"{build:9s} {row['what']:14s} {row['at']:5d} {kind:17s} {row['ratio']:.2f}", flush=True)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.out is not None:
        print(f"written: {write_csv(args.out, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

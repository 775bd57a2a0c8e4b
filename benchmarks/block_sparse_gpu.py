"""Block-sparse attention on a GPU (FlexAttention) beside torch's dense attention, forward and forward+backward.

All variants run interleaved in one process, each round in another order; ratios are medians over the rounds of the
ratio within a round. A measurement is some calls one after the other, timed from an idle GPU to an idle GPU: where a
call gives the GPU less to do than it takes to prepare on the CPU, that time is what shows. Memory is the peak of a
call above inputs and masks.

    python benchmarks/block_sparse_gpu.py --out results/benchmarks        # a minute and a half
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from block_sparse import BATCH, HEADS, SEED, SIZE, Attention, Shape, draw_layout, summarize
from block_sparse_gpu_figure import draw
from interleave import BenchmarkError
from torch import Tensor

from attention_pruning import pruned_attention
from attention_pruning.ops import flex
from attention_pruning.ops.call import Call

VARIANTS = ("dense", "masked", "flex", "ours")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
KINDS = ("forward", "forward+backward")
SPARSITIES = (0.0, 0.5, 0.75, 0.9, 0.95)
#: Where every variant and float32 are measured too; every variant also where a length has nothing sparser.
IN_FULL = 0.9


@dataclass(frozen=True)
class Case:
    """What is compiled once: every sparsity of it has the same graph."""

    length: int
    block: int
    dtype: str
    kind: str

    def shapes(self) -> list[Shape]:
        """From dense to a block a row."""
        chosen = SPARSITIES if self.dtype == "bf16" else (0.0, IN_FULL)
        blocks = self.length / self.block
        return [Shape(self.length, self.block, sparsity) for sparsity in chosen if (1 - sparsity) * blocks >= 1]


#: The most telling first: the benchmark ends where its time does.
CASES = [Case(length, 128, "bf16", kind) for length in (1024, 4096) for kind in KINDS]
CASES += [Case(length, 64, "bf16", kind) for length in (1024, 4096, 384, 2048) for kind in KINDS]
CASES += [Case(length, 128, "bf16", kind) for length in (384, 2048) for kind in KINDS]
CASES += [Case(1024, block, "fp32", kind) for block in (128, 64) for kind in KINDS]


layout_of = functools.cache(draw_layout)


def build(variant: str, shape: Shape, inputs: list[Tensor]) -> Attention:
    """One way to compute attention at a shape."""
    if variant == "dense":
        return F.scaled_dot_product_attention
    layout = layout_of(shape)
    if variant == "masked":
        mask = layout.cells.to(inputs[0].device)[None]
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if variant == "flex":  # its mask made once
        call = Call.check(*inputs[:3], layout)
        options = {
            "block_mask": flex.block_mask(call, layout),
            "scale": call.scale,
            "kernel_options": flex.kernel_options(call, layout),
        }
        return lambda q, k, v: flex.compiled()(q, k, v, **options, **flex.ask_for_sums())[0]
    return lambda q, k, v: pruned_attention(q, k, v, layout, backend="flex")


def draw_inputs(case: Case) -> list[Tensor]:
    """q, k, v and a gradient of the output, in the (batch, length, head, size) memory that a projection makes."""
    generator = torch.Generator(device="cuda").manual_seed(SEED)
    shape = (BATCH, case.length, HEADS, SIZE)
    tensors = [torch.randn(shape, generator=generator, device="cuda").to(DTYPES[case.dtype]) for _ in range(4)]
    *inputs, g = (x.transpose(1, 2) for x in tensors)
    return [*(x.requires_grad_(case.kind != "forward") for x in inputs), g]


def step(attention: Attention, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> None:
    """One call, and its gradients if they are asked for."""
    if q.requires_grad:
        torch.autograd.grad(attention(q, k, v), (q, k, v), g)
    else:
        with torch.no_grad():
            attention(q, k, v)


def seconds(attention: Attention, inputs: list[Tensor], repeat: int) -> float:
    """Mean of some calls, the GPU idle before and after."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeat):
        step(attention, *inputs)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeat


def peak_memory(attention: Attention, inputs: list[Tensor]) -> float:
    """MB that a call takes above what is there already."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(attention, *inputs)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(case: Case, shape: Shape, inputs: list[Tensor], rounds: int, repeat: int) -> list[dict[str, str]]:
    """Rows of the csv for one shape."""
    full = min(IN_FULL, case.shapes()[-1].sparsity)
    chosen = VARIANTS if shape.sparsity == full else ("dense", "ours")
    attentions = {name: build(name, shape, inputs) for name in chosen}
    memory = {}
    for name, attention in attentions.items():
        seconds(attention, inputs, 2)  # compiled, loaded, allocated
        memory[name] = peak_memory(attention, inputs)
    found: dict[str, list[float]] = {name: [] for name in chosen}
    for index in range(rounds):
        first = index % len(chosen)
        for name in [*chosen[first:], *chosen[:first]]:
            found[name].append(seconds(attentions[name], inputs, repeat))
    rows = summarize(shape, case.kind, found, ("dense", "masked"))
    for row in rows:
        row["measurement"] = f"{case.dtype}, {row['measurement']}"
        row["milliseconds"] = f"{1e3 * sorted(found[row['model']])[rounds // 2]:.4f}"
        row |= {"dtype": case.dtype, "memory_mb": f"{memory[row['model']]:.1f}", "rounds": rounds}
        line = f"{row['measurement']:46s} {row['model']:7s} {row['milliseconds']:>9s} ms  {row['times_dense']} x dense"
        print(f"{line} ({row['low_dense']}..{row['high_dense']}), {row['memory_mb']} MB", flush=True)
    return rows


def compile_beforehand(processes: int) -> None:
    """Fill torch's cache of compiled kernels, several at a time; what fails here fails again where it is measured."""
    parts = [[sys.executable, __file__, "--compile", str(index), str(processes)] for index in range(processes)]
    started = [subprocess.Popen(part, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for part in parts]
    for process in started:
        process.wait()


def compile_part(index: int, processes: int) -> None:
    """What :func:`compile_beforehand` starts."""
    for case in CASES[index::processes]:
        inputs = draw_inputs(case)
        step(build("ours", case.shapes()[-1], inputs), *inputs)


def run(args: argparse.Namespace) -> list[dict[str, str]]:
    """All measurements that the time allows, printed as they end."""
    rows, started = [], time.monotonic()
    compile_beforehand(args.processes)
    print(f"compiled beforehand in {time.monotonic() - started:.0f} s", flush=True)
    for case in CASES:
        inputs = draw_inputs(case)
        for shape in case.shapes():
            if time.monotonic() - started > args.seconds:
                print(f"{args.seconds} s are over: {case} and what follows it were not measured", flush=True)
                return rows
            rows += measure(case, shape, inputs, args.rounds, args.repeat)
    return rows


def write_csv(folder: Path, rows: list[dict[str, str]]) -> Path:
    """Write ``block_sparse_gpu-DATE.csv``, whole or not at all."""
    made = {"torch": torch.__version__, "machine": torch.cuda.get_device_name()}
    today = datetime.date.today().isoformat()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"block_sparse_gpu-{today}.csv"
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["date", *rows[0], *made])
        writer.writeheader()
        writer.writerows({"date": today, **row, **made} for row in rows)
    os.replace(temporary, path)
    return path


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=7, help="interleaved rounds")
    add("--repeat", type=int, default=5, help="calls of each variant in a round")
    add("--seconds", type=int, default=120, help="begin nothing new after this time")
    add("--processes", type=int, default=8, help="that compile at the same time")
    add("--out", type=Path, default=None, help="folder to write block_sparse_gpu-DATE.csv and .png into")
    add("--compile", nargs=2, type=int, metavar=("INDEX", "PROCESSES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ("rounds", "repeat", "seconds", "processes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: expected at least 1, found {getattr(args, name)}")
    return args


def main() -> int:
    """Run the benchmark; returns the exit status."""
    args = parse_arguments()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        if not torch.cuda.is_available():
            raise BenchmarkError("expected a CUDA device, found none")
        if args.compile:
            compile_part(*args.compile)
            return 0
        rows = run(args)
        if not rows:
            raise BenchmarkError(f"nothing was measured in {args.seconds} s")
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.out is not None:
        path = write_csv(args.out, rows)
        draw(path)
        print(f"written: {path} and its .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

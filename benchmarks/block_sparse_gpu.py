"""Block-sparse attention on a GPU beside torch's dense attention: Triton kernels, FlexAttention, SDPA under a mask.

All variants run interleaved in one process, each round in another order; ratios are medians over the rounds of the
ratio within a round, to the dense attention of the same number format. Two times are taken of each: of plain calls one
after the other, from an idle GPU to an idle GPU, where preparing a call on the CPU shows; and of the GPU alone, by a
CUDA graph of the same calls. Beside them is the roofline: what the GPU's peaks allow for the kept blocks. Memory is the
peak of a call above inputs and masks.

    python benchmarks/block_sparse_gpu.py --out results/benchmarks        # at most four minutes
    python benchmarks/block_sparse_gpu.py --dry_run                       # tiny, on the CPU: that nothing is broken
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import roofline
import torch
import torch.nn.functional as F
from block_sparse import BATCH, HEADS, SEED, SIZE, Attention, Shape, draw_layout, summarize
from block_sparse_gpu_figure import draw
from interleave import BenchmarkError
from torch import Tensor

from attention_pruning import BlockLayout, pruned_attention

#: "flex" and "triton" are ``pruned_attention(backend=)``.
VARIANTS = ("dense", "masked", "flex", "triton")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
KINDS = ("forward", "forward+backward")
SPARSITIES = (0.0, 0.5, 0.75, 0.9, 0.95)
#: Where every variant is measured, every number format, and all blocks.
IN_FULL = 0.9
#: Keeping the GPU busy for so long is enough to time it.
GRAPH_SECONDS = 2e-3


@dataclass(frozen=True)
class Case:
    """What is compiled once: every sparsity of it has the same kernels."""

    length: int
    block: int
    dtype: str
    kind: str

    def shapes(self) -> list[Shape]:
        """From dense to a block a row, which short sequences reach before 90%; few besides the main series."""
        chosen = SPARSITIES if self.dtype == "bf16" and self.block == 64 else (0.0, IN_FULL)
        blocks = self.length / self.block
        return [Shape(self.length, self.block, x) for x in chosen if x == IN_FULL or (1 - x) * blocks >= 1]


#: The most telling first: the benchmark ends where its time does.
CASES = [Case(length, 64, "bf16", kind) for length in (384, 1024, 2048, 4096) for kind in KINDS]
CASES += [Case(length, 64, "fp32", kind) for length in (384, 1024) for kind in KINDS]
CASES += [Case(length, block, "bf16", kind) for length in (1024, 4096) for block in (128, 32) for kind in KINDS]
CASES += [Case(8192, 64, "bf16", kind) for kind in KINDS]
CASES += [Case(384, 32, "bf16", kind) for kind in KINDS]
CASES += [Case(4096, 64, "fp32", kind) for kind in KINDS]
#: What --dry_run measures.
DRY_CASES = [Case(64, 32, "fp32", kind) for kind in KINDS]


@functools.cache
def layout_of(shape: Shape, heads: int) -> BlockLayout:
    """The kept blocks, drawn once."""
    return draw_layout(shape, heads)


def build(variant: str, shape: Shape, inputs: list[Tensor]) -> Attention:
    """One way to compute attention at a shape."""
    if variant == "dense":
        return F.scaled_dot_product_attention
    layout = layout_of(shape, inputs[0].shape[1])
    if variant == "masked":
        pruned = ~layout.cells.to(inputs[0].device)[None]
        mask = torch.zeros(pruned.shape, dtype=inputs[0].dtype, device=pruned.device).masked_fill_(pruned, -torch.inf)
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return lambda q, k, v: pruned_attention(q, k, v, layout, backend=variant)


def draw_inputs(case: Case, device: str, batch: int = BATCH, heads: int = HEADS) -> list[Tensor]:
    """q, k, v and a gradient of the output, in the (batch, length, head, size) memory that a projection makes."""
    generator = torch.Generator(device=device).manual_seed(SEED)
    shape = (batch, case.length, heads, SIZE)
    tensors = [torch.randn(shape, generator=generator, device=device).to(DTYPES[case.dtype]) for _ in range(4)]
    *inputs, g = (x.transpose(1, 2) for x in tensors)
    return [*(x.requires_grad_(case.kind != "forward") for x in inputs), g]


def step(attention: Attention, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> None:
    """One call, and its gradients if they are asked for."""
    if q.requires_grad:
        torch.autograd.grad(attention(q, k, v), (q, k, v), g)
    else:
        with torch.no_grad():
            attention(q, k, v)


def finish(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def plain_seconds(attention: Attention, inputs: list[Tensor], repeat: int) -> float:
    """Mean of some calls, the GPU idle before and after."""
    finish(inputs[0].device)
    started = time.perf_counter()
    for _ in range(repeat):
        step(attention, *inputs)
    finish(inputs[0].device)
    return (time.perf_counter() - started) / repeat


def in_a_graph(attention: Attention, inputs: list[Tensor], repeat: int) -> Callable[[], float] | None:
    """A function that gives the GPU's own seconds of a call; None where no CUDA graph can be made of it."""
    if inputs[0].device.type != "cuda":
        return None
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            step(attention, *inputs)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            for _ in range(repeat):
                step(attention, *inputs)
    except RuntimeError as error:
        print(f"no CUDA graph: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        torch.cuda.synchronize()
        return None
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay(times: int = 1) -> float:
        begin.record()
        for _ in range(times):
            graph.replay()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end) / (times * repeat)

    replay()
    times = max(1, round(GRAPH_SECONDS / (replay() * repeat)))
    return lambda: replay(times)


def peak_memory(attention: Attention, inputs: list[Tensor]) -> float:
    """MB that a call takes above what is there already; 0 without a GPU."""
    if inputs[0].device.type != "cuda":
        return 0.0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(attention, *inputs)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def chosen_variants(shape: Shape, device: str) -> list[str]:
    """All of them where there is most to compare, else those that what is pruned changes."""
    chosen = list(VARIANTS) if shape.sparsity == IN_FULL else ["dense", "triton"]
    return [name for name in chosen if device == "cuda" or name != "flex"]  # which would compile for the CPU


def measure(case: Case, shape: Shape, inputs: list[Tensor], rounds: int, repeat: int) -> list[dict[str, str]]:
    """Rows of the csv for one shape."""
    attentions, memory, graphs = {}, {}, {}
    for name in chosen_variants(shape, inputs[0].device.type):
        try:
            attention = build(name, shape, inputs)
            plain_seconds(attention, inputs, 2)  # compiled, loaded, allocated
            memory[name] = peak_memory(attention, inputs)
            graphs[name] = in_a_graph(attention, inputs, repeat)
            attentions[name] = attention
        except Exception as error:  # whatever a compiler raises: one variant must not cost all others
            reason = str(error).strip().splitlines() or [type(error).__name__]
            print(f"{case}, {shape}, {name}: not measured: {reason[0]}", file=sys.stderr, flush=True)
    chosen = list(attentions)
    plain: dict[str, list[float]] = {name: [] for name in chosen}
    alone: dict[str, list[float]] = {name: [] for name in chosen if graphs[name] is not None}
    for index in range(rounds):
        first = index % len(chosen)
        for name in [*chosen[first:], *chosen[:first]]:
            plain[name].append(plain_seconds(attentions[name], inputs, repeat))
            if name in alone:
                alone[name].append(graphs[name]())
    rows = summarize(shape, case.kind, plain, ("dense", "masked"))
    for row in rows:
        row |= {"measurement": f"{case.dtype}, {row['measurement']}", "dtype": case.dtype, "rounds": rounds}
        row |= {"memory_mb": f"{memory[row['model']]:.1f}", "batch": inputs[0].shape[0]}
        row["milliseconds"] = f"{1e3 * statistics.median(plain[row['model']]):.4f}"
        row |= gpu_columns(row["model"], alone)
        row["roofline_milliseconds"] = roofline_of(case, shape, inputs, row["model"])
        print_row(row)
    return rows


def gpu_columns(name: str, alone: dict[str, list[float]]) -> dict[str, str]:
    """The GPU's own time, and times the dense and the masked attention's; empty where there was no graph."""
    columns = {"gpu_milliseconds": f"{1e3 * statistics.median(alone[name]):.4f}" if name in alone else ""}
    for base in ("dense", "masked"):
        both = name in alone and base in alone
        ratios = [other / own for own, other in zip(alone[name], alone[base], strict=True)] if both else []
        columns[f"gpu_times_{base}"] = f"{statistics.median(ratios):.3f}" if ratios else ""
    return columns


def roofline_of(case: Case, shape: Shape, inputs: list[Tensor], model: str) -> str:
    """Milliseconds that the GPU's peaks allow: for the kept blocks, or for all scores where all are computed."""
    if inputs[0].device.type != "cuda":
        return ""
    batch, heads, length, size = inputs[0].shape
    kept = layout_of(shape, heads).column.numel() * shape.block**2 if model in ("flex", "triton") else heads * length**2
    bytes_each, gradients = inputs[0].element_size(), case.kind != "forward"
    name = torch.cuda.get_device_name()
    found = roofline.seconds(name, batch * kept, size, batch * heads * length, bytes_each, gradients)
    return "" if found is None else f"{1e3 * found:.4f}"


def print_row(row: dict[str, str]) -> None:
    """One variant."""
    line = f"{row['measurement']:46s} {row['model']:7s} {row['milliseconds']:>9s} ms  {row['times_dense']} x dense"
    line += f", GPU {row['gpu_milliseconds'] or '-'} ms  {row['gpu_times_dense'] or '-'} x dense"
    print(f"{line}, at best {row['roofline_milliseconds'] or '-'} ms, {row['memory_mb']} MB", flush=True)


def compile_beforehand(processes: int) -> None:
    """Fill the caches of compiled kernels, several at a time; what fails here fails again where it is measured."""
    parts = [[sys.executable, __file__, "--compile", str(index), str(processes)] for index in range(processes)]
    started = [subprocess.Popen(part, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for part in parts]
    for process in started:
        process.wait()


def compile_part(index: int, processes: int) -> None:
    """What :func:`compile_beforehand` starts."""
    for case in CASES[index::processes]:
        inputs = draw_inputs(case, "cuda", batch=1)
        for variant in ("triton", "flex"):
            step(build(variant, case.shapes()[-1], inputs), *inputs)


def run(args: argparse.Namespace) -> list[dict[str, str]]:
    """All measurements that the time allows, printed as they end."""
    rows, started = [], time.monotonic()
    if not args.dry_run:
        compile_beforehand(args.processes)
        print(f"compiled beforehand in {time.monotonic() - started:.0f} s", flush=True)
    for case in DRY_CASES if args.dry_run else CASES:
        inputs = draw_inputs(case, "cpu", 1, 1) if args.dry_run else draw_inputs(case, "cuda")
        for shape in case.shapes():
            if time.monotonic() - started > args.seconds:
                print(f"{args.seconds} s are over: {case} and what follows it were not measured", flush=True)
                return rows
            rows += measure(case, shape, inputs, args.rounds, args.repeat)
    return rows


def write_csv(folder: Path, rows: list[dict[str, str]]) -> Path:
    """Write ``block_sparse_gpu-DATE.csv``, whole or not at all."""
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    made = {"torch": torch.__version__, "machine": machine}
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
    add("--seconds", type=int, default=200, help="begin nothing new after this time")
    add("--processes", type=int, default=8, help="that compile at the same time")
    add("--out", type=Path, default=None, help="folder to write block_sparse_gpu-DATE.csv and .png into")
    add("--dry_run", action="store_true", help="one tiny round on the CPU, in Triton's interpreter")
    add("--compile", nargs=2, type=int, metavar=("INDEX", "PROCESSES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ("rounds", "repeat", "seconds", "processes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: expected at least 1, found {getattr(args, name)}")
    return args


def interpret() -> None:
    """Start this program again in Triton's interpreter, which is chosen before Triton is imported."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"TRITON_INTERPRET": "1"})


def main() -> int:
    """Run the benchmark; returns the exit status."""
    args = parse_arguments()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if args.dry_run:
        interpret()
        args.rounds = args.repeat = 1
    try:
        if not args.dry_run and not torch.cuda.is_available():
            raise BenchmarkError("expected a CUDA device, found none (--dry_run needs none)")
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

"""Speed-up of block-sparse attention over torch's dense attention, forward and forward+backward, against the sparsity.

All variants run interleaved in one process, each round in another order; ratios are medians over the rounds of the
ratio within a round. Peak memory is measured in a process of its own for each variant.

    python benchmarks/block_sparse.py                      # the table of benchmarks/README.md, some minutes
    python benchmarks/block_sparse.py --out results/benchmarks
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import gc
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from interleave import BenchmarkError, processor
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attention_pruning import BlockLayout, pruned_attention
from attention_pruning.ops.cpu import native

# The anchor of all comparisons: change it and no figure can be compared with an earlier one.
BATCH, HEADS, SIZE = 8, 12, 64
SEED = 1

#: As rules/settings.smk has it for every job: an output is not made of new pages each time, whoever computes it.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": 2**25, "MALLOC_TRIM_THRESHOLD_": 2**29, "MALLOC_TOP_PAD_": 2**25}

#: Called with q, k, v [B, H, L, D].
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

VARIANTS = ("dense", "dense bf16", "masked", "eager", "flex", "ours", "ours at 0%", "ours bf16")


@dataclass(frozen=True)
class Shape:
    """One line of the table."""

    length: int
    block: int
    sparsity: float
    causal: bool = False

    def __str__(self) -> str:
        return f"L {self.length}{' causal' if self.causal else ''}, block {self.block}, {self.sparsity:.0%}"


SHAPES = (
    Shape(384, 32, 0.9),
    Shape(512, 32, 0.9),
    Shape(1024, 64, 0.9),
    Shape(1024, 64, 0.9, causal=True),
    Shape(2048, 64, 0.9),
    Shape(2048, 64, 0.0),
)
#: What the plot shows, by block: from dense to a block a row. The thresholds of "auto" come from here too.
CURVE = tuple(
    Shape(1024, block, sparsity)
    for block in (16, 32, 64, 128)
    for sparsity in (0.0, 0.5, 0.75, 0.9, 0.95)
    if (1 - sparsity) * 1024 / block >= 1
)
#: Forward, and forward and backward together, times the speed of torch's dense attention.
TARGETS = {SHAPES[0]: (7.0, 6.0), SHAPES[2]: (8.0, 8.5), SHAPES[4]: (9.0, 9.0), SHAPES[5]: (1.0, 1.0)}


def draw_layout(shape: Shape, heads: int = HEADS) -> BlockLayout:
    """Blocks drawn uniformly, a block at least in every row, as many in every head."""
    generator = torch.Generator().manual_seed(SEED)
    side = shape.length // shape.block
    visible = torch.ones(side, side, dtype=torch.bool)
    visible = visible.tril() if shape.causal else visible
    kept = torch.zeros(heads, side, side, dtype=torch.bool)
    count = max(side, round((1 - shape.sparsity) * int(visible.sum())))
    for head in kept:
        score = torch.rand(side, side, generator=generator).masked_fill(~visible, -1.0)
        score.scatter_(1, score.argmax(1, keepdim=True), 2.0)  # the best of each row comes first
        head.view(-1)[score.view(-1).argsort(descending=True)[:count]] = True
    return BlockLayout.from_blocks(kept, shape.block, causal=shape.causal)


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask).softmax(-1) @ v


def build(variant: str, shape: Shape) -> Attention:
    """One way to compute attention at a shape."""
    layout = draw_layout(shape)
    if variant in ("dense", "dense bf16"):
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=shape.causal)
    if variant in ("masked", "eager"):
        mask = torch.zeros(1, HEADS, shape.length, shape.length).masked_fill_(~layout.cells, float("-inf"))
        if variant == "masked":
            return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return lambda q, k, v: eager(q, k, v, mask)
    if variant == "flex":
        return build_flex(layout)
    if variant == "ours at 0%":
        layout = draw_layout(dataclasses.replace(shape, sparsity=0.0))
    return lambda q, k, v: pruned_attention(q, k, v, layout, backend="block_sparse")


def build_flex(layout: BlockLayout) -> Attention:
    """FlexAttention with its mask made once, as a model would keep it."""
    from attention_pruning.ops import flex
    from attention_pruning.ops.call import Call

    q = torch.empty(BATCH, HEADS, layout.query_length, SIZE)
    mask = flex.block_mask(Call.check(q, q, q, layout), layout)
    return lambda q, k, v: flex.compiled()(q, k, v, block_mask=mask)


def draw_inputs(variant: str, shape: Shape, gradients: bool) -> list[Tensor]:
    """q, k, v and a gradient of the output, in the (batch, length, head, size) memory that a projection makes."""
    generator = torch.Generator().manual_seed(SEED)
    dtype = torch.bfloat16 if variant.endswith("bf16") else torch.float32
    tensors = [torch.randn(BATCH, shape.length, HEADS, SIZE, generator=generator).to(dtype) for _ in range(4)]
    *inputs, g = (x.transpose(1, 2) for x in tensors)
    return [*(x.requires_grad_(gradients) for x in inputs), g]


def time_once(attention: Attention, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> float:
    """Seconds of processor time: what other programs take on a shared machine is not counted."""
    gc.collect()
    for x in (q, k, v):
        x.grad = None
    started = time.process_time()
    if q.requires_grad:
        attention(q, k, v).backward(g)
    else:
        with torch.no_grad():
            attention(q, k, v)
    return time.process_time() - started


def measure(shape: Shape, variants: list[str], gradients: bool, rounds: int) -> dict[str, list[float]]:
    """Seconds of every variant, round by round."""
    steps = {name: (build(name, shape), draw_inputs(name, shape, gradients)) for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for attention, inputs in steps.values():
        time_once(attention, *inputs)
    for index in range(rounds):
        first = index % len(variants)
        for name in variants[first:] + variants[:first]:
            attention, inputs = steps[name]
            seconds[name].append(time_once(attention, *inputs))
    return seconds


def peak_memory(variant: str, shape: Shape, gradients: bool) -> float:
    """MB above what inputs and mask take, in a process of its own."""
    command = [sys.executable, __file__, "--memory", variant, str(SHAPES.index(shape)), str(int(gradients))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak_memory(variant: str, shape: Shape, gradients: bool) -> None:
    """What :func:`peak_memory` starts."""
    torch.set_num_threads(1)
    small = dataclasses.replace(shape, length=128, sparsity=0.0)
    time_once(build(variant, small), *draw_inputs(variant, small, gradients))  # whatever is loaded on first use
    attention, inputs = build(variant, shape), draw_inputs(variant, shape, gradients)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
    before = resident("VmRSS")
    time_once(attention, *inputs)
    print(resident("VmHWM") - before)


def resident(name: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def summarize(shape: Shape, kind: str, seconds: dict[str, list[float]], bases: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of the csv: milliseconds and ratios to the bases, median, lowest and highest."""
    rows = []
    for name, times in seconds.items():
        middle = 1e3 * statistics.median(times)
        row = {"measurement": f"{shape}, {kind}", "model": name, "milliseconds": f"{middle:.2f}"}
        row |= {"length": shape.length, "block": shape.block, "sparsity": shape.sparsity, "causal": shape.causal}
        row |= {"kind": kind, "memory_mb": ""}
        for base in bases:
            ratios = [other / own for own, other in zip(times, seconds.get(base, []), strict=False)]
            found = [statistics.median(ratios), min(ratios), max(ratios)] if ratios else []
            for part, value in zip(("times", "low", "high"), found or [None] * 3, strict=True):
                row[f"{part}_{base}"] = "" if value is None else f"{value:.3f}"
        rows.append(row)
    return rows


def chosen_variants(shape: Shape, gradients: bool, flex: bool) -> list[str]:
    """What is measured at a shape: everything that can run there within this machine's memory."""
    chosen = list(VARIANTS) if shape in SHAPES else ["dense", "ours"]
    left_out = {
        "flex": gradients or shape.causal or not flex,  # on a CPU it computes inference only
        "eager": gradients and shape.length > 1024,  # takes 5 GB
        "ours at 0%": shape.sparsity == 0.0,
    }
    return [name for name in chosen if not left_out.get(name)]


def run(args: argparse.Namespace) -> list[dict[str, str]]:
    """All measurements, printed as they end."""
    rows = []
    for shape in dict.fromkeys([*SHAPES, *CURVE]):
        for kind in ("forward", "forward+backward"):
            gradients = kind != "forward"
            rounds = max(3, args.rounds * 384 // shape.length)
            variants = chosen_variants(shape, gradients, not args.no_flex)
            seconds = measure(shape, variants, gradients, rounds)
            found = summarize(shape, kind, seconds, ("dense", "ours at 0%", "dense bf16"))
            for row in found:
                if args.memory_too and shape.length == 2048 and row["model"] in ("dense", "masked", "ours"):
                    row["memory_mb"] = f"{peak_memory(row['model'], shape, gradients):.0f}"
                row["rounds"] = rounds
                print_row(row, TARGETS.get(shape, (None, None))[int(gradients)])
            rows += found
    return rows


def print_row(row: dict[str, str], target: float | None) -> None:
    """One variant: time, times torch's dense attention, and what is aimed at."""
    line = f"{row['measurement']:42s} {row['model']:11s} {row['milliseconds']:>8s} ms"
    line += f"  {row['times_dense']} x dense ({row['low_dense']}..{row['high_dense']})"
    if row["model"] == "ours bf16":
        line += f", {row['times_dense bf16']} x dense bf16"
    if row["model"] == "ours" and target is not None:
        line += f", target {target}"
    print(line + (f", {row['memory_mb']} MB" if row["memory_mb"] else ""), flush=True)


def write_csv(folder: Path, rows: list[dict[str, str]], threads: int) -> Path:
    """Write ``block_sparse-DATE.csv``, whole or not at all."""
    today = datetime.date.today().isoformat()
    machine = f"{processor()}, {os.cpu_count()} cores, build {native.runnable_builds()[-1]}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"block_sparse-{today}.csv"
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["date", *rows[0], "threads", "torch", "machine"])
        writer.writeheader()
        for row in rows:
            writer.writerow({"date": today, **row, "threads": threads, "torch": torch.__version__, "machine": machine})
    os.replace(temporary, path)
    return path


def draw_plot(rows: list[dict[str, str]], path: Path) -> None:
    """Speed-up over torch's dense attention against the sparsity, with the ideal line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sparsities = sorted({shape.sparsity for shape in CURVE})
    kept = [1 - sparsity for sparsity in sparsities]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for axis, kind in zip(axes, ("forward", "forward+backward"), strict=True):
        for block, marker in ((16, "v"), (32, "o"), (64, "s"), (128, "D")):
            names = {f"{shape}, {kind}": shape.sparsity for shape in CURVE if shape.block == block}
            line = sorted(
                (names[row["measurement"]], *(float(row[f"{part}_dense"]) for part in ("times", "low", "high")))
                for row in rows
                if row["model"] == "ours" and row["measurement"] in names
            )
            if not line:  # a run that was cut short
                continue
            x, middle, low, high = (torch.tensor(column) for column in zip(*line, strict=True))
            ranges = torch.stack([middle - low, high - middle])
            axis.errorbar(1 - x, middle, ranges, marker=marker, markersize=4, capsize=2, label=f"block {block}")
        axis.plot(kept, [1 / share for share in kept], "k--", label="ideal: 1 / kept")
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel="blocks pruned", title=f"{kind}, L = {CURVE[0].length}")
        axis.set_xticks(kept, [f"{sparsity:.0%}" for sparsity in sparsities])
        axis.minorticks_off()
        axis.invert_xaxis()
        axis.set_yticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"])
    axes[0].set_ylabel("times torch's dense attention")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--threads", type=int, default=1, help="threads of torch")
    add("--rounds", type=int, default=21, help="interleaved rounds at L = 384; fewer at longer ones, 3 at least")
    add("--no-flex", action="store_true", help="leave FlexAttention out, which compiles for some seconds")
    add("--no-memory", dest="memory_too", action="store_false", help="leave peak memory out")
    add("--out", type=Path, default=None, help="folder to write block_sparse-DATE.csv and .png into")
    add("--memory", nargs=3, metavar=("VARIANT", "SHAPE", "GRADIENTS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ("threads", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: expected at least 1, found {getattr(args, name)}")
    return args


def keep_memory() -> None:
    """Start this program again unless its allocator keeps what is freed: it reads its settings at the start alone."""
    if not set(ALLOCATOR) <= set(os.environ):
        settings = {name: str(value) for name, value in ALLOCATOR.items()}
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | settings)


def main() -> int:
    """Run the benchmark; returns the exit status."""
    args = parse_arguments()
    keep_memory()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if args.memory:
        print_peak_memory(args.memory[0], SHAPES[int(args.memory[1])], args.memory[2] == "1")
        return 0
    torch.set_num_threads(args.threads)
    try:
        if native.library() is None:
            raise BenchmarkError("the kernel is not compiled; get a C++ compiler and install again: pip install -e .")
        rows = run(args)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.out is not None:
        path = write_csv(args.out, rows, args.threads)
        draw_plot(rows, path.with_suffix(".png"))
        print(f"written: {path} and its .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

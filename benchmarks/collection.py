"""Time and memory of collecting a pattern of blocks from a long-context model, beside the model's own forward pass.

A Llama-like model with random weights, one sequence of one length, each measurement in a process of its own: its peak
of memory is that of the process.

    python benchmarks/collection.py                              # 8192 positions, blocks of 64
    python benchmarks/collection.py --out results/benchmarks     # and writes collection-DATE.csv
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from interleave import processor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attention_pruning.huggingface import collect_patterns

LAYERS, HEADS, WIDTH, VOCABULARY = 2, 8, 256, 1000
COLUMNS = (
    "length",
    "block_size",
    "what",
    "seconds",
    "processor_seconds",
    "peak_mb",
    "layers",
    "heads",
    "width",
    "rounds",
)


def model() -> transformers.PreTrainedModel:
    """The model, the same in every process."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=WIDTH,
        max_position_embeddings=1 << 20,
        attn_implementation="sdpa",
    )
    return transformers.LlamaModel(config).eval()


def measure(what: str, length: int, block_size: int, threads: int) -> dict[str, float]:
    """Seconds of one pass over one sequence, those of the processor, and the highest memory of this process in MB."""
    torch.set_num_threads(threads)
    llama = model()
    batch = {"input_ids": torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1))}
    short = {"input_ids": batch["input_ids"][:, :128]}
    with torch.no_grad():
        llama(**short, use_cache=False)  # what a first call loads is not measured
        started, busy = time.perf_counter(), time.process_time()
        if what == "forward":
            llama(**batch, use_cache=False)
        else:
            collect_patterns(llama, [batch], block_size=block_size)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - busy}
    return seconds | {"peak_mb": peak_mb}


def apart(what: str, args: argparse.Namespace) -> dict[str, float]:
    """:func:`measure` in a process of its own."""
    flags = [f"--{name}={getattr(args, name)}" for name in ("length", "block_size", "threads")]
    command = [sys.executable, __file__, *flags, "--child", what]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Run the command."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--length", type=int, default=8192, help="positions of the sequence (default: 8192)")
    top.add_argument("--block_size", type=int, default=64, help="side of the blocks (default: 64)")
    top.add_argument("--threads", type=int, default=2, help="threads (default: 2)")
    top.add_argument("--rounds", type=int, default=3, help="processes of each kind, in turn (default: 3)")
    top.add_argument("--out", type=Path, help="folder for collection-DATE.csv (default: none)")
    top.add_argument("--child", choices=("forward", "collect"), help=argparse.SUPPRESS)
    args = top.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.length, args.block_size, args.threads)))
        return
    found: dict[str, list[dict[str, float]]] = {"forward": [], "collect": []}
    for _ in range(args.rounds):
        for what, results in found.items():
            results.append(apart(what, args))
    rows = []
    for what, results in found.items():
        numbers = {name: statistics.median(result[name] for result in results) for name in results[0]}
        print(
            "{}: {seconds:.2f} s, {processor_seconds:.2f} s of processors, peak {peak_mb:.0f} MB".format(
                what, **numbers
            )
        )
        shown = (f"{numbers['seconds']:.2f}", f"{numbers['processor_seconds']:.2f}", f"{numbers['peak_mb']:.0f}")
        rows.append((args.length, args.block_size, what, *shown, LAYERS, HEADS, WIDTH, args.rounds))
    above = [statistics.median(result["peak_mb"] for result in results) for results in found.values()]
    print(f"collecting above the model: {above[1] - above[0]:.0f} MB")
    if args.out:
        write(args.out, rows, args.threads)


def write(folder: Path, rows: list[tuple], threads: int) -> None:
    """Write ``collection-DATE.csv``."""
    today = datetime.date.today().isoformat()
    folder.mkdir(parents=True, exist_ok=True)
    machine = f"{processor()}, {os.cpu_count()} cores"
    with (folder / f"collection-{today}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["date", *COLUMNS, "threads", "torch", "machine"])
        writer.writerows([today, *row, threads, torch.__version__, machine] for row in rows)


if __name__ == "__main__":
    main()

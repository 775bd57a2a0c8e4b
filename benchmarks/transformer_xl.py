"""Throughput of Transformer-XL: training, evaluation and averaging, dense and pruned, beside the authors' PyTorch code.

Everything is timed interleaved in one process: in each round every model runs the same segments, and medians over the
rounds are reported. The authors' code is not part of this repository; --upstream names a checkout of it.

What pruning saves (``--only pruned``) is measured at the published width, at several contexts: the same step dense,
under masks of cells and of blocks, and without attention at all, whose time is a bound for all masks. ``--only core``
times the attention of one layer.

    python benchmarks/transformer_xl.py --rounds 7
    python benchmarks/transformer_xl.py --only pruned                 # what pruning saves, alone
    git clone https://github.com/kimiyoung/transformer-xl ../upstream
    python benchmarks/transformer_xl.py --upstream ../upstream --out results/benchmarks
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from interleave import BenchmarkError, Step, Timing, measure, write_csv
from our_transformer_xl import (
    CLIP,
    LEARNING_RATE,
    SEED,
    TAU,
    WIDE,
    Lengths,
    averaging,
    build_ours,
    draw_segments,
    load_ours,
    our_evaluation,
    our_training,
)
from torch import Tensor
from upstream_transformer_xl import (
    build_upstream,
    check_agreement,
    load_upstream,
    upstream_evaluation,
    upstream_training,
)

MEASUREMENTS = ("train", "eval", "averaging", "pruned", "core")

SHORT = Lengths(64, 64, 16)
LONG = Lengths(64, 640, 10, clamp_len=400)
#: What is timed to say what pruning saves: training or evaluation, layers, lengths. The published base trains at
#: 150/150, and is evaluated at 64/640.
SAVINGS = (
    ("train", 4, Lengths(150, 150, 4)),
    ("train", 6, Lengths(512, 512, 1)),
    ("eval", 4, LONG),
    ("eval", 6, Lengths(512, 1536, 1)),
)
#: Where attention is timed alone, without its projections.
CORE = Lengths(150, 150, 4)
CORE_TITLE = f"attention {CORE}, {WIDE['n_head']} heads of {WIDE['d_head']}"
WIDE_TITLES = (CORE_TITLE, *{f"{layers} layers of {WIDE['d_model']}" for _, layers, _ in SAVINGS})
#: A call takes milliseconds.
CORE_ROUNDS = 31
#: Cells by the published rule; whole blocks where a query keeps its best one.
MASKS = {"cells": 1, "blocks of 16": 16, "blocks of 32": 32}

#: What the project aims at: times the speed of the authors' code, dense.
TARGETS = {f"train {SHORT}": 1.25, f"eval {SHORT}": 1.5, f"eval {LONG}": 2.5}


def build_steps(
    kind: str, lengths: Lengths, ours: SimpleNamespace, upstream: type[torch.nn.Module] | None
) -> dict[str, Step]:
    """The models of one measurement, each as a step."""
    segments = draw_segments(lengths, 16)
    dense = build_ours(ours, lengths)
    if kind == "averaging":
        return {
            "dense": our_evaluation(dense, segments),
            "averaging": averaging(ours, build_ours(ours, lengths), segments),
        }
    pruned = build_ours(ours, lengths, block_size=1)
    if kind == "eval":
        steps = {"dense": our_evaluation(dense, segments), "pruned": our_evaluation(pruned, segments)}
    else:
        steps = {"dense": our_training(ours, dense, segments), "pruned": our_training(ours, pruned, segments)}
    if upstream is not None:
        theirs = build_upstream(upstream, dense)
        check_agreement(dense, theirs, segments)
        if kind == "eval":
            steps["upstream"] = upstream_evaluation(theirs, segments)
        else:
            steps["upstream"] = upstream_training(theirs, segments, LEARNING_RATE, CLIP)
    return steps


def build_savings(
    kind: str, layers: int, lengths: Lengths, ours: SimpleNamespace, upstream: type[torch.nn.Module] | None
) -> dict[str, Step]:
    """The same step dense, under every kind of mask, and without attention."""
    segments, shape = draw_segments(lengths, 8), {"n_layer": layers, **WIDE}
    models = {"dense": build_ours(ours, lengths, shape=shape)}
    models |= {name: build_ours(ours, lengths, block_size, shape) for name, block_size in MASKS.items()}
    models["no attention"] = build_ours(ours, lengths, shape=shape)
    for layer in models["no attention"].layers:
        layer.dec_attn.forward = functools.partial(ours.without_attention, layer.dec_attn)
    if kind == "eval":
        steps = {name: our_evaluation(model, segments) for name, model in models.items()}
    else:
        steps = {name: our_training(ours, model, segments) for name, model in models.items()}
    if upstream is not None:
        theirs = build_upstream(upstream, models["dense"])
        check_agreement(models["dense"], theirs, segments)
        steps["upstream"] = (
            upstream_evaluation(theirs, segments)
            if kind == "eval"
            else upstream_training(theirs, segments, LEARNING_RATE, CLIP)
        )
    return steps


def build_core(ours: SimpleNamespace, backward: bool) -> dict[str, Step]:
    """The attention of one layer on the same queries, keys and values: dense, and under every kind of mask.

    Dense attention is computed by the faster of two implementations. With gradients that is not torch's fused
    attention, so it is timed, too.
    """
    shape = {"n_layer": 1, **WIDE}
    steps = {"dense": core_step(build_ours(ours, CORE, shape=shape), backward)}
    if backward:
        steps["dense, fused"] = core_step(build_ours(ours, CORE, shape=shape), backward, fused=True)
    masked = {name: build_ours(ours, CORE, block_size, shape) for name, block_size in MASKS.items()}
    return steps | {name: core_step(model, backward) for name, model in masked.items()}


def core_step(model: Any, backward: bool, fused: bool = False) -> Step:
    """What the model's attention is called with once its memory is full, called again and again."""
    attention, calls = model.layers[0].dec_attn, []
    attend = attention._attend

    def noted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return attend(*arguments)

    attention._attend = noted
    evaluate = our_evaluation(model, draw_segments(CORE, 8))
    for _ in range(3):
        evaluate()
    *tensors, mask = calls[-1]
    tensors = [tensor.detach().requires_grad_(backward) for tensor in tensors]
    gradient = torch.randn(attend(*tensors, mask).shape, generator=torch.Generator().manual_seed(SEED))
    attention.train(backward and not fused)
    attention.dropatt = 0.0

    def step() -> None:
        with torch.set_grad_enabled(backward):
            attended = attend(*tensors, mask)
        if backward:
            torch.autograd.grad(attended, tensors, gradient)

    return step


def run(args: argparse.Namespace) -> list[Timing]:
    """All measurements that the flags ask for, printed as they end."""
    upstream = load_upstream(args.upstream) if args.upstream else None
    ours = load_ours()
    # Processor time leaves out what other programs take, but adds up threads.
    clock = time.process_time if args.threads == 1 else time.perf_counter
    timings: list[Timing] = []
    for kind, lengths in (("train", SHORT), ("eval", SHORT), ("eval", LONG), ("averaging", SHORT)):
        if kind not in args.only:
            continue
        found = measure(
            f"{kind} {lengths}",
            build_steps(kind, lengths, ours, upstream),
            tokens=lengths.batch * lengths.tgt_len,
            # The memory must be full, and the masks of its last length made.
            warm_up=lengths.mem_len // lengths.tgt_len + 2,
            rounds=args.rounds,
            repeat=args.repeat,
            clock=clock,
        )
        print_table(found)
        timings += found
    for kind, layers, lengths in SAVINGS if "pruned" in args.only else ():
        found = measure(
            f"{kind} {lengths}, {layers} layers of {WIDE['d_model']}",
            build_savings(kind, layers, lengths, ours, upstream),
            tokens=lengths.batch * lengths.tgt_len,
            warm_up=-(-lengths.mem_len // lengths.tgt_len) + 1,
            rounds=args.rounds,
            repeat=1,
            clock=clock,
        )
        print_table(found)
        timings += found
    for kind in ("forward", "forward+backward") if "core" in args.only else ():
        found = measure(
            f"{kind}, {CORE_TITLE}",
            build_core(ours, kind != "forward"),
            tokens=CORE.batch * CORE.tgt_len,
            warm_up=10,
            rounds=max(args.rounds, CORE_ROUNDS),
            repeat=10,
            clock=clock,
        )
        print_table(found)
        timings += found
    return timings


def print_table(timings: list[Timing]) -> None:
    """Print one measurement: each model, beside the dense one and the authors'."""
    by_name = {timing.model: timing for timing in timings}
    for timing in timings:
        line = f"{timing.measurement:24s} {timing.model:10s} {timing.median:7.0f} tokens/s"
        for base in ("dense", "upstream"):
            if base in by_name and base != timing.model:
                middle, low, high = timing.times(by_name[base])
                line += f" | {middle:.2f} x {base} ({low:.2f}..{high:.2f})"
        if timing.model == "dense" and "upstream" in by_name and timing.measurement in TARGETS:
            line += f", target {TARGETS[timing.measurement]}"
        if timing.model == "averaging":
            line += f" | costs {by_name['dense'].times(timing)[0]:.2f} evaluations, target at most 1.5"
        if timing.model in MASKS and "no attention" in by_name:
            line += f" | {100 * share_of_gain(timing, by_name):.0f}% of what free attention would save"
        print(line, flush=True)


def share_of_gain(timing: Timing, by_name: dict[str, Timing]) -> float:
    """Time saved beside dense, over what would be saved if TAU of attention cost nothing; median over the rounds."""
    rounds = zip(timing.rates, by_name["dense"].rates, by_name["no attention"].rates, strict=True)
    return statistics.median((1 / dense - 1 / own) / (TAU * (1 / dense - 1 / free)) for own, dense, free in rounds)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--upstream", type=Path, default=None, help="checkout of github.com/kimiyoung/transformer-xl, to be timed too")
    add("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), help="what to measure")
    add("--threads", type=int, default=1, help="threads of torch")
    add("--rounds", type=int, default=11, help="interleaved rounds, of which medians are reported")
    add("--repeat", type=int, default=2, help="steps of each model in a round")
    add(
        "--out",
        type=Path,
        default=None,
        help="folder to write NAME-DATE.csv into",
    )
    args = parser.parse_args()
    for name in ("threads", "rounds", "repeat"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: expected at least 1, found {getattr(args, name)}")
    return args


def main() -> int:
    """Run the benchmark; returns the exit status."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    try:
        timings = run(args)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    savings = [timing for timing in timings if any(timing.measurement.endswith(title) for title in WIDE_TITLES)]
    for name, found, bases in (
        ("transformer_xl", [timing for timing in timings if timing not in savings], ("dense", "upstream")),
        ("transformer_xl_pruned", savings, ("dense", "upstream") if args.upstream else ("dense",)),
    ):
        if args.out is not None and found:
            print(f"written: {write_csv(args.out, name, found, bases, args.threads)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

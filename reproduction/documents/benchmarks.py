"""Benchmarks as Markdown tables: from the committed rows of one to what README.md and benchmarks/README.md show."""

from __future__ import annotations

import math

import pandas as pd

#: What a benchmark measured, by its column, and what a table calls it.
MEASURED = {"tokens_per_second": "tokens/s", "milliseconds": "ms"}


def benchmark_table(table: pd.DataFrame) -> str:
    """Ratios of a benchmark: median over interleaved rounds, lowest and highest round in brackets."""
    bases = [column.removeprefix("times_") for column in table if column.startswith("times_")]
    measured = next(column for column in MEASURED if column in table)
    digits = 0 if measured != "milliseconds" else 1 if table[measured].min() >= 1 else 3
    remembered = "memory_mb" in table
    lines = [
        f"| measurement | model | {MEASURED[measured]} |"
        + "".join(f" times {base} |" for base in bases)
        + (" peak memory, MB |" if remembered else ""),
        "|---|---|---:|" + "---|" * len(bases) + ("---:|" if remembered else ""),
    ]
    for row in table.to_dict("records"):
        cells = []
        for base in bases:
            low, high = row[f"low_{base}"], row[f"high_{base}"]
            same = row["model"] == base or pd.isna(row[f"times_{base}"])
            cells.append("" if same else f"{row[f'times_{base}']:.2f} ({low:.2f} to {high:.2f})")
        if remembered:
            cells.append("" if pd.isna(row["memory_mb"]) else f"{row['memory_mb']:.0f}")
        cells = [row["measurement"], row["model"], f"{row[measured]:.{digits}f}", *cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", measured_with(table)]) + "\n"


def speedups_table(table: pd.DataFrame) -> str:
    """Times dense attention at every sparsity, a row for each shape; where measured, times masked attention, and MB."""
    table = table.assign(percent=(100 * table["sparsity"]).round().astype(int))
    # Of the GPU alone where it was timed so. "ours" were times of FlexAttention before there were kernels in Triton.
    prefix = "gpu_" if "gpu_milliseconds" in table and table["gpu_milliseconds"].notna().all() else ""
    own = "triton" if (table["model"] == "triton").any() else "ours"
    percents, models = sorted(table["percent"].unique()), ("dense", "masked", own)
    full = int(table.loc[table["model"] == "masked", "percent"].mode().iloc[0])
    heads = ["dense, ms", *(f"{x}%" for x in percents), f"{full}%, times masked", *(f"MB, {x}" for x in models)]
    lines = ["| shape | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for (kind, dtype, length, block), rows in table.groupby(["kind", "dtype", "length", "block"]):
        ours = rows[rows["model"] == own].set_index("percent")
        megabytes = rows.groupby("model")["memory_mb"].max()
        cells = [f"{rows.loc[rows['model'] == 'dense', f'{prefix}milliseconds'].median():.3f}"]
        cells += [f"{ours[f'{prefix}times_dense'][x]:.2f}" if x in ours.index else "" for x in percents]
        against = ours[f"{prefix}times_masked"].get(full)
        cells.append("" if against is None or pd.isna(against) else f"{against:.2f}")
        cells += [f"{megabytes[x]:.0f}" if x in megabytes else "" for x in models]
        lines.append(f"| {dtype}, L {length}, block {block}, {kind} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", measured_with(table)]) + "\n"


def kernel_table(table: pd.DataFrame) -> str:
    """How many times faster than dense attention our kernel is, a row for each shape timed in both dtypes."""
    table = table[~table["causal"] & table["model"].isin(["ours", "ours bf16"])]
    kinds = list(dict.fromkeys(table["kind"]))
    heads = [f"{kind}{dtype}" for kind in kinds for dtype in ("", ", bfloat16")]
    lines = ["| length | block | blocks skipped | " + " | ".join(heads) + " |", "|" + "---:|" * (3 + len(heads))]
    for (length, block, sparsity), rows in table.groupby(["length", "block", "sparsity"]):
        times = rows.set_index(["kind", "model"])["times_dense"]
        if "ours bf16" in set(rows["model"]):
            cells = [f"{times[kind, model]:.1f}" for kind in kinds for model in ("ours", "ours bf16")]
            lines.append(f"| {length} | {block} | {100 * sparsity:.0f}% | {' | '.join(cells)} |")
    return "\n".join([*lines, "", measured_with(table)]) + "\n"


def generation_table(table: pd.DataFrame) -> str:
    """Prefill, time of a token and memory of the cache, a row for each context, mask and cache."""
    lines = [
        "| context | mask | cache | prefill, ms | ms a token | times dense | cache, MB |",
        "|---:|---|---|" + "---:|" * 4,
    ]
    for row in table.itertuples():
        dense = "" if row.mask == "dense" else f"{row.times_dense:.2f} ({row.low_dense:.2f} to {row.high_dense:.2f})"
        lines.append(
            f"| {row.context} | {row.mask} | {row.cache} | {row.prefill_ms:.0f} | {row.ms_a_token:.2f} | {dense} "
            f"| {row.cache_mb:.2f} |"
        )
    return "\n".join([*lines, "", measured_with(table)]) + "\n"


def collecting_table(table: pd.DataFrame) -> str:
    """Seconds and the highest memory of collecting a pattern, beside those of a forward pass alone."""
    lines = ["| positions | block | | s | s of processors | peak memory, MB |", "|---:|---:|---|---:|---:|---:|"]
    for row in table.itertuples():
        lines.append(
            f"| {row.length} | {row.block_size} | {row.what} | {row.seconds:.2f} | {row.processor_seconds:.2f} "
            f"| {row.peak_mb:.0f} |"
        )
    return "\n".join([*lines, "", measured_with(table)]) + "\n"


def positions_table(table: pd.DataFrame) -> str:
    """The perplexity of each model up to the length that it was trained at, and in what follows, doubling each time."""
    longest = int(table["last"].max()) + 1
    edges = [longest >> step for step in range(3, -1, -1)]
    bounds = list(zip([0, *edges], edges, strict=False))
    titles = [f"positions {begin:,} to {end:,}" for begin, end in bounds]
    lines = [
        f"| model | seed | pruned at {longest:,} | {' | '.join(titles)} |",
        "|---|---:|---:|" + "---:|" * len(bounds),
    ]
    for (model, seed), rows in table.groupby(["model", "seed"], sort=False):
        sparsity = rows["sparsity"].iloc[0]
        cells = ["" if pd.isna(sparsity) else f"{100 * sparsity:.1f}%"]
        for begin, end in bounds:
            part = rows[(rows["first"] >= begin) & (rows["last"] < end)]
            cells.append(f"{math.exp((part['nll'] * part['tokens']).sum() / part['tokens'].sum()):.1f}")
        lines.append(f"| {model} | {seed} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def costs_table(table: pd.DataFrame) -> str:
    """The kernel's time over that of torch's attention, a row for each build: forward, forward and backward."""
    titles = {
        "whole": "blocks of {}",
        "cells": "cells in blocks of {}",
        "queries": "queries: {}",
        "keys": "cells, {} keys",
        "kept keys": "kept keys, queries: {}",
        "kept keys, shared": "kept keys of four heads, queries: {}",
        "relative whole": "relative, blocks of {}",
        "relative cells": "relative, cells in blocks of {}",
        "relative keys": "relative, cells, {} keys",
    }
    columns = list(table[["what", "at"]].drop_duplicates().itertuples(index=False, name=None))
    builds = list(table["build"].unique())
    lines = ["| | " + " | ".join(builds) + " |", "|---|" + "---:|" * len(builds)]
    for what, at in columns:
        rows = table[(table["what"] == what) & (table["at"] == at)]
        cells = [", ".join(f"{ratio:.2f}" for ratio in rows.loc[rows["build"] == build, "ratio"]) for build in builds]
        lines.append(f"| {titles[what].format(at)} | {' | '.join(cells)} |")
    made = table.iloc[0]
    told = f"Measured {made.date} with torch {made.torch} on {made.machine}, 1 thread: forward, forward+backward."
    return "\n".join([*lines, "", told]) + "\n"


def measured_with(table: pd.DataFrame) -> str:
    """When a benchmark ran, on what, and how often."""
    made = table.iloc[0]
    rounds = " to ".join(map(str, sorted({table["rounds"].min(), table["rounds"].max()})))
    threads = f", {made.threads} thread(s)" if "threads" in table else ""  # a GPU has none
    return f"Measured {made.date} with torch {made.torch} on {made.machine}{threads}, {rounds} rounds."

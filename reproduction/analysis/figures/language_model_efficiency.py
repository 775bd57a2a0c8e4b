"""Write language_model_efficiency: perplexity, tokens a second and memory of a language model against what is pruned.

    RUNS=runs/quick/language_modelling/bible-bbe
    python -m reproduction.analysis.figures language_model_efficiency --measured $RUNS/efficiency.json \\
        --metrics $RUNS/*/*/seed1/metrics.json --out results/quick/language_model_efficiency.png

The published masks of single cells stand beside masks of whole blocks. The ceiling of a row is what Amdahl's law leaves
if the blocks that are skipped cost nothing, as in ``efficiency_table``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from reproduction.analysis.figures.efficiency import ceiling, read_json_object, require_bounds
from reproduction.analysis.figures.style import DPI, FONT, require_png, save_with_caption
from reproduction.analysis.stats import on_common_seeds
from reproduction.analysis.table import collect, write_csv
from reproduction.runs.taking_turns import REMOVED, STEPS

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {"inference": "Evaluation", "training": "A step of training"}
COLUMNS = (
    *("step", "context", "masks", "percentage", "block_sparsity"),
    *("perplexity", "lowest", "highest", "seeds"),
    *("tokens_per_second", "memory_gb", "speedup", "ceiling", "of_ceiling"),
)
#: Behind the lengths of a context at which the shape alone was timed.
SHAPE_ONLY = " shape only"
_MEASURED = (
    *("shape", "tgt_len", "mem_len", "batch_size", "rounds", "device", "threads", "torch", "settings", "contexts"),
)
#: Okabe and Ito's colours, as in the other figures.
_LINES = {
    "cells": {"color": "#0072B2", "marker": "o", "label": "single cells (published masks)"},
    "blocks of 16": {"color": "#D55E00", "marker": "s", "label": "blocks of 16"},
    "blocks of 32": {"color": "#009E73", "marker": "^", "label": "blocks of 32"},
}
_CEILING = {"color": "#666666", "linestyle": "--", "linewidth": 1.2}


def read_measured(path: Path) -> dict[str, Any]:
    """Read what ``transformer-xl/measure_language_model.py`` wrote.

    Raises
    ------
    InputError
        If it is missing, or something else.
    """
    content = read_json_object(path, "the measurements of a language model", _MEASURED)
    for settings in (content["settings"], *(context["settings"] for context in content["contexts"])):
        require_bounds(path, settings)
    return content


def masks_of(setting: dict[str, Any]) -> str:
    """What a setting prunes: "none", "cells" or "blocks of N"."""
    if setting["block_size"] is None:
        return "none"
    return "cells" if setting["block_size"] == 1 else f"blocks of {setting['block_size']}"


def rows_of(settings: Sequence[dict[str, Any]], tokens: int, context: str) -> list[dict[str, Any]]:
    """Rows of settings timed in interleaved rounds, without quality."""
    named, rows = {setting["name"]: setting for setting in settings}, []
    for step in STEPS:
        dense, removed = (named[name][step]["seconds"] for name in ("dense", REMOVED))
        for setting in settings:
            seconds, memory = setting[step]["seconds"], setting[step].get("peak_memory_bytes")
            row = {"step": step, "context": context, "masks": masks_of(setting), "percentage": 100 * setting["tau"]}
            row |= {"block_sparsity": setting["block_sparsity"], "tokens_per_second": tokens / seconds}
            row |= {"memory_gb": None if memory is None else memory / 1e9, "speedup": dense / seconds}
            if setting["name"] == REMOVED:
                rows.append(row | {"masks": "no attention"})
                continue
            limit = ceiling(dense, removed, setting["block_sparsity"])
            rows.append(row | {"ceiling": limit, "of_ceiling": row["speedup"] / limit})
    return rows


def quality_of(quality: pd.DataFrame, masks: str, percentage: float) -> dict[str, Any]:
    """Mean, lowest and highest test perplexity over seeds; nothing if no model was trained so."""
    variants = {"none": ["dense"], "cells": ["data"]}.get(masks, [f"block{masks.rpartition(' ')[2]}"])
    runs = quality[
        quality["variant"].isin(variants)
        & ((100 * quality["tau"] - percentage).abs() < 1e-6)
        & (quality["metric"] == "perplexity")
        & (quality["split"] == "test")
    ]
    if runs.empty or masks == "no attention":
        return {}
    values = runs["value"]
    return {
        "perplexity": values.mean(),
        "lowest": values.min(),
        "highest": values.max(),
        "seeds": runs["seed"].nunique(),
    }


def tabulate(measured: dict[str, Any], quality: pd.DataFrame) -> pd.DataFrame:
    """The whole table, columns :data:`COLUMNS`: the model's own lengths with quality, then other contexts.

    Parameters
    ----------
    measured : dict
        See :func:`read_measured`.
    quality : pandas.DataFrame
        Columns ``table.COLUMNS``: dense runs, runs under cells (variant data) and under blocks (variant blockN), of
        which the seeds count that all of them have.
    """
    quality = on_common_seeds(quality)
    tokens = measured["batch_size"] * measured["tgt_len"]
    rows = rows_of(measured["settings"], tokens, f"{measured['tgt_len']}/{measured['mem_len']}")
    rows = [row | quality_of(quality, row["masks"], row["percentage"]) for row in rows]
    for other in measured["contexts"]:
        length = other["context"]
        rows += rows_of(other["settings"], other["batch_size"] * length, f"{length}/{length}{SHAPE_ONLY}")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seeds": "Int64"})


def as_markdown(table: pd.DataFrame, measured: dict[str, Any]) -> str:
    """The table, with what it needs to be read."""
    shape = measured["shape"]
    threads = f"{measured['threads']} thread{'s' if measured['threads'] > 1 else ''}"
    parts = ["# What pruning saves in language modelling"]
    own = f"{measured['tgt_len']}/{measured['mem_len']}"
    for step, title in TITLES.items():
        parts += [
            f"## {title}, segments of {measured['tgt_len']} tokens after {measured['mem_len']} of memory, batch "
            f"{measured['batch_size']}",
            step_table(table[(table["step"] == step) & (table["context"] == own)]),
        ]
    if measured["contexts"]:
        parts += ["## Speed-up against the context", context_table(table)]
    parts += [
        f"Measured on {measured['device']}, {threads}, torch {measured['torch']}: {shape['n_layer']} layers, width "
        f"{shape['d_model']}, {shape['n_head']} heads of {shape['d_head']}, a vocabulary of {shape['n_token']:,}; "
        f"medians of {measured['rounds']} interleaved rounds. Dropout is left out. Memory is the peak "
        "of a whole process, libraries included (of the GPU where one is used). Perplexity is of the test split, of "
        "models trained under such masks, mean over seeds; a row without it was timed only.",
        "The ceiling is the speed-up that Amdahl's law leaves if the skipped blocks cost nothing: blocks of 16 without "
        "a kept cell for masks of single cells. A kernel that is faster than dense attention at the blocks that are "
        "kept can pass it. At other contexts the same shape is timed under random masks at tau 90%, with as many "
        "tokens in a batch.",
    ]
    return "\n\n".join(parts) + "\n"


def elsewhere(table: pd.DataFrame) -> pd.Series:
    """Which rows are of other contexts than the model's own, where its shape alone was timed."""
    return table["context"].str.endswith(SHAPE_ONLY)


def step_table(rows: pd.DataFrame) -> str:
    """The rows of a step as a Markdown table, without a line break at its end."""
    lines = [
        "| masks | tau (%) | blocks skipped (%) | perplexity | tokens/s | memory (GB) | speed-up | ceiling |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows.to_dict("records"):
        known = {name: not pd.isna(value) for name, value in row.items()}
        cells = [
            "dense" if row["masks"] == "none" else row["masks"],
            f"{row['percentage']:g}" if row["masks"] not in ("none", "no attention") else "",
            f"{100 * row['block_sparsity']:.1f}" if row["masks"] not in ("none", "no attention") else "",
            f"{row['perplexity']:.2f}" if known["perplexity"] else "",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['memory_gb']:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['ceiling']:.2f}" if known["ceiling"] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def context_table(table: pd.DataFrame) -> str:
    """Speed-ups at other contexts: a row a context, a column for each step and kind of masks."""
    rows = table[elsewhere(table) & (table["masks"] != "none")]
    kinds = list(dict.fromkeys(rows["masks"]))
    columns = [(step, kind) for step in STEPS for kind in kinds]
    head = " | ".join(f"{TITLES[step].lower()}, {kind}" for step, kind in columns)
    lines = [f"| segment/memory | {head} |", "|---|" + "---:|" * len(columns)]
    for context, group in rows.groupby("context", sort=False):
        found = group.set_index(["step", "masks"])["speedup"]
        lines.append(f"| {context.split()[0]} | {' | '.join(f'{found[column]:.2f}' for column in columns)} |")
    return "\n".join(lines)


def draw(table: pd.DataFrame) -> Figure:
    """Speed-up against what is pruned, and against the context: a row of panels each, a column a step."""
    import matplotlib
    from matplotlib.figure import Figure

    other = elsewhere(table)
    parts = [(table[~other], _draw_shares)] + ([(table[other], _draw_contexts)] if other.any() else [])
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(9.0, 3.7 * len(parts)), dpi=DPI, layout="constrained")
        grid = figure.subplots(len(parts), len(STEPS), squeeze=False, sharey="row")
        for line, (rows, draw_rows) in zip(grid, parts, strict=True):
            for axes, step in zip(line, STEPS, strict=True):
                draw_rows(axes, rows[rows["step"] == step])
                axes.axhline(1.0, color="#000000", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
                axes.set_title(TITLES[step])
            line[0].set_ylabel("Speed-up over dense")
            line[0].legend(loc="center left", framealpha=0.9, edgecolor="none")
    return figure


def _draw_shares(axes: Axes, rows: pd.DataFrame) -> None:
    removed = rows.loc[rows["masks"] == "no attention", "speedup"].iloc[0]
    axes.axhline(removed, label="no attention at all", **_CEILING)
    for kind, style in _LINES.items():
        ours = rows[rows["masks"] == kind].sort_values("percentage")
        if not ours.empty:
            axes.plot(ours["percentage"], ours["speedup"], linewidth=1.6, markersize=5.5, **style)
    axes.set_xlim(-4, 100)
    axes.set_xlabel("Attention pruned, \u03c4 (%)")


def _draw_contexts(axes: Axes, rows: pd.DataFrame) -> None:
    length = rows["context"].str.split("/").str[0].astype(int)
    removed = rows["masks"] == "no attention"
    axes.plot(length[removed], rows.loc[removed, "speedup"], label="no attention at all", **_CEILING)
    for kind, style in _LINES.items():
        chosen = rows["masks"] == kind
        if chosen.any():
            label = f"{kind}, \u03c4 {rows.loc[chosen, 'percentage'].iloc[0]:g}%"
            axes.plot(
                length[chosen], rows.loc[chosen, "speedup"], linewidth=1.6, markersize=5.5, **style | {"label": label}
            )
    ticks = sorted(set(length))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("Segment and memory (tokens each)")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.analysis.figures language_model_efficiency",
        description="Write the table of perplexity, tokens a second and memory of a language model under masks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--measured", type=Path, required=True, help="efficiency.json of transformer-xl/measure_language_model.py")
    add("--metrics", type=Path, nargs="+", required=True, help="metrics.json of dense and sparse runs")
    add("--out", type=Path, required=True, help="picture to write (.png); .md and .csv go beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    require_png(args.out)
    measured = read_measured(args.measured)
    table = tabulate(measured, collect(args.metrics))
    save_with_caption(draw(table), as_markdown(table, measured), args.out)
    write_csv(table, args.out.with_suffix(".csv"))
    print(f"{args.out}: {len(table)} rows, {measured['device']}")
    return 0

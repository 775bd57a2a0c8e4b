"""Write efficiency_table: quality, seconds and memory against the share of attention pruned in whole blocks.

    python -m reproduction.analysis.figures efficiency_table --measured runs/quick/squad/bible-qa/efficiency.json \\
        --metrics runs/quick/squad/bible-qa/*/*/seed1/metrics.json --out results/quick/efficiency_table.png

The rows of the published table stand beside ours. The ceiling of a row is what Amdahl's law leaves to whoever skips the
same blocks at no cost: only attention gets faster, and the rest of the model, measured without attention, does not. The
blocks that are kept count as dense attention takes for them, so a kernel that is faster on those can pass the ceiling.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.figures.style import DPI, FONT, STYLES, require_png, save_with_caption
from reproduction.analysis.paper import REFERENCE, read_reference
from reproduction.analysis.stats import on_common_seeds
from reproduction.analysis.table import collect, write_csv
from reproduction.runs.json_file import read_json
from reproduction.runs.taking_turns import REMOVED

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS = {"inference": "Inference", "training": "A step of training"}
QUALITY = ("exact_match", "f1")
COLUMNS = (
    "source",
    "step",
    "percentage",
    "block_sparsity",
    *QUALITY,
    "seeds",
    "seconds",
    "memory_gb",
    "speedup",
    "ceiling",
    "of_ceiling",
)
_MEASURED = (
    *("device", "threads", "torch", "model_name_or_path", "max_seq_length", "batch_size", "block_size", "rounds"),
    "settings",
)


def read_measured(path: Path) -> dict[str, Any]:
    """Read what ``measure_efficiency.py`` wrote.

    Raises
    ------
    InputError
        If it is missing, or something else.
    """
    content = read_json_object(path, "the measurements of efficiency", _MEASURED)
    require_bounds(path, content["settings"])
    return content


def require_bounds(path: Path, settings: Sequence[dict[str, Any]]) -> None:
    """Refuse measurements without the dense model, or without what attention is part of.

    Raises
    ------
    InputError
    """
    names = [setting["name"] for setting in settings]
    for name in ("dense", REMOVED):
        if name not in names:
            raise InputError(f"{path}: expected a setting {name}, found {', '.join(names)}")


def read_json_object(path: Path, what: str, fields: Sequence[str]) -> dict[str, Any]:
    """Read a file of measurements that has these fields at least.

    Raises
    ------
    InputError
        If it is missing, or something else.
    """
    content = read_json(path)
    missing = [name for name in fields if not isinstance(content, dict) or name not in content]
    if missing:
        raise InputError(f"{path}: expected {what}, found no {missing[0]}")
    return content


def ceiling(dense: float, removed: float, sparsity: float) -> float:
    """Amdahl's law: the speed-up if attention took this share less time, and nothing else changed."""
    return dense / (removed + (1 - sparsity) * (dense - removed))


def measured_rows(measured: dict[str, Any], quality: pd.DataFrame) -> list[dict[str, Any]]:
    """Our rows: dense and every mask, in inference and in training.

    Parameters
    ----------
    quality : pandas.DataFrame
        Columns ``table.COLUMNS``: dense and block-pruned runs, of which the seeds count that all of them have. A mask
        that none was trained with has no quality.
    """
    quality = on_common_seeds(quality)
    settings = {setting["name"]: setting for setting in measured["settings"]}
    rows = []
    for step in STEPS:
        dense, removed = (settings[name][step]["seconds"] for name in ("dense", REMOVED))
        for setting in sorted(settings.values(), key=lambda setting: setting["tau"]):
            if setting["name"] == REMOVED:
                continue
            limit = ceiling(dense, removed, setting["block_sparsity"])
            speedup = dense / setting[step]["seconds"]
            rows.append(
                {"source": "measured", "step": step, "percentage": 100 * setting["tau"]}
                | {"block_sparsity": setting["block_sparsity"], **quality_at(quality, setting["tau"])}
                | {"seconds": setting[step]["seconds"], "memory_gb": setting[step]["peak_memory_bytes"] / 1e9}
                | {"speedup": speedup, "ceiling": limit, "of_ceiling": speedup / limit}
            )
    return rows


def quality_at(quality: pd.DataFrame, tau: float) -> dict[str, Any]:
    """Mean exact match and F1 of the runs with this tau, over seeds; nothing if there is none."""
    variant = "block" if tau else "dense"
    runs = quality[(quality["variant"] == variant) & ((quality["tau"] - tau).abs() < 1e-9)]
    if runs.empty:
        return {}
    means = {metric: runs.loc[runs["metric"] == metric, "value"].mean() for metric in QUALITY}
    return means | {"seeds": int(runs["seed"].nunique())}


def published_rows(reference: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the published table, a speed-up worked out from its seconds."""
    table = reference[reference["panel"] == "squad"].pivot(index="percent_pruned", columns="metric", values="value")
    if table.empty:
        raise InputError("published numbers: expected rows of squad, found none")
    return [
        {"source": "published", "step": "inference", "percentage": float(percent)}
        | {name: float(row[name]) for name in (*QUALITY, "seconds")}
        | {"memory_gb": float(row["gpu_memory_gb"]), "speedup": table["seconds"].iloc[0] / row["seconds"]}
        for percent, row in table.iterrows()
    ]


def tabulate(measured: dict[str, Any], quality: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """The whole table, columns :data:`COLUMNS`, what is not known empty."""
    rows = [*published_rows(reference), *measured_rows(measured, quality)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seeds": "Int64"})


def as_markdown(table: pd.DataFrame, measured: dict[str, Any]) -> str:
    """The table as published, with what it needs to be read: device, shape, ceiling."""
    shape = f"{measured['batch_size']} windows of {measured['max_seq_length']} tokens"
    parts = ["# Computational efficiency"]
    for step, title in STEPS.items():
        parts += [f"## {title}, {shape}", step_table(table, step)]
    threads = f"{measured['threads']} thread{'s' if measured['threads'] > 1 else ''}"
    parts += [
        f"Measured on {measured['device']}, {threads}, torch {measured['torch']}, with a model of the shape of "
        f"{measured['model_name_or_path']}: medians of {measured['rounds']} interleaved rounds. "
        "Memory is the peak of a whole process, libraries included (of the GPU where one is used). Attention has no "
        "dropout here. Times are of one batch, the published ones of an evaluation on a GPU that is not named.",
        "The ceiling is the speed-up that Amdahl's law leaves if the skipped blocks cost nothing: only attention gets "
        "faster, and what the model takes without it was measured in the same rounds. A kernel that is faster than "
        "dense attention at the blocks that are kept can pass it. Blocks are "
        f"{measured['block_size']} x {measured['block_size']}; where every query keeps its best one, no more can be "
        "skipped than all others. Quality is that of models trained under the mask; a row without it was timed only.",
    ]
    return "\n\n".join(parts) + "\n"


def step_table(table: pd.DataFrame, step: str) -> str:
    """The rows of one of :data:`STEPS` as a Markdown table, without a line break at its end."""
    lines = [
        "| Percentage | blocks skipped (%) | Exact/F1 | time (s) | memory (GB) | speed-up | ceiling | reached (%) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in table[table["step"] == step].to_dict("records"):
        known = {name: not pd.isna(value) for name, value in row.items()}
        cells = [
            f"{row['percentage']:g}{', published' if row['source'] == 'published' else ''}",
            f"{100 * row['block_sparsity']:.1f}" if known["block_sparsity"] else "",
            f"{row['exact_match']:.2f}/{row['f1']:.2f}" if known["f1"] else "",
            f"{row['seconds']:.2f}" if row["seconds"] >= 10 else f"{row['seconds']:.3f}",
            f"{row['memory_gb']:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['ceiling']:.2f}" if known["ceiling"] else "",
            f"{100 * row['of_ceiling']:.1f}" if known["of_ceiling"] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(table: pd.DataFrame) -> Figure:
    """Speed-up against the share of attention pruned, and its ceiling: a panel a step."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(9.0, 3.8), dpi=DPI, layout="constrained")
        for axes, (step, title) in zip(figure.subplots(1, len(STEPS), sharey=True), STEPS.items(), strict=True):
            _draw_step(axes, table[table["step"] == step])
            axes.set_title(title)
    return figure


def _draw_step(axes: Axes, rows: pd.DataFrame) -> None:
    ours = rows[rows["source"] == "measured"]
    axes.plot(ours["percentage"], ours["ceiling"], color="#666666", linestyle="--", label="ceiling (Amdahl)")
    axes.plot(ours["percentage"], ours["speedup"], **(STYLES["data"] | {"label": "block-sparse attention"}))
    other = rows[rows["source"] == "published"]
    if not other.empty:
        axes.plot(other["percentage"], other["speedup"], **(STYLES["published"] | {"label": "published (GPU)"}))
    axes.set_xlabel("attention pruned (%)")
    axes.set_ylabel("speed-up over dense")
    axes.legend(frameon=False)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.analysis.figures efficiency_table",
        description="Write the table of quality, seconds and memory, ours beside the published one.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--measured", type=Path, required=True, help="efficiency.json of measure_efficiency.py")
    parser.add_argument("--metrics", type=Path, nargs="+", required=True, help="metrics.json of dense and block runs")
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="published numbers")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.png); .md and .csv go beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    require_png(args.out)
    measured = read_measured(args.measured)
    table = tabulate(measured, collect(args.metrics), read_reference(args.reference))
    save_with_caption(draw(table), as_markdown(table, measured), args.out)
    write_csv(table, args.out.with_suffix(".csv"))
    print(f"{args.out}: {len(table)} rows, {measured['device']}")
    return 0

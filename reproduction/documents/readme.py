"""The two tables of README.md: what pruning costs, and what it saves, each beside the published numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from reproduction.analysis.curves import VARIANTS, Panel, select
from reproduction.analysis.figures.captions import NAMES
from reproduction.analysis.paper import published

#: The last point of the published curves, and the share of the published table of SQuAD.
TAU, QUESTIONS_TAU = 0.8, 0.9
_ARROWS = {"lower": "↓", "higher": "↑"}


def differences(rows: pd.DataFrame, variant: str, tau: float) -> pd.Series:
    """The value of a variant minus that of the dense model, for every seed that has both."""
    dense = rows[rows["variant"] == "dense"].set_index("seed")["value"]
    part = rows[(rows["variant"] == variant) & (rows["tau"] == tau)].set_index("seed")["value"]
    return (part - dense).dropna()


def overview_row(rows: pd.DataFrame, panel: Panel, tau: float, reference: pd.DataFrame) -> str:
    """One row of :func:`overview_table`: a dataset, from the rows that `curves.select` returns."""
    dense = rows.loc[rows["variant"] == "dense", "value"]
    score = f"{rows['dataset'].iloc[0]}, {panel.label} {_ARROWS[panel.better]}"
    cells = [score, f"{100 * tau:.0f}%", f"{dense.mean():.1f} ({len(dense)})"]
    for variant in VARIANTS:
        found = differences(rows, variant, tau)
        cells.append(f"{found.mean():+.1f} ({len(found)})" if len(found) else "")
    there = published(reference, panel).set_index("percent")["value"]
    cells.append(f"{there[100 * tau] - there[0]:+.1f} from {there[0]:.1f}")
    return f"| {' | '.join(cells)} |"


def overview_table(
    table: pd.DataFrame, masks: pd.DataFrame, panels: Sequence[Panel], questions: str, reference: pd.DataFrame
) -> str:
    """Differences from the dense model of the same seed, with the number of seeds, as Markdown.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of ``metrics.csv``.
    masks : pandas.DataFrame
        Rows of ``mask_comparison.csv``, which has the masks by distance.
    panels : sequence of Panel
    questions : str
        The row of the models that answer questions, from :func:`overview_row`.
    reference : pandas.DataFrame
        The published numbers.
    """
    heads = ["", "tau", "dense", *(NAMES[variant] for variant in VARIANTS), "published"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for panel in panels:
        rows = select(table, panel)
        if "distance" not in set(rows["variant"]) and panel.experiment in set(masks["experiment"]):
            compared = select(masks, panel)
            rows = pd.concat([rows, compared[compared["variant"] == "distance"]])
        lines.append(overview_row(rows, panel, TAU, reference))
    return "\n".join([*lines, questions]) + "\n"


def speed_table(table: pd.DataFrame) -> str:
    """Quality, seconds and memory at 0 and 90% of the blocks, published and measured, as Markdown.

    Parameters
    ----------
    table : pandas.DataFrame
        Rows of ``efficiency_table.csv``.
    """
    lines = ["| | exact match/F1, 0% | 90% | seconds, 0% | 90% | speed-up | GB, 0% | 90% |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    names = {
        ("published", "inference"): "published, GPU, evaluation",
        ("measured", "inference"): "here, one CPU thread, a batch",
        ("measured", "training"): "here, one CPU thread, a training step",
    }
    for (source, step), name in names.items():
        rows = table[(table["source"] == source) & (table["step"] == step)].set_index("percentage")
        dense, pruned = rows.loc[0], rows.loc[90]
        scores = [f"{row['exact_match']:.1f}/{row['f1']:.1f}" for row in (dense, pruned)]
        seconds = [f"{row['seconds']:.3g}" for row in (dense, pruned)]
        memory = [f"{row['memory_gb']:.2f}" for row in (dense, pruned)]
        cells = [name, *scores, *seconds, f"{pruned['speedup']:.2f}", *memory]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

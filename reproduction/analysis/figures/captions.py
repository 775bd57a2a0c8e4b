"""What the figure shows in words and as a table: its caption, and the numbers that it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from reproduction.analysis.curves import (
    BASELINE_NAMES,
    VARIANTS,
    Panel,
    baselines,
    comparable,
    contrast,
    curve,
    numbers,
    select,
)

NAMES = {
    "dense": "dense",
    "data": "data-informed",
    "random": "random",
    "window": "fixed window",
    "distance": "by distance",
}
#: What the sparsities are, wherever they first appear.
EFFECTIVE_SPARSITY = "the pruned share of the allowed cells (visible to the query, and observed in the training data)"
EVALUATED_SPARSITY = (
    "the pruned share of the allowed cells of the evaluated text, each weighted by how often the text uses it"
)
#: What a spread is, wherever one is shown.
SPREAD = (
    "Ranges are the lowest and the highest seed, not standard errors. Differences are paired: only seeds that both "
    "models have count. Beside a mean difference stand those of all seeds, or from three seeds on its 95% t interval "
    "(CI)."
)


def caption(table: pd.DataFrame, panels: Sequence[Panel]) -> str:
    """Return the caption of the figure: plain paragraphs, readable as Markdown and as reStructuredText."""
    configs = ", ".join(sorted(table["config"].unique()))
    parts = [
        f"Attention Pruning, configuration {configs}. Dots are single seeds, lines their means, bands the range of the "
        f"seeds. The upper axis is the effective sparsity: {EFFECTIVE_SPARSITY}. The evaluated sparsity is "
        f"{EVALUATED_SPARSITY}. {SPREAD}"
    ]
    for panel in panels:
        text = panel_caption(select(table, panel), panel)
        if panel.averaged:
            text += f" The tasks are {tasks_of(table, panel)}."
        parts.append(f"{text} {_companion_caption(table, panel)}")
    return "\n\n".join(parts) + "\n"


def tasks_of(table: pd.DataFrame, panel: Panel) -> str:
    """The datasets that have a panel's metric."""
    rows = table[(table["experiment"] == panel.experiment) & (table["metric"] == panel.metric)]
    return ", ".join(sorted(rows["dataset"].unique())) or "none"


def _companion_caption(table: pd.DataFrame, panel: Panel) -> str:
    """What the panel of changes, below or beside a panel, shows."""
    own, _ = comparable(table, panel)
    of_tasks = f", mean of the tasks that have one ({tasks_of(table, own)})" if own.averaged else ""
    return (
        f"Beside it: the change of {name_of(own)}{of_tasks} from the dense model of the same seed, in {own.unit}, and "
        "the published curve, digitised from the published figure, from its own dense model."
    )


def name_of(panel: Panel) -> str:
    """The metric within a sentence; an acronym stays as it is."""
    first, _, rest = panel.label.partition(" ")
    return panel.label if first.isupper() else f"{first.lower()} {rest}".strip()


def panel_caption(rows: pd.DataFrame, panel: Panel) -> str:
    """Return one paragraph about a panel; ``rows`` is what ``curves.select`` returns."""
    dense = next(curve(rows, "dense").itertuples())
    seeds = _seeds(rows)
    trained = [_seeds(rows[rows["variant"] == variant]) for variant in VARIANTS if variant != "data"]
    if fewer := {found for found in trained if found} - {seeds}:
        seeds += f" (controls: {' or '.join(sorted(fewer))})"
    rules = ", ".join(sorted(rows["rule"].dropna().unique())) or "none"
    floors = baselines(rows)
    text = [
        f"{panel.title}: {name_of(panel)} on the {panel.split} split of {rows['dataset'].iloc[0]}, {panel.better} "
        f"is better; seeds {seeds}; rule: {rules}.",
        f"Dense {spread(dense)}{''.join(f'; {BASELINE_NAMES[name]} {value:.1f}' for name, value in floors.items())}.",
    ]
    data = curve(rows, "data")
    if not data.empty:
        highest = next(data.tail(1).itertuples())
        minus_dense = contrast(rows, "data", "dense", highest.tau)
        text.append(
            f"Data-informed at tau {highest.percent:.0f}%: {spread(highest)}, evaluated sparsity "
            f"{highest.evaluated:.0f}%, minus dense {minus_dense.told()}."
        )
    text += [
        f"Data-informed minus {NAMES[control]} at tau {100 * tau:.0f}%: {contrast(rows, 'data', control, tau).told()}."
        for control in VARIANTS
        if control != "data" and (tau := _highest_common_tau(rows, control)) is not None
    ]
    return " ".join(text)


def _highest_common_tau(rows: pd.DataFrame, control: str) -> float | None:
    """The highest tau of both a control and data-informed masks."""
    taus = [set(rows.loc[rows["variant"] == variant, "tau"]) for variant in ("data", control)]
    return max(taus[0] & taus[1], default=None)


def change_text(value: float, panel: Panel) -> str:
    """A change from dense with its unit."""
    return f"{value:+.1f}%" if panel.unit == "percent" else f"{value:+.1f} points"


def _seeds(rows: pd.DataFrame) -> str:
    return ", ".join(str(seed) for seed in sorted(rows["seed"].dropna().unique()))


def spread(point: Any, places: int = 1) -> str:
    """The mean at a point of a curve (a row from ``itertuples``), and the lowest and highest seed if there are two."""
    mean, low, high = (f"{value:.{places}f}" for value in (point.mean, point.low, point.high))
    return f"{mean} ({low} to {high})" if point.seeds > 1 else mean


def table_text(table: pd.DataFrame, panels: Sequence[Panel]) -> str:
    """Return the numbers that the figure draws, aligned for a terminal."""
    blocks = []
    for panel in panels:
        rows = select(table, panel)
        lines = [
            f"{panel.title}: {name_of(panel)}, {panel.split} split of {rows['dataset'].iloc[0]}",
            f"{'':18}{'pruned':>8}{'effective':>11}{'evaluated':>11}{'mean':>9}{'lowest':>9}{'highest':>9}{'seeds':>7}"
            f"{f'change ({panel.unit})':>18}",
        ]
        for line in numbers(table, panel).itertuples():
            lines.append(
                f"{NAMES[line.variant]:18}{line.percent:7.0f}%{line.effective:10.1f}%{line.evaluated:10.1f}%"
                f"{line.mean:9.2f}{line.low:9.2f}{line.high:9.2f}{line.seeds:7d}{line.change:+18.1f}"
            )
        floors = baselines(rows).items()
        lines += [f"{BASELINE_NAMES[name]:18}{'':8}{'':11}{'':11}{value:9.2f}" for name, value in floors]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def table_markdown(table: pd.DataFrame, panels: Sequence[Panel]) -> str:
    """Return the numbers that the figure draws as Markdown tables, one a panel."""
    blocks = []
    for panel in panels:
        rows = select(table, panel)
        lines = [
            f"| {panel.title} | tau | effective | evaluated | {name_of(panel)}, {panel.split} | minus dense "
            "| data-informed minus it | seeds |",
            "|---|---:|---:|---:|---|---:|---|---:|",
        ]
        for line in numbers(table, panel).itertuples():
            shares = f"{line.percent:.0f}% | {line.effective:.1f}% | {line.evaluated:.1f}%"
            minus = None
            if line.variant not in ("dense", "data"):
                minus = contrast(rows, "data", line.variant, line.tau)
            change = "" if line.variant == "dense" else change_text(line.change, panel)
            value = f"{spread(line, 2)} | {change} | {minus.told() if minus else ''} | {line.seeds}"
            lines.append(f"| {NAMES[line.variant]} | {shares} | {value} |")
        floors = baselines(rows).items()
        lines += [f"| {BASELINE_NAMES[name]} | | | | {value:.2f} | | | |" for name, value in floors]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)

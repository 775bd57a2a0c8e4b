"""What the figure shows in words and as a table: its caption, and the numbers that it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from reproduction.curves import VARIANTS, Panel, baseline, curve, numbers, select

NAMES = {
    "dense": "dense",
    "data": "data-informed",
    "random": "random",
    "window": "fixed window",
    "distance": "by distance",
}


def caption(table: pd.DataFrame, panels: Sequence[Panel]) -> str:
    """Return the caption of the figure: plain paragraphs, readable as Markdown and as reStructuredText."""
    configs = ", ".join(sorted(table["config"].unique()))
    parts = [
        f"Attention Pruning, configuration {configs}. Dots are single seeds, lines their mean, bands reach from the "
        "lowest to the highest seed. The upper axis says how much of the attention that the structure allows was "
        "really pruned (mean over seeds)."
    ]
    for panel in panels:
        text = panel_caption(select(table, panel), panel)
        if panel.averaged:
            tasks = sorted(table.loc[table["experiment"] == panel.experiment, "dataset"].unique())
            text += f" The tasks are {', '.join(tasks)}."
        parts.append(text)
    parts.append(
        "Beside each panel: the change in percent from the dense model of the same seed, and the published curve, "
        "digitised from the published figure, relative to its own dense model."
    )
    return "\n\n".join(parts) + "\n"


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
    text = [
        f"{panel.title}: {name_of(panel)} on the {panel.split} split of {rows['dataset'].iloc[0]}, {panel.better} "
        f"is better; seeds {seeds}; rule: {rules}.",
        f"The dense model reaches {spread(dense)}",
    ]
    floor = baseline(rows)
    if floor is None:
        text[-1] += "."
    else:
        better = dense.mean < floor if panel.better == "lower" else dense.mean > floor
        text[-1] += f", {'better' if better else 'NOT better'} than the {panel.baseline} ({floor:.1f})."
    data = curve(rows, "data")
    if not data.empty:
        highest = data["percent"].max()
        found = []
        for variant in VARIANTS:
            line = curve(rows, variant)
            for point in line[line["percent"] == highest].itertuples():
                found.append(f"{NAMES[variant]} {spread(point)}, {point.evaluated:.0f}% gone")
        text.append(f"At {highest:.0f}%, with the share of the attention that this split uses: {'; '.join(found)}.")
    return " ".join(text)


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
            f"{'change':>9}",
        ]
        for line in numbers(table, panel).itertuples():
            lines.append(
                f"{NAMES[line.variant]:18}{line.percent:7.0f}%{line.effective:10.1f}%{line.evaluated:10.1f}%"
                f"{line.mean:9.2f}{line.low:9.2f}{line.high:9.2f}{line.seeds:7d}{line.change:+8.1f}%"
            )
        if (floor := baseline(rows)) is not None:
            lines.append(f"{panel.baseline:18}{'':8}{'':11}{'':11}{floor:9.2f}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def table_markdown(table: pd.DataFrame, panels: Sequence[Panel]) -> str:
    """Return the numbers that the figure draws as Markdown tables, one a panel."""
    blocks = []
    for panel in panels:
        rows = select(table, panel)
        lines = [
            f"| {panel.title} | tau | effective | evaluated | {name_of(panel)}, {panel.split} | change | seeds |",
            "|---|---:|---:|---:|---|---:|---:|",
        ]
        for line in numbers(table, panel).itertuples():
            shares = f"{line.percent:.0f}% | {line.effective:.1f}% | {line.evaluated:.1f}%"
            value = f"{spread(line, 2)} | {line.change:+.1f}% | {line.seeds}"
            lines.append(f"| {NAMES[line.variant]} | {shares} | {value} |")
        if (floor := baseline(rows)) is not None:
            lines.append(f"| {panel.baseline} | | | | {floor:.2f} | | |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)

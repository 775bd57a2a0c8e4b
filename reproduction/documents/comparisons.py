"""Comparisons of masks on trained models as Markdown tables: from the committed rows to what documents show.

Every seed is shown, in the order of the csv, since two or three are too few for a standard deviation.
"""

from __future__ import annotations

import pandas as pd


def _each(values: pd.Series, form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def _rises(rows: pd.DataFrame) -> list[str]:
    """By how much the loss rises over the dense model's, as the masks come and after as much fine-tuning as it had."""
    return [_each(rows["loss"] - rows["dense"], "+.3f"), _each(rows["loss_tuned"] - rows["dense_tuned"], "+.3f")]


def budgets_table(table: pd.DataFrame) -> str:
    """Masks within a budget beside others that prune as much: a row for each model, budget and mask."""
    lines = ["| model | budget | pruned | mask | no training | fine-tuned |", "|---|---:|---|---|---|---|"]
    for (model, budget, mask), rows in table.groupby(["model", "budget", "mask"], sort=False):
        cells = [
            f"{model} ({rows['unit'].iloc[0]})",
            f"{budget:g}",
            _each(rows["sparsity"], ".1%"),
            mask,
            *_rises(rows),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def observed_table(table: pd.DataFrame) -> str:
    """Masks from little data and from other data: a row for each model, tau and what was observed."""
    lines = [
        "| model | tau | observed | sequences | overlap | by chance | no training | fine-tuned |",
        "|---|---:|---|---:|---|---:|---|---|",
    ]
    for (model, tau, data), rows in table.groupby(["model", "tau", "data"], sort=False):
        seen = f"{data} batch{'es' * (data != 'first 1')}" if data.startswith("first 1") else data
        cells = [f"{model} ({rows['unit'].iloc[0]})", f"{tau:g}", seen, f"{rows['sequences'].iloc[0]:,}"]
        cells += [_each(rows["overlap"], ".2f"), f"{rows['by_chance'].mean():.2f}", *_rises(rows)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def memories_table(table: pd.DataFrame) -> str:
    """Perplexity with memories of several lengths: a row for each model and tau."""
    memories = sorted(table["memory"].unique())
    lines = ["| model | " + " | ".join(f"{memory} slots" for memory in memories) + " |"]
    lines.append("|---|" + "---|" * len(memories))
    for (model, tau), rows in table.groupby(["model", "tau"], sort=False):
        name, cells = model if not tau else f"{model}, tau {tau:g}", []
        for memory in memories:
            found = rows[rows["memory"] == memory]
            cells.append(_each(found["perplexity"], ".1f"))
            if tau:
                cells[-1] += f" ({found['sparsity'].mean():.1%} pruned)"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def keys_table(table: pd.DataFrame) -> str:
    """How often a pass key is said: a row for each mask and share, a column for each length and depth, over seeds."""
    places = list(table[["length", "depth"]].drop_duplicates().sort_values(["length", "depth"]).itertuples(index=False))
    heads = [f"{length}, {depth:.0%}" for length, depth in places]
    lines = ["| model | pruned | " + " | ".join(heads) + " |", "|---|---:|" + "---:|" * len(heads)]
    for (model, _), rows in table.groupby(["model", "tau"], sort=False):
        found = rows.groupby(["length", "depth"])["found"].mean()
        cells = [model, f"{rows['sparsity'].mean():.0%}", *(f"{found[length, depth]:.2f}" for length, depth in places)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

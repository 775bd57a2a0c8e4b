"""Draw pairs_comparison: pruned translation models where there are fewer sentence pairs to learn from, and by length.

    cd results/german
    python -m reproduction.analysis.figures pairs_comparison --metrics pairs_comparison.csv --out FILE.png

Each model is shown as its difference from the dense model of the same seed and the same pairs: on the left by tau, a
line a share of the pairs; on the right by the length of the source, a line a tau, trained on all pairs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.curves import BASELINE_NAMES, PANELS, baselines, curve, select
from reproduction.analysis.figures.captions import SPREAD, name_of, spread
from reproduction.analysis.figures.style import DPI, FONT, OfOneTable
from reproduction.analysis.stats import Difference, named_seeds, on_common_seeds, paired

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = next(panel for panel in PANELS if panel.experiment == "translation")
#: The end of a data set's name that says which share of its pairs was there.
SHARE = re.compile(r"-(0\.\d+)$")
BY_LENGTH = re.compile(r"bleu_(?P<group>[\d+-]+)@length")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#A34B7F", "#666666")
MARKERS = ("o", "s", "^", "v", "X", "D")


def share_of(dataset: str) -> float:
    """The share of the training pairs, by the name of a data set: 1 where it says nothing.

    >>> share_of("bible-de-en-0.25"), share_of("bible-de-en")
    (0.25, 1.0)
    """
    found = SHARE.search(dataset)
    return float(found[1]) if found else 1.0


def compared(table: pd.DataFrame) -> dict[float, pd.DataFrame]:
    """By the share of the pairs, all of them first: dense and data-informed models on the seeds that those share.

    Raises
    ------
    InputError
        If no model was trained on all pairs, or as ``curves.select`` does.
    """
    shares = table["dataset"].map(share_of)
    found = {}
    for share in sorted(shares.unique(), reverse=True):
        rows = select(table[shares == share], PANEL)
        found[share] = on_common_seeds(rows[rows["variant"].isin(["dense", "data"])])
    if 1.0 not in found:
        raise InputError("expected translation models trained on all pairs in the table, found none")
    return found


def by_length(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By the length of the source, shortest first: the same of models trained on all pairs; ``sentences`` is added."""
    own = table[(table["experiment"] == PANEL.experiment) & table["variant"].isin(["dense", "data"])]
    own = own[(own["dataset"].map(share_of) == 1) & (own["split"] == PANEL.split) & (own["sites"] == PANEL.sites)]
    groups = {match["group"] for metric in own["metric"].unique() if (match := BY_LENGTH.fullmatch(metric))}
    found = {}
    for group in sorted(groups, key=lambda group: int(re.match(r"\d+", group)[0])):
        rows = on_common_seeds(own[own["metric"] == f"bleu_{group}@length"])
        sentences = own.loc[own["metric"] == f"sentences_{group}@length", "value"].iloc[0]
        found[group] = rows.assign(sentences=int(sentences))
    return found


def differences(rows: pd.DataFrame) -> dict[float, Difference]:
    """Data-informed minus dense at each tau, seed by seed."""
    dense, pruned = rows[rows["variant"] == "dense"], rows[rows["variant"] == "data"]
    return {tau: paired(same, dense) for tau, same in pruned.groupby("tau", sort=True)}


def draw(table: pd.DataFrame) -> Figure:
    """Draw both panels; the right one only if scores by length are there.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``results.COLUMNS``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shares, groups = compared(table), by_length(table)
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(9.4 if groups else 4.9, 4.3), dpi=DPI, layout="constrained")
        places = figure.subplots(1, 2 if groups else 1, squeeze=False)[0]
        lines = {f"{share:.0%} of the pairs": differences(rows) for share, rows in shares.items()}
        _draw_lines(places[0], {name: {100 * tau: d for tau, d in line.items()} for name, line in lines.items()})
        places[0].set_xlabel("Attention pruned, \u03c4 (%)")
        places[0].set_xlim(-4, 100)
        places[0].set_title(f"{shares[1.0]['dataset'].iloc[0]}, {named_seeds(shares[1.0])}")
        if groups:
            found = {group: differences(rows) for group, rows in groups.items()}
            taus = sorted({tau for line in found.values() for tau in line})
            by_tau = {
                f"\u03c4 {100 * tau:g}%": {place: line[tau] for place, line in enumerate(found.values()) if tau in line}
                for tau in taus
            }
            _draw_lines(places[1], by_tau)
            names = [f"{group}\n({rows['sentences'].iloc[0]})" for group, rows in groups.items()]
            places[1].set_xticks(range(len(names)), names)
            places[1].set_xlabel("Words of the source (sentences)")
            places[1].set_title("All pairs, by length")
    return figure


def _draw_lines(axes: Axes, lines: dict[str, dict[float, Difference]]) -> None:
    """A dot a seed, a line through the means."""
    axes.axhline(0, color="#000000", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    for (name, line), colour, marker in zip(lines.items(), COLOURS, MARKERS, strict=False):
        for place, difference in line.items():
            dots = [place] * len(difference.values)
            axes.scatter(dots, difference.values, s=13, color=colour, alpha=0.45, linewidths=0, zorder=3)
        means = [difference.mean for difference in line.values()]
        axes.plot(line.keys(), means, color=colour, marker=marker, linewidth=1.6, markersize=5.5, label=name, zorder=4)
    axes.set_ylabel(f"{PANEL.label} ({PANEL.split}) minus dense")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, edgecolor="none")


def caption(table: pd.DataFrame) -> str:
    """Return the caption of the figure: plain paragraphs, readable as Markdown and as reStructuredText."""
    shares, groups = compared(table), by_length(table)
    first = shares[1.0].iloc[0]
    floors = baselines(select(table[table["dataset"] == first["dataset"]], PANEL))
    copied = "".join(f" {BASELINE_NAMES[name].capitalize()}: {value:.1f}." for name, value in floors.items())
    parts = [
        f"Translation of {first['dataset']} with fewer sentence pairs to learn from, configuration {first['config']}: "
        f"{name_of(PANEL)} on the {PANEL.split} split minus that of the dense model of the same seed and pairs; dots "
        "are seeds, lines their means. Test sentences, subwords and the number of updates are the same. Each model is "
        f"pruned by the pattern of the dense model of as many pairs.{copied} {SPREAD}"
    ]
    for share, rows in shares.items():
        dense = next(curve(rows, "dense").itertuples())
        told = "; ".join(f"tau {tau:g} {difference.told()}" for tau, difference in differences(rows).items())
        parts.append(f"{share:.0%} of the pairs, {named_seeds(rows)}: dense {spread(dense)}. Minus dense: {told}.")
    if groups:
        parts.append(
            "On the right, models trained on all pairs, by the words of the source: each group of test sentences is "
            "scored as a corpus of its own."
        )
    return "\n\n".join(parts) + "\n"


def markdown(table: pd.DataFrame) -> str:
    """Return the numbers that the figure draws as Markdown tables: by share of the pairs, and by length."""
    shares, groups = compared(table), by_length(table)
    lines = [
        f"| {shares[1.0]['dataset'].iloc[0]}: pairs | tau | effective | evaluated | {name_of(PANEL)}, {PANEL.split} "
        "| minus dense | seeds |",
        "|---|---:|---:|---:|---|---|---:|",
    ]
    for share, rows in shares.items():
        told = differences(rows)
        for variant in ("dense", "data"):
            for point in curve(rows, variant).itertuples():
                minus = told[point.tau].told() if variant == "data" else ""
                cells = f"{point.percent:g}% | {point.effective:.1f}% | {point.evaluated:.1f}% | {spread(point, 2)}"
                lines.append(f"| {share:.0%} | {cells} | {minus} | {point.seeds} |")
    floors = baselines(select(table[table["dataset"] == shares[1.0]["dataset"].iloc[0]], PANEL))
    lines += [f"| {BASELINE_NAMES[name]} | | | | {value:.2f} | | |" for name, value in floors.items()]
    if groups:
        taus = sorted({tau for rows in groups.values() for tau in differences(rows)})
        lines += ["", "| words of the source | sentences | dense | " + " | ".join(f"tau {t:.0%}" for t in taus) + " |"]
        lines.append("|---|---:|---|" + "---|" * len(taus))
        for group, rows in groups.items():
            told = differences(rows)
            cells = [group, f"{rows['sentences'].iloc[0]}", spread(next(curve(rows, "dense").itertuples()), 2)]
            cells += [told[tau].told() if tau in told else "" for tau in taus]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


FIGURE = OfOneTable(draw, caption, lambda table: ", ".join(f"{share:.0%} of the pairs" for share in compared(table)))

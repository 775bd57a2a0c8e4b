"""Draw mask_comparison: rules and scopes of data-informed masks against each other, and against controls.

    cd results/quick
    python -m reproduction.analysis.figures mask_comparison --metrics mask_comparison.csv --out mask_comparison.png

A panel an experiment and tau, a line a way to make masks, a dot a seed: its difference from the dense model of that
seed. A panel has the seeds that all of its models have. Rules of one tau prune unequal shares of the attention, so each
line says how much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.curves import Panel, curve, panels_of, select
from reproduction.analysis.figures.captions import EVALUATED_SPARSITY, NAMES, SPREAD, name_of, spread
from reproduction.analysis.figures.controls import CONTROLS
from reproduction.analysis.figures.style import DPI, FONT, STYLES, OfOneTable
from reproduction.analysis.stats import named_seeds, on_common_seeds, paired
from reproduction.analysis.table import CHOICES

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Data-informed masks, the experiment's own first.
INFORMED = ("data", *CHOICES)
#: Controls that are compared here alone: how they are called, and whose colour and mark they have.
FURTHER = {
    "window-sinks": ("window and sinks", "window"),
    "distance-sinks": ("by distance and sinks", "distance"),
    "shuffled-heads": ("heads shuffled", "data"),
    "other-seed": ("another seed's mask", "data"),
    "dropout": ("attention dropout", "dense"),
    "dense-longer": ("dense, twice as long", "dense"),
}
CONTROL_NAMES = {control: NAMES[control] for control in CONTROLS} | {name: told for name, (told, _) in FURTHER.items()}
#: Models without a tau, which every panel has.
EVERYWHERE = ("dense", "dense-longer")
#: Controls that may be so far off that nothing else could be told apart.
FAR = ("random", "shuffled-heads", "dropout")


def panels_by_tau(table: pd.DataFrame, panel: Panel) -> list[tuple[float, pd.DataFrame]]:
    """The masks of each tau with the dense models, on the seeds that all of them have.

    Raises
    ------
    InputError
        If there is no data-informed mask, or the models of a tau have no seed in common.
    """
    rows = select(table, panel)
    dense = rows[rows["variant"].isin(EVERYWHERE)]
    masks = rows[rows["variant"].isin([*INFORMED, *CONTROL_NAMES]) & ~rows["variant"].isin(EVERYWHERE)]
    if not masks["variant"].isin(INFORMED).any():
        raise InputError(f"expected data-informed masks of {panel.experiment} in the table, found none")
    return [(tau, on_common_seeds(pd.concat([dense, same]))) for tau, same in masks.groupby("tau", sort=True)]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """The masks of one tau; ``rows`` is one of `panels_by_tau`.

    Returns
    -------
    pandas.DataFrame
        One row a variant, informed masks first: ``variant``, ``name``, ``mean``, ``low``, ``high`` and ``seeds`` of the
        metric, ``effective`` and ``evaluated`` (mean sparsities, in percent), ``minus_dense`` (a `stats.Difference`),
        and ``own_minus`` it, the experiment's own mask minus this one; None if that was not trained, or is it.
    """
    by_variant = dict(list(rows.groupby("variant")))
    dense, own = by_variant["dense"], by_variant.get("data")
    found = []
    for variant in (*INFORMED, *CONTROL_NAMES):
        if (line := by_variant.get(variant)) is None:
            continue
        first = line.iloc[0]
        name = f"{first['rule']} by {first['scope']}" if variant in INFORMED else CONTROL_NAMES[variant]
        known = {"variant": variant, "name": name, "minus_dense": paired(line, dense)}
        known["own_minus"] = None if own is None or variant == "data" else paired(own, line)
        found.append(known | curve(line, variant).iloc[0].to_dict())
    columns = ["variant", "name", "mean", "low", "high", "seeds", "effective", "evaluated", "minus_dense", "own_minus"]
    return pd.DataFrame(found, columns=columns).astype({"seeds": int})


def draw(table: pd.DataFrame) -> Figure:
    """Draw a column of panels for each experiment, a panel for each tau.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``table.COLUMNS``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    columns = [
        [(panel, tau, rows, summary(rows)) for tau, rows in panels_by_tau(table, panel)] for panel in panels_of(table)
    ]
    longest = max(len(lines) for column in columns for *_, lines in column)
    deepest = max(map(len, columns))
    with matplotlib.rc_context(FONT):
        size = (5.4 * len(columns), (1.3 + 0.3 * longest) * deepest)
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        places = figure.subplots(deepest, len(columns), squeeze=False)
        for number, column in enumerate(columns):
            for row in range(deepest):
                if row < len(column):
                    _draw_panel(places[row, number], *column[row])
                else:
                    places[row, number].set_axis_off()
    return figure


def _draw_panel(axes: Axes, panel: Panel, tau: float, rows: pd.DataFrame, lines: pd.DataFrame) -> None:
    """Names on the left, what a mask pruned on the right; between, a dot a seed and a mark at the mean."""
    axes.axvline(0, color="#000000", linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    informed = int(lines["variant"].isin(INFORMED).sum())
    # a gap of half a line between informed masks and controls
    places = [-(number + 0.5 * (number >= informed)) for number in range(len(lines))]
    for place, line in zip(places, lines.itertuples(), strict=True):
        style = style_of(line.variant)
        hollow = line.variant in (*CHOICES, *FURTHER)
        filled = {"color": "#FFFFFF" if hollow else style["color"]}
        single = line.minus_dense.values
        axes.plot([min(single), max(single)], [place, place], color=style["color"], linewidth=1.2, alpha=0.5, zorder=2)
        mark = {"marker": style["marker"], "s": 46, "edgecolors": style["color"], "linewidths": 1.4, "zorder": 3}
        axes.scatter([line.minus_dense.mean], [place], **mark, **filled)
        # above the marks, which are larger: a seed near the mean is seen, too
        axes.scatter(single, [place] * len(single), s=9, color="#000000", linewidths=0, zorder=4)
    _leave_out_the_farthest(axes, places, lines)
    axes.set_yticks(places, lines["name"])
    axes.set_ylim(places[-1] - 0.7, 0.7)
    pruned = axes.secondary_yaxis("right")
    pruned.set_yticks(places, [f"{share:.0f}%" for share in lines["evaluated"]])
    pruned.set_ylabel("evaluated sparsity", fontsize=8.5, color="#444444")
    pruned.tick_params(length=0, colors="#444444")
    axes.tick_params(axis="y", length=0)
    dense = next(curve(rows, "dense").itertuples())
    axes.set_xlabel(f"{panel.label} ({panel.split}) minus dense ({dense.mean:.2f}), {panel.better} is better")
    axes.set_title(f"{panel.title}, \u03c4 {100 * tau:g}%, {named_seeds(rows)}")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "left"]].set_visible(False)
    pruned.spines["right"].set_visible(False)


def style_of(variant: str) -> dict[str, str]:
    """Colour and mark of a line."""
    if variant in FURTHER:
        return STYLES[FURTHER[variant][1]]
    return STYLES["data" if variant in INFORMED else variant]


def _leave_out_the_farthest(axes: Axes, places: list[float], lines: pd.DataFrame) -> None:
    """Controls that are outliers are shown by an arrow, so that the others stay apart."""
    near = [value for line in lines.itertuples() if line.variant not in FAR for value in line.minus_dense.values]
    low, high = min([0.0, *near]), max([0.0, *near])
    room = high - low
    for place, line in zip(places, lines.itertuples(), strict=True):
        mean = line.minus_dense.mean
        if line.variant in FAR and not low - room <= mean <= high + room:
            axes.set_xlim(low - 0.06 * room, high + 0.06 * room)
            edge, text = (1, f"{mean:+.2f} \u2192") if mean > high else (0, f"\u2190 {mean:+.2f}")
            style = {"color": style_of(line.variant)["color"], "ha": "right" if edge else "left", "va": "center"}
            axes.text(edge, place, text, transform=axes.get_yaxis_transform(), **style)


def caption(table: pd.DataFrame) -> str:
    """Return the caption of the figure: plain paragraphs, readable as Markdown and as reStructuredText."""
    parts = [
        f"How masks are made, configuration {table['config'].iloc[0]}: rule and scope of data-informed masks (filled: "
        "the experiment's own), below them controls that prune as much as the experiment's own. Each model is shown as "
        "its difference from the dense model of the same seed; dots are seeds, marks their means, lines reach from the "
        "lowest to the highest. A panel has the seeds that all of its models have. On the right, the evaluated "
        f"sparsity: {EVALUATED_SPARSITY}. An arrow stands for a control that is an outlier. {SPREAD}"
    ]
    for panel in panels_of(table):
        first = select(table, panel)
        parts.append(
            f"{panel.title}: {name_of(panel)} on the {panel.split} split of {first['dataset'].iloc[0]}, {panel.better} "
            "is better."
        )
        for tau, rows in panels_by_tau(table, panel):
            lines, dense = summary(rows), next(curve(rows, "dense").itertuples())
            text = f"At tau {tau:g}, {named_seeds(rows)}: dense {spread(dense, 2)}. Minus dense: {_listed(lines)}."
            if lines["own_minus"].notna().any():
                own = lines.loc[lines["variant"] == "data", "name"].iloc[0]
                text += f" {own.capitalize()} minus another: {_listed(lines, 'own_minus')}."
            parts.append(text)
    return "\n\n".join(parts) + "\n"


def _listed(lines: pd.DataFrame, column: str = "minus_dense") -> str:
    """Every mask with one of its differences."""
    found = [(line["name"], line[column]) for line in lines.to_dict("records")]
    return "; ".join(f"{name} {difference.told()}" for name, difference in found if difference is not None)


def markdown(table: pd.DataFrame) -> str:
    """Return the numbers that the figure draws as Markdown tables, one an experiment."""
    blocks = []
    for panel in panels_of(table):
        lines = [
            f"| {panel.title} | tau | effective | evaluated | {name_of(panel)}, {panel.split} | minus dense "
            "| experiment's own minus it | seeds |",
            "|---|---:|---:|---:|---|---|---|---:|",
        ]
        for tau, rows in panels_by_tau(table, panel):
            dense = next(curve(rows, "dense").itertuples())
            lines.append(f"| dense | 0% | 0.0% | 0.0% | {spread(dense, 2)} | | | {dense.seeds} |")
            for line in summary(rows).itertuples():
                asked = 0 if line.variant in EVERYWHERE else 100 * tau
                shares = f"{asked:g}% | {line.effective:.1f}% | {line.evaluated:.1f}%"
                own = "" if line.own_minus is None else line.own_minus.told()
                contrasts = f"{line.minus_dense.told()} | {own}"
                lines.append(f"| {line.name} | {shares} | {spread(line, 2)} | {contrasts} | {line.seeds} |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


FIGURE = OfOneTable(draw, caption, lambda table: ", ".join(panel.title for panel in panels_of(table)))

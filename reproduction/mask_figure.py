"""Draw mask_comparison: rules and scopes of data-informed masks against each other, and against controls.

    cd results/quick
    python -m reproduction.mask_figure --metrics mask_comparison.csv --out mask_comparison.png

A panel an experiment and tau, a line a way to make masks, a dot a seed. Rules of one tau take unequal shares of the
attention, so each line says what it took. All comparisons are between models of the same seed: they began alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from attention_pruning import InputError
from reproduction.captions import NAMES, name_of, spread
from reproduction.controls_figure import CONTROLS
from reproduction.curves import Panel, curve, select
from reproduction.figure_command import run_figure
from reproduction.figures import DPI, FONT, STYLES, panels_of
from reproduction.results import CHOICES
from reproduction.training import run_main

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Data-informed masks, the experiment's own first.
INFORMED = ("data", *CHOICES)
#: Shares within this many percentage points count as equal.
EQUAL_SHARE = 1.0


class Gap(NamedTuple):
    """The difference of two kinds of models, seed by seed: over how many seeds, and in how many the first is better."""

    mean: float
    low: float
    high: float
    seeds: int
    better: int


def gap(first: pd.DataFrame, second: pd.DataFrame, panel: Panel) -> Gap:
    """First minus second (rows of `curves.select`, of one tau each), over the seeds that both have.

    Raises
    ------
    InputError
        If they have none in common.
    """
    pairs = first[["seed", "value"]].merge(second[["seed", "value"]], on="seed", suffixes=("", "_second"))
    if pairs.empty:
        kinds = " and ".join(rows["variant"].iloc[0] for rows in (first, second))
        raise InputError(f"expected {kinds} of the same seed, found none")
    found = pairs["value"] - pairs["value_second"]
    better = found < 0 if panel.better == "lower" else found > 0
    return Gap(found.mean(), found.min(), found.max(), len(found), int(better.sum()))


def summary(table: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    """All masks of a panel.

    Returns
    -------
    pandas.DataFrame
        One row a tau and variant, informed masks first: ``tau``, ``variant``, ``name``, ``mean``, ``low``, ``high`` and
        ``seeds`` of the metric, ``effective`` and ``evaluated`` (mean sparsities, in percent), and ``gap``, to dense.

    Raises
    ------
    InputError
        If there is no data-informed mask, or one without a dense model of its seed.
    """
    rows = select(table, panel)
    dense, found = rows[rows["variant"] == "dense"], []
    for tau, same in rows[rows["variant"].isin([*INFORMED, *CONTROLS])].groupby("tau", sort=True):
        for variant in (*INFORMED, *CONTROLS):
            own = same[same["variant"] == variant]
            if own.empty:
                continue
            first = own.iloc[0]
            name = f"{first['rule']} by {first['scope']}" if variant in INFORMED else NAMES[variant]
            known = {"tau": tau, "variant": variant, "name": name, "gap": gap(own, dense, panel)}
            found.append(known | curve(own, variant).iloc[0].drop("percent").to_dict())
    if not any(line["variant"] in INFORMED for line in found):
        raise InputError(f"expected data-informed masks of {panel.experiment} in the table, found none")
    columns = ["tau", "variant", "name", "mean", "low", "high", "seeds", "effective", "evaluated", "gap"]
    return pd.DataFrame(found, columns=columns).astype({"seeds": int})


def draw(table: pd.DataFrame) -> Figure:
    """Draw a column of panels for each experiment, a panel for each tau.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``results.COLUMNS``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    columns = []
    for panel in panels_of(table):
        masks = summary(table, panel)
        columns.append([(panel, tau, lines) for tau, lines in masks.groupby("tau", sort=True)])
    longest = max(len(lines) for column in columns for *_, lines in column)
    deepest = max(map(len, columns))
    with matplotlib.rc_context(FONT):
        size = (5.4 * len(columns), (1.3 + 0.3 * longest) * deepest)
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        places = figure.subplots(deepest, len(columns), squeeze=False)
        for number, column in enumerate(columns):
            for row in range(deepest):
                if row < len(column):
                    panel, tau, lines = column[row]
                    _draw_panel(places[row, number], select(table, panel), lines, panel, tau)
                else:
                    places[row, number].set_axis_off()
    return figure


def _draw_panel(axes: Axes, rows: pd.DataFrame, lines: pd.DataFrame, panel: Panel, tau: float) -> None:
    """Names on the left, what a mask took on the right; between, a dot a seed and a mark at the mean."""
    dense = next(curve(rows, "dense").itertuples())
    axes.axvspan(dense.low, dense.high, color="#000000", alpha=0.08, linewidth=0, zorder=0)
    axes.axvline(dense.mean, color="#000000", linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    informed = int(lines["variant"].isin(INFORMED).sum())
    # a gap of half a line between informed masks and controls
    places = [-(number + 0.5 * (number >= informed)) for number in range(len(lines))]
    for place, line in zip(places, lines.itertuples(), strict=True):
        style = STYLES["data" if line.variant in INFORMED else line.variant]
        filled = {"color": style["color"]} if line.variant not in CHOICES else {"color": "#FFFFFF"}
        single = rows.loc[(rows["variant"] == line.variant) & (rows["tau"] == tau), "value"]
        dots = {"s": 16, "color": style["color"], "alpha": 0.5, "linewidths": 0, "zorder": 3}
        axes.plot([line.low, line.high], [place, place], color=style["color"], linewidth=1.2, alpha=0.5, zorder=2)
        axes.scatter(single, [place] * len(single), **dots)
        mark = {"marker": style["marker"], "s": 46, "edgecolors": style["color"], "linewidths": 1.4, "zorder": 4}
        axes.scatter([line.mean], [place], **mark, **filled)
    _leave_out_the_farthest(axes, places, lines, dense)
    axes.set_yticks(places, lines["name"])
    axes.set_ylim(places[-1] - 0.7, 0.7)
    taken = axes.secondary_yaxis("right")
    taken.set_yticks(places, [f"{share:.0f}%" for share in lines["evaluated"]])
    taken.set_ylabel(f"taken from the {panel.split} text", fontsize=8.5, color="#444444")
    taken.tick_params(length=0, colors="#444444")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{panel.label} ({panel.split}), {panel.better} is better; dotted: dense")
    axes.set_title(f"{panel.title}, \u03c4 {100 * tau:g}%")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "left"]].set_visible(False)
    taken.spines["right"].set_visible(False)


def _leave_out_the_farthest(axes: Axes, places: list[float], lines: pd.DataFrame, dense: Any) -> None:
    """Where random masks are so far off that the others run together, an arrow says where they are."""
    near = lines[lines["variant"] != "random"]
    low, high = min(near["low"].min(), dense.low), max(near["high"].max(), dense.high)
    room = high - low
    for place, line in zip(places, lines.itertuples(), strict=True):
        if line.variant == "random" and not low - room <= line.mean <= high + room:
            axes.set_xlim(low - 0.06 * room, high + 0.06 * room)
            right = line.mean > high
            edge, text = (1, f"{line.mean:.2f} \u2192") if right else (0, f"\u2190 {line.mean:.2f}")
            style = {"color": STYLES["random"]["color"], "ha": "right" if right else "left", "va": "center"}
            axes.text(edge, place, text, transform=axes.get_yaxis_transform(), **style)


def caption(table: pd.DataFrame) -> str:
    """Return the caption of the figure: plain paragraphs, readable as Markdown and as reStructuredText."""
    parts = [
        f"How masks are made, configuration {table['config'].iloc[0]}: rule and scope of data-informed masks (filled: "
        "the experiment's own), below them controls that prune as much as the experiment's own. Dots are seeds, marks "
        "their means; dotted, with a band from the lowest to the highest seed, the dense model. On the right, the "
        "share of the attention that masks took from the evaluated text; an arrow stands for random masks that are far "
        "off. Differences are taken seed by seed."
    ]
    for panel in panels_of(table):
        rows = select(table, panel)
        dense = next(curve(rows, "dense").itertuples())
        seeds = ", ".join(str(seed) for seed in sorted(rows.loc[rows["variant"] == "dense", "seed"]))
        parts.append(
            f"{panel.title}: {name_of(panel)} on the {panel.split} split of {rows['dataset'].iloc[0]}, {panel.better} "
            f"is better; seeds {seeds}. The dense model reaches {spread(dense, 2)}."
        )
        for tau, lines in summary(table, panel).groupby("tau", sort=True):
            same = rows[rows["tau"] == tau]
            found = [_choices_found(same, lines, panel), _controls_found(same, lines, panel), _dense_found(lines)]
            parts.append(f"At tau {tau:g}: " + " ".join(filter(None, found)))
    return "\n\n".join(parts) + "\n"


def _choices_found(rows: pd.DataFrame, lines: pd.DataFrame, panel: Panel) -> str:
    """Whether rules and scopes differ by more than seeds do."""
    informed = lines[lines["variant"].isin(INFORMED)].sort_values("mean", ascending=panel.better == "lower")
    ranked = list(informed.itertuples())
    best, worst = ranked[0], ranked[-1]
    if len(ranked) == 1:
        return f"{best.name} reaches {spread(best, 2)}; no other rule or scope was trained."
    found = gap(*(rows[rows["variant"] == line.variant] for line in (best, worst)), panel)
    text = (
        f"of {len(ranked)} rules and scopes the best is {best.name}, {spread(best, 2)}, the worst {worst.name}, "
        f"{spread(worst, 2)}"
    )
    seeded = informed[informed["seeds"] > 1]
    if found.seeds == 1 or seeded.empty:
        text += f"; their difference, {found.mean:+.2f}, is that of one seed and has no spread to compare it with."
    else:
        among_seeds = (seeded["high"] - seeded["low"]).max()
        more = "MORE than" if abs(found.mean) > among_seeds else "no more than"
        text += (
            f"; they differ by {found.mean:+.2f} (seeds {found.low:+.2f} to {found.high:+.2f}), {more} the seeds of "
            f"one rule and scope do, {among_seeds:.2f} at most. Best and worst were chosen afterwards."
        )
    low, high = informed["evaluated"].min(), informed["evaluated"].max()
    if high - low > EQUAL_SHARE:
        text += f" They took from {low:.0f}% to {high:.0f}% of the attention, so the way is not all that differs."
    return text


def _controls_found(rows: pd.DataFrame, lines: pd.DataFrame, panel: Panel) -> str:
    """What the experiment's own masks gain over each control, and whether more than the distance matters."""
    own, gaps = rows[rows["variant"] == "data"], {}
    for line in lines[lines["variant"].isin(CONTROLS)].itertuples():
        if not own.empty:
            gaps[line.variant] = gap(own, rows[rows["variant"] == line.variant], panel)
    if not gaps:
        return ""
    name = lines.loc[lines["variant"] == "data", "name"].iloc[0]
    text = f"{name} minus {'; minus '.join(f'{NAMES[control]} {told(found)}' for control, found in gaps.items())}."
    if (found := gaps.get("distance")) is None:
        return text
    pair = lines[lines["variant"].isin(["data", "distance"])]
    if found.seeds == 1:
        verdict = "One seed does not tell whether more than the distance matters."
    elif found.better not in (0, found.seeds):
        verdict = "Seeds do not agree on whether more than the distance matters."
    elif not found.better:
        verdict = "In no seed did more than the distance matter."
    elif abs(found.mean) > (pair["high"] - pair["low"]).max():
        verdict = "So MORE than the distance mattered, and by more than seeds differ."
    else:
        verdict = "In every seed more than the distance mattered, but by no more than seeds differ."
    return f"{text} {verdict}"


def told(found: Gap) -> str:
    """A difference in words; one seed has no spread."""
    if found.seeds == 1:
        return f"{found.mean:+.2f} (one seed)"
    return f"{found.mean:+.2f} (seeds {found.low:+.2f} to {found.high:+.2f}, better in {found.better} of {found.seeds})"


def _dense_found(lines: pd.DataFrame) -> str:
    """Which masks help: better than the dense model of every seed, and which hurt every seed."""
    names = {"every": [], "some": [], "no": []}
    for line in lines.itertuples():
        share = line.gap.better / line.gap.seeds
        names["every" if share == 1 else "some" if share else "no"].append(f"{line.name} {line.gap.mean:+.2f}")
    found = [f"in {how} seed{'s' * (how == 'some')} with {', '.join(who)}" for how, who in names.items() if who]
    return f"Better than the dense model of the same seed {'; '.join(found)}."


def markdown(table: pd.DataFrame) -> str:
    """Return the numbers that the figure draws as Markdown tables, one an experiment."""
    blocks = []
    for panel in panels_of(table):
        dense = next(curve(select(table, panel), "dense").itertuples())
        lines = [
            f"| {panel.title} | tau | effective | evaluated | {name_of(panel)}, {panel.split} | minus dense | seeds |",
            "|---|---:|---:|---:|---|---|---:|",
            f"| dense | 0% | 0.0% | 0.0% | {spread(dense, 2)} | | {dense.seeds} |",
        ]
        for line in summary(table, panel).itertuples():
            shares = f"{100 * line.tau:g}% | {line.effective:.1f}% | {line.evaluated:.1f}%"
            lines.append(f"| {line.name} | {shares} | {spread(line, 2)} | {told(line.gap)} | {line.seeds} |")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_figure(
        "mask_figure",
        "Draw rules and scopes of data-informed masks against each other, and against controls.",
        argv,
        draw=draw,
        caption=caption,
        contents=lambda table: f"{sum(len(summary(table, panel)) for panel in panels_of(table))} kinds of masks",
    )


if __name__ == "__main__":
    run_main(main)

"""Draw glue_tasks: every task of panel (c) by itself, with the numbers beside it.

python -m reproduction.analysis.figures glue_tasks --metrics results/quick/metrics.csv --out FILE.png
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.curves import PANELS, Panel, baselines, numbers, select
from reproduction.analysis.figures.captions import SPREAD, panel_caption
from reproduction.analysis.figures.quality import draw_panel
from reproduction.analysis.figures.style import DPI, FONT, OfOneTable

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

GLUE = next(panel for panel in PANELS if panel.experiment == "glue")
COLUMNS = 3


def task_panels(table: pd.DataFrame) -> list[tuple[Panel, pd.DataFrame]]:
    """A panel for each task, and the part of the table that it shows.

    Raises
    ------
    InputError
        If the table has no task.
    """
    rows = table[table["experiment"] == GLUE.experiment]
    if rows.empty:
        found = ", ".join(sorted(table["experiment"].unique())) or "none"
        raise InputError(f"expected runs of {GLUE.experiment} in the table, found {found}")
    return [(replace(GLUE, title=task, averaged=False), part) for task, part in rows.groupby("dataset")]


def draw(table: pd.DataFrame) -> Figure:
    """Draw a panel for each task, three in a row.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``table.COLUMNS``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    panels = task_panels(table)
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(4.6 * columns, 4.3 * rows), dpi=DPI, layout="constrained")
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        for (panel, part), axes in zip(panels, places, strict=False):
            draw_panel(axes, select(part, panel), panel)
        for axes in places[len(panels) :]:
            axes.set_axis_off()
    return figure


def task_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """What is drawn as one table: ``task``, then the columns of ``curves.numbers``; baselines have a mean alone."""
    parts = []
    for panel, part in task_panels(table):
        found = numbers(part, panel).drop(columns="tau")
        floors = pd.DataFrame(
            [{"variant": name, "mean": value} for name, value in baselines(select(part, panel)).items()]
        )
        parts.append(pd.concat([found, floors], ignore_index=True).assign(task=panel.title))
    whole = pd.concat(parts, ignore_index=True).astype({"seeds": "Int64"})
    return whole[["task", *(column for column in whole if column != "task")]]


def caption(table: pd.DataFrame) -> str:
    """Return the caption of the figure: plain paragraphs, readable as Markdown and as reStructuredText."""
    parts = [panel_caption(select(part, panel), panel) for panel, part in task_panels(table)]
    first = f"The tasks whose mean is panel (c) of ap_figure, each by itself. {SPREAD}"
    return "\n\n".join([first, *parts]) + "\n"


FIGURE = OfOneTable(
    draw, caption, lambda table: ", ".join(panel.title for panel, _ in task_panels(table)), task_numbers
)

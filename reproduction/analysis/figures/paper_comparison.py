"""Draw paper_comparison: the change from the dense model against tau, ours and the paper's, in one picture.

    python -m reproduction.analysis.figures.paper_comparison --metrics results/quick/metrics.csv \\
        --configuration results/quick/configuration.json --published config/paper.yaml \\
        --out results/quick/paper_comparison.png

The caption says in what the two differ: what was run stands in the first configuration, what the paper ran in the
second.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from attention_pruning import InputError
from reproduction.analysis.curves import Panel, changes, comparable, curve, panels_of
from reproduction.analysis.figures.captions import EFFECTIVE_SPARSITY, SPREAD, change_text, name_of, tasks_of
from reproduction.analysis.figures.quality import draw_change, effective_axis
from reproduction.analysis.figures.style import DPI, FONT, add_runs_flag, require_png, save_with_caption
from reproduction.analysis.paper import REFERENCE, published, read_reference
from reproduction.analysis.table import read_csv, write_csv
from reproduction.runs.command import run_main

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure


def draw(table: pd.DataFrame, reference: pd.DataFrame) -> Figure:
    """Draw a panel for each experiment.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``table.COLUMNS``.
    reference : pandas.DataFrame
        Published numbers, columns ``paper.REFERENCE_COLUMNS``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    panels = panels_of(table)
    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(4.6 * len(panels), 4.6), dpi=DPI, layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            own, rows = comparable(table, panel)
            draw_change(axes, table, panel, reference)
            axes.spines["top"].set_visible(True)
            effective_axis(axes, pd.concat([curve(rows, "dense"), curve(rows, "data")]))
            axes.set_title(panel.title)
            unit = "%" if own.unit == "percent" else own.unit
            axes.set_ylabel(f"Change of {name_of(own)} from dense ({unit})\n{own.better} is better")
    return figure


def comparison(table: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """What is drawn as one table: a row a panel and tau that either of the two has.

    Returns
    -------
    pandas.DataFrame
        ``experiment``, ``metric``, ``unit``, ``percent`` (100 tau), ``effective`` (in percent), ``change``, ``low``,
        ``high`` (mean, lowest and highest seed) and ``seeds`` of what was run here; ``published_change``.
    """
    parts = []
    for panel in panels_of(table):
        own, rows = comparable(table, panel)
        moved = changes(rows, own.unit)
        ours = pd.concat([curve(moved, "dense"), curve(moved, "data")]).rename(columns={"mean": "change"})
        paper = published(reference, own)[["percent", "change"]].rename(columns={"change": "published_change"})
        # Taus are fractions: 100 times 0.29 is not quite 29.
        ours["percent"], paper["percent"] = ours["percent"].round(6), paper["percent"].round(6)
        both = ours.merge(paper, on="percent", how="outer").sort_values("percent")
        known = {"experiment": own.experiment, "metric": own.metric, "unit": own.unit}
        parts.append(both.assign(**known).astype({"seeds": "Int64"}))
    columns = ["experiment", "metric", "unit", "percent", "effective", "change", "low", "high", "seeds"]
    return pd.concat(parts, ignore_index=True)[[*columns, "published_change"]]


def _language_modelling(own: Mapping[str, Any]) -> str:
    model, training = own["model"], own["training"]
    return (
        f"{model['n_layer']} layers of width {model['d_model']} with {model['n_head']} heads, {training['max_step']} "
        f"updates of {training['batch_size']} x {model['tgt_len']} tokens"
    )


def _translation(own: Mapping[str, Any]) -> str:
    model, training = own["model"], own["training"]
    given = [
        f"{model[f'{side}_layers']} {side} layers of width {model[f'{side}_embed_dim']}"
        for side in ("encoder", "decoder")
        if model.get(f"{side}_layers")
    ]
    tokens = training["max_tokens"] * training.get("update_freq", 1)
    updates = f"{training['max_update']} updates of at most {tokens} tokens"
    return ", ".join([f"fairseq's {model['arch']}", *given, updates])


def _glue(own: Mapping[str, Any]) -> str:
    training = own["training"]
    steps = training.get("max_steps", -1)
    length = f"{steps} updates" if steps > 0 else f"{training.get('num_train_epochs', 3.0):g} epochs"
    return f"{own['model']['model_name_or_path']}, fine-tuned for {length}"


#: Experiment -> its scale in words, from its part of a configuration.
SCALES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "language_modelling": _language_modelling,
    "translation": _translation,
    "glue": _glue,
}


def read_configuration(path: str | Path) -> dict[str, Any]:
    """Read a configuration of the workflow.

    Raises
    ------
    InputError
        If the file is missing, is neither YAML nor JSON, as its name says, or lacks an experiment.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected a configuration, found no such file") from error
    except (yaml.YAMLError, ValueError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise InputError(f"{path}: expected {kind}, found something else ({error})") from error
    lacking = set(SCALES) - set(content if isinstance(content, dict) else ())
    if lacking:
        raise InputError(f"{path}: expected the experiments {', '.join(SCALES)}, found no {min(lacking)}")
    return content


def caption(
    table: pd.DataFrame, reference: pd.DataFrame, configuration: Mapping[str, Any], paper: Mapping[str, Any]
) -> str:
    """Return the caption of the figure: plain paragraphs, readable as Markdown and as reStructuredText."""
    name = configuration["name"]
    sources = ", ".join(sorted(reference.loc[reference["panel"].isin(SCALES), "source"].unique()))
    parts = [
        f"Change from the dense model against tau: configuration {name} beside the paper. Each seed is compared with "
        f"the dense model of the same seed; dots are seeds, lines their means, bands the range of the seeds. {SPREAD} "
        f"Published: {sources}; one value a point, without a spread. The upper axis is the effective sparsity here, "
        f"{EFFECTIVE_SPARSITY}; the paper states tau alone."
    ]
    compared = comparison(table, reference)
    for panel in panels_of(table):
        own, rows = comparable(table, panel)
        if rows.empty:
            parts.append(f"{own.title}. Here {name_of(own)} was measured on no dataset.")
            continue
        parts.append(_difference(own, rows, reference, configuration, paper))
        if own.averaged:
            parts[-1] += f" Here the mean is over the tasks that have an accuracy: {tasks_of(table, own)}."
        both = compared[compared["experiment"] == panel.experiment].dropna(subset=["change", "published_change"])
        found = [
            f"{line.percent:.0f}%: {change_text(line.change, own)} here, "
            f"{change_text(line.published_change, own)} published"
            for line in both[both["percent"] > 0].itertuples()
        ]
        parts[-1] += f" At tau {'; '.join(found)}." if found else " No tau is in both."
    return "\n\n".join(parts) + "\n"


def _difference(
    panel: Panel,
    rows: pd.DataFrame,
    reference: pd.DataFrame,
    configuration: Mapping[str, Any],
    paper: Mapping[str, Any],
) -> str:
    """One paragraph: data, scale and rule, here and in the paper."""
    theirs = reference[reference["panel"] == panel.experiment]
    scale = SCALES[panel.experiment]
    rules = ", ".join(sorted(rows["rule"].dropna().unique())) or "none"
    seeds = ", ".join(str(seed) for seed in sorted(rows["seed"].dropna().unique()))
    dense_here, dense_there = curve(rows, "dense")["mean"].iloc[0], published(reference, panel)["value"].iloc[0]
    return (
        f"{panel.title}. Here: {name_of(panel)} on the {panel.split} split of {rows['dataset'].iloc[0]}, "
        f"{scale(configuration[panel.experiment])}, seeds {seeds}, rule {rules}, dense "
        f"{dense_here:.1f}. The paper: {theirs['metric'].iloc[0]} on {theirs['dataset'].iloc[0]}, dense "
        f"{dense_there:.1f}; its sizes as config/paper.yaml has them: {scale(paper[panel.experiment])}."
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.analysis.figures.paper_comparison",
        description="Draw the change from the dense model against tau, ours and the paper's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.csv")
    parser.add_argument("--configuration", type=Path, required=True, help="what was run (.json or .yaml)")
    parser.add_argument("--published", type=Path, required=True, help="the configuration of the paper's sizes (.yaml)")
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="published numbers")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.png); .md and .csv go beside it")
    add_runs_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    require_png(args.out)
    table, reference = read_csv(args.metrics), read_reference(args.reference)
    configuration, paper = read_configuration(args.configuration), read_configuration(args.published)
    text = caption(table, reference, configuration, paper)
    save_with_caption(draw(table, reference), text, args.out, args.runs)
    write_csv(comparison(table, reference), args.out.with_suffix(".csv"))
    print(f"{args.out}: {', '.join(panel.title for panel in panels_of(table))}")
    return 0


if __name__ == "__main__":
    run_main(main)

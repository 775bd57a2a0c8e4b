"""Numbers in documents, written from committed results and never by hand.

A block ``<!-- numbers NAME ARGUMENT -->`` ... ``<!-- end numbers -->`` in README.md, docs/ or benchmarks/ is made from
a file under results/reference/:

    python -m reproduction.documents            # rewrite all blocks
    python -m reproduction.documents --check    # fail if one differs from its file

Blocks are, from results/reference/CONFIG/, ``results CONFIG``, ``paper CONFIG`` and ``tasks CONFIG`` (metrics.csv),
``sites CONFIG`` (translation_sites.csv), ``masks CONFIG`` (mask_comparison.csv), ``pairs CONFIG``
(pairs_comparison.csv), ``questions CONFIG`` (squad.csv),
``efficiency CONFIG`` (efficiency_table.csv), ``saved CONFIG`` (language_model_efficiency.csv), ``entmax CONFIG``
(entmax_comparison.csv) and ``ood CONFIG`` (ood_table.csv);
``benchmark NAME`` (every row of results/reference/benchmarks/NAME.csv), ``speedups NAME`` (of one that prunes to
several sparsities, a row for each shape), ``kernel NAME`` (our kernel against dense attention alone), ``costs NAME``
(what the choice of a backend goes by), ``collecting NAME`` (time and memory of patterns), ``generation NAME`` (prefill,
time of a token and cache by context),
``positions NAME`` (perplexity by position), ``budgets NAME``, ``observed NAME``, ``memories NAME`` and ``keys NAME``
(masks on trained models: within a budget of loss, by what was observed, at longer memories, asked for a pass key);
``scores NAME`` (from the metrics.json of single runs, results/reference/NAME/*.json); and ``tries KIND`` (from
results/reference/reliability.csv). README.md has ``overview CONFIG``
(metrics.csv, mask_comparison.csv and squad.csv) and ``speed CONFIG`` (efficiency_table.csv).
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from attention_pruning import InputError
from reproduction.analysis.curves import Panel, comparable, contrast, curve, panels_of, select
from reproduction.analysis.figures import entmax as entmax_figure
from reproduction.analysis.figures import language_model_efficiency as language_model
from reproduction.analysis.figures.captions import NAMES, change_text, name_of, spread, table_markdown
from reproduction.analysis.figures.efficiency import STEPS, step_table
from reproduction.analysis.figures.masks import markdown as masks_markdown
from reproduction.analysis.figures.pairs import markdown as pairs_markdown
from reproduction.analysis.figures.shift import how_to_read, read_table, titled
from reproduction.analysis.figures.sites import SITES, lines_of
from reproduction.analysis.figures.sites import compared as compared_sites
from reproduction.analysis.figures.tasks import task_panels
from reproduction.analysis.paper import REFERENCE as PUBLISHED
from reproduction.analysis.paper import comparison, published, read_reference
from reproduction.analysis.stats import paired
from reproduction.analysis.table import read_csv, read_run
from reproduction.documents import benchmarks as benchmark_tables
from reproduction.documents import comparisons as comparison_tables
from reproduction.documents import readme as readme_tables
from reproduction.runs.files import atomic_path
from reproduction.runs.metrics import SPARSITIES

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = REPOSITORY / "results" / "reference"
#: Metrics that say how much was measured, not how well.
_COUNTS = ("sentences", "sequences", "questions", "tokens", "seconds", "eval_seconds", "batch_seconds")
#: What models that answer questions are scored by.
QUESTIONS = [
    Panel("squad", "Questions", metric, "validation", label, "higher")
    for metric, label in (("exact_match", "Exact match"), ("f1", "F1"))
]
_BLOCK = re.compile(r"(<!-- numbers (?P<name>\S+) (?P<argument>\S+) -->\n).*?<!-- end numbers -->", re.DOTALL)


def documents() -> list[Path]:
    """Every Markdown file that may hold blocks."""
    return sorted([REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("benchmarks/*.md")])


def results_block(config: str) -> str:
    """The numbers that the figure of a configuration draws, as a Markdown table."""
    table = read_csv(REFERENCE / config / "metrics.csv")
    return table_markdown(table, panels_of(table))


def tasks_block(config: str) -> str:
    """The numbers of every task of GLUE by itself, a Markdown table each."""
    table = read_csv(REFERENCE / config / "metrics.csv")
    return "\n".join(table_markdown(part, [panel]) for panel, part in task_panels(table))


def paper_block(config: str) -> str:
    """Change from the dense model at every tau, here and in the paper."""
    table = read_csv(REFERENCE / config / "metrics.csv")
    compared = comparison(table, read_reference(PUBLISHED))
    lines = ["| | tau | effective | change here | seeds | change published |", "|---|---:|---:|---|---:|---:|"]
    for panel in panels_of(table):
        own, rows = comparable(table, panel)
        of = f", {rows['dataset'].iloc[0]}" if own.averaged and not rows.empty else ""
        for line in compared[(compared["experiment"] == panel.experiment) & (compared["percent"] > 0)].itertuples():
            here, there = " | | ", ""
            if pd.notna(line.change):
                spread_here = f" ({line.low:+.1f} to {line.high:+.1f})" if line.seeds > 1 else ""
                here = f"{line.effective:.1f}% | {change_text(line.change, own)}{spread_here} | {line.seeds}"
            if pd.notna(line.published_change):
                there = change_text(line.published_change, own)
            lines.append(f"| {own.title}, {name_of(own)}{of} | {line.percent:.0f}% | {here} | {there} |")
    return "\n".join(lines) + "\n"


def sites_block(config: str) -> str:
    """The cost of pruning one site of a translation model alone, at every tau."""
    table = read_csv(REFERENCE / config / "translation_sites.csv")
    lines = ["| pruned | tau | evaluated | BLEU, test | minus dense | seeds |", "|---|---:|---:|---|---|---:|"]
    dense = compared_sites(table).query("variant == 'dense'")
    for variant, sites, rows in [("dense", "all", dense), *lines_of(table)]:
        name = SITES[sites]["label"] if variant == "data" else f"{NAMES[variant]}, {SITES[sites]['label']}"
        for point in curve(rows, variant).itertuples():
            minus = "" if variant == "dense" else paired(rows[rows["tau"] == point.tau], dense).told()
            value = f"{point.evaluated:.1f}% | {spread(point, 2)} | {minus} | {point.seeds}"
            lines.append(f"| {name} | {point.percent:.0f}% | {value} |")
    return "\n".join(lines) + "\n"


def masks_block(config: str) -> str:
    """Rules, scopes and controls of masks, a Markdown table an experiment."""
    return masks_markdown(read_csv(REFERENCE / config / "mask_comparison.csv"))


def pairs_block(config: str) -> str:
    """Translation models of fewer pairs, and by the length of the sentence, a Markdown table each."""
    return pairs_markdown(read_csv(REFERENCE / config / "pairs_comparison.csv"))


def questions_block(config: str) -> str:
    """Exact match and F1 of the models that answer questions, and F1 minus dense beside the published difference.

    The seconds in the file are not shown: other jobs ran at the same time. `efficiency_block` has those to compare.
    """
    table = read_csv(REFERENCE / config / "squad.csv")
    reference = read_reference(PUBLISHED)
    exact, f1 = (select(table, panel) for panel in QUESTIONS)
    paper = published(reference[reference["metric"] == "f1"], QUESTIONS[1]).set_index("percent")["change"].round(1)
    lines = ["| model | tau | evaluated | exact match | F1 | F1 minus dense | published | seeds |"]
    lines.append("|---|---:|---:|---|---|---|---:|---:|")
    for variant in (name for name in NAMES if name in set(f1["variant"])):
        curves = [curve(rows, variant) for rows in (exact, f1)]
        for match, score in zip(*(line.itertuples() for line in curves), strict=True):
            there = f"{paper[score.percent]:+.1f}" if score.percent in paper and variant == "data" else ""
            minus = "" if variant == "dense" else contrast(f1, variant, "dense", score.tau).told(1)
            model = f"{NAMES[variant]} | {score.percent:.0f}% | {score.evaluated:.1f}%"
            lines.append(f"| {model} | {spread(match)} | {spread(score)} | {minus} | {there} | {score.seeds} |")
    return "\n".join(lines) + "\n"


def overview_block(config: str) -> str:
    """What pruning costs in every experiment, by data-informed masks and by controls, beside the paper."""
    table, masks, asked = (
        read_csv(REFERENCE / config / f"{name}.csv") for name in ("metrics", "mask_comparison", "squad")
    )
    reference = read_reference(PUBLISHED)
    f1 = QUESTIONS[1]
    questions = readme_tables.overview_row(
        select(asked, f1), f1, readme_tables.QUESTIONS_TAU, reference[reference["metric"] == f1.metric]
    )
    return readme_tables.overview_table(table, masks, panels_of(table), questions, reference)


def read_efficiency(config: str) -> pd.DataFrame:
    """The committed efficiency table of a configuration."""
    path = REFERENCE / config / "efficiency_table.csv"
    if not path.is_file():
        raise InputError(f"{path}: expected the efficiency table, found no such file")
    return pd.read_csv(path)


def speed_block(config: str) -> str:
    """Quality, seconds and memory at 0 and 90% of the blocks, beside the published ones."""
    return readme_tables.speed_table(read_efficiency(config))


def efficiency_block(config: str) -> str:
    """Quality, seconds and memory under masks of whole blocks, a table for inference and one for training."""
    table = read_efficiency(config)
    return "\n\n".join(f"{title}:\n\n{step_table(table, step)}" for step, title in STEPS.items()) + "\n"


def saved_block(config: str) -> str:
    """What pruning saves in language modelling: a table for each step, and speed-ups against the context."""
    path = REFERENCE / config / "language_model_efficiency.csv"
    if not path.is_file():
        raise InputError(f"{path}: expected what pruning saves in language modelling, found no such file")
    table = pd.read_csv(path)
    own = table[~language_model.elsewhere(table)]
    parts = [
        f"{title} ({own['context'].iloc[0]}):\n\n{language_model.step_table(own[own['step'] == step])}"
        for step, title in language_model.TITLES.items()
    ]
    if language_model.elsewhere(table).any():
        parts.append(f"Speed-up of the same shape at other contexts, tau 90%:\n\n{language_model.context_table(table)}")
    return "\n\n".join(parts) + "\n"


def ood_block(config: str) -> str:
    """Every model in and out of distribution: how to read it, and a table for each pair."""
    table = read_table(REFERENCE / config / "ood_table.csv")
    return "\n\n".join([how_to_read(table), *(f"{title}:\n\n{shown}" for title, shown in titled(table))]) + "\n"


def entmax_block(config: str) -> str:
    """Softmax and entmax in translation, dense and pruned: BLEU and exact zeros."""
    rows = entmax_figure.values(read_csv(REFERENCE / config / "entmax_comparison.csv"))
    lines = ["| | tau | evaluated | BLEU, test | exact zeros | of the kept cells | seeds |"]
    lines.append("|---|---:|---:|---|---:|---:|---:|")
    lines += [
        f"| {line.normaliser} | {100 * line.tau:.0f}% | {100 * line.evaluated_sparsity:.1f}% | {spread(line, 2)} | "
        f"{100 * line.zeros:.1f}% | {100 * line.kept_zeros:.1f}% | {line.seeds} |"
        for line in entmax_figure.summary(rows).itertuples()
    ]
    return "\n".join(lines) + "\n"


def read_benchmark(name: str) -> pd.DataFrame:
    """The committed rows of a benchmark."""
    path = REFERENCE / "benchmarks" / f"{name}.csv"
    if not path.is_file():
        raise InputError(f"{path}: expected the results of a benchmark, found no such file")
    return pd.read_csv(path)


def show_benchmark(show: Callable[[pd.DataFrame], str], name: str) -> str:
    """A benchmark as one of the tables of ``benchmark_tables``."""
    return show(read_benchmark(name))


def scores_block(name: str) -> str:
    """Scores and sparsity of single runs, by file name: on the test set, or on the validation set if none has any."""
    folder = REFERENCE / name
    files = sorted(folder.glob("*.json"))
    if not files:
        raise InputError(f"{folder}: expected the metrics.json of runs under other names, found none")
    rows = pd.concat([pd.DataFrame(read_run(file)).assign(run=file.stem) for file in files])
    split = "test" if (rows["split"] == "test").any() else "validation"
    rows = rows[(rows["split"] == split) & ~rows["metric"].isin(_COUNTS)]
    table = rows.pivot(index="run", columns="metric", values="value")
    table[list(SPARSITIES)] = 100 * rows.drop_duplicates("run").set_index("run")[list(SPARSITIES)].astype(float)
    heads = [str(column).replace("_", " ") + (" (%)" if column in SPARSITIES else "") for column in table]
    lines = ["| run | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    # Percentages have one decimal; shares, correlations and losses have three.
    places = {name: 1 if name in SPARSITIES or table[name].max() > 2 else 3 for name in table}
    # what needs no attention has no sparsity
    cells = [
        ["" if pd.isna(row[name]) else f"{row[name]:.{places[name]}f}" for name in table] for _, row in table.iterrows()
    ]
    lines += [f"| {run} | {' | '.join(row)} |" for run, row in zip(table.index, cells, strict=True)]
    return "\n".join(lines) + "\n"


#: Kinds of tries that share a table.
_TRIES = {"battery": ("killed at a moment", "killed in a write", "full disk", "two runs in one folder")}


def tries_block(name: str) -> str:
    """What was tried to break, how often, and how often it held: the rows of a kind, or of kinds that share a table."""
    table = pd.read_csv(REFERENCE / "reliability.csv", keep_default_na=False)
    lines = ["| what | tries | as it should be | minutes | |", "|---|---:|---:|---:|---|"]
    for row in table[table["kind"].isin(_TRIES.get(name, (name,)))].itertuples():
        what = f"{row.what}: {row.kind}" if name in _TRIES else row.what
        lines.append(f"| {what} | {row.tries:,} | {row.passed:,} | {float(row.seconds) / 60:.1f} | {row.note} |")
    return "\n".join(lines) + "\n"


#: Tables of a benchmark, by the name of the block.
BENCHMARKS = {
    "benchmark": benchmark_tables.benchmark_table,
    "speedups": benchmark_tables.speedups_table,
    "kernel": benchmark_tables.kernel_table,
    "collecting": benchmark_tables.collecting_table,
    "generation": benchmark_tables.generation_table,
    "positions": benchmark_tables.positions_table,
    "costs": benchmark_tables.costs_table,
    "budgets": comparison_tables.budgets_table,
    "observed": comparison_tables.observed_table,
    "memories": comparison_tables.memories_table,
    "keys": comparison_tables.keys_table,
}
BLOCKS = {
    "results": results_block,
    "paper": paper_block,
    "tasks": tasks_block,
    "sites": sites_block,
    "masks": masks_block,
    "pairs": pairs_block,
    "questions": questions_block,
    "overview": overview_block,
    "speed": speed_block,
    "efficiency": efficiency_block,
    "saved": saved_block,
    "entmax": entmax_block,
    "ood": ood_block,
    "scores": scores_block,
    "tries": tries_block,
    **{name: functools.partial(show_benchmark, show) for name, show in BENCHMARKS.items()},
}


def filled(text: str, path: Path) -> str:
    """A document with every block rewritten.

    Raises
    ------
    InputError
        If a block has an unknown name or no end, or its file is missing.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in BLOCKS:
            raise InputError(f"{path}: expected a block of {', '.join(BLOCKS)}, found {name!r}")
        return f"{match[1]}{BLOCKS[name](match['argument'])}<!-- end numbers -->"

    begun, ended = text.count("<!-- numbers "), len(_BLOCK.findall(text))
    if begun != ended:
        expected = "every <!-- numbers NAME ARGUMENT --> to have its <!-- end numbers -->"
        raise InputError(f"{path}: expected {expected}, found {begun - ended} without")
    return _BLOCK.sub(fill, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a block is out of date")
    args = parser.parse_args(argv)
    stale = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        fresh = filled(text, path)
        if fresh == text:
            continue
        stale.append(path)
        if not args.check:
            with atomic_path(path) as temporary:
                temporary.write_text(fresh, encoding="utf-8")
            print(f"{path.relative_to(REPOSITORY)}: written")
    if args.check and stale:
        names = ", ".join(str(path.relative_to(REPOSITORY)) for path in stale)
        raise InputError(f"{names}: numbers differ from results/reference; run python -m reproduction.documents")
    return 0

"""Write ood_table: every model at home, where it was trained, and away, where it was not.

    python -m reproduction.ood_table --metrics runs/quick/*/*/*/*/*/metrics*.json --out results/quick/ood_table.md

``metrics@NAME.json`` beside a ``metrics.json`` is the same model away, on NAME. How much pruning hurts is the change in
percent from the dense model of the same seed, at home and away; *worse away by* is the difference of the two, seed by
seed, positive where pruning hurts more away from home.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from attention_pruning import InputError
from reproduction.captions import NAMES, name_of
from reproduction.curves import PANELS, VARIANTS, Panel, baseline, relative, select
from reproduction.results import BASELINES, collect, write_csv
from reproduction.training import atomic_path, run_main

QUESTIONS = Panel("squad", "Questions", "f1", "validation", "F1", "higher", baseline="commonest class")
#: Experiments of the table, in order, and what they are called in it.
TITLES = {
    "language_modelling": "Language modelling",
    "translation": "Translation",
    "glue": "Sentences",
    "squad": "Questions",
}
_PANELS = {panel.experiment: panel for panel in (*PANELS, QUESTIONS)}
_PLACES = ("home", "away")
_SPREAD = ("mean", "low", "high")
COLUMNS = (
    *("config", "experiment", "home", "away", "metric", "split", "variant", "tau", "seeds"),
    *(f"evaluated_{place}" for place in _PLACES),
    *(f"{place}_{what}" for place in _PLACES for what in _SPREAD),
    *(f"change_{place}" for place in _PLACES),
    *(f"worse_away_{what}" for what in _SPREAD),
    *(f"unknown_{place}" for place in _PLACES),
)
#: Share of the tokens that the vocabulary of a language model lacks.
_UNKNOWN = "unknown_share"
_PAIR = ["config", "experiment", "home", "away"]
_KEY = ["variant", "tau", "seed"]


@dataclass(frozen=True)
class Comparison:
    """One dataset and one other: the rows of both.

    Attributes
    ----------
    panel : Panel
        What is compared.
    away_name : str
    home, away : pandas.DataFrame
        What ``curves.select`` returns, baselines among them.
    unknown : tuple of float
        Share of unknown tokens at home and away; nan where nobody counted.
    """

    panel: Panel
    away_name: str
    home: pd.DataFrame
    away: pd.DataFrame
    unknown: tuple[float, float]


def comparisons(table: pd.DataFrame) -> Iterator[Comparison]:
    """Every pair of a dataset and another one that its models were evaluated on, in the order of the table.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``results.COLUMNS``.

    Raises
    ------
    InputError
        If there is none, or a model was evaluated at one of the two places alone.
    """
    found = False
    for experiment in TITLES:
        panel = replace(_PANELS[experiment], averaged=False)
        for dataset, part in table[table["experiment"] == experiment].groupby("dataset"):
            prefix = f"{panel.metric}@"
            names = sorted({metric for metric in part["metric"] if metric.startswith(prefix)})
            for metric in names:
                found = True
                other = metric.removeprefix(prefix)
                home, away = select(part, panel), select(part, replace(panel, metric=metric))
                _check_same_models(home, away, f"{dataset} and {other}")
                unknown = tuple(_share(part, panel.split, name) for name in (_UNKNOWN, f"{_UNKNOWN}@{other}"))
                yield Comparison(panel, other, home, away, unknown)
    if not found:
        raise InputError("expected metrics@NAME.json of models evaluated away from home, found none")


def _check_same_models(home: pd.DataFrame, away: pd.DataFrame, where: str) -> None:
    places = [set(rows.loc[rows["seed"].notna(), _KEY].itertuples(index=False, name=None)) for rows in (home, away)]
    if lacking := sorted(places[0] ^ places[1]):
        variant, tau, seed = lacking[0]
        known = "home" if lacking[0] in places[0] else "away"
        raise InputError(f"{where}: expected {variant}, tau {tau:g}, seed {seed} at both, found it {known} alone")


def _share(rows: pd.DataFrame, split: str, metric: str) -> float:
    values = rows.loc[(rows["metric"] == metric) & (rows["split"] == split), "value"]
    return float(values.iloc[0]) if len(values) else float("nan")


def changes(rows: pd.DataFrame) -> pd.DataFrame:
    """``curves.relative``, but nan where the dense model of a seed scores 0 or less: nothing is a share of that."""
    found = relative(rows)
    dense = rows[rows["variant"] == "dense"].set_index("seed")["value"]
    return found.assign(value=found["value"].where(found["seed"].map(dense).to_numpy(dtype=float) > 0))


def rows_of(compared: Comparison) -> list[dict[str, object]]:
    """Rows of the table: what needs no attention, dense, then every variant and tau."""
    panel = compared.panel
    first = compared.home.iloc[0]
    same = {"config": first["config"], "experiment": panel.experiment, "home": first["dataset"]}
    same |= {"away": compared.away_name, "metric": panel.metric, "split": panel.split}
    same |= dict(zip(("unknown_home", "unknown_away"), compared.unknown, strict=True))
    floor = {f"{place}_mean": baseline(getattr(compared, place)) for place in _PLACES}
    rows = []
    if any(value is not None for value in floor.values()):
        names = pd.concat([compared.home, compared.away])["variant"]
        rows.append({**same, "variant": names[names.isin(BASELINES)].iloc[0], **floor})

    places = {place: getattr(compared, place).dropna(subset="seed").set_index(_KEY).sort_index() for place in _PLACES}
    moved = {place: changes(getattr(compared, place)).set_index(_KEY)["value"].sort_index() for place in _PLACES}
    sign = 1 if panel.better == "lower" else -1
    worse = sign * (moved["away"] - moved["home"])
    for variant in ("dense", *VARIANTS):
        taus = sorted({tau for name, tau, _ in places["home"].index if name == variant})
        for tau in taus:
            row = {**same, "variant": variant, "tau": tau}
            for place in _PLACES:
                part = places[place].loc[(variant, tau)]
                row |= {f"{place}_{what}": value for what, value in _spread(part["value"]).items()}
                row |= {f"evaluated_{place}": part["evaluated_sparsity"].mean(), "seeds": len(part)}
                row[f"change_{place}"] = _spread(moved[place].loc[(variant, tau)])["mean"]
            row |= {f"worse_away_{what}": value for what, value in _spread(worse.loc[(variant, tau)]).items()}
            rows.append(row)
    return rows


def _spread(values: pd.Series) -> dict[str, float]:
    """Mean, lowest and highest seed; nan if one of them is."""
    found = values.to_numpy(dtype=float)
    return {"mean": float(np.mean(found)), "low": float(np.min(found)), "high": float(np.max(found))}


def tabulate(table: pd.DataFrame) -> pd.DataFrame:
    """The whole table, columns :data:`COLUMNS`, what is not known empty."""
    rows = [row for compared in comparisons(table) for row in rows_of(compared)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seeds": "Int64"})


def read_table(path: str | Path) -> pd.DataFrame:
    """Read what `write_csv` wrote of `tabulate`.

    Raises
    ------
    InputError
        If the file is missing or is something else.
    """
    try:
        table = pd.read_csv(path, dtype={"seeds": "Int64"})
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected the table of models away from home, found no such file") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected the table of models away from home, found: {error}") from error
    if tuple(table.columns) != COLUMNS:
        found = ",".join(map(str, table.columns))
        raise InputError(f"{path}: expected the columns {','.join(COLUMNS)}, found {found}")
    return table


def pairs(table: pd.DataFrame) -> list[tuple[Panel, pd.DataFrame]]:
    """The panel and the rows of each pair of home and away, in the order of the table."""
    return [(_PANELS[key[1]], rows) for key, rows in table.groupby(_PAIR, sort=False)]


def pair_table(panel: Panel, rows: pd.DataFrame) -> str:
    """The rows of one pair as a Markdown table, without a line break at its end."""
    metric = f"{name_of(panel)}, {panel.split}"
    scores = f"{metric}, home | away | change, home | away | worse away by"
    lines = [
        f"| model | tau | evaluated, home | away | {scores} | seeds |",
        "|---|---:|---:|---:|---|---|---:|---:|---|---:|",
    ]
    for row in rows.to_dict("records"):
        scores = [_shown(row, place, 2) for place in _PLACES]
        if row["variant"] in BASELINES:
            lines.append(f"| {panel.baseline} | | | | {scores[0]} | {scores[1]} | | | | |")
            continue
        moved = ["" if pd.isna(row[f"change_{place}"]) else f"{row[f'change_{place}']:+.1f}%" for place in _PLACES]
        cells = [
            NAMES[row["variant"]],
            f"{100 * row['tau']:.0f}%",
            *(f"{100 * row[f'evaluated_{place}']:.1f}%" for place in _PLACES),
            *scores,
            *moved,
            _shown(row, "worse_away", 1, "+") if row["tau"] else "",
            f"{row['seeds']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(row: dict[str, float], what: str, places: int, sign: str = "") -> str:
    """A mean, and the lowest and highest seed if they are known and there are two."""
    mean, low, high = (row[f"{what}_{name}"] for name in _SPREAD)
    if pd.isna(mean):
        return ""
    if pd.isna(low) or row["seeds"] < 2:
        return f"{mean:{sign}.{places}f}"
    return f"{mean:{sign}.{places}f} ({low:{sign}.{places}f} to {high:{sign}.{places}f})"


def fails_baseline(panel: Panel, rows: pd.DataFrame) -> str:
    """What is said where not every seed of the dense model beats what needs no attention away; else nothing."""
    floor = rows.loc[rows["variant"].isin(BASELINES), "away_mean"].dropna()
    dense = rows[rows["variant"] == "dense"].iloc[0]
    worst = dense["away_high" if panel.better == "lower" else "away_low"]
    if floor.empty or (worst < floor.iloc[0] if panel.better == "lower" else worst > floor.iloc[0]):
        return ""
    shown = _shown(dense.to_dict(), "away", 1)
    return f"Away the dense model, {shown}, is NOT better than the {panel.baseline}, {floor.iloc[0]:.1f}, in all seeds."


def verdict(panel: Panel, rows: pd.DataFrame) -> str:
    """Where data-informed pruning hurts more: ``away``, ``home``, ``mixed``, ``unclear``, or ``untold``.

    A tau counts where all seeds agree. There is no telling where a seed of the dense model classifies no better than
    by chance, below which nothing falls, or scores nothing.
    """
    data = rows[rows["variant"] == "data"]
    if data["worse_away_mean"].isna().any() or (panel.experiment == "glue" and fails_baseline(panel, rows)):
        return "untold"
    away, home = (data["worse_away_low"] > 0).any(), (data["worse_away_high"] < 0).any()
    return {(True, False): "away", (False, True): "home", (True, True): "mixed"}.get((away, home), "unclear")


def pair_found(panel: Panel, rows: pd.DataFrame) -> str:
    """A paragraph about one pair, worked out from its rows."""
    text = []
    first, data = rows.iloc[0], rows[rows["variant"] == "data"]
    if pd.notna(first["unknown_away"]):
        shares = f"{100 * first['unknown_home']:.1f}% of the tokens at home and {100 * first['unknown_away']:.1f}% away"
        text.append(f"Unknown to the vocabulary: {shares}.")
    if caveat := fails_baseline(panel, rows):
        text.append(caveat)
    if verdict(panel, rows) == "untold":
        return " ".join([*text, "What pruning costs such a model there cannot be told."])
    sign = 1 if panel.better == "lower" else -1
    home, away = (sign * data[f"change_{place}"].mean() for place in _PLACES)
    text.append(
        f"Averaged over the taus of data-informed masks, pruning makes {name_of(panel)} {_worse(home)} at home and "
        f"{_worse(away)} away."
    )
    more, less = data["worse_away_low"] > 0, data["worse_away_high"] < 0
    parts = {"it costs more away": more, "it costs less away": less, "seeds do not agree": ~more & ~less}
    found = "; ".join(f"{what} at {_taus(data[chosen])}" for what, chosen in parts.items() if chosen.any())
    text.append(f"{found.capitalize()} ({_chance(data)}).")
    return " ".join(text)


def _chance(data: pd.DataFrame) -> str:
    """How much it means that all seeds agree."""
    seeds = int(data["seeds"].min())
    return f"{seeds} seeds agree by chance in {100 * 2 ** (1 - seeds):.0f}% of rows" if seeds > 1 else "one seed only"


def _worse(change: float) -> str:
    return f"{abs(change):.1f}% {'worse' if change >= 0 else 'better'}"


def _taus(rows: pd.DataFrame) -> str:
    return ", ".join(f"{100 * tau:.0f}%" for tau in rows["tau"])


def all_found(table: pd.DataFrame) -> str:
    """One answer from all pairs: does pruning hurt more away from home?"""
    words = {
        "away": "more away in {}",
        "home": "less away in {}",
        "mixed": "more at some taus and less at others in {}",
        "unclear": "neither more nor less as far as all seeds agree in {}",
        "untold": "by what cannot be told in {}",
    }
    verdicts: dict[str, list[str]] = {kind: [] for kind in words}
    doubtful, single = [], []
    for panel, rows in pairs(table):
        name = f"{rows['home'].iloc[0]} to {rows['away'].iloc[0]}"
        verdicts[verdict(panel, rows)].append(name)
        doubtful += [name] if fails_baseline(panel, rows) else []
        single += [name] if rows["seeds"].max() == 1 else []
    found = [f"{words[kind].format(len(names))} ({', '.join(names)})" for kind, names in verdicts.items() if names]
    total = sum(map(len, verdicts.values()))
    several = f"{total} pair{'s' if total > 1 else ''}"
    answer = f"Does pruning hurt more away from home? Of {several}, data-informed pruning hurts {'; '.join(found)}."
    if doubtful:
        answer += f" Away, not every seed of the dense model beats what needs no attention in: {', '.join(doubtful)}."
    return answer + (f" One seed only: {', '.join(single)}." if single else "")


def titled(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Title, Markdown table and paragraph of each pair."""
    found = []
    for panel, rows in pairs(table):
        title = f"{TITLES[panel.experiment]}: {rows['home'].iloc[0]} to {rows['away'].iloc[0]}"
        found.append((title, pair_table(panel, rows), pair_found(panel, rows)))
    return found


def as_markdown(table: pd.DataFrame) -> str:
    """The table, a part for each pair, with what it says in words first."""
    parts = ["# Away from home", all_found(table)]
    for title, shown, words in titled(table):
        parts += [f"## {title}", shown, words]
    parts.append(
        "Every model was trained at home alone, and is the same at both places. Scores are means over seeds with the "
        "lowest and the highest in brackets; a change is in percent of the dense model of the same seed; *worse away "
        "by* is how many percentage points more pruning costs away than at home, seed by seed. A pair counts as more "
        "or less if all seeds agree at some tau and at no tau on the contrary."
    )
    return "\n\n".join(parts) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.ood_table", description="Write the table of models at home and away."
    )
    add = parser.add_argument
    add("--metrics", type=Path, nargs="+", required=True, help="metrics.json and metrics@NAME.json of runs")
    add("--config-name", help="refuse runs of another configuration than this one (default: accept all)")
    add("--out", type=Path, required=True, help="table to write (.md); .csv goes beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    if args.out.suffix != ".md":
        raise InputError(f"--out: expected a name that ends in .md, found {args.out}")
    table = tabulate(collect(args.metrics, args.config_name))
    with atomic_path(args.out) as temporary:
        temporary.write_text(as_markdown(table), encoding="utf-8")
    write_csv(table, args.out.with_suffix(".csv"))
    print(f"{args.out}: {len(pairs(table))} pairs of home and away\n{all_found(table)}")
    return 0


if __name__ == "__main__":
    run_main(main)

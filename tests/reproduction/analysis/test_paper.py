"""Ours beside the paper's: the same changes as in the figure."""

from __future__ import annotations

import pandas as pd
import pytest

from reproduction.analysis.curves import ACCURACY, PANELS, changes, select
from reproduction.analysis.paper import REFERENCE, comparison, published, read_reference
from reproduction.analysis.table import COLUMNS

SHARES = ("effective_sparsity", "evaluated_sparsity", "block_sparsity")


def made_up() -> pd.DataFrame:
    """Each experiment's value is 50 when dense, and 2 seed tau less when pruned."""
    rows = []
    for panel in (*PANELS, ACCURACY):
        common = {"config": "quick", "experiment": panel.experiment, "dataset": "d", "split": panel.split}
        common |= {"metric": panel.metric, "sites": panel.sites or "self"}
        for seed in (1, 2):
            dense = {"variant": "dense", "tau": 0.0, "seed": seed, "value": 50.0 / panel.scale}
            rows.append(common | dense | dict.fromkeys(SHARES, 0.0))
            for tau in (0.4, 0.9):
                labels = {"variant": "data", "rule": "published", "block_size": 1, "tau": tau, "seed": seed}
                rows.append(
                    common | labels | dict.fromkeys(SHARES, tau / 2) | {"value": (50 - 2 * seed * tau) / panel.scale}
                )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seed": "Int64", "block_size": "Int64"})


def test_the_table_joins_both_at_every_tau_of_either() -> None:
    table = comparison(made_up(), read_reference(REFERENCE))
    for panel in PANELS:
        rows = table[table["experiment"] == panel.experiment].set_index("percent")
        assert list(rows.index) == [0, 20, 40, 60, 80, 90]
        # two points of the dense model's 50 are four percent of it
        of_seeds = [-2.4, -3.2, -1.6] if panel.unit == "percent" else [-1.2, -1.6, -0.8]
        assert rows.loc[40, ["change", "low", "high", "effective"]].tolist() == pytest.approx([*of_seeds, 20])
        paper = published(read_reference(REFERENCE), panel).set_index("percent")["change"]
        assert rows["published_change"].dropna().to_dict() == pytest.approx(paper.to_dict())
        assert rows["change"].isna().tolist() == [False, True, False, True, True, False]


def test_accuracy_stands_beside_the_published_accuracy_and_points_beside_points() -> None:
    """The published curve of panel (c) is a mean accuracy; a GLUE score has correlations in it."""
    table = made_up()
    table.loc[table["metric"] == "glue_score", "value"] *= 0.01
    found = comparison(table, read_reference(REFERENCE)).query("experiment == 'glue'").set_index("percent")
    assert set(found["metric"]) == {"accuracy"} and set(found["unit"]) == {"points"}
    assert found.loc[[0, 40, 80], "published_change"].tolist() == pytest.approx([0, -2.46, -10.68])
    assert found.loc[40, "change"] == pytest.approx(-1.2)
    # a score near zero has a change in points, and no percent of next to nothing
    near = select(table, PANELS[2])
    near = near.assign(value=near["value"].where(near["tau"] > 0, 0.001))
    assert changes(near, "points").query("tau > 0")["value"].abs().max() < 1

"""The table that chooses a backend is the one that was measured."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from attention_pruning.ops import choice
from attention_pruning.ops.cpu import native

MEASURED = Path(__file__).resolve().parents[2] / "results" / "reference" / "benchmarks" / "backend_costs.csv"


def measured(build, what):
    """The greater of forward and forward+backward by size, rounded up to twentieths."""
    table = pd.read_csv(MEASURED)
    rows = table[(table["build"] == build) & (table["what"] == what)]
    return {int(at): math.ceil(20 * ratio - 1e-9) / 20 for at, ratio in rows.groupby("at")["ratio"].max().items()}


@pytest.mark.parametrize("build", native.BUILDS)
def test_costs_are_those_that_were_measured(build):
    whole, cells = choice.COSTS[build]
    assert whole == pytest.approx(measured(build, "whole"))
    assert cells == pytest.approx(measured(build, "cells"))
    whole, cells = choice.RELATIVE_COSTS[build]
    assert whole == pytest.approx(measured(build, "relative whole"))
    assert cells == pytest.approx(measured(build, "relative cells"))


def test_few_queries_cost_what_was_measured():
    assert pytest.approx(measured("avx512", "queries"), rel=0.1) == choice.FEW_QUERIES


@pytest.mark.parametrize("build", native.BUILDS)
def test_kept_keys_of_few_queries_cost_what_was_measured(build):
    own, shared = choice.KEPT_KEYS_COSTS[build]
    assert own == pytest.approx(measured(build, "kept keys"))
    assert shared == pytest.approx(measured(build, "kept keys, shared"))


@pytest.mark.parametrize("build", native.BUILDS)
def test_cells_of_few_keys_are_left_to_torch_up_to_where_the_kernel_is_about_as_fast(build):
    table = pd.read_csv(MEASURED)
    rows = table[(table["build"] == build) & (table["what"] == "keys")].groupby("at")["ratio"].max()
    slower = rows[rows > 1.1].index.max()
    assert choice.LEAST_KEYS_CELLS[build] == min(at for at in rows.index if not at <= slower)


@pytest.mark.parametrize("build", native.BUILDS)
def test_few_keys_with_a_relative_term_cost_what_was_measured(build):
    many = measured(build, "relative cells")[16]
    few = {at: max(1.0, ratio / many) for at, ratio in measured(build, "relative keys").items()}
    assert pytest.approx(few, rel=0.05) == {at: choice.RELATIVE_FEW_KEYS[build][at] for at in few}
    assert list(choice.RELATIVE_FEW_KEYS[build])[-1] == 1024  # the number of keys of all other rows

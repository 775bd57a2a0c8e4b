"""Paired differences: only seeds that both models have count, and n of them decide what is said."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from attention_pruning import InputError
from reproduction.analysis.stats import Difference, named_seeds, on_common_seeds, paired, t_interval


def rows(variant: str, values: dict[int, float], tau: float = 0.8) -> pd.DataFrame:
    found = [{"variant": variant, "sites": "self", "tau": tau, "seed": seed, "value": v} for seed, v in values.items()]
    return pd.DataFrame(found).astype({"seed": "Int64"})


#: Three seeds of one beside two of the other, of which the third is far off.
DISTANCE, WINDOW = rows("distance", {1: 176.0, 2: 174.8, 3: 172.7}), rows("window", {2: 176.8, 1: 177.6})


def test_only_common_seeds_enter_a_difference() -> None:
    found = paired(DISTANCE, WINDOW)
    assert found.seeds == (1, 2) and found.values == pytest.approx((-1.6, -2.0))
    assert found.mean == pytest.approx(-1.8), "of all seeds it would be -2.7"
    assert paired(WINDOW, DISTANCE).values == pytest.approx((1.6, 2.0))
    with pytest.raises(InputError, match="expected distance and window of the same seed, found none"):
        paired(DISTANCE[DISTANCE["seed"] == 3], WINDOW)
    with pytest.raises(InputError, match="expected one row of window a seed, found several of seed 2"):
        paired(DISTANCE, pd.concat([WINDOW, WINDOW[:1]]))


def test_a_comparison_has_the_seeds_that_all_of_its_models_have() -> None:
    counted = pd.DataFrame([{"variant": "kneser-ney", "value": 267.0}])
    other_tau = rows("distance", {1: 180.0, 2: 181.0, 3: 182.0, 4: 183.0}, tau=0.9)
    found = on_common_seeds(pd.concat([DISTANCE, other_tau, WINDOW, counted], ignore_index=True))
    assert found.groupby(["variant", "tau"])["seed"].apply(set).tolist() == [{1, 2}] * 3
    assert (found["variant"] == "kneser-ney").sum() == 1
    assert named_seeds(found) == "seeds 1, 2" and named_seeds(found[found["seed"] == 2]) == "seed 2"
    with pytest.raises(InputError, match="expected a seed that all of distance, window have, found none"):
        on_common_seeds(pd.concat([DISTANCE[DISTANCE["seed"] == 3], WINDOW]))


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=8))
@settings(deadline=None)
def test_the_interval_is_that_of_student(values: list[float]) -> None:
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95) if len(set(values)) > 1 else (values[0],) * 2
    assert t_interval(values) == pytest.approx((low, high), rel=1e-9, abs=1e-6)


def test_fewer_than_three_seeds_have_no_interval_and_are_all_shown() -> None:
    assert t_interval([1.0, 2.0]) is None
    assert Difference((1,), (0.5,)).told() == "+0.50 (1 seed)"
    assert Difference((1, 2), (-1.0, -2.0)).told() == "-1.50 (-1.00, -2.00; 2 seeds)"
    # the mean 2, a standard error of 1 / sqrt(3), and 4.303 of them to either side
    assert Difference((1, 2, 3), (1.0, 2.0, 3.0)).told() == "+2.00 (95% CI -0.48 to +4.48; 3 seeds)"
    assert Difference((1, 2, 3), (1.0, 2.0, 3.0)).told(1) == "+2.0 (95% CI -0.5 to +4.5; 3 seeds)"

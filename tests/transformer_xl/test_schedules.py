"""Laws of the learning-rate schedules."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedules import SCHEDULES, learning_rate
from tiny_xl import law


@st.composite
def plans(draw):
    max_step = draw(st.integers(2, 300))
    lr = draw(st.floats(1e-5, 10))
    eta_min = lr * draw(st.sampled_from([0.0, 0.1, 0.9]))
    return {"lr": lr, "warmup_step": draw(st.integers(0, max_step - 1)), "max_step": max_step, "eta_min": eta_min}


every_schedule = pytest.mark.parametrize("scheduler", SCHEDULES)


@every_schedule
@law
@given(plan=plans())
def test_warm_up_is_a_line_from_zero(scheduler, plan):
    assert learning_rate(0, scheduler=scheduler, **{**plan, "warmup_step": 7}) == 0.0
    for step in range(1, plan["warmup_step"]):
        peak = plan["lr"] * (plan["warmup_step"] ** -0.5 if scheduler == "inv_sqrt" else 1)
        expected = peak * step / plan["warmup_step"]
        assert learning_rate(step, scheduler=scheduler, **plan) == pytest.approx(expected)


@every_schedule
@law
@given(plan=plans())
def test_after_the_warm_up_it_never_rises(scheduler, plan):
    steps = range(max(plan["warmup_step"], 1), plan["max_step"] + 10)
    rates = [learning_rate(step, scheduler=scheduler, **plan) for step in steps]
    assert all(later <= earlier for earlier, later in zip(rates, rates[1:], strict=False))
    assert 0 < rates[0] <= plan["lr"] and min(rates) >= 0


@law
@given(plans(), st.data())
def test_equal_to_their_formulas(plan, data):
    step = data.draw(st.integers(max(plan["warmup_step"], 1), plan["max_step"]))
    rates = {name: learning_rate(step, scheduler=name, **plan) for name in SCHEDULES}
    lr, eta_min, share = plan["lr"], plan["eta_min"], step / plan["max_step"]
    assert rates["constant"] == lr
    assert rates["linear"] == pytest.approx(lr - (lr - eta_min) * share)
    assert rates["cosine"] == pytest.approx(eta_min + (lr - eta_min) * (1 + math.cos(math.pi * share)) / 2)


@law
@given(plans(), st.integers(0, 400))
def test_inv_sqrt_is_the_published_one(plan, step):
    """Their multiplier of lr."""
    warmup = plan["warmup_step"]
    late = 1.0 if step == 0 else 1.0 / (step**0.5)
    multiplier = late if step > warmup or warmup == 0 else step / (warmup**1.5)
    assert learning_rate(step, scheduler="inv_sqrt", **plan) == pytest.approx(plan["lr"] * multiplier)


@pytest.mark.parametrize("scheduler", ["cosine", "linear"])
@law
@given(plan=plans())
def test_the_end_is_eta_min(scheduler, plan):
    for step in (plan["max_step"], plan["max_step"] + 50):
        rate = learning_rate(step, scheduler=scheduler, **plan)
        assert rate == pytest.approx(plan["eta_min"], abs=1e-12 * plan["lr"])


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="dev_perf"):
        learning_rate(1, scheduler="dev_perf", lr=1.0, warmup_step=0, max_step=10)

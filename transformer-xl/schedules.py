"""Learning-rate schedules of Transformer-XL's training, as pure functions of the step."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "inv_sqrt", "linear", "constant")
#: Those that end at ``eta_min``.
FALLING_SCHEDULES = ("cosine", "linear")


def learning_rate(
    step: int, *, scheduler: str, lr: float, warmup_step: int, max_step: int, eta_min: float = 0.0
) -> float:
    """Learning rate of a step.

    Parameters
    ----------
    step : int
        1 for the first update.
    scheduler : {"cosine", "inv_sqrt", "linear", "constant"}
        "cosine" and "linear" fall to ``eta_min`` at ``max_step``; "inv_sqrt" is ``lr / sqrt(step)``, as in the
        published implementation: its peak, at the end of the warm-up, is ``lr / sqrt(warmup_step)``.
    lr : float
        The peak of the others.
    warmup_step : int
        Steps of linear growth from 0 to the peak.

    Raises
    ------
    ValueError
        For an unknown schedule.
    """
    if scheduler not in SCHEDULES:
        raise ValueError(f"scheduler: expected one of {SCHEDULES}, found {scheduler!r}")
    if scheduler == "inv_sqrt":
        lr /= math.sqrt(max(step, warmup_step, 1))
    if step < warmup_step:
        return lr * step / warmup_step
    if scheduler in ("constant", "inv_sqrt"):
        return lr
    done = min(step / max_step, 1.0)
    if scheduler == "linear":
        return eta_min + (lr - eta_min) * (1.0 - done)
    return eta_min + (lr - eta_min) * 0.5 * (1.0 + math.cos(math.pi * done))

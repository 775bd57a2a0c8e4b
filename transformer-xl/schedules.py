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
        "cosine" and "linear" fall to ``eta_min`` at ``max_step``; "inv_sqrt" falls as 1/sqrt(step) from the end of
        the warm-up (Vaswani et al., 2017).
    lr : float
        The peak.
    warmup_step : int
        Steps of linear growth from 0.

    Raises
    ------
    ValueError
        For an unknown schedule.
    """
    if scheduler not in SCHEDULES:
        raise ValueError(f"scheduler: expected one of {SCHEDULES}, found {scheduler!r}")
    if step < warmup_step:
        return lr * step / warmup_step
    if scheduler == "constant":
        return lr
    if scheduler == "inv_sqrt":
        return lr * math.sqrt(max(warmup_step, 1) / max(step, 1))
    done = min(step / max_step, 1.0)
    if scheduler == "linear":
        return eta_min + (lr - eta_min) * (1.0 - done)
    return eta_min + (lr - eta_min) * 0.5 * (1.0 + math.cos(math.pi * done))

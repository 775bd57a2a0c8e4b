"""What a GPU cannot do faster: the arithmetic of kept blocks at its peak, or its memory read and written once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """Peaks of a GPU as its maker gives them: operations a second by bytes of a number, bytes a second of memory."""

    operations: dict[int, float]
    bytes_a_second: float


#: 16 bits on tensor cores without sparsity of weights, float32 beside them.
CARDS = {
    "H100 PCIe": Card({2: 756e12, 4: 51e12}, 2.0e12),
    "H100": Card({2: 989e12, 4: 67e12}, 3.35e12),
    "H200": Card({2: 989e12, 4: 67e12}, 4.8e12),
    "A100": Card({2: 312e12, 4: 19.5e12}, 2.0e12),
}


def seconds(name: str, kept_scores: int, size: int, rows: int, bytes_each: int, gradients: bool) -> float | None:
    """The shortest time of a call, or None on a GPU that is not in :data:`CARDS`.

    Parameters
    ----------
    name : str
        Of the GPU.
    kept_scores : int
        Scores that are computed, over batch and heads.
    size : int
        Numbers of a head.
    rows : int
        Rows of queries over batch and heads; there are as many of keys and of values.
    bytes_each : int
        Of a number.
    gradients : bool
        Whether the backward pass follows: five products for each score instead of two, in addition.
    """
    card = next((card for part, card in CARDS.items() if part in name), None)
    if card is None:
        return None
    products, passes = (7, 12) if gradients else (2, 4)  # q k v out; then q k v out g, and gradients of three
    arithmetic = 2.0 * products * kept_scores * size / card.operations[bytes_each]
    return max(arithmetic, passes * rows * size * bytes_each / card.bytes_a_second)

"""Block-sparse attention inside a model: the calls that a backend computes, with the meaning of ``masked_attention``.

A model makes calls of every kind; those that a backend cannot compute are left to the masked attention beside it.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import InputError
from . import BlockLayout, block_sparse_attention
from .attention import BACKENDS
from .call import Call
from .cpu import native
from .layout import BLOCK_SIZES

__all__ = ["BACKENDS", "attend_blocks", "has_layout", "require_blocks"]


def has_layout(backend: str, block_size: int) -> bool:
    """Whether a backend computes whole blocks of this side at all."""
    return backend != "reference" and block_size in BLOCK_SIZES


def require_blocks(backend: str, block_size: int, source: str) -> None:
    """Refuse a backend that can compute no call under a mask; "auto" and "reference" compute every one.

    Raises
    ------
    InputError
    """
    if backend in ("block_sparse", "flex") and not has_layout(backend, block_size):
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise InputError(f"{source}: expected a block_size of {sizes} for backend {backend}, found {block_size}")


def attend_blocks(
    q_BHLD: Tensor,
    k_BHSD: Tensor,
    v_BHSD: Tensor,
    layout: BlockLayout,
    backend: str,
    *,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor | None:
    """``block_sparse_attention`` where the backend computes this call, its empty rows uniform; None where not.

    The device, the dtype and dropout decide; "auto" computes all of them, by what is fastest.
    """
    call = (q_BHLD, k_BHSD, v_BHSD, layout)
    options = {"key_padding_mask": key_padding_mask, "dropout_p": dropout_p, "scale": scale, "bias": bias}
    if backend != "auto" and _refused(Call.check(*call, **options, causal=False, dropout_seed=0), backend):
        return None
    return block_sparse_attention(*call, **options, empty_rows="uniform", backend=backend)


def _refused(call: Call, backend: str) -> bool:
    if backend == "flex":
        from . import flex  # slow to import

        return flex.refusal(call) is not None
    return native.refusal(call) is not None

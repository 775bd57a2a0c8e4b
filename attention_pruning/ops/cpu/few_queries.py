"""Few queries over the keys of a cache on a CPU, as an operator of torch: forward only, kept keys alone are read.

Letters in names: B batch, H heads, G heads of keys and values, L queries, S keys, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from ..layer_mask import LayerMask
from ..memory import empty_like, four_axes, rows_dense
from . import native
from .native import FewSettings, Inputs
from .op import LIBRARY, check_call


def few_queries(
    q_BHLD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    mask: LayerMask,
    *,
    causal: bool,
    query_offset: int = 0,
    starts: Tensor | None = None,
    columns: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    bias: Tensor | None = None,
    relative: tuple[Tensor, Tensor] | None = None,
    scale: float,
) -> Tensor:
    """Attention of a few queries under a mask, cell by cell, by the compiled kernel; rows left empty attend uniformly.

    Without gradients and dropout. Time falls with the keys that the rows of these queries keep, single or in blocks.

    Parameters
    ----------
    q_BHLD, k_BGSD, v_BGSD, causal, key_padding_mask, bias, relative, scale
        As in ``op.block_sparse``.
    mask : LayerMask
        H heads, at least ``query_offset`` + L queries.
    query_offset : int
        The row of the mask that query 0 is.
    starts : Tensor, optional
        int32 [B]: sequences that begin with so many keys of padding: the key behind them is in column 0, the query with
        its number in row 0. Causal attention alone, as all that follows.
    columns : Tensor, optional
        int32 [B, G, S]: the column of each key, in any order; -1 for none: nobody sees it. Neither with a bias nor with
        a relative term.

    Returns
    -------
    Tensor
        [B, H, L, D], in the order of memory of the queries.

    Raises
    ------
    InputError
        For shapes and dtypes that are none of these, and without a compiled kernel.
    """
    queries, keys = query_offset + q_BHLD.shape[2], k_BGSD.shape[2]
    if queries > mask.query_length or (columns is None and keys > mask.key_length):
        found = f"{mask.query_length} and {mask.key_length}"
        raise InputError(f"mask: expected at least {queries} queries and {keys} keys, found {found}")
    # The operator is for graphs; outside of one it would cost as much as the kernel does for a short cache.
    compute = torch.ops.attention_pruning.few_queries if torch.compiler.is_compiling() else _forward
    return compute(
        q_BHLD,
        k_BGSD,
        v_BGSD,
        None if bias is None else four_axes(bias),
        *((None, None) if relative is None else relative),
        key_padding_mask,
        row_bits(mask),
        starts,
        columns,
        mask.block_size,
        query_offset,
        query_offset + mask.key_length - mask.query_length if causal else None,
        scale,
    )


def row_bits(mask: LayerMask) -> Tensor:
    """uint8 [H, rows of blocks, whole words of 64 bits]: what a mask keeps, one bit a block, the lowest first."""
    return mask.row_bits


# A constant of the mask: while torch.compile makes a graph it is made, instead of being traced.
row_bits._dynamo_marked_constant = True

LIBRARY.define(
    "few_queries(Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? q_position, Tensor? position_keys, "
    "Tensor? key_padding_mask, Tensor bits, Tensor? starts, Tensor? columns, "
    "int block_size, SymInt query_offset, SymInt? shift, float scale) -> Tensor"
)


def _forward(*arguments: Tensor | float | None) -> Tensor:
    count = len(Inputs._fields)
    inputs, settings = Inputs(*arguments[:count]), FewSettings(*arguments[count:])
    _check(inputs, settings)
    if any(x is not None and x.stride(-1) != 1 for x in inputs):
        relative = (x if x is None else rows_dense(x) for x in inputs[4:])
        inputs = Inputs(*map(rows_dense, inputs[:3]), inputs.bias, *relative)
    out = empty_like(inputs.q)
    if out.numel():
        native.few_queries(inputs, out, settings)
    return out


def _check(inputs: Inputs, settings: FewSettings) -> None:
    """Refuse what would lead the kernel out of its arrays."""
    check_call(inputs, settings)
    batch, heads = inputs.q.shape[:2]
    bits, starts, columns = settings.bits, settings.starts, settings.columns
    if bits.dtype != torch.uint8 or bits.ndim != 3 or len(bits) != heads or not bits.is_contiguous():
        raise InputError(f"bits: expected contiguous bytes of {heads} heads, found {bits.dtype} of {list(bits.shape)}")
    if starts is not None and (starts.dtype != torch.int32 or list(starts.shape) != [batch] or starts.stride(0) != 1):
        raise InputError(f"starts: expected int32 [{batch}], found {starts.dtype} of {list(starts.shape)}")
    shape = [batch, *inputs.k.shape[1:3]]
    if columns is not None and (
        columns.dtype != torch.int32 or list(columns.shape) != shape or (shape[2] > 1 and columns.stride(2) != 1)
    ):
        raise InputError(f"columns: expected int32 {shape}, found {columns.dtype} of {list(columns.shape)}")


LIBRARY.impl("few_queries", _forward, "CPU")
torch.library.register_fake("attention_pruning::few_queries", lambda q, *_: empty_like(rows_dense(q)), lib=LIBRARY)

"""What each kernel is given: from the arguments of the operator to launches.

Letters in names: B batch, H heads, G heads of keys and values, L queries, S keys, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...structure import block_count
from .backward_keys import backward_keys
from .backward_queries import backward_queries
from .configurations import Configuration, configuration
from .forward import forward
from .launch import Launch, alike, launch_of, on_device_of


class Inputs(NamedTuple):
    """The tensors of a call that have gradients. Their last axes are contiguous, but for that of the bias.

    Attributes
    ----------
    position, position_keys : Tensor or None
        [B, H, L, D] and [H, S, D]: both, or neither without a relative term.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    position: Tensor | None
    position_keys: Tensor | None


class Settings(NamedTuple):
    """What a call says beside, all tensors on the device of the queries.

    Attributes
    ----------
    key_padding_mask : Tensor or None
        bool [B, S], contiguous.
    dropout_seed : Tensor or None
        int64 ().
    row_bounds, columns, row_parts, column_bounds, rows, column_parts, bits : Tensor
        See ``block_lists``.
    block_size : int
    in_part : bool
        Whether there are bits.
    may_be_empty : bool
        Whether a row may keep nothing that it sees.
    query_offset : int
        The row of the layout that query 0 is.
    shift : int or None
        Query i sees key j <= i + shift; None: it sees all.
    """

    key_padding_mask: Tensor | None
    dropout_seed: Tensor | None
    row_bounds: Tensor
    columns: Tensor
    row_parts: Tensor
    column_bounds: Tensor
    rows: Tensor
    column_parts: Tensor
    bits: Tensor
    block_size: int
    in_part: bool
    may_be_empty: bool
    query_offset: int
    shift: int | None
    scale: float
    dropout_p: float


class Gradients(NamedTuple):
    """Where gradients go: as the inputs; of the bias and of position keys float32 in their shapes, zeros, or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    position: Tensor | None
    position_keys: Tensor | None


def run_forward(inputs: Inputs, settings: Settings, out: Tensor, log_sum: Tensor) -> None:
    """Fill the output, in the shape of the queries, and the log-sum-exp, float32 [B, H, L]."""
    precision = _precision(inputs.q)
    key = ("forward", alike(*inputs, settings.key_padding_mask, out), _fixed(settings), precision)
    launch = launch_of(key, lambda: _make_forward(inputs, settings, out, precision))
    q, k, v, *added = inputs
    with on_device_of(q):
        launch(
            *(q, k, v, out, log_sum, *added, settings.key_padding_mask, settings.dropout_seed),
            *(settings.row_bounds, settings.columns, settings.row_parts, settings.bits),
        )


def run_backward(
    inputs: Inputs, settings: Settings, gradient: Tensor, out: Tensor, log_sum: Tensor, to: Gradients
) -> None:
    """Fill the gradients. The second kernel needs what the first has found for each row."""
    precision = _precision(inputs.q)
    key = (alike(*inputs, settings.key_padding_mask, gradient, out, *to), _fixed(settings), precision)
    of_queries = launch_of(("queries", *key), lambda: _make_queries(inputs, settings, gradient, out, to, precision))
    of_keys = launch_of(("keys", *key), lambda: _make_keys(inputs, settings, gradient, to, precision))
    row_term = torch.empty_like(log_sum)
    q, k, v, *added = inputs
    masks = settings.key_padding_mask, settings.dropout_seed
    with on_device_of(q):
        of_queries(
            *(q, k, v, out, gradient, log_sum, row_term, to.q, to.bias, to.position, to.position_keys, *added, *masks),
            *(settings.row_bounds, settings.columns, settings.row_parts, settings.bits),
        )
        of_keys(
            *(q, k, v, gradient, log_sum, row_term, to.k, to.v, *added, *masks),
            *(settings.column_bounds, settings.rows, settings.column_parts, settings.bits),
        )


def _make_forward(inputs: Inputs, settings: Settings, out: Tensor, precision: str) -> Launch:
    chosen = _chosen("forward", inputs, settings)
    q, k, v, bias, *_ = inputs
    numbers = (*_strides(q, k, v, out), *_bias_strides(bias), *_position_strides(inputs))
    numbers += _numbers(inputs, settings, settings.row_bounds)
    constants = (*_shape(inputs, settings, chosen), *_kinds(inputs, settings), inputs.position is not None)
    constants += (*_row_kinds(settings), precision)
    programs = _query_programs(inputs, settings, chosen.queries)
    return Launch(forward, programs, numbers + constants, chosen.warps, chosen.stages)


def _make_queries(
    inputs: Inputs, settings: Settings, gradient: Tensor, out: Tensor, to: Gradients, precision: str
) -> Launch:
    chosen = _chosen("queries", inputs, settings)
    q, k, v, bias, *_ = inputs
    numbers = (*_strides(q, k, v, out, gradient, to.q), *_bias_strides(bias), *_bias_strides(to.bias))
    numbers += (*_position_strides(inputs), *((0, 0, 0) if to.position is None else _strides(to.position)))
    numbers += _numbers(inputs, settings, settings.row_bounds)
    by = (False, False) if to.bias is None else (to.bias.shape[2] > 1, to.bias.shape[3] > 1)
    constants = (*_shape(inputs, settings, chosen), *_kinds(inputs, settings), to.bias is not None, *by)
    constants += (inputs.position is not None, *_row_kinds(settings), precision)
    programs = _query_programs(inputs, settings, chosen.queries)
    return Launch(backward_queries, programs, numbers + constants, chosen.warps, chosen.stages)


def _make_keys(inputs: Inputs, settings: Settings, gradient: Tensor, to: Gradients, precision: str) -> Launch:
    chosen = _chosen("keys", inputs, settings)
    q, k, v, bias, *_ = inputs
    numbers = (*_strides(q, k, v, gradient, to.k, to.v), *_bias_strides(bias), *_position_strides(inputs))
    numbers += _numbers(inputs, settings, settings.column_bounds)
    constants = (*_shape(inputs, settings, chosen), *_kinds(inputs, settings), inputs.position is not None)
    constants += (*_row_kinds(settings), precision)
    batch, kv_heads, keys, _ = k.shape
    programs = batch * kv_heads * block_count(keys, chosen.keys)
    return Launch(backward_keys, programs, numbers + constants, chosen.warps, chosen.stages)


def _chosen(kernel: str, inputs: Inputs, settings: Settings) -> Configuration:
    q, relative = inputs.q, inputs.position is not None
    return configuration(kernel, q.dtype, _width(q.shape[-1]), settings.block_size, q.device, relative)


def _query_programs(inputs: Inputs, settings: Settings, tile: int) -> int:
    batch, heads, queries, _ = inputs.q.shape
    first = settings.query_offset // tile
    return batch * heads * (block_count(settings.query_offset + queries, tile) - first)


def _width(size: int) -> int:
    """Numbers of a head in a tile: a power of two, and enough for a product."""
    return max(16, 1 << (size - 1).bit_length())


def _fixed(settings: Settings) -> tuple:
    """What beside the tensors of a call decides its launch: what is no tensor, and how many rows of blocks it has."""
    return *settings[_FIRST_NUMBER:], settings.row_bounds.shape[1], settings.column_bounds.shape[1]


_FIRST_NUMBER = Settings._fields.index("block_size")


def _shape(inputs: Inputs, settings: Settings, chosen: Configuration) -> tuple[int, ...]:
    """GROUP, SIZE, WIDE, BLOCK, M, N of a kernel's signature."""
    group, size = inputs.q.shape[1] // inputs.k.shape[1], inputs.q.shape[3]
    return group, size, _width(size), settings.block_size, chosen.queries, chosen.keys


def _kinds(inputs: Inputs, settings: Settings) -> tuple[bool, ...]:
    """CAUSAL, PADDED, BIASED."""
    return settings.shift is not None, settings.key_padding_mask is not None, inputs.bias is not None


def _row_kinds(settings: Settings) -> tuple[bool, ...]:
    """IN_PART, DROPS, MAY_BE_EMPTY."""
    return settings.in_part, settings.dropout_p > 0.0, settings.may_be_empty


def _numbers(inputs: Inputs, settings: Settings, bounds: Tensor) -> tuple[float, ...]:
    """heads, queries, keys, first_row, row_blocks (or key_blocks), shift, scale, dropout of a kernel's signature."""
    lengths = *inputs.q.shape[1:3], inputs.k.shape[2]
    return *lengths, settings.query_offset, bounds.shape[1], settings.shift or 0, settings.scale, settings.dropout_p


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """By batch, head and row, of each."""
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def _bias_strides(bias: Tensor | None) -> tuple[int, ...]:
    """0 for an axis along which it is broadcast."""
    if bias is None:
        return 0, 0, 0, 0
    return tuple(0 if size == 1 else stride for size, stride in zip(bias.shape, bias.stride(), strict=True))


def _position_strides(inputs: Inputs) -> tuple[int, ...]:
    """Of the positions of queries by batch, head and row; of position keys by head and row."""
    if inputs.position is None:
        return 0, 0, 0, 0, 0
    return *inputs.position.stride()[:3], *inputs.position_keys.stride()[:2]


def _precision(q: Tensor) -> str:
    """How products of float32 are computed: as torch is told to."""
    if q.dtype != torch.float32:
        return "ieee"
    # Since torch 2.9 this tells what was set in either of two ways; the older question fails after the newer way.
    told = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    tf32 = torch.get_float32_matmul_precision() != "highest" if told is None else told == "tf32"
    return "tf32" if tf32 else "ieee"

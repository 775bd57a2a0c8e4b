"""Block-sparse attention on a GPU as an operator of torch: with a gradient, for CUDA graphs and ``torch.compile``.

The kernels run on a GPU; where the environment had ``TRITON_INTERPRET=1`` from the start, on CPU tensors, to be tested.
Letters in names: B batch, H heads, L queries, D head size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..call import Call
from ..layout import BlockLayout
from ..memory import empty_like, four_axes, rows_dense
from .block_lists import block_lists
from .kernel_calls import Gradients, Inputs, Settings, run_backward, run_forward


def attend(call: Call, layout: BlockLayout) -> Tensor:
    """[B, H, L, D], in the order of memory of the queries; rows left empty attend uniformly."""
    queries, keys = (len(range(n)) for n in (call.queries, call.keys))  # numbers, where torch.compile has symbols
    lists = block_lists(layout, call.q.device, call.causal, call.query_offset, queries, keys)
    padding = call.key_padding_mask
    out, _ = _way_to_kernels(call)(
        call.q,
        call.k,
        call.v,
        None if call.bias is None else four_axes(call.bias),
        *(call.relative or (None, None)),
        padding,
        call.dropout_seed(call.q.device),
        *lists.rows,
        *lists.columns,
        lists.bits,
        layout.block_size,
        lists.in_part,
        lists.may_be_empty or padding is not None or call.bias is not None,
        call.query_offset,
        call.diagonal if call.causal else None,
        call.scale,
        call.dropout_p,
    )
    return out


def _way_to_kernels(call: Call) -> Callable[..., tuple[Tensor, Tensor]]:
    """The operator while torch makes a graph and for tensors of other kinds, else what it does, without torch's
    dispatcher: its way through Python takes longer than a short sequence."""
    if torch.compiler.is_compiling() or type(call.q) is not Tensor:
        return torch.ops.attention_pruning.triton_attention
    return _Attention.apply if call.needs_gradient else _forward


# The operators. torch.library.custom_op would load torch's compiler, a second, at the first call.

_CALL = """
    Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? position, Tensor? position_keys,
    Tensor? key_padding_mask, Tensor? dropout_seed,
    Tensor row_bounds, Tensor columns, Tensor row_parts, Tensor column_bounds, Tensor rows, Tensor column_parts,
    Tensor bits, int block_size, bool in_part, bool may_be_empty, SymInt query_offset, SymInt? shift, float scale,
    float dropout_p
"""
#: How many arguments of a call are tensors: they come first.
_TENSORS = len(Inputs._fields) + Settings._fields.index("block_size")
_LIBRARY = torch.library.Library("attention_pruning", "FRAGMENT")
_LIBRARY.define(f"triton_attention({_CALL}) -> (Tensor out, Tensor log_sum)")
_LIBRARY.define(
    f"triton_attention_backward(Tensor gradient, Tensor out, Tensor log_sum, bool bias_too, {_CALL}) "
    "-> (Tensor q, Tensor k, Tensor v, Tensor bias, Tensor position, Tensor position_keys)"
)


def _split(arguments: tuple[Tensor | float | None, ...]) -> tuple[Inputs, Settings]:
    """What both operators end with, every last axis contiguous."""
    count = len(Inputs._fields)
    q, k, v, bias, *relative = arguments[:count]
    settings = Settings(*arguments[count:])
    if settings.key_padding_mask is not None:
        settings = settings._replace(key_padding_mask=settings.key_padding_mask.contiguous())
    relative = (x if x is None else rows_dense(x) for x in relative)
    return Inputs(rows_dense(q), rows_dense(k), rows_dense(v), bias, *relative), settings


def _outputs(q: Tensor, *_) -> tuple[Tensor, Tensor]:
    """What forward fills: the output, and the log-sum-exp [B, H, L], +inf for empty rows."""
    return empty_like(rows_dense(q)), q.new_empty(q.shape[:3], dtype=torch.float32)


def _forward(*arguments: Tensor | float | None) -> tuple[Tensor, Tensor]:
    inputs, settings = _split(arguments)
    out, log_sum = _outputs(inputs.q)
    if out.numel():
        run_forward(inputs, settings, out, log_sum)
    return out, log_sum


def _gradients(_: Tensor, __: Tensor, ___: Tensor, bias_too: bool, *arguments: Tensor | float | None) -> Gradients:
    """What backward fills; zeros where tiles add to it, and nothing for what is not asked for or not there."""
    q, k, v, bias, position, position_keys = arguments[: len(Inputs._fields)]
    to_bias = q.new_zeros(bias.shape if bias_too else (0,), dtype=torch.float32)
    to_position = q.new_empty(0) if position is None else empty_like(rows_dense(position))
    to_position_keys = q.new_zeros((0,) if position is None else position_keys.shape, dtype=torch.float32)
    return Gradients(*(empty_like(rows_dense(x)) for x in (q, k, v)), to_bias, to_position, to_position_keys)


def _backward(
    gradient: Tensor, out: Tensor, log_sum: Tensor, bias_too: bool, *arguments: Tensor | float | None
) -> tuple[Tensor, ...]:
    inputs, settings = _split(arguments)
    to = _gradients(gradient, out, log_sum, bias_too, *inputs)
    if out.numel() and inputs.k.numel():
        asked = to._replace(bias=to.bias if bias_too else None)
        if inputs.position is None:
            asked = asked._replace(position=None, position_keys=None)
        run_backward(inputs, settings, rows_dense(gradient), out, log_sum, asked)
    else:
        for x in to:
            x.zero_()
    return tuple(to)


def _save(ctx, inputs, output) -> None:
    out, log_sum = output
    ctx.save_for_backward(*inputs[:_TENSORS], out, log_sum)
    ctx.numbers = inputs[_TENSORS:]
    ctx.mark_non_differentiable(log_sum)


def _differentiate(
    ctx, gradient: Tensor, _: Tensor | None, backward: Callable[..., tuple[Tensor, ...]] | None = None
) -> tuple[Tensor | None, ...]:
    *tensors, out, log_sum = ctx.saved_tensors
    bias_too = ctx.needs_input_grad[3]
    backward = backward or torch.ops.attention_pruning.triton_attention_backward
    found = backward(gradient, out, log_sum, bias_too, *tensors, *ctx.numbers)
    to_bias = found[3].to(tensors[3].dtype) if bias_too else None
    relative = (None, None) if tensors[4] is None else (found[4], found[5].to(tensors[5].dtype))
    return (*found[:3], to_bias, *relative, *(None,) * len(Settings._fields))


class _Attention(torch.autograd.Function):
    """What the operator does, for :func:`_way_to_kernels`."""

    @staticmethod
    def forward(ctx, *arguments: Tensor | float | None) -> tuple[Tensor, Tensor]:  # noqa: D102
        output = _forward(*arguments)
        _save(ctx, arguments, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        return _differentiate(ctx, gradient, _, _backward)


def _refuse_to_differentiate_twice(*_) -> None:
    raise RuntimeError("triton_attention: expected to be differentiated once, found a derivative of its gradient")


for _name, _kernel, _fake, _derivative, _saved in (
    ("triton_attention", _forward, _outputs, _differentiate, _save),
    ("triton_attention_backward", _backward, _gradients, _refuse_to_differentiate_twice, None),
):
    for _device in ("CUDA", "CPU"):  # a CPU's tensors are for the interpreter
        _LIBRARY.impl(_name, _kernel, _device)
    torch.library.register_fake(f"attention_pruning::{_name}", _fake, lib=_LIBRARY)
    torch.library.register_autograd(f"attention_pruning::{_name}", _derivative, setup_context=_saved, lib=_LIBRARY)

"""Block-sparse attention on a CPU as an operator of torch: with a gradient, for ``torch.compile`` and ``torch.export``.

Letters in names: B batch, H heads, G heads of keys and values, L queries, S keys, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from ..layout import BlockLayout
from ..memory import empty_like, four_axes, rows_dense
from . import native
from .native import FewSettings, Inputs, Settings

DTYPES = (torch.float32, torch.bfloat16)
LARGEST_HEAD = 256


def block_sparse(
    q_BHLD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    layout: BlockLayout,
    *,
    causal: bool,
    query_offset: int = 0,
    key_padding_mask: Tensor | None = None,
    bias: Tensor | None = None,
    relative: tuple[Tensor, Tensor] | None = None,
    scale: float,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """Attention over the kept blocks of a layout, by the compiled kernel; rows left empty attend uniformly.

    A row is empty where it sees keys and the layout keeps none of them (or a bias hides all that are kept, by scores
    below -1e30): it gives the mean of the values that it sees, without bias and dropout. A row that sees nothing gives
    0.

    Parameters
    ----------
    q_BHLD : Tensor
        float32 or bfloat16, of any strides; without a copy where the last axis is contiguous.
    k_BGSD, v_BGSD : Tensor
        The same dtype. H is a multiple of G: head h reads head h // (H / G) of these.
    layout : BlockLayout
        H heads, at least ``query_offset`` + L queries and S keys.
    causal : bool
        Query i sees key j <= i + query_offset + (K - Q), with Q and K the lengths of the layout.
    query_offset : int
        The row of the layout that query 0 is.
    key_padding_mask : Tensor, optional
        bool [B, S], True = padding, which nobody sees.
    bias : Tensor, optional
        Floats added to the scaled scores, broadcastable to [B, H, L, S]. Its gradient is summed up in its own shape.
    relative : (Tensor, Tensor), optional
        q_position [B, H, L, D] and position_keys [H, S, D], for causal attention of which the last query sees every key
        and H = G: the score of a query and a key gains the product of q_position with the row S - 1 - their distance.
    scale : float
        Of the query-key product, and of the relative term.
    dropout_p : float
        Dropout on the probabilities.
    dropout_seed : Tensor, optional
        int64 (); needed for dropout. What is dropped is ``ops.dropout.keep_mask``, by row of the call.

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
    if queries > layout.query_length or keys > layout.key_length:
        found = f"{layout.query_length} and {layout.key_length}"
        raise InputError(f"layout: expected at least {queries} queries and {keys} keys, found {found}")
    shift = query_offset + layout.key_length - layout.query_length if causal else None
    out, _ = torch.ops.attention_pruning.block_sparse(
        q_BHLD,
        k_BGSD,
        v_BGSD,
        None if bias is None else four_axes(bias),
        *((None, None) if relative is None else relative),
        key_padding_mask,
        dropout_seed if dropout_p > 0.0 else None,
        layout.row_start,
        layout.column,
        layout.part,
        layout.bits,
        layout.block_size,
        -(-layout.key_length // layout.block_size),
        query_offset,
        shift,
        scale,
        dropout_p,
    )
    return out


def unsupported(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """What the kernel needs and such a call has not, as the end of "expected ..."; None if it can compute it."""
    if not q.is_cpu:
        return f"tensors on the CPU, found {q.device}"
    if q.dtype not in DTYPES:
        return f"float32 or bfloat16, found {q.dtype}"
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            return f"{name} of {q.dtype}, as the queries, found {x.dtype}"
        if x.shape[-1] != q.shape[-1]:
            return f"{name} with the head size of the queries, {q.shape[-1]}, found {x.shape[-1]}"
    if q.shape[-1] > LARGEST_HEAD:
        return f"a head size of at most {LARGEST_HEAD}, found {q.shape[-1]}"
    return None


# The operators. torch.library.custom_op would load torch's compiler, a second, at the first call.

_CALL = """
    Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? q_position, Tensor? position_keys,
    Tensor? key_padding_mask, Tensor? dropout_seed, Tensor row_start, Tensor column, Tensor part, Tensor bits,
    int block_size, SymInt key_blocks, SymInt query_offset, SymInt? shift, float scale, float dropout_p
"""
#: How many arguments of a call are tensors: they come first.
_TENSORS = len(Inputs._fields) + Settings._fields.index("block_size")
LIBRARY = torch.library.Library("attention_pruning", "FRAGMENT")
LIBRARY.define(f"block_sparse({_CALL}) -> (Tensor out, Tensor log_sum)")
LIBRARY.define(
    f"block_sparse_backward(Tensor gradient, Tensor out, Tensor log_sum, bool bias_too, {_CALL}) "
    "-> (Tensor q, Tensor k, Tensor v, Tensor bias, Tensor q_position, Tensor position_keys)"
)


def _outputs(q: Tensor, *_) -> tuple[Tensor, Tensor]:
    """What forward fills: the output, and the log-sum-exp [B, H, L], +inf for empty rows."""
    q = rows_dense(q)
    return empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def _split(arguments: tuple[Tensor | float | None, ...]) -> tuple[Inputs, Settings]:
    """What both operators end with, checked, every last axis contiguous."""
    count = len(Inputs._fields)
    inputs, settings = Inputs(*arguments[:count]), Settings(*arguments[count:])
    _check(inputs, settings)
    return Inputs(
        *(x if x is None or name == "bias" else rows_dense(x) for name, x in inputs._asdict().items())
    ), settings


def _forward(*arguments: Tensor | float | None) -> tuple[Tensor, Tensor]:
    inputs, settings = _split(arguments)
    out, log_sum = _outputs(inputs.q)
    if out.numel():
        native.forward(inputs, out, log_sum, settings)
    return out, log_sum


def _gradients(_: Tensor, __: Tensor, ___: Tensor, bias_too: bool, *arguments: Tensor | float | None) -> Inputs:
    """What backward fills; zeros for a bias, and nothing for what is not asked for or not there."""
    q, k, v, bias, q_position, position_keys = arguments[: len(Inputs._fields)]
    to_bias = q.new_zeros(bias.shape if bias_too else (0,), dtype=torch.float32)
    to_relative = q.new_empty(0), q.new_empty(0)
    if q_position is not None:
        to_relative = (
            empty_like(rows_dense(q_position)),
            torch.empty_like(position_keys, memory_format=torch.contiguous_format),
        )
    return Inputs(*(empty_like(rows_dense(x)) for x in (q, k, v)), to_bias, *to_relative)


def _backward(
    gradient: Tensor, out: Tensor, log_sum: Tensor, bias_too: bool, *arguments: Tensor | float | None
) -> tuple[Tensor, ...]:
    inputs, settings = _split(arguments)
    to = _gradients(gradient, out, log_sum, bias_too, *inputs)
    if out.numel() and inputs.k.numel():
        asked = to._replace(bias=to.bias if bias_too else None)
        if inputs.q_position is None:
            asked = asked._replace(q_position=None, position_keys=None)
        native.backward(inputs, out, log_sum, rows_dense(gradient), asked, settings)
    else:
        for x in to:
            x.zero_()
    return tuple(to)


def _save(ctx, inputs, output) -> None:
    out, log_sum = output
    ctx.save_for_backward(*inputs[:_TENSORS], out, log_sum)
    ctx.numbers = inputs[_TENSORS:]
    ctx.mark_non_differentiable(log_sum)


def _differentiate(ctx, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, out, log_sum = ctx.saved_tensors
    bias_too = ctx.needs_input_grad[3]
    found = torch.ops.attention_pruning.block_sparse_backward(gradient, out, log_sum, bias_too, *tensors, *ctx.numbers)
    to_bias = found[3].to(tensors[3].dtype) if bias_too else None
    relative = (None, None) if tensors[4] is None else found[4:]
    return (*found[:3], to_bias, *relative, *(None,) * (len(Settings._fields)))


def _refuse_to_differentiate_twice(*_) -> None:
    raise RuntimeError("block_sparse: expected to be differentiated once, found a derivative of its gradient")


for _name, _kernel, _fake, _derivative, _saved in (
    ("block_sparse", _forward, _outputs, _differentiate, _save),
    ("block_sparse_backward", _backward, _gradients, _refuse_to_differentiate_twice, None),
):
    LIBRARY.impl(_name, _kernel, "CPU")
    torch.library.register_fake(f"attention_pruning::{_name}", _fake, lib=LIBRARY)
    torch.library.register_autograd(f"attention_pruning::{_name}", _derivative, setup_context=_saved, lib=LIBRARY)


def _check(inputs: Inputs, settings: Settings) -> None:
    """Refuse what would lead the kernel out of its arrays; it looks at the numbers of the layout itself."""
    check_call(inputs, settings)
    if not 0.0 <= settings.dropout_p < 1.0:
        raise InputError(f"dropout_p: expected at least 0 and less than 1, found {settings.dropout_p}")
    if settings.dropout_p > 0.0 and settings.dropout_seed is None:
        raise InputError(f"dropout_seed: expected an int64 tensor for dropout_p {settings.dropout_p}, found none")
    column, part = settings.column, settings.part
    if settings.row_start.ndim != 2 or column.shape != part.shape or settings.row_start.shape[1] < 1:
        raise InputError("layout: expected row_start [head, row] and as many parts as columns, found otherwise")
    side = settings.block_size
    expected = {"row_start": torch.int32, "column": torch.int32, "part": torch.int32, "bits": torch.uint8}
    for name, dtype in expected.items():
        tensor = getattr(settings, name)
        if tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise InputError(f"layout: expected {name} to be contiguous {dtype} on the CPU, found {tensor.dtype}")
    if list(settings.bits.shape[1:]) != [side, side // 8]:
        raise InputError(f"layout: expected bits [parts, {side}, {side // 8}], found {list(settings.bits.shape)}")


def check_call(inputs: Inputs, settings: Settings | FewSettings) -> None:
    """Refuse tensors and an offset that do not go together."""
    q, k, v, bias, q_position, position_keys = inputs
    of_q, of_k = q.shape, k.shape
    if len(of_q) != 4 or len(of_k) != 4 or of_k != v.shape or of_k[0] != of_q[0] or of_k[3] != of_q[3]:
        raise InputError(
            "q, k, v: expected [batch, head, row, size] of one batch and size, k and v alike, "
            f"found {list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        )
    refused = unsupported(q, k, v)
    if refused:
        raise InputError(f"q, k, v: expected {refused}")
    (batch, heads, queries, _), (_, kv_heads, keys, _) = of_q, of_k
    if heads and (kv_heads == 0 or heads % kv_heads):
        raise InputError(f"k, v: expected heads that divide the {heads} of the queries, found {kv_heads}")
    padding, whole = settings.key_padding_mask, (batch, heads, queries, keys)
    if padding is not None and (padding.dtype != torch.bool or list(padding.shape) != [batch, keys]):
        found = f"{padding.dtype} of {list(padding.shape)}"
        raise InputError(f"key_padding_mask: expected bools of {[batch, keys]}, found {found}")
    if bias is not None and (
        bias.ndim != 4 or any(found not in (1, size) for found, size in zip(bias.shape, whole, strict=True))
    ):
        raise InputError(f"bias: expected floats that broadcast to {list(whole)}, found {list(bias.shape)}")
    if q_position is not None or position_keys is not None:
        _check_relative(q_position, position_keys, q, k, settings.shift)
    if settings.query_offset < 0:
        raise InputError(f"query_offset: expected at least 0, found {settings.query_offset}")


def _check_relative(
    q_position: Tensor | None, position_keys: Tensor | None, q: Tensor, k: Tensor, shift: int | None
) -> None:
    (batch, heads, queries, size), (kv_heads, keys) = q.shape, k.shape[1:3]
    shapes = {"q_position": [batch, heads, queries, size], "position_keys": [heads, keys, size]}
    for (name, expected), x in zip(shapes.items(), (q_position, position_keys), strict=True):
        if x is None or list(x.shape) != expected or x.dtype != q.dtype or x.device != q.device:
            found = "none" if x is None else f"{x.dtype} of {list(x.shape)} on {x.device}"
            raise InputError(f"{name}: expected {q.dtype} of {expected}, as the queries, found {found}")
    if kv_heads != heads:
        raise InputError(f"relative: expected {heads} heads of keys, those of the queries, found {kv_heads}")
    if shift is None or queries + shift != keys:
        found = "none" if shift is None else f"{queries + shift} that the last query may see"
        raise InputError(f"relative: expected causality under which the last query sees {keys} keys, found {found}")

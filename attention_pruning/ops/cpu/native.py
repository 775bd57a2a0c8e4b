"""The compiled kernel: finding the build that this processor runs, and calling it by its C names.

``setup.py`` compiles ``kernel.cpp`` up to three times, for AVX-512, AVX2 and any processor; none where no compiler was
found. The environment variable ``ATTENTION_PRUNING_KERNEL`` names one of them, or ``none``.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import warnings
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_uint64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from ...errors import InputError
from ..call import Call

#: From the least to the most that a processor may have; `block_sparse_processor` answers with a position.
BUILDS = ("portable", "avx2", "avx512")
VARIABLE = "ATTENTION_PRUNING_KERNEL"
DTYPES = (torch.float32, torch.bfloat16)
LARGEST_HEAD = 256

#: What a number other than 0 from the kernel means, see ``broken_rule`` in kernel.cpp.
_RULES = {
    1: "a block size of 16, 32, 64 or 128",
    2: "as many heads as the inputs have",
    3: "at least as many queries and keys as the inputs have",
    4: "row_start to rise within its arrays",
    5: "columns that rise within the row and lie inside the key blocks",
    6: "parts that lie inside the bits",
}


class _Array(Structure):
    _fields_ = [("data", c_void_p), ("batch_stride", c_int64), ("head_stride", c_int64), ("row_stride", c_int64)]


class _Layout(Structure):
    _fields_ = [(name, c_int64) for name in ("heads", "query_blocks", "key_blocks", "block", "kept", "parts")]
    _fields_ += [(name, c_void_p) for name in ("row_start", "column", "part", "bits")]


class _Problem(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "queries", "keys", "size")),
        *((name, _Array) for name in ("q", "k", "v", "out")),
        ("log_sum", c_void_p),
        ("layout", _Layout),
        ("key_seen", c_void_p),
        ("causal", c_int64),
        ("bias", c_void_p),
        ("bias_strides", c_int64 * 4),
        ("scale", c_float),
        ("dropout", c_float),
        ("seed", c_uint64),
        ("threads", c_int64),
        ("bfloat16", c_int64),
    ]


class _Gradients(Structure):
    _fields_ = [
        *((name, _Array) for name in ("out", "q", "k", "v")),
        ("bias", c_void_p),
        ("bias_strides", c_int64 * 4),
    ]


@functools.cache
def load(build: str) -> ctypes.CDLL | None:
    """One build of the kernel; None if it was not compiled."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_block_sparse_{build}{suffix}")
        if path.is_file():
            library = ctypes.CDLL(str(path))
            library.block_sparse_forward.argtypes = [POINTER(_Problem)]
            library.block_sparse_backward.argtypes = [POINTER(_Problem), POINTER(_Gradients)]
            for name in ("block_sparse_forward", "block_sparse_backward", "block_sparse_processor"):
                getattr(library, name).restype = c_int64
            return library
    return None


def runnable_builds() -> tuple[str, ...]:
    """The builds that are compiled and that this processor runs, the fastest last."""
    portable = load("portable")
    if portable is None:
        return ()
    best = portable.block_sparse_processor()
    return tuple(build for build in BUILDS[: best + 1] if load(build) is not None)


def library() -> ctypes.CDLL | None:
    """The build to use: the one that the environment names, else the fastest; None, with one warning, without any."""
    wanted = os.environ.get(VARIABLE)
    builds = runnable_builds()
    if wanted in builds:
        return load(wanted)
    if wanted == "none":  # asked for: nothing to warn of
        return None
    if wanted:
        raise InputError(f"{VARIABLE}: expected one of {', '.join((*builds, 'none'))}, found {wanted!r}")
    if builds:
        return load(builds[-1])
    _warn_once()
    return None


# A constant: while torch.compile makes a graph it is looked up, instead of being traced.
library._dynamo_marked_constant = True


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "attention_pruning: the block-sparse kernel is not compiled (no C++ compiler when it was installed?); the "
        "reference is used instead, which saves neither time nor memory",
        RuntimeWarning,
        stacklevel=4,
    )


def refusal(call: Call) -> str | None:
    """Why the kernel cannot compute a call, or None: on the CPU, float32 or bfloat16, heads of at most 256."""
    q = call.q
    if q.device.type != "cpu":
        return f"tensors on the CPU, found {q.device}"
    if q.dtype not in DTYPES:
        return f"float32 or bfloat16, found {q.dtype}"
    if q.shape[-1] > LARGEST_HEAD:
        return f"a head size of at most {LARGEST_HEAD}, found {q.shape[-1]}"
    return None


def attend(call: Call) -> tuple[Tensor, Tensor]:
    """Outputs [B, H, L, D] and which rows are empty, bool [B, H, L, 1]."""
    out, log_sum = _BlockSparse.apply(call.q, call.k, call.v, call.bias, call)
    return out, torch.isinf(log_sum).unsqueeze(-1)


class _BlockSparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        q, k, v = _rows_dense(q), _rows_dense(k), _rows_dense(v)
        out, log_sum = _empty_like(q, v.shape[-1]), q.new_empty(q.shape[:3], dtype=torch.float32)
        if out.numel():
            problem, alive = _problem(q, k, v, out, log_sum, bias, call)
            _run("forward", byref(problem))
            del alive
        ctx.save_for_backward(q, k, v, out, log_sum, bias)
        ctx.call = call
        ctx.mark_non_differentiable(log_sum)
        return out, log_sum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_sum, bias = ctx.saved_tensors
        g = _rows_dense(g)
        q_gradient, k_gradient, v_gradient = _empty_like(q), _empty_like(k), _empty_like(v)
        full = None
        if ctx.needs_input_grad[3]:
            full = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float32)
        if out.numel() and k.numel():
            problem, alive = _problem(q, k, v, out, log_sum, bias, ctx.call)
            arrays = [_array(x) for x in (g, q_gradient, k_gradient, v_gradient)]
            strides = (0,) * 4 if full is None else full.stride()
            to = _Gradients(*arrays, None if full is None else full.data_ptr(), (c_int64 * 4)(*strides))
            _run("backward", byref(problem), byref(to))
            del alive
        else:
            for gradient in (q_gradient, k_gradient, v_gradient):
                gradient.zero_()
        bias_gradient = None if full is None else full.sum_to_size(bias.shape).to(bias.dtype)
        return q_gradient, k_gradient, v_gradient, bias_gradient, None


def _rows_dense(x: Tensor) -> Tensor:
    """A tensor whose last axis is contiguous: itself, whatever its other strides, wherever possible."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _empty_like(x_BHLD: Tensor, size: int | None = None) -> Tensor:
    """In the order of memory that the input has: (B, L, H, D) makes the merging of heads free."""
    batch, heads, length, width = x_BHLD.shape
    width = width if size is None else size
    if x_BHLD.stride(1) < x_BHLD.stride(2):
        return x_BHLD.new_empty(batch, length, heads, width).transpose(1, 2)
    return x_BHLD.new_empty(batch, heads, length, width)


def _array(x: Tensor) -> _Array:
    return _Array(x.data_ptr(), *x.stride()[:3])


def _problem(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, bias: Tensor | None, call: Call
) -> tuple[_Problem, list[Tensor]]:
    """The call as the kernel reads it, and tensors that must live as long."""
    layout, alive = call.layout, [log_sum]
    bias_strides, bias_data = (0,) * 4, None
    if bias is not None:
        bias = bias.detach().float().expand(*q.shape[:3], k.shape[2])
        bias_strides, bias_data = bias.stride(), bias.data_ptr()
        alive.append(bias)
    seen = None
    if call.key_seen is not None:
        alive.append(call.key_seen.to(torch.uint8).contiguous())
        seen = alive[-1].data_ptr()
    side = layout.block_size
    blocks = [math.ceil(length / side) for length in (layout.query_length, layout.key_length)]
    described = _Layout(layout.heads, *blocks, side, layout.column.numel(), len(layout.bits))
    for name in ("row_start", "column", "part", "bits"):
        setattr(described, name, getattr(layout, name).data_ptr())
    problem = _Problem(
        *q.shape[:3],
        k.shape[2],
        q.shape[3],
        *(_array(x) for x in (q, k, v, out)),
        log_sum.data_ptr(),
        described,
        seen,
        int(call.causal and not layout.causal),
        bias_data,
        (c_int64 * 4)(*bias_strides),
        call.scale,
        call.dropout_p,
        call.dropout_seed & (2**64 - 1),
        torch.get_num_threads(),
        int(q.dtype == torch.bfloat16),
    )
    return problem, alive


def _run(name: str, *arguments) -> None:
    result = getattr(library(), f"block_sparse_{name}")(*arguments)
    if result == -1:
        raise MemoryError("block_sparse_attention: no memory for the kernel's buffers")
    if result:
        raise InputError(f"layout: expected {_RULES[result]}, found otherwise")

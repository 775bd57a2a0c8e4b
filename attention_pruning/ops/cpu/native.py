"""The compiled kernel: finding the build that this processor runs, and calling it by its C names.

``setup.py`` compiles ``kernel.cpp`` up to three times, for AVX-512, AVX2 and any processor; none where no compiler was
found. The environment variable ``ATTENTION_PRUNING_KERNEL`` names one of them, or ``none``.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_uint64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InputError

#: From the least to the most that a processor may have; `block_sparse_processor` answers with a position.
BUILDS = ("portable", "avx2", "avx512")
VARIABLE = "ATTENTION_PRUNING_KERNEL"
#: ``kAbi`` of problem.h, whose structures are those below. A library of another number is one of another version.
ABI = 4

#: What a number other than 0 from the kernel means, see ``broken_rule`` in kernel.cpp.
_RULES = {
    1: "layout: expected a block size of 16, 32, 64 or 128",
    2: "layout: expected as many heads as the inputs have",
    3: "layout: expected at least as many queries and keys as the inputs have",
    4: "layout: expected row_start to rise within its arrays",
    5: "layout: expected columns that rise within the row and lie inside the key blocks",
    6: "layout: expected parts that lie inside the bits",
    8: "few queries: expected whole words of bits, starts of 0 and more, and neither with a bias or a relative term",
    7: "relative: expected causal attention whose last query sees every key, and as many heads of keys as of queries",
}


class _Array(Structure):
    _fields_ = [("data", c_void_p), ("batch_stride", c_int64), ("head_stride", c_int64), ("row_stride", c_int64)]


class _Layout(Structure):
    _fields_ = [(name, c_int64) for name in ("heads", "query_blocks", "key_blocks", "block", "kept", "parts")]
    _fields_ += [(name, c_void_p) for name in ("row_start", "column", "part", "bits")]


class _Problem(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "kv_heads", "queries", "keys", "size")),
        *((name, _Array) for name in ("q", "k", "v", "out", "q_position", "position_keys")),
        ("log_sum", c_void_p),
        ("layout", _Layout),
        ("first_row", c_int64),
        ("key_seen", c_void_p),
        ("causal", c_int64),
        ("shift", c_int64),
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
        *((name, _Array) for name in ("q_position", "position_keys")),
    ]


class _KeptKeys(Structure):
    _fields_ = [(name, c_int64) for name in ("row_blocks", "row_bytes", "block")]
    _fields_ += [(name, c_void_p) for name in ("bits", "starts", "columns")]
    _fields_ += [("columns_strides", c_int64 * 2)]


class Inputs(NamedTuple):
    """The tensors of a call that have gradients; see ``op.block_sparse``. Their last axes are contiguous.

    Attributes
    ----------
    q_position, position_keys : Tensor or None
        [B, H, L, D] and [H, S, D]: both, or neither without a relative term.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    q_position: Tensor | None
    position_keys: Tensor | None


class Settings(NamedTuple):
    """What a call says beside its tensors, and the tensors that have no gradient; see ``op.block_sparse``.

    Attributes
    ----------
    row_start, column, part, bits : Tensor
        Those of a ``BlockLayout``.
    block_size, key_blocks : int
        Side of a block; how many blocks the keys of the layout take.
    query_offset : int
        The row of the layout that query 0 is.
    shift : int or None
        Query i sees key j <= i + shift; None: it sees all.
    """

    key_padding_mask: Tensor | None
    dropout_seed: Tensor | None
    row_start: Tensor
    column: Tensor
    part: Tensor
    bits: Tensor
    block_size: int
    key_blocks: int
    query_offset: int
    shift: int | None
    scale: float
    dropout_p: float


class FewSettings(NamedTuple):
    """What a call of few queries says beside its tensors; see ``few_queries.few_queries``.

    Attributes
    ----------
    bits : Tensor
        uint8 [H, rows of blocks, whole words], of ``LayerMask.row_bits``.
    starts : Tensor or None
        int32 [B].
    columns : Tensor or None
        int32 [B, G, S], its last axis contiguous.
    block_size, query_offset, shift, scale
        As in Settings; a block has any side.
    """

    key_padding_mask: Tensor | None
    bits: Tensor
    starts: Tensor | None
    columns: Tensor | None
    block_size: int
    query_offset: int
    shift: int | None
    scale: float


@functools.cache
def load(build: str) -> ctypes.CDLL | None:
    """One build of the kernel; None if it was not compiled.

    Raises
    ------
    InputError
        If it was compiled from another version of the sources.
    """
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_block_sparse_{build}{suffix}")
        if path.is_file():
            library = ctypes.CDLL(str(path))
            refuse_stale(library, path.name)
            library.block_sparse_forward.argtypes = [POINTER(_Problem)]
            library.block_sparse_backward.argtypes = [POINTER(_Problem), POINTER(_Gradients)]
            library.block_sparse_few_queries.argtypes = [POINTER(_Problem), POINTER(_KeptKeys)]
            for name in ("forward", "backward", "few_queries", "processor"):
                getattr(library, f"block_sparse_{name}").restype = c_int64
            return library
    return None


def refuse_stale(library: ctypes.CDLL, name: str) -> None:
    """Refuse, with InputError, a library whose structures are not those of this file."""
    expected = [ABI, *(ctypes.sizeof(kind) for kind in (_Array, _Layout, _Problem, _Gradients, _KeptKeys))]
    sizes, found = (c_int64 * 5)(), "an older one"
    if hasattr(library, "block_sparse_abi"):
        library.block_sparse_abi.restype = c_int64
        found = [library.block_sparse_abi(sizes), *sizes]
    if found != expected:
        raise InputError(
            f"compiled kernel {name}: expected interface {expected}, that of the sources, found {found}; compile it "
            "again: pip install -e . (or python setup.py build_ext --inplace)"
        )


def runnable_builds() -> tuple[str, ...]:
    """The builds that are compiled and that this processor runs, the fastest last."""
    portable = load("portable")
    if portable is None:
        return ()
    best = portable.block_sparse_processor()
    return tuple(build for build in BUILDS[: best + 1] if load(build) is not None)


def build() -> str | None:
    """The name of the build to use: the one that the environment names, else the fastest; None without any.

    Raises
    ------
    InputError
        If the environment names one that is not there.
    """
    return _named(os.environ.get(VARIABLE))


@functools.cache
def _named(wanted: str | None) -> str | None:
    builds = runnable_builds()
    if wanted and wanted not in (*builds, "none"):
        raise InputError(f"{VARIABLE}: expected one of {', '.join((*builds, 'none'))}, found {wanted!r}")
    return wanted if wanted in builds else None if wanted or not builds else builds[-1]


def missing() -> str | None:
    """Why there is no kernel to call; None if there is one."""
    if build() is not None:
        return None
    if os.environ.get(VARIABLE) == "none":
        return f"{VARIABLE} is none"
    return "the kernel is not compiled (no C++ compiler when it was installed?)"


# Constants: while torch.compile makes a graph they are looked up, instead of being traced.
build._dynamo_marked_constant = True
missing._dynamo_marked_constant = True


def library() -> ctypes.CDLL | None:
    """The build to use, loaded; None without any."""
    name = build()
    return None if name is None else load(name)


def forward(inputs: Inputs, out: Tensor, log_sum: Tensor, settings: Settings) -> None:
    """Fill ``out`` and ``log_sum``."""
    problem, alive = _problem(inputs, out, log_sum, settings)
    _run("forward", byref(problem))
    del alive


def backward(
    inputs: Inputs, out: Tensor, log_sum: Tensor, gradient: Tensor, gradients: Inputs, settings: Settings
) -> None:
    """Fill the gradients of the inputs from that of ``out``.

    That of a bias, if it is asked for, is float32 zeros in its shape: a number that is broadcast gets a sum. Those of a
    relative term are there if it is.
    """
    problem, alive = _problem(inputs, out, log_sum, settings)
    data, strides, to_bias = None, (0,) * 4, gradients.bias
    if to_bias is not None:
        data, strides = to_bias.data_ptr(), _whole(to_bias, inputs.q, inputs.k).stride()
    to = _Gradients(
        *(_array(x) for x in (gradient, *gradients[:3])), data, (c_int64 * 4)(*strides), *map(_array, gradients[4:])
    )
    _run("backward", byref(problem), byref(to))
    del alive


def few_queries(inputs: Inputs, out: Tensor, settings: FewSettings) -> None:
    """Fill ``out``."""
    problem, alive = _described(inputs, out, settings)
    bits, starts, columns = settings.bits, settings.starts, settings.columns
    kept = _KeptKeys(*bits.shape[1:], settings.block_size, bits.data_ptr())
    if starts is not None:
        kept.starts = starts.data_ptr()
    if columns is not None:
        kept.columns, kept.columns_strides = columns.data_ptr(), columns.stride()[:2]
    _run("few_queries", byref(problem), byref(kept))
    del alive


def _whole(bias: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A bias as [B, H, L, S], where it is broadcast with strides of 0."""
    return bias.expand(*q.shape[:3], k.shape[2])


_NO_ARRAY = _Array(None, 0, 0, 0)


def _array(x: Tensor | None) -> _Array:
    """[batch, head, row, size], or [head, row, size], the same for every sequence."""
    if x is None:
        return _NO_ARRAY
    if x.ndim == 3:
        return _Array(x.data_ptr(), 0, *x.stride()[:-1])
    batch, head, row, _ = x.stride()
    return _Array(x.data_ptr(), batch, head, row)


def _problem(inputs: Inputs, out: Tensor, log_sum: Tensor, settings: Settings) -> tuple[_Problem, list[Tensor]]:
    """The call as the kernel reads it, and tensors that must live as long."""
    heads, starts = settings.row_start.shape
    described = _Layout(
        heads, starts - 1, settings.key_blocks, settings.block_size, settings.column.numel(), len(settings.bits)
    )
    for name in ("row_start", "column", "part", "bits"):
        setattr(described, name, getattr(settings, name).data_ptr())
    problem, alive = _described(inputs, out, settings)
    problem.log_sum, problem.layout, problem.dropout = log_sum.data_ptr(), described, settings.dropout_p
    problem.seed = 0 if settings.dropout_seed is None else int(settings.dropout_seed) & (2**64 - 1)
    return problem, alive


def _described(inputs: Inputs, out: Tensor, settings: Settings | FewSettings) -> tuple[_Problem, list[Tensor]]:
    """What every call has, and tensors that must live as long. What is not set is zero."""
    q, k, v, bias, q_position, position_keys = inputs
    (batch, heads, queries, size), (_, kv_heads, keys, _) = q.shape, k.shape
    # A step of decoding takes little longer than this does: by place, and nothing for what is not there.
    problem = _Problem(batch, heads, kv_heads, queries, keys, size, _array(q), _array(k), _array(v), _array(out))
    problem.first_row, problem.scale, problem.threads = settings.query_offset, settings.scale, torch.get_num_threads()
    problem.bfloat16 = q.dtype == torch.bfloat16
    if settings.shift is not None:
        problem.causal, problem.shift = 1, settings.shift
    if q_position is not None:
        problem.q_position, problem.position_keys = _array(q_position), _array(position_keys)
    alive = []
    if bias is not None:
        bias = _whole(bias.detach().float(), q, k)
        problem.bias, problem.bias_strides = bias.data_ptr(), bias.stride()
        alive.append(bias)
    if settings.key_padding_mask is not None:
        alive.append((~settings.key_padding_mask).contiguous())
        problem.key_seen = alive[-1].data_ptr()
    return problem, alive


def _run(name: str, *arguments) -> None:
    found = library()
    if found is None:
        raise InputError("block-sparse attention: expected a compiled kernel, found none")
    result = getattr(found, f"block_sparse_{name}")(*arguments)
    if result == -1:
        raise MemoryError("block_sparse: no memory for the kernel's buffers")
    if result:
        raise InputError(f"{_RULES[result]}, found otherwise")

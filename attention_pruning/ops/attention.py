"""Block-sparse attention: the one entry point, and the choice of what computes it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from . import reference
from .call import Call
from .cpu import native
from .layout import BlockLayout

BACKENDS = ("auto", "block_sparse", "flex", "reference")
EMPTY_ROWS = ("zero", "uniform")
#: Above this share of kept blocks "auto" takes torch's fused attention. benchmarks/block_sparse.py found the kernel no
#: slower even when nothing is pruned, but with blocks of 16 not faster either (1.02 times, the AVX-512 build).
DENSEST = {16: 0.95, 32: 1.0, 64: 1.0, 128: 1.0}
#: On a GPU the choice is between FlexAttention and torch's fused attention under a mask. The fewest scores (batch x
#: heads x queries x keys) that FlexAttention is taken for, by bytes of a number: below, the CPU's preparation of a call
#: takes longer than masked attention. From results/reference/benchmarks/block_sparse_gpu.csv (one H100): with 16 bits
#: 8 x 12 x 1024 x 1024 lose whatever is pruned, 2048 and 4096 win; float32 was measured at 1024 alone.
LEAST_SCORES_GPU = {2: 2**28, 4: 2**26}
#: And the greatest share of kept blocks, by bytes and whether there are gradients. In float32 a line through the times
#: at 0% and 90% meets the time of masked attention at a share of 0.41, with gradients 0.16.
DENSEST_GPU = {(2, False): 1.0, (2, True): 1.0, (4, False): 0.4, (4, True): 0.15}


def block_sparse_attention(
    q_BHLD: Tensor,
    k_BHSD: Tensor,
    v_BHSD: Tensor,
    layout: BlockLayout,
    *,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    empty_rows: str = "zero",
    backend: str = "auto",
    dropout_seed: int | None = None,
) -> Tensor:
    """Attention over the kept blocks of a layout alone: time and memory fall with what is pruned.

    Parameters
    ----------
    q_BHLD, k_BHSD, v_BHSD : Tensor
        Queries, keys and values; any strides with a contiguous last axis are read without a copy.
    layout : BlockLayout
        What is kept, from ``PruneMask.layout``. Sequences may be shorter: they lie at its beginning.
    key_padding_mask : Tensor, optional
        bool [B, S], True = padding, which nobody sees.
    dropout_p : float
        Dropout on the probabilities; 0 outside training. The mask is a hash of a seed (see ``kernels.dropout``).
    scale : float, optional
        Of the query-key product; ``1 / sqrt(D)`` by default. The bias is not scaled.
    causal : bool
        Query i sees key j <= i + S - L. A layout of a causal mask is causal without it.
    bias : Tensor, optional
        Added to the scaled scores, broadcastable to [B, H, L, S], with a gradient if it asks for one (which takes
        memory for all of [B, H, L, S]). Scores below -1e30 are as good as -inf: such a key is hidden.
    empty_rows : {"zero", "uniform"}
        What a row gives whose visible keys are all pruned: zeros, or the mean of its visible values as in
        ``masked_attention``. A row that sees nothing gives zeros.
    backend : {"auto", "block_sparse", "flex", "reference"}
        The compiled kernel (CPU), FlexAttention (GPU; on a CPU inference only), or plain torch. "auto" takes what was
        measured to be fastest: torch's fused attention where too little is pruned, and on a GPU where sequences are
        short.
    dropout_seed : int, optional
        64 bits; drawn from torch's generator by default.

    Returns
    -------
    Tensor
        [B, H, L, D]; from the compiled kernel in the order of memory of the queries.

    Raises
    ------
    InputError
        For anything else, and for a backend that cannot do what is asked.
    """
    for name, value, choices in (("backend", backend, BACKENDS), ("empty_rows", empty_rows, EMPTY_ROWS)):
        if value not in choices:
            raise InputError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
    call = Call.check(
        q_BHLD,
        k_BHSD,
        v_BHSD,
        layout,
        key_padding_mask=key_padding_mask,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        scale=scale,
        causal=causal,
        bias=bias,
    )
    if torch.compiler.is_compiling() and backend in ("auto", "block_sparse") and q_BHLD.device.type == "cpu":
        from . import opaque  # loads torch's compiler, a second that most programs never need

        out, empty = opaque.attend(call, backend)
    else:
        out, empty = attend(call, backend)
    # On a GPU nobody looks whether there are any: the answer would have to be waited for.
    fill = empty_rows == "uniform" and (empty.device.type != "cpu" or bool(empty.any()))
    return reference.fill_empty_rows(call, out, empty) if fill else out


def attend(call: Call, backend: str) -> tuple[Tensor, Tensor]:
    """Outputs [B, H, L, D] and which rows are empty, bool [B, H, L, 1], from the backend of this name."""
    if backend == "auto":
        return _attend_fastest(call)
    if backend == "reference":
        return reference.attend(call)
    if backend == "flex":
        from . import flex  # slow to import, and needed on a GPU alone

        refused = flex.refusal(call)
        if refused:
            raise InputError(f"backend flex: expected {refused}")
        return flex.attend(call)
    refused = native.refusal(call)
    if refused:
        raise InputError(f"backend block_sparse: expected {refused}")
    return reference.attend(call) if native.library() is None else native.attend(call)


def _attend_fastest(call: Call) -> tuple[Tensor, Tensor]:
    if call.q.device.type == "cuda":
        if flex_pays(call):
            from . import flex

            if flex.refusal(call) is None:
                return flex.attend(call)
        return reference.attend_fused(call)
    sparse = call.layout.density <= DENSEST[call.layout.block_size]
    if sparse and native.refusal(call) is None and native.library() is not None:
        return native.attend(call)
    return reference.attend_fused(call)


def flex_pays(call: Call) -> bool:
    """Whether FlexAttention was measured to be faster on a GPU than what computes otherwise."""
    if call.hides_nothing and call.bias is None:
        return False  # the other needs no mask either
    size, scores = call.q.element_size(), call.q.shape[:3].numel() * call.k.shape[2]
    if size not in LEAST_SCORES_GPU or scores < LEAST_SCORES_GPU[size]:
        return False
    return call.layout.density <= DENSEST_GPU[size, call.needs_gradient]

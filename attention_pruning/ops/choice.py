"""What computes a call: one table, measured, and the reason for each choice."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .call import Call
from .cpu import native, op
from .layer_mask import LayerMask
from .layout import BlockLayout
from .triton import availability

BACKENDS = ("auto", "block_sparse", "flex", "triton", "reference")

#: The compiled kernel's time with every block kept, over that of torch's fused attention without a mask, by build: for
#: whole blocks, and for blocks of single cells, each of which has its bits looked at. ``benchmarks/backend_costs.py``
#: measures it. Times the share of blocks that is computed it is what a call is expected to take.
COSTS = {
    "avx512": ({16: 1.25, 32: 1.0, 64: 0.9, 128: 0.95}, {16: 1.55, 32: 1.15, 64: 1.0, 128: 1.0}),
    "avx2": ({16: 1.15, 32: 1.15, 64: 1.05, 128: 1.05}, {16: 1.4, 32: 1.25, 64: 1.15, 128: 1.15}),
    "portable": ({16: 1.0, 32: 1.0, 64: 0.9, 128: 1.0}, {16: 1.05, 32: 1.05, 64: 0.9, 128: 0.95}),
}
#: What a call of few queries costs beside that, if it has a gradient or more of them than ``FEW``: they share the
#: reading of keys among fewer rows. The factor of the largest number that is not above that of the queries.
FEW_QUERIES = {1: 2.05, 4: 1.65, 16: 1.1, 64: 1.0}
#: From so many keys the kernel takes at most 1.1 times as long as torch's attention under a mask of cells, by build:
#: measured as the above, without padding, which makes torch's slower.
LEAST_KEYS_CELLS = {"avx512": 64, "avx2": 96, "portable": 32}
#: So few queries over a cache, without a gradient, go over the kept keys alone, one by one
#: (``cpu/few_queries.py``). Its time with every cell kept, over that of torch's attention under the mask, by build:
#: where each head has keys of its own, and where four share them. The factor of the largest number that is not above
#: that of the queries.
FEW = 8
KEPT_KEYS_COSTS = {
    "avx512": ({1: 0.95, 4: 0.75, 8: 1.1}, {1: 0.6, 4: 1.05, 8: 1.25}),
    "avx2": ({1: 1.1, 4: 1.15, 8: 1.4}, {1: 0.9, 4: 1.3, 8: 1.4}),
    "portable": ({1: 0.9, 4: 0.85, 8: 0.95}, {1: 0.85, 4: 1.05, 8: 1.05}),
}
#: The same two tables for scores with a relative term, which torch's attention takes as a bias: made for all distances,
#: with a gradient for all scores. Of these, half are of queries and keys; causality hides a quarter, and the kernel's
#: costs count what it shows.
RELATIVE_COSTS = {
    "avx512": ({16: 0.55, 32: 0.45, 64: 0.35, 128: 0.35}, {16: 0.6, 32: 0.5, 64: 0.4, 128: 0.4}),
    "avx2": ({16: 0.7, 32: 0.65, 64: 0.55, 128: 0.55}, {16: 0.75, 32: 0.65, 64: 0.55, 128: 0.55}),
    "portable": ({16: 1.0, 32: 0.85, 64: 0.8, 128: 0.8}, {16: 0.95, 32: 0.8, 64: 0.8, 128: 0.8}),
}
#: What such a call of few keys, and half as many queries, costs beside that, by build: the factor of the largest number
#: that is not above that of the keys. Whatever is smaller is taken for 32 keys.
RELATIVE_FEW_KEYS = {
    "avx512": {32: 1.92, 64: 1.83, 96: 1.92, 128: 1.92, 192: 1.75, 256: 1.67, 1024: 1.0},
    "avx2": {32: 1.73, 64: 1.67, 96: 1.53, 128: 1.53, 192: 1.4, 256: 1.27, 1024: 1.0},
    "portable": {32: 1.21, 64: 1.16, 96: 1.21, 128: 1.21, 192: 1.11, 256: 1.11, 1024: 1.0},
}

#: On a GPU Triton's kernels are taken where they can compute a call, else the choice is between FlexAttention and
#: torch's fused attention under a mask. The greatest share of kept blocks that Triton is taken for, by bytes of a
#: number, whether there are gradients, and block. **Estimated, not measured**: under a mask torch takes about 2.2 times
#: as long on an H100 as without (1.3 in float32; block_sparse_gpu.csv); the kernels are expected to take 1.25 times as
#: long as torch without a mask in blocks of 64 and more (2 in float32, which tensor cores do not multiply), twice as
#: long in those of 32 and five times in those of 16. ``benchmarks/block_sparse_gpu.py`` measures all three.
DENSEST_TRITON = {
    (2, False): {16: 0.35, 32: 0.85, 64: 1.0, 128: 1.0},
    (2, True): {16: 0.35, 32: 0.85, 64: 1.0, 128: 1.0},
    (4, False): {16: 0.15, 32: 0.35, 64: 0.6, 128: 0.6},
    (4, True): {16: 0.1, 32: 0.25, 64: 0.4, 128: 0.4},
}
#: And the fewest scores (batch x heads x queries x keys): below, preparing a call takes longer than attention under a
#: mask. **Estimated**, too.
LEAST_SCORES_TRITON = 2**20
#: Its time for a block of single cells in times of a whole one, **estimated**: which side such a mask is cut into.
CELLS_TRITON = {16: 5.0, 32: 2.0, 64: 1.1, 128: 1.1}

#: Without Triton: the fewest scores (batch x
#: heads x queries x keys) that FlexAttention is taken for, by bytes of a number: below, the CPU's preparation of a call
#: takes longer than masked attention. From results/reference/benchmarks/block_sparse_gpu.csv (one H100): with 16 bits
#: 8 x 12 x 1024 x 1024 lose whatever is pruned, 2048 and 4096 win; float32 was measured at 1024 alone.
LEAST_SCORES_GPU = {2: 2**28, 4: 2**26}
#: And the greatest share of kept blocks, by bytes and whether there are gradients. In float32 a line through the times
#: at 0% and 90% meets the time of masked attention at a share of 0.41, with gradients 0.16.
DENSEST_GPU = {(2, False): 1.0, (2, True): 1.0, (4, False): 0.4, (4, True): 0.15}


@dataclass(frozen=True)
class Choice:
    """What computes a call.

    Attributes
    ----------
    backend : {"block_sparse", "flex", "triton", "sdpa", "reference"}
        "sdpa" is torch's fused attention, under the mask.
    reason : str
        Why this one, in a few words.
    layout : BlockLayout or None
        The blocks that are computed; None where all scores are, and where kept keys are read one by one.
    kept_keys : bool
        Whether the kernel of few queries computes it, by the kept keys of their rows alone.
    refused : bool
        Whether something stands in the way of the backend that was asked for, or that would save time.
    """

    backend: str
    reason: str
    layout: BlockLayout | None = None
    refused: bool = False
    kept_keys: bool = False


def choose(call: Call, backend: str = "auto") -> Choice:
    """The backend that computes a call: the one that is asked for if it can, else torch's fused attention."""
    if backend == "reference":
        return Choice("reference", "asked for")
    if backend == "auto":
        return _fastest_gpu(call) if call.q.device.type == "cuda" else _fastest_cpu(call)
    reason = _reason_against(call, backend)
    if reason:
        return Choice("sdpa", reason, refused=True)
    if backend == "block_sparse" and is_few(call):
        return Choice(backend, "asked for", kept_keys=True)
    layout = triton_layout(call.mask) if backend == "triton" else kernel_layout(call.mask, call.relative is not None)[0]
    return Choice(backend, "asked for", layout)


def is_few(call: Call) -> bool:
    """Whether a call is one of few queries over the keys of a cache, of a kind that their kernel knows. Short sequences
    as a whole are none."""
    over_cache = call.queries == 1 or (call.queries <= FEW and call.query_offset > 0)
    return over_cache and call.dropout_p == 0.0 and not call.needs_gradient


def _reason_against(call: Call, backend: str) -> str | None:
    """Why a backend cannot compute a call; None if it can."""
    if backend == "flex":
        from . import flex  # slow to import, and needed on a GPU alone

        refusal = flex.refusal(call)
    elif backend == "triton":
        if availability.missing():
            return availability.missing()
        refusal = availability.refusal(call)
    else:
        if native.missing():
            return native.missing()
        refusal = op.unsupported(call.q, call.k, call.v)
    return refusal and f"{backend} needs {refusal}"


def _fastest_cpu(call: Call) -> Choice:
    mask = call.mask
    if not mask.prunes and call.bias is None and call.relative is None:
        return Choice("sdpa", "nothing is pruned")
    reason = _reason_against(call, "block_sparse")
    if reason:  # also what a user chose: to do without the kernel is nothing to warn of
        return Choice("sdpa", reason, refused=mask.prunes and os.environ.get(native.VARIABLE) != "none")
    if is_few(call):
        return choice_of_few(mask, call.queries, call.groups)
    least, relative = LEAST_KEYS_CELLS[native.build() or "portable"], call.relative is not None
    if not relative and not mask.has_whole_blocks and mask.given_layout is None and call.keys < least:
        return Choice("sdpa", f"single cells of fewer than {least} keys: measured to be faster")
    layout, cost = kernel_layout(mask, relative)
    factor, few = _factor_of_few(call)
    if cost * factor > 1.0:
        kept = f"{layout.density:.0%} of blocks of {layout.block_size} are kept"
        return Choice("sdpa", f"{kept}{few}: measured to be faster")
    return Choice("block_sparse", f"{layout.density:.0%} of blocks of {layout.block_size} are kept", layout)


def _factor_of_few(call: Call) -> tuple[float, str]:
    """What few queries, or with a relative term few keys, cost beside many; and what to say of it."""

    factor, few = _of_largest(FEW_QUERIES, call.queries), f" for {call.queries} queries"
    if call.relative is not None:
        by_keys = _of_largest(RELATIVE_FEW_KEYS[native.build() or "portable"], call.keys)
        factor, few = max(factor, by_keys), f"{few} and {call.keys} keys"
    return factor, few if factor > 1.0 else ""


def _of_largest(factors: dict[int, float], count: int) -> float:
    """The factor of the largest number that is not above a count; of the first if all are."""
    return next(
        (factor for number, factor in reversed(factors.items()) if number <= count), next(iter(factors.values()))
    )


def _fastest_gpu(call: Call) -> Choice:
    if not call.mask.prunes and call.key_padding_mask is None and call.bias is None and call.relative is None:
        return Choice("sdpa", "nothing is pruned")
    reason = _reason_against(call, "triton")
    if reason:
        other = _without_triton(call)
        return _all_scores(call, f"{reason}; {other.reason}") if other.refused else other
    slower = why_not_triton(call)
    if slower:
        return Choice("sdpa", slower)
    layout = triton_layout(call.mask)
    return Choice("triton", f"{layout.density:.0%} of blocks of {layout.block_size} are kept", layout)


def why_not_triton(call: Call) -> str | None:
    """Why another backend is expected to be faster on a GPU than the Triton kernels, or None."""
    if call.q.shape[:3].numel() * call.keys < LEAST_SCORES_TRITON:
        return "few scores: expected to be faster"
    layout = triton_layout(call.mask)
    if layout.density > DENSEST_TRITON[call.q.element_size(), call.needs_gradient][layout.block_size]:
        return f"{layout.density:.0%} of blocks of {layout.block_size} are kept: expected to be faster"
    return None


def _without_triton(call: Call) -> Choice:
    """FlexAttention, or torch's fused attention."""
    slower = why_not_flex(call)
    if slower:
        return Choice("sdpa", slower)
    if not call.mask.has_whole_blocks and call.mask.given_layout is None:
        return _all_scores(call, "single cells are pruned, and no kernel leaves them out on a GPU")
    reason = _reason_against(call, "flex")
    if reason:
        return _all_scores(call, reason)
    layout, _ = kernel_layout(call.mask)
    return Choice("flex", f"{layout.density:.0%} of blocks of {layout.block_size} are kept", layout)


def why_not_flex(call: Call) -> str | None:
    """Why torch's fused attention was measured to be faster on a GPU than FlexAttention, or None."""
    mask, size, scores = call.mask, call.q.element_size(), call.q.shape[:3].numel() * call.keys
    if not mask.prunes and not call.causal and call.key_padding_mask is None and call.bias is None:
        return "nothing is pruned"
    if size not in LEAST_SCORES_GPU or scores < LEAST_SCORES_GPU[size]:
        return "few scores: measured to be faster"
    layout = mask.given_layout or (kernel_layout(mask)[0] if mask.has_whole_blocks else None)
    if layout is not None and layout.density > DENSEST_GPU[size, call.needs_gradient]:
        return f"{layout.density:.0%} of blocks of {layout.block_size} are kept: measured to be faster"
    return None


def _all_scores(call: Call, reason: str) -> Choice:
    return Choice("sdpa", reason, refused=call.mask.prunes)


def choice_of_few(mask: LayerMask, queries: int, groups: int) -> Choice:
    """What computes a call of few queries that the kernel knows; ``groups`` query heads share keys."""
    key = ("choice_of_few", queries, groups, native.build() or "portable")
    return mask.once(key, lambda: _make_choice_of_few(mask, *key[1:]))


def _make_choice_of_few(mask: LayerMask, queries: int, groups: int, build: str) -> Choice:
    share = mask.kept_count[0] / max(1, mask.kept_count[1])
    kept = f"{share:.0%} of {'cells' if mask.block_size == 1 else f'blocks of {mask.block_size}'} are kept"
    if share * _of_largest(KEPT_KEYS_COSTS[build][groups > 1], queries) > 1.0:
        return Choice("sdpa", f"{kept}, for {queries} queries: measured to be faster")
    return Choice("block_sparse", f"{kept}, and read one by one", kept_keys=True)


# As kernel_layout below.
choice_of_few._dynamo_marked_constant = True


def kernel_layout(mask: LayerMask, relative: bool = False) -> tuple[BlockLayout, float]:
    """The layout that a kernel computes soonest, and its expected time in times of torch's dense attention; with a
    relative term in times of torch's attention with a bias."""
    return mask.once(("kernel_layout", relative), lambda: _make_kernel_layout(mask, relative))


def triton_layout(mask: LayerMask) -> BlockLayout:
    """The layout that the Triton kernels compute soonest."""
    return mask.once(("triton_layout",), lambda: _make_triton_layout(mask))


# They are constants of the mask: while torch.compile makes a graph they are made, instead of being traced.
kernel_layout._dynamo_marked_constant = True
triton_layout._dynamo_marked_constant = True


def _make_kernel_layout(mask: LayerMask, relative: bool) -> tuple[BlockLayout, float]:
    whole, cells = (RELATIVE_COSTS if relative else COSTS)[native.build() or "portable"]
    given = mask.given_layout
    if given is not None:
        costs = cells if len(given.bits) else whole
        return given, given.density * costs[given.block_size]
    if mask.has_whole_blocks:
        layout = mask.layout(mask.whole_block)
        return layout, layout.density * whole[layout.block_size]
    layouts = [mask.layout(size) for size in cells]
    best = min(layouts, key=lambda layout: layout.density * cells[layout.block_size])
    return best, best.density * cells[best.block_size]


def _make_triton_layout(mask: LayerMask) -> BlockLayout:
    if mask.given_layout is not None:
        return mask.given_layout
    if mask.has_whole_blocks:
        return mask.layout(mask.whole_block)
    layouts = [mask.layout(size) for size in CELLS_TRITON]
    return min(layouts, key=lambda layout: layout.density * CELLS_TRITON[layout.block_size])

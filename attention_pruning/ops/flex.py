"""Block-sparse attention by torch's FlexAttention: the backend for GPUs. On a CPU it computes inference only.

FlexAttention takes the kept blocks from the same layout. It has no dropout.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ..structure import block_count
from .call import Call
from .layout import BlockLayout
from .reference import kept_and_visible

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Head sizes for which FlexAttention has a kernel on a GPU.
HEAD_SIZES = (16, 256)
#: FlexAttention's own block. Every kernel of its own choice divides it.
WHOLE_BLOCK = 128
#: Every shape is a graph of its own. Beyond torch's limit of 8, FlexAttention would silently compute all scores.
GRAPHS = 256

#: What of a mask the lengths decide, made once for each layout: lists of blocks, and the blocks themselves.
_masks: WeakKeyDictionary[BlockLayout, dict[tuple[Any, ...], tuple[BlockMask, Tensor]]] = WeakKeyDictionary()


def refusal(call: Call) -> str | None:
    """What FlexAttention would need to compute a call, or None."""
    on_cpu, size = call.q.device.type == "cpu", call.q.shape[-1]
    if call.dropout_p > 0.0:
        return f"no dropout, found {call.dropout_p}"
    if on_cpu and call.needs_gradient:
        return "a GPU for gradients, found tensors on the CPU"
    if call.q.dtype not in DTYPES:
        return f"float32, bfloat16 or float16, found {call.q.dtype}"
    if not on_cpu and not HEAD_SIZES[0] <= size <= HEAD_SIZES[1]:
        return f"a head size of {HEAD_SIZES[0]} to {HEAD_SIZES[1]} on a GPU, found {size}"
    return None


def attend(call: Call) -> tuple[Tensor, Tensor]:
    """Outputs [B, H, L, D], 0 in rows without a key, and which rows those are."""
    if call.q.numel() == 0 or call.k.numel() == 0:
        return torch.zeros_like(call.q), torch.ones_like(call.q[..., :1], dtype=torch.bool)
    options: dict[str, Any] = {"block_mask": block_mask(call), "scale": call.scale}
    if call.bias is not None:
        options["score_mod"] = _adder(call.bias)
    if call.q.device.type == "cpu":
        out = compiled()(call.q, call.k, call.v, **options)
        empty = ~kept_and_visible(call).any(-1, keepdim=True)
        return out.masked_fill(empty, 0.0), empty
    options["kernel_options"] = kernel_options(call)
    # Rows without a key are 0 already, and known by their sum; to look for them among the cells takes [B, H, L, S].
    out, sums = compiled()(call.q, call.k, call.v, **options, **ask_for_sums())
    log_sum = getattr(sums, "lse", sums).detach()
    return out, torch.isneginf(log_sum).unsqueeze(-1)


def _adder(bias: Tensor) -> Callable[..., Tensor]:
    """Adds a bias to the scores, read where it is: it is not expanded to [B, H, L, S]."""
    bias = bias[(None,) * (4 - bias.ndim)]
    if bias.requires_grad and torch.is_grad_enabled():
        bias = bias.clone()  # a view would get no gradient, without a word (torch 2.13)
    wide = [size > 1 for size in bias.shape]

    def add_bias(score, b, h, i, j):
        at = [x if apart else x * 0 for x, apart in zip((b, h, i, j), wide, strict=True)]
        return score + bias[at[0], at[1], at[2], at[3]]

    return add_bias


def block_mask(call: Call) -> BlockMask:
    """The kept blocks of the layout, cut to the sequence, with what is padding and what is not yet to be seen."""
    queries, keys, device = call.q.shape[2], call.k.shape[2], call.q.device
    made = _masks.setdefault(call.layout, {})
    # Whole blocks are computed without a look at their cells, unless some of their keys may be padding.
    split = device.type != "cpu" and call.key_seen is None
    key = (queries, keys, device, call.causal, split)
    if key not in made:
        made[key] = _build(call, split)
    mask, kept_Hqk = copy.copy(made[key][0]), made[key][1]
    mask.mask_mod = _cells(call, kept_Hqk)
    return mask


def _cells(call: Call, kept_Hqk: Tensor) -> Callable[..., Tensor]:
    """Which cells count. It tells all of them, whether FlexAttention asks for every block or not."""
    queries, keys, size = call.q.shape[2], call.k.shape[2], call.layout.block_size
    cells_HLS = call.kept() if len(call.layout.bits) else None
    seen_BS = call.key_seen
    future = keys - queries if call.causal else keys  # keys beyond the query's own number that it sees

    def counts(b, h, i, j):
        inside = kept_Hqk[h, i // size, j // size] if cells_HLS is None else cells_HLS[h, i, j]
        inside = inside & (j <= i + future)
        return inside if seen_BS is None else inside & seen_BS[b, j]

    return counts


def _build(call: Call, split: bool) -> tuple[BlockMask, Tensor]:
    """The kept blocks as FlexAttention lists them, and as bool [H, q, k].

    On the CPU every block is "partial", its cells looked up one by one: a mask without a partial block does not compile
    there in torch 2.13.
    """
    on_cpu = call.q.device.type == "cpu"
    partial, whole = split_blocks(call, split)
    # On a GPU both lists are always given, so that batches with and without padding differ in numbers alone.
    lists = [*_ordered(partial, call.q.device), *(() if on_cpu else _ordered(whole, call.q.device))]
    side = call.layout.block_size if on_cpu else WHOLE_BLOCK  # see kernel_options
    mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=side, seq_lengths=(call.q.shape[2], call.k.shape[2]))
    return mask, (partial | whole).to(call.q.device)


def split_blocks(call: Call, split: bool = True) -> tuple[Tensor, Tensor]:
    """Kept blocks whose cells have to be looked at, and those that are kept and visible whole: bool [H, q, k] each.

    Padding is not looked at. Without ``split`` all are among the first.
    """
    queries, keys, size = call.q.shape[2], call.k.shape[2], call.layout.block_size
    q, k = block_count(queries, size), block_count(keys, size)
    kept, whole = call.layout.blocks[:, :q, :k], call.layout.whole_blocks[:, :q, :k]
    if call.causal:
        row, column = torch.arange(q)[:, None] * size, torch.arange(k)[None] * size - (keys - queries)
        kept = kept & (column <= row + size - 1)  # the first key of the block is seen by its last query
        whole = whole & (column + size - 1 <= row)  # and its last key by its first query
    return (kept & ~whole, kept & whole) if split else (kept, torch.zeros_like(kept))


def _ordered(blocks_Hqk: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and their numbers, rising: int32 [1, H, q] and [1, H, q, k]."""
    order = blocks_Hqk.int().argsort(dim=-1, descending=True, stable=True).int()
    return blocks_Hqk.sum(-1, dtype=torch.int32)[None].to(device), order[None].contiguous().to(device)


def kernel_options(call: Call) -> dict[str, Any]:
    """How FlexAttention's kernels cut the work on a GPU, so that they step over single blocks of the layout.

    Their tiles must divide a block, and those of their own choice divide 128 only. Tiles can be asked for, but the
    backward pass compares its own choice with the mask's block before it reads what was asked for (torch 2.13).
    So masks of smaller blocks say 128, and the block that counts is given here.

    A bias is fetched ahead with keys and values, a float for each score of a tile, and for that their own choice leaves
    no room: an H100 has 227 KB of shared memory for a kernel, and tiles of 128 x 128 in three stages take 242. So tiles
    are chosen here, and two stages, wherever there is a bias; they are to fit the 99 KB of consumer cards.
    """
    # The kernel for short queries has tiles of its own.
    options: dict[str, Any] = {"FORCE_USE_FLEX_ATTENTION": True}
    size, bytes_a_row = min(call.layout.block_size, WHOLE_BLOCK), call.q.shape[-1] * call.q.element_size()
    if size < WHOLE_BLOCK:
        options |= {"SPARSE_Q_BLOCK_SIZE": size, "SPARSE_KV_BLOCK_SIZE": size}
    elif call.bias is None:
        return options
    half, small = call.q.element_size() == 2, bytes_a_row <= 256
    options["fwd_BLOCK_M"] = min(size, 64 if bytes_a_row <= 512 else 32)
    options["fwd_BLOCK_N"] = min(size, 64 if half and small else 32 if bytes_a_row <= 512 else 16)
    if call.bias is not None:
        small = bytes_a_row <= 128
        options["fwd_num_stages"] = 2
    if half:  # in float32 they are 16, and nothing is fetched ahead
        options |= {f"bwd_BLOCK_{name}": min(size, 64 if small else 32) for name in ("M1", "N1", "M2", "N2")}
        options |= {"bwd_num_warps": 4} | ({} if call.bias is None else {"bwd_num_stages": 2})
    return options


@functools.cache
def ask_for_sums() -> dict[str, Any]:
    """The argument that makes FlexAttention return the logarithms of its sums too."""
    request = getattr(torch_flex, "AuxRequest", None)
    return {"return_lse": True} if request is None else {"return_aux": request(lse=True)}


@functools.cache
def compiled() -> Callable[..., Any]:
    """One graph for all layers: what differs between them are tensors."""
    graphs = torch.compile(flex_attention, dynamic=False)

    def run(*tensors: Tensor, **options: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=GRAPHS, accumulated_recompile_limit=GRAPHS):
            return graphs(*tensors, **options)

    return run

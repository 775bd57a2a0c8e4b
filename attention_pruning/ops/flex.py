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
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ..structure import block_count, visible_blocks
from .call import Call
from .empty_rows import fill_empty_rows
from .layer_mask import LayerMask
from .layout import BlockLayout

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Head sizes for which FlexAttention has a kernel on a GPU.
HEAD_SIZES = (16, 256)
#: FlexAttention's own block. Every kernel of its own choice divides it.
WHOLE_BLOCK = 128
#: Versions of torch whose kernels were found to bear blocks smaller than that, see ``kernel_options``.
SMALL_BLOCKS = ("2.11.", "2.13.")
#: Every shape is a graph of its own. Beyond torch's limit of 8, FlexAttention would silently compute all scores.
GRAPHS = 256

#: What of a mask the lengths decide, made once for each layout: lists of blocks, and the blocks themselves.
_masks: WeakKeyDictionary[BlockLayout, dict[tuple[Any, ...], tuple[BlockMask, Tensor, Tensor]]] = WeakKeyDictionary()


def refusal(call: Call) -> str | None:
    """What FlexAttention would need to compute a call, or None."""
    on_cpu, size = call.q.device.type == "cpu", call.q.shape[-1]
    if call.relative is not None:
        return "scores without a relative term, found one"
    if call.dropout_p > 0.0:
        return f"no dropout, found {call.dropout_p}"
    if on_cpu and call.needs_gradient:
        return "a GPU for gradients, found tensors on the CPU"
    if call.q.dtype not in DTYPES:
        return f"float32, bfloat16 or float16, found {call.q.dtype}"
    if call.v.shape[-1] != size:
        return f"values of the size of the queries, {size}, found {call.v.shape[-1]}"
    if not on_cpu and not HEAD_SIZES[0] <= size <= HEAD_SIZES[1]:
        return f"a head size of {HEAD_SIZES[0]} to {HEAD_SIZES[1]} on a GPU, found {size}"
    if call.query_offset:
        return f"whole sequences, found queries from row {call.query_offset} on"
    if not on_cpu and call.mask.block_size % WHOLE_BLOCK and not torch.__version__.startswith(SMALL_BLOCKS):
        return f"torch {' or '.join(SMALL_BLOCKS)}x for blocks below {WHOLE_BLOCK}, found {torch.__version__}"
    if torch.compiler.is_compiling():
        return "to compile its own graph, found a model that is being compiled"
    return None


def attend(call: Call, layout: BlockLayout) -> Tensor:
    """[B, H, L, D]"""
    if call.q.numel() == 0 or call.k.numel() == 0:
        return torch.zeros_like(call.q)
    queries, on_cpu = call.queries, call.q.device.type == "cpu"
    # One graph for all lengths that need as many blocks: the sequences are made as long as the blocks.
    q, k, v = (_to_blocks(x, layout.block_size) for x in (call.q, call.k, call.v))
    options: dict[str, Any] = {"block_mask": block_mask(call, layout), "scale": call.scale}
    options["enable_gqa"] = call.groups > 1
    if call.bias is not None:
        options["score_mod"] = _adder(call.bias, queries, call.keys)
    if on_cpu:
        out = compiled()(q, k, v, **options)[:, :, :queries]
        empty = ~_counting(call, layout).any(-1, keepdim=True)
        return fill_empty_rows(call, out.masked_fill(empty, 0.0), empty)
    options["kernel_options"] = kernel_options(call, layout)
    # Rows without a key are 0 already, and known by their sum; to look for them among the cells takes [B, H, L, S].
    out, sums = compiled()(q, k, v, **options, **ask_for_sums())
    log_sum = getattr(sums, "lse", sums).detach()[:, :, :queries]
    return fill_empty_rows(call, out[:, :, :queries], torch.isneginf(log_sum).unsqueeze(-1))


def _to_blocks(x_BHLD: Tensor, block_size: int) -> Tensor:
    missing = -x_BHLD.shape[2] % block_size
    return F.pad(x_BHLD, (0, 0, 0, missing)) if missing else x_BHLD


def _counting(call: Call, layout: BlockLayout) -> Tensor:
    """bool, broadcastable to [B, H, L, S]: the cells whose scores count."""
    counts, visible = ~call.pruned()[None], call.visible()
    return counts if visible is None else counts & visible


def _adder(bias: Tensor, queries: int, keys: int) -> Callable[..., Tensor]:
    """Adds a bias to the scores, read where it is: it is not expanded to [B, H, L, S]."""
    bias = bias[(None,) * (4 - bias.ndim)]
    if bias.requires_grad and torch.is_grad_enabled():
        bias = bias.clone()  # a view would get no gradient, without a word (torch 2.13)
    wide = [size > 1 for size in bias.shape]

    def add_bias(score, b, h, i, j):
        places = (b, h, i.clamp(max=queries - 1), j.clamp(max=keys - 1))  # beyond the sequence nothing counts
        at = [x if apart else x * 0 for x, apart in zip(places, wide, strict=True)]
        return score + bias[at[0], at[1], at[2], at[3]]

    return add_bias


def block_mask(call: Call, layout: BlockLayout) -> BlockMask:
    """The kept blocks of the layout, cut to the sequence, with what is padding and what is not yet to be seen."""
    device = call.q.device
    made = _masks.setdefault(layout, {})
    # Whole blocks are computed without a look at their cells, unless some of their keys may be padding.
    split = device.type != "cpu" and call.key_padding_mask is None
    key = (call.queries, call.keys, device, call.causal, call.diagonal, split)
    if key not in made:
        made[key] = _build(call, layout, split)
    mask, kept_Hqk, limits = made[key]
    mask = copy.copy(mask)
    mask.mask_mod = _cells(call, layout, kept_Hqk, limits)
    return mask


def mask_mod(mask: LayerMask, device: torch.device | str = "cpu") -> Callable[..., Tensor]:
    """The mask of a layer as FlexAttention asks for one: (batch, head, query, key) -> whether the score counts.

    For ``torch.nn.attention.flex_attention.create_block_mask`` and ``and_masks``, which join it with what else is
    hidden. Causality of the mask is part of it; rows left empty are FlexAttention's to judge (it gives 0).
    """
    kept_Hqk, size = ~mask.pruned.to(device), mask.block_size
    future = mask.key_length - mask.query_length if mask.causal else mask.key_length

    def counts(b, h, i, j):
        return kept_Hqk[h, i // size, j // size] & (j <= i + future)

    return counts


def _cells(call: Call, layout: BlockLayout, kept_Hqk: Tensor, limits: Tensor) -> Callable[..., Tensor]:
    """Which cells count. It tells all of them, whether FlexAttention asks for every block or not.

    Lengths and diagonal are in a tensor, and tensors are as long as their blocks: numbers would make a graph for each.
    """
    size, device = layout.block_size, call.q.device
    last_query, last_key = layout.query_length - 1, layout.key_length - 1
    pruned_HQK = call.mask.cells(device) if len(layout.bits) else None
    padding_BS = call.key_padding_mask
    if padding_BS is not None:
        padding_BS = F.pad(padding_BS, (0, -call.keys % size), value=True)

    def counts(b, h, i, j):
        inside = (i < limits[0]) & (j < limits[1]) & (j <= i + limits[2])
        if pruned_HQK is None:
            inside = inside & kept_Hqk[h, i // size, j // size]
        else:
            inside = inside & ~pruned_HQK[h, i.clamp(max=last_query), j.clamp(max=last_key)]
        return inside if padding_BS is None else inside & ~padding_BS[b, j]

    return counts


def _build(call: Call, layout: BlockLayout, split: bool) -> tuple[BlockMask, Tensor, Tensor]:
    """The kept blocks as FlexAttention lists them, and as bool [H, q, k]; queries, keys and diagonal.

    On the CPU every block is "partial", its cells looked up one by one: a mask without a partial block does not compile
    there in torch 2.13.
    """
    on_cpu = call.q.device.type == "cpu"
    partial, whole = split_blocks(call, layout, split)
    # On a GPU both lists are always given, so that batches with and without padding differ in numbers alone.
    lists = [*_ordered(partial, call.q.device), *(() if on_cpu else _ordered(whole, call.q.device))]
    side = layout.block_size if on_cpu else WHOLE_BLOCK  # see kernel_options
    lengths = [block_count(n, layout.block_size) * layout.block_size for n in (call.queries, call.keys)]
    mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=side, seq_lengths=tuple(lengths))
    diagonal = call.diagonal if call.causal else call.keys
    limits = torch.tensor([call.queries, call.keys, diagonal], device=call.q.device)
    return mask, (partial | whole).to(call.q.device), limits


def split_blocks(call: Call, layout: BlockLayout, split: bool = True) -> tuple[Tensor, Tensor]:
    """Kept blocks whose cells have to be looked at, and those that are kept and visible whole: bool [H, q, k] each.

    Padding is not looked at. Without ``split`` all are among the first.
    """
    size = layout.block_size
    q, k = block_count(call.queries, size), block_count(call.keys, size)
    kept, whole = layout.blocks[:, :q, :k], layout.whole_blocks[:, :q, :k]
    # A block that the end of the sequence cuts has cells that do not count.
    inside = (torch.arange(1, q + 1)[:, None] * size <= call.queries) & (torch.arange(1, k + 1) * size <= call.keys)
    whole = whole & inside
    if call.causal:
        row, column = torch.arange(q)[:, None] * size, torch.arange(k)[None] * size - call.diagonal
        kept = kept & visible_blocks(call.queries, call.keys, size, True)
        whole = whole & (column + size - 1 <= row)  # its last key is seen by its first query
    return (kept & ~whole, kept & whole) if split else (kept, torch.zeros_like(kept))


def _ordered(blocks_Hqk: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and their numbers, rising: int32 [1, H, q] and [1, H, q, k]."""
    order = blocks_Hqk.int().argsort(dim=-1, descending=True, stable=True).int()
    return blocks_Hqk.sum(-1, dtype=torch.int32)[None].to(device), order[None].contiguous().to(device)


def kernel_options(call: Call, layout: BlockLayout) -> dict[str, Any]:
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
    size, bytes_a_row = min(layout.block_size, WHOLE_BLOCK), call.q.shape[-1] * call.q.element_size()
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

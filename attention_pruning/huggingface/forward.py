"""The attention function ``"attention_pruning"`` of transformers' AttentionInterface.

A module without an :class:`AttentionSite` runs transformers' own SDPA, to the bit. Letters in names: B batch, H heads,
Q queries, S keys, D head size; q and k count blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import InputError
from ..mask import PruneMask
from ..ops import BlockLayout
from ..ops.block_calls import attend_blocks, has_layout
from ..ops.eager import ScoreMask, attend
from .positions import Axis, from_bidirectional, from_causal, from_lengths, padding_alone
from .sites import AttentionStack, is_causal

IMPLEMENTATION = "attention_pruning"
#: Under this name an attention module holds its AttentionSite.
SITE_ATTRIBUTE = "attention_pruning"
#: Keyword arguments that change what attention means in ways that a mask cannot be combined with here.
_FOREIGN = ("softcap", "s_aux", "indices", "block_indices")

#: Called with the probabilities [B, H, Q, S] before dropout and the positions of queries and keys.
SiteObserver = Callable[[Tensor, Axis, Axis], None]


def choose_implementation(backend: str, observed: bool) -> str:
    """Which implementation of ``attention.attend`` computes a masked call that block-sparse attention does not."""
    return "eager" if observed or backend == "reference" else "sdpa"


class AttentionSite(nn.Module):
    """What one attention module of a model prunes, as a child of that module.

    Parameters
    ----------
    stack : AttentionStack
        Where it is.
    layer : int
        Its place in the stack.
    mask : PruneMask, optional
        Of the whole stack; this layer's part becomes a buffer [H, q, k] that follows the model to its device. It is not
        in the state dict: ``save_pretrained`` writes the masks to files of their own.
    backend, beyond : str
        See ``prune_model``.
    steps : dict, optional
        Shared by the self- and the cross attention of one decoder layer: the positions of the queries, by device.

    Attributes
    ----------
    observer : callable or None
        Sees every call while a pattern is collected.
    """

    def __init__(
        self,
        stack: AttentionStack,
        layer: int,
        mask: PruneMask | None = None,
        backend: str = "auto",
        beyond: str = "error",
        steps: dict[torch.device, Axis] | None = None,
    ) -> None:
        super().__init__()
        self.name = stack.name.replace("*", str(layer), 1)
        self.cross, self.causal = stack.cross, stack.causal
        self.mask, self.backend, self.beyond, self.steps = mask, backend, beyond, steps
        self.observer: SiteObserver | None = None
        self.register_buffer("pruned", None if mask is None else mask.pruned[layer].clone(), persistent=False)
        self.layer = layer
        #: A layer that prunes nothing is the dense layer.
        self.prunes = mask is not None and bool(mask.pruned[layer].any())
        self._layout: BlockLayout | None = None

    def extra_repr(self) -> str:
        return f"{self.name}, {self.mask}"

    def is_dense(self, queries: int, keys: int) -> bool:
        """Whether transformers' own SDPA gives the answer; a call longer than the mask still has to be looked at."""
        if self.observer is not None or self.steps is not None or self.backend == "reference":
            return False
        return not self.prunes and (self.mask is None or max(queries, keys) <= min(self.mask.allowed.shape))

    @property
    def layout(self) -> BlockLayout | None:
        """What block-sparse attention computes; None where the mask has no blocks for it.

        Made at the first call. Neither it nor the mask ever changes, so it serves copies and other devices too.
        """
        if self._layout is None and self.prunes and has_layout(self.backend, self.mask.block_size):
            self._layout = self.mask.layout(self.layer)
        return self._layout

    def positions(self, visible: Tensor | None, queries: int, keys: int, device: torch.device) -> tuple[Axis, Axis]:
        """Rows and columns of a call.

        Raises
        ------
        InputError
            If self-attention without causality has other keys than queries, or cross attention has no self-attention
            before it.
        """
        if not self.cross and not self.causal and queries != keys:
            raise InputError(f"{self.name}: expected as many keys as queries, found {keys} keys and {queries} queries")
        if visible is None:
            query, key = from_lengths(queries, keys, self.causal, device)
        elif self.causal:
            query, key = from_causal(visible)
        else:
            query = key = from_bidirectional(visible)
        if self.cross:
            query = self.steps.pop(device, None)
            if query is None:
                raise InputError(f"{self.name}: expected self-attention before it in its layer, found none")
        elif self.steps is not None:
            self.steps[device] = query
        return query, key

    def cells(self, query: Axis, key: Axis) -> Tensor | None:
        """What is pruned at these positions: bool [H, Q, S], or [B, H, Q, S] if sequences differ; None for nothing.

        Raises
        ------
        InputError
            If a position lies beyond the mask, unless that region is to stay dense.
        """
        if self.mask is None:
            return None
        rows, columns, size = self.mask.query_length, self.mask.key_length, self.mask.block_size
        if query.bound > rows or key.bound > columns:
            self._check_lengths(query, key)
        if not self.prunes:
            return None
        row, column = query.index.clamp(max=rows - 1) // size, key.index.clamp(max=columns - 1) // size
        if row.ndim == 1 and column.ndim == 1:
            pruned = self.pruned[:, row][:, :, column]
        else:
            pruned = self.pruned[:, row[..., :, None], column[..., None, :]].transpose(0, 1)
        if self.beyond == "dense":
            inside = (query.index < rows)[..., :, None] & (key.index < columns)[..., None, :]
            pruned = pruned & (inside if inside.ndim == 2 else inside[:, None])
        return pruned

    def _check_lengths(self, query: Axis, key: Axis) -> None:
        if self.beyond == "dense":
            return
        rows, columns = self.mask.query_length, self.mask.key_length
        expected = f"expected at most {rows} queries and {columns} keys, the lengths of the mask"
        if torch.compiler.is_compiling():  # numbers are not known yet: checked when the graph runs
            within = (query.last() < rows) & (key.last() < columns)
            torch._assert_async(within, f"{self.name}: {expected}, found a longer sequence")
            return
        queries, keys = int(query.last()) + 1, int(key.last()) + 1
        if queries > rows or keys > columns:
            raise InputError(
                f"{self.mask.source}: {expected}, found a sequence that needs {queries} queries and {keys} keys in "
                f"{self.name}; beyond='dense' leaves the rest unpruned"
            )


def attention_pruning_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention of one module, in the signature of the AttentionInterface.

    Parameters
    ----------
    query : Tensor
        [B, H, Q, D]
    key, value : Tensor
        [B, H / groups, S, D]
    attention_mask : Tensor, optional
        From ``sdpa_mask`` (bool [B, 1, Q, S], True = visible; or None where causality alone tells), or a caller's own
        additive one.
    position_bias : Tensor, optional
        Added to the scores (T5).

    Returns
    -------
    (Tensor, None)
        [B, Q, H, D] and no probabilities.

    Raises
    ------
    InputError
        If the sequence is longer than the mask, or the call asks for what cannot be pruned.
    """
    site: AttentionSite | None = getattr(module, SITE_ATTRIBUTE, None)
    call = (module, query, key, value, attention_mask)
    options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, "position_bias": position_bias} | kwargs
    if site is None or site.is_dense(query.shape[2], key.shape[2]):
        return sdpa_attention_forward(*call, **options)
    _refuse_foreign(site, module, key.shape[2], is_causal, kwargs)
    queries, keys = query.shape[2], key.shape[2]
    if attention_mask is None and site.causal and queries > 1:
        keys = queries  # as in sdpa_attention_forward: what follows is a cache not filled yet
    visible, bias = _split_mask(attention_mask)
    rows, columns = site.positions(visible, queries, keys, query.device)
    groups = query.shape[1] // key.shape[1]
    heads = (query, repeat_kv(key[:, :, :keys], groups), repeat_kv(value[:, :, :keys], groups))
    if position_bias is not None:
        position_bias = position_bias[..., :keys]
    out_BHQD = None
    if bias is None and _is_whole(site, visible, rows, columns):
        out_BHQD = attend_blocks(
            *heads,
            site.layout,
            site.backend,
            key_padding_mask=_padding(visible, site.causal, query.shape[0]),
            bias=position_bias,
            scale=scaling,
            dropout_p=dropout,
        )
    if out_BHQD is None:
        pruned, observer = site.cells(rows, columns), site.observer
        if pruned is None and observer is None and site.backend != "reference":
            # such as a decoder's dense self-attention, which only tells its cross attention where the queries stand
            return sdpa_attention_forward(*call, **options)
        if visible is None and site.causal and queries > 1:
            visible = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()
        if position_bias is not None:
            bias = position_bias if bias is None else bias + position_bias
        out_BHQD = attend(
            *heads,
            None if pruned is None and visible is None else ScoreMask.build(pruned, visible, query.dtype),
            bias=bias,
            scale=scaling,
            dropout_p=dropout,
            observer=None if observer is None else lambda probabilities: observer(probabilities, rows, columns),
            implementation=choose_implementation(site.backend, observer is not None),
        )
    return out_BHQD.transpose(1, 2).contiguous(), None


def _is_whole(site: AttentionSite, visible: Tensor | None, query: Axis, key: Axis) -> bool:
    """Whether block-sparse attention means the same in this call: whole sequences from position 0 that lie within the
    mask, in which only padding and the future are hidden."""
    if site.observer is not None or torch.compiler.is_compiling() or site.layout is None:
        return False
    if not (query.whole and key.whole):
        return False
    if query.bound > site.mask.query_length or key.bound > site.mask.key_length:
        return False
    return visible is None or padding_alone(visible, site.causal)[0]


def _padding(visible: Tensor | None, causal: bool, batch: int) -> Tensor | None:
    """bool [batch, S], True = padding."""
    padding_BS = None if visible is None else padding_alone(visible, causal)[1]
    return None if padding_BS is None else padding_BS.expand(batch, -1)


def _split_mask(attention_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What is visible (bool), and what a caller's additive mask adds to the visible scores."""
    if attention_mask is None or attention_mask.dtype == torch.bool:
        return attention_mask, None
    visible = attention_mask > torch.finfo(attention_mask.dtype).min / 2
    return visible, attention_mask.masked_fill(~visible, 0.0)


def _refuse_foreign(
    site: AttentionSite, module: nn.Module, keys: int, causal: bool | None, kwargs: dict[str, object]
) -> None:
    for name in _FOREIGN:
        if kwargs.get(name) is not None:
            raise InputError(f"{site.name}: expected plain attention, found {name}, which cannot be pruned")
    window = kwargs.get("sliding_window")
    if window is not None and keys >= window:
        raise InputError(
            f"{site.name}: expected fewer keys than its sliding window of {window}, found {keys}: positions beyond the "
            "window cannot be told"
        )
    causal = is_causal(module) if causal is None else causal
    if not site.cross and bool(causal) != site.causal:
        raise InputError(f"{site.name}: expected causal attention to be {site.causal}, found a call with {causal}")


def register() -> None:
    """Make ``model.set_attn_implementation("attention_pruning")`` work, causality and padding kept as for SDPA."""
    AttentionInterface.register(IMPLEMENTATION, attention_pruning_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)

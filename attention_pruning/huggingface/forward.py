"""The attention function ``"attention_pruning"`` of transformers' AttentionInterface.

A module without an :class:`AttentionSite` runs transformers' own SDPA, to the bit. Letters in names: B batch, H heads,
Q queries, S keys, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import InputError
from ..ops.attention import attend as attend_call
from ..ops.call import Call
from ..ops.choice import FEW, Choice, choice_of_few, choose
from ..ops.eager import ScoreMask, attend
from ..ops.reasons import record
from .attention_site import SITE_ATTRIBUTE, AttentionSite
from .held_keys import HELD, FewRows, Held, by_kept_keys, over_held_keys, reason_against, rows_in_cache
from .positions import HIDES_MORE, Places, can_look
from .sites import is_causal as module_is_causal

IMPLEMENTATION = "attention_pruning"
#: An observed call of at most so many scores is computed at once, by device; of a longer one runs of queries are.
SCORES_AT_ONCE = {"cpu": 1 << 24}
#: So many scores at a time: on a processor what its cache holds (16 MB in float32); but at least so many queries, since
#: each run reads all keys.
SCORES_IN_A_RUN, QUERIES_IN_A_RUN = {"cpu": 1 << 22}, 16
#: The same on any other device.
SCORES_ELSEWHERE = 1 << 26
#: Keyword arguments that change what attention means in ways that a mask cannot be combined with here.
_FOREIGN = ("softcap", "s_aux", "indices", "block_indices")


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
        If the sequence is longer than the mask, its mask does not tell positions, or the call asks for what cannot be
        pruned.
    """
    site: AttentionSite | None = getattr(module, SITE_ATTRIBUTE, None)
    if site is None or site.is_dense(query.shape[2], key.shape[2]):
        if site is not None:
            record(site.site, site.layer, site.layer_mask, Choice("sdpa", "nothing is pruned"))
        options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, "position_bias": position_bias}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options, **kwargs)
    held = None if torch.compiler.is_compiling() else getattr(key, HELD, None)
    keys = key.shape[2] if held is None else held.length
    _refuse_foreign(site, module, keys, is_causal, kwargs)
    visible, bias = _split_mask(attention_mask)
    places = site.places(visible, query.shape[2], keys, query.device, kwargs.get("position_ids"))
    if held is not None:
        _place_held(held, site, places, bias if position_bias is None else position_bias)
    if held is not None and held.length > query.shape[2]:
        out_BHQD = over_held_keys(site, query, key, value, places, held, scaling, dropout)
        held.forget(query.shape[2])
        return out_BHQD.transpose(1, 2).contiguous(), None
    arguments = (site, query, key, value, places, visible, bias, position_bias, scaling, dropout)
    out_BHQD = _attend(*arguments)
    if held is not None:
        held.forget(query.shape[2])
    if out_BHQD is None:
        options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, "position_bias": position_bias}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options, **kwargs)
    return out_BHQD.transpose(1, 2).contiguous(), None


def _attend(
    site: AttentionSite,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Places,
    visible: Tensor | None,
    bias: Tensor | None,
    position_bias: Tensor | None,
    scaling: float | None,
    dropout: float,
) -> Tensor | None:
    """[B, H, Q, D] of the keys of whole sequences; None where transformers' own SDPA gives the answer."""
    if position_bias is not None:
        position_bias = position_bias[..., : places.keys]
    if bias is None and position_bias is None:
        rows = _few_rows(site, query, key, value, places, dropout)
        choice = None if rows is None else choice_of_few(rows.mask, query.shape[2], query.shape[1] // key.shape[1])
        if choice is not None and choice.kept_keys:
            record(site.site, site.layer, rows.mask, choice)
            return by_kept_keys(rows, query, key, value, places, scaling)
    reason = _reason_for_cells(site, bias, places)
    if reason is None:
        return _by_operator(site, query, key, value, places, position_bias, scaling, dropout)
    if not site.prunes and site.observer is None and site.backend != "reference" and _within(site, places):
        # such as a decoder's dense self-attention, which only tells its cross attention where the queries stand
        return None
    if site.layer_mask is not None:
        record(site.site, site.layer, site.layer_mask_for(places), _choice_by_cells(site, reason))
    if position_bias is not None:
        bias = position_bias if bias is None else bias + position_bias
    return _by_cells(site, query, key, value, visible, places, bias, scaling, dropout)


def _reason_for_cells(site: AttentionSite, bias: Tensor | None, places: Places) -> str | None:
    """Why a call cannot go to the operator, which knows one offset for all sequences; None if it can."""
    if site.observer is not None:
        return "a pattern is being collected"
    if site.layer_mask is None or not site.prunes:
        return "nothing is pruned"
    if bias is not None:
        return "the caller adds a mask of its own to the scores"
    if places.offset is None:
        return places.reason
    if not site.covers(places):
        return "positions beyond the mask are computed, too"
    return site.reason_of_window(places)


def _few_rows(
    site: AttentionSite, query: Tensor, key: Tensor, value: Tensor, places: Places, dropout: float
) -> FewRows | None:
    """Where the queries of a step of decoding stand that the kernel of few queries can compute, without what the
    operator does for any call, or of sequences padded on the left, which it does not know; None for the rest."""
    queries = query.shape[2]
    if queries > FEW or site.cross or not site.causal or not site.prunes or site.observer is not None:
        return None
    if site.beyond_window(places):
        return None
    if places.starts is None and (places.offset is None or places.padding is not None):
        return None
    if places.offset == 0 and queries > 1:
        return None  # no step: a short sequence as a whole
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(query.device.type):
        return None
    if not site.covers(places) and not site.reaches(places.query, places.key):
        return None
    rows = rows_in_cache(site, places)
    return rows if reason_against(site, query, key, value, places, rows, dropout) is None else None


def _place_held(held: Held, site: AttentionSite, places: Places, bias: Tensor | None) -> None:
    """Note where the new keys of a PrunedCache stand.

    Raises
    ------
    InputError
        For a call that it cannot serve.
    """
    if held.mask is not site.layer_mask:
        raise InputError(f"PrunedCache: expected the masks that it was made for in {site.name}, found others")
    if site.observer is not None or bias is not None or places.reason == HIDES_MORE:
        raise InputError(
            f"PrunedCache: expected {site.name} to hide padding and the future alone, found a bias, an observer or "
            "a mask of another kind"
        )
    if not site.any_length:
        site.check_lengths(places.query, places.key)
    held.place(places)


def _choice_by_cells(site: AttentionSite, reason: str) -> Choice:
    if site.observer is not None:
        return Choice("eager", reason)
    if site.backend == "reference":
        return Choice("reference", "asked for")
    return Choice("sdpa", reason, refused=site.prunes)


def _within(site: AttentionSite, places: Places) -> bool:
    """Checks the lengths of a call to a layer that prunes nothing."""
    if site.mask is not None:
        site.cells(places.query, places.key)
    return True


def _by_operator(
    site: AttentionSite,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Places,
    position_bias: Tensor | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    padding_BS, layer_mask = places.padding, site.layer_mask_for(places)
    call = Call.check(
        query,
        key[:, :, : places.keys],
        value[:, :, : places.keys],
        layer_mask,
        key_padding_mask=None if padding_BS is None else padding_BS.expand(query.shape[0], -1),
        attn_bias=position_bias,
        query_offset=places.offset,
        enable_gqa=True,
        dropout_p=dropout,
        scale=scaling,
    )
    choice = choose(call, site.backend)
    record(site.site, site.layer, layer_mask, choice)
    return attend_call(call, choice)


def _by_cells(
    site: AttentionSite,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    places: Places,
    bias: Tensor | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Every score, each under the cell of its own positions: any call at all."""
    queries, keys, groups = query.shape[2], places.keys, query.shape[1] // key.shape[1]
    key, value = (repeat_kv(x[:, :, :keys], groups) for x in (key, value))
    attention = functools.partial(attend, scale=scaling, dropout_p=dropout)
    if site.observer is None:
        mask, bias = _masks(site, places, visible, bias, slice(0, queries), keys, query.dtype)
        implementation = "eager" if site.backend == "reference" else "sdpa"
        return attention(query, key, value, mask, bias=bias, implementation=implementation)
    observer, out = site.observer(places.query, places.key, len(query)), []
    runs = list(runs_of(queries, query.shape[0] * query.shape[1] * keys, query.device.type))
    for rows in runs:
        seen = keys if len(runs) == 1 else _keys_seen(site, visible, rows, keys)
        mask, own_bias = _masks(site, places, visible, bias, rows, seen, query.dtype)
        run = (query[:, :, rows], key[:, :, :seen], value[:, :, :seen])
        out.append(attention(*run, mask, bias=own_bias, observer=functools.partial(observer, rows.start)))
    return torch.cat(out, 2)


def runs_of(queries: int, scores: int, device: str) -> Iterator[slice]:
    """Runs of queries to compute at a time; all at once if that is little enough. ``scores``: of one query."""
    rows = SCORES_AT_ONCE.get(device, SCORES_ELSEWHERE) // scores
    if rows < queries:
        rows = max(SCORES_IN_A_RUN.get(device, SCORES_ELSEWHERE) // scores, QUERIES_IN_A_RUN)
    return (slice(start, min(start + rows, queries)) for start in range(0, queries, rows))


def _keys_seen(site: AttentionSite, visible: Tensor | None, rows: slice, keys: int) -> int:
    """How many keys are enough for a run of queries."""
    if visible is not None:
        seen = visible[..., rows, :keys].flatten(0, -2).any(0).nonzero()
        return int(seen.max()) + 1 if len(seen) else 1
    return rows.stop if site.causal else keys


def _masks(
    site: AttentionSite,
    places: Places,
    visible: Tensor | None,
    bias: Tensor | None,
    rows: slice,
    keys: int,
    dtype: torch.dtype,
) -> tuple[ScoreMask | None, Tensor | None]:
    """What hides and what is added to the scores of some queries and the first keys."""
    pruned = site.cells(places.query.part(rows), places.key.part(slice(keys)))
    if bias is not None:
        bias = (bias if bias.shape[-2] == 1 else bias[..., rows, :])[..., :keys]
    if visible is not None:
        visible = visible[..., rows, :keys]
    elif site.causal and rows.stop > 1:
        device, number = places.query.index.device, rows.stop - rows.start
        if pruned is None:
            return ScoreMask.causal(rows.start, number, keys, dtype, device), bias
        visible = torch.ones(number, keys, dtype=torch.bool, device=device).tril(rows.start)
    return None if pruned is None and visible is None else ScoreMask.build(pruned, visible, dtype), bias


def _split_mask(attention_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What is visible (bool), and what a caller's additive mask adds to the visible scores."""
    if attention_mask is None or attention_mask.dtype == torch.bool:
        return attention_mask, None
    visible = attention_mask > torch.finfo(attention_mask.dtype).min / 2
    bias = attention_mask.masked_fill(~visible, 0.0)
    if bias.device.type == "cpu" and can_look(bias) and not bias.any():  # hides, and adds nothing
        return visible, None
    return visible, bias


def _refuse_foreign(
    site: AttentionSite, module: nn.Module, keys: int, causal: bool | None, kwargs: dict[str, object]
) -> None:
    for name in kwargs:
        if name in _FOREIGN and kwargs[name] is not None:
            raise InputError(f"{site.name}: expected plain attention, found {name}, which cannot be pruned")
    window = kwargs.get("sliding_window")
    if window != site.window and keys >= (window or keys):
        raise InputError(f"{site.name}: expected its sliding window to be {site.window}, found a call with {window}")
    causal = module_is_causal(module) if causal is None else causal
    if not site.cross and bool(causal) != site.causal:
        raise InputError(f"{site.name}: expected causal attention to be {site.causal}, found a call with {causal}")


def register() -> None:
    """Make ``model.set_attn_implementation("attention_pruning")`` work, causality and padding kept as for SDPA."""
    AttentionInterface.register(IMPLEMENTATION, attention_pruning_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)

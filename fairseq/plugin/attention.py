"""fairseq's multi-head attention under a prune mask, with softmax or entmax, and open to an observer.

Letters in names: B batch (beams included), H heads, T queries, S keys, D head size, C = H * D.
"""

from __future__ import annotations

import logging
import math

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor

from attention_pruning import InputError, LayerMask
from attention_pruning.ops.attention import attend as attend_call
from attention_pruning.ops.call import Call
from attention_pruning.ops.choice import Choice, choose
from attention_pruning.ops.cpu import few_queries, native, op
from attention_pruning.ops.eager import Observer, ScoreMask, attend, normalize
from attention_pruning.ops.reasons import record

from .prepared import Padding, extended, hides_only_the_future, lost_rows, padding_of, rows_of, score_mask

logger = logging.getLogger(__name__)

#: How a checkpoint calls the cells of one attention: bool [H, T, S] over positions from 0, True = pruned.
MASK_NAME = "prune_mask"
#: Why all scores of a call are computed, one by one.
_BY_SCORES = {
    name: Choice("eager", reason, refused=True)
    for name, reason in (
        ("steps", "text is written step by step"),
        ("entmax", "entmax is asked for"),
        ("weights", "its weights are asked for"),
    )
}

_BY_KEPT_KEYS = Choice("block_sparse", "asked for", kept_keys=True)


class PrunedAttention(MultiheadAttention):
    """An attention of fairseq that was adopted, not built: it keeps its weights, their names and the random stream.

    Without mask, entmax or observer it runs fairseq's own code and nothing else.

    Attributes
    ----------
    site : str
        ``enc-self``, ``dec-self`` or ``enc-dec``.
    prune_mask : Tensor or None
        bool [H, T, S], True = pruned, a persistent buffer.
    block_size : int
        Side of the blocks that the mask prunes whole; 1 for single cells.
    backend : {"auto", "block_sparse", "flex", "triton", "reference"}
        What computes whole sequences, see ``pruned_attention``; "block_sparse" computes single tokens, too.
    normalizer : {"softmax", "entmax15"}
    beyond_pattern : {"decoding", "dense", "error"}
        What to do at positions beyond the mask: leave them unpruned where the model writes them itself and refuse them
        in text that it reads, leave them unpruned, or refuse them.
    gives_weights : bool
        Whether weights that are asked for are given, whatever that costs; if not, they may be None.
    observer : callable or None
        Receives the probabilities [B, H, T, S] before dropout, in float32.
    """

    @classmethod
    def adopt(
        cls, attention: MultiheadAttention, site: str, sibling: MultiheadAttention | None = None
    ) -> PrunedAttention:
        """Turn an attention that fairseq built into one of these, in place; one that is already stays as it is.

        Parameters
        ----------
        sibling : MultiheadAttention, optional
            For ``enc-dec``: the self-attention of the same layer, whose cache tells how far decoding has come.

        Raises
        ------
        InputError
            If it attends in a way that positions of a mask cannot describe.
        """
        if isinstance(attention, cls):
            return attention
        if attention.use_xformers or attention.bias_k is not None or attention.add_zero_attn:
            raise InputError(f"{site} attention: expected plain attention, found xformers, --bias-kv or --zero-attn")
        attention.__class__ = cls
        attention.site = site
        attention.normalizer = "softmax"
        attention.beyond_pattern = "decoding"
        attention.backend, attention.block_size = "auto", 1
        attention._layer_mask, attention._padding_checked = None, False
        attention.gives_weights, attention._asked = False, None
        attention.observer = None
        attention.register_buffer(MASK_NAME, None)
        # Not a submodule of this one: its weights would appear twice in a checkpoint.
        object.__setattr__(attention, "sibling", sibling)
        return attention

    @property
    def stock(self) -> bool:
        """Whether there is nothing to do that fairseq's own attention does not do."""
        return self.prune_mask is None and self.normalizer == "softmax" and self.observer is None

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As fairseq's: query [T, B, C], key and value [S, B, C] -> output [T, B, C] and attention weights or None.

        The weights are [B, T, S], averaged over heads, or [H, B, T, S] for ``need_head_weights``. ``attn_mask`` [T, S]
        is 0 or -inf, ``key_padding_mask`` [B, S] True at padding.

        Raises
        ------
        InputError
            Where the mask does not cover the positions, or sources are padded on the left.
        """
        need_weights = need_weights or need_head_weights
        if self.stock or before_softmax:
            return super().forward(
                query,
                key,
                value,
                key_padding_mask,
                incremental_state,
                need_weights,
                static_kv,
                attn_mask,
                before_softmax,
                need_head_weights,
            )
        pruned, plain = self.prune_mask is not None, self.normalizer == "softmax" and self.observer is None
        padding = self._padding(key_padding_mask, incremental_state)
        if pruned:
            self._refuse_left_padding(padding)
            whole = plain and incremental_state is None
            if whole and not (need_weights and self._weighs_by_scores(query.device)):
                return self._fused(query, key, padding, attn_mask), None
            if plain and self._steps_by_kept_keys(query, attn_mask, incremental_state, need_weights):
                return self._step(query, key, key_padding_mask, padding, incremental_state, static_kv), None
            if self.observer is None:
                reason = "steps" if incremental_state is not None else "weights" if plain else "entmax"
                record(self.site, None, self.layer_mask, _BY_SCORES[reason])
        # Scores, caches and padding are fairseq's work; True keeps it from handing all of it to torch's own attention.
        own_check, self.skip_embed_dim_check = self.skip_embed_dim_check, True
        regular = self._is_regular(padding, attn_mask, incremental_state is not None and query.size(0) == 1)
        self._asked = (padding, incremental_state) if regular and pruned else None
        arguments = (query, key, value, key_padding_mask, incremental_state, need_weights, static_kv, attn_mask)
        try:
            if regular and plain:
                return super().forward(*arguments, need_head_weights=need_head_weights)
            scores, values = super().forward(*arguments, before_softmax=True)
        finally:
            self.skip_embed_dim_check, self._asked = own_check, None
        scores_BHTS = scores.view(query.size(1), self.num_heads, *scores.shape[1:])
        mask = None if regular else self._irregular_mask(scores_BHTS, incremental_state)
        p_BHTS = self._probabilities(scores_BHTS, mask)
        output = self.out_proj(self._weigh(self.dropout_module(p_BHTS), values))
        if not need_weights:
            return output, None
        return output, p_BHTS.transpose(0, 1) if need_head_weights else p_BHTS.mean(1)

    def apply_sparse_mask(self, attn_weights: Tensor, tgt_len: int, src_len: int, bsz: int) -> Tensor:
        """fairseq's own place for it: scores [B * H, T, S] as multiplied, padding and future not yet hidden."""
        if self._asked is None:
            return attn_weights
        padding, incremental_state = self._asked
        start = self._first_query(tgt_len, src_len, incremental_state)
        mask = self._covering(start, tgt_len, src_len, decoding=incremental_state is not None)
        rows = slice(start, start + tgt_len)
        scores_BHTS = attn_weights.view(bsz, self.num_heads, tgt_len, src_len)
        scores_BHTS = scores_BHTS.add_(rows_of(mask, rows, src_len, attn_weights))
        lost = lost_rows(mask, rows, src_len, padding, attn_weights.device)
        if lost is not None:  # even over what they see
            scores_BHTS = scores_BHTS.masked_fill_(lost, 0.0)
        return scores_BHTS.view_as(attn_weights)

    def _padding(self, key_padding_mask: Tensor | None, incremental_state: dict | None) -> Padding | None:
        """That of the keys; of what is kept from step to step, which is looked at once for all steps."""
        if incremental_state is not None:
            kept = self._get_input_buffer(incremental_state).get("prev_key_padding_mask")
            key_padding_mask = key_padding_mask if kept is None else kept
        return None if key_padding_mask is None else padding_of(key_padding_mask)

    def _weighs_by_scores(self, device: torch.device) -> bool:
        """Whether a call that asks for weights gets them. fairseq asks for those of the last layer, in evaluation of
        all layers, and drops them but for alignments: so they never keep blocks from being left out, and on a CPU they
        come with single cells as the committed translations were trained."""
        return self.gives_weights or (device.type == "cpu" and not self.layer_mask.has_whole_blocks)

    def _refuse_left_padding(self, padding: Padding | None) -> None:
        # Positions of a pattern count from the first token.
        if padding is None or self.site == "dec-self":
            return
        if padding.mask.device.type != "cpu":
            if self._padding_checked:  # to look at each batch would be to wait for the GPU in each layer
                return
            self._padding_checked = True
        if padding.facts[2]:
            raise InputError(
                "sources: expected padding on the right, found it on the left: give --left-pad-source, "
                "which in fairseq 0.12.2 takes no value and means False"
            )

    def _fused(self, query: Tensor, key: Tensor, padding: Padding | None, attn_mask: Tensor | None) -> Tensor:
        """A whole sequence at once: [T, B, C]."""
        source = query if self.self_attention else key
        heads = [self._split_heads(x) for x in (self.q_proj(query), self.k_proj(source), self.v_proj(source))]
        queries, keys, on_cpu = query.size(0), source.size(0), query.device.type == "cpu"
        if padding is not None and on_cpu and not padding.facts[1]:
            padding = None
        dropout = self.dropout_module
        dropout_p = dropout.p if self.training or dropout.apply_during_inference else 0.0
        mask, reason = self.layer_mask, self._reason_against_operator(queries, keys, attn_mask)
        choice = Choice("sdpa", reason or "", refused=True)
        if reason is None:
            padded_BS = None if padding is None else padding.mask
            call = Call.check(*heads, mask, key_padding_mask=padded_BS, scale=self.scaling, dropout_p=dropout_p)
            choice = choose(call, self.backend)
        record(self.site, None, mask, choice)
        if reason is None and (choice.backend in ("block_sparse", "flex") or not on_cpu):
            return self.out_proj(_merge_heads(attend_call(call, choice)))
        # On a CPU not by the operator, though it could: a mask of scores without a batch, as here where nothing is
        # padded, sends torch another way, and the committed translations were trained so.
        pruned = self._covering(0, queries, keys, decoding=False)
        if self._is_regular(padding, attn_mask):
            made = score_mask(pruned, queries, keys, padding, heads[0])
        else:
            made = _any_score_mask(pruned, 0, queries, keys, _visible(padding, attn_mask), heads[0])
        out_BHTD = attend(
            *heads,
            made,
            scale=self.scaling,
            dropout_p=dropout_p,
            implementation="eager" if self.backend == "reference" else "sdpa",
        )
        return self.out_proj(_merge_heads(out_BHTD))

    def _steps_by_kept_keys(
        self, query: Tensor, attn_mask: Tensor | None, incremental_state: dict | None, need_weights: bool
    ) -> bool:
        """Whether one token goes by the keys that its row keeps: where the kernel is asked for by its name. With "auto"
        scores are computed as the committed translations were."""
        one = incremental_state is not None and query.size(0) == 1 and attn_mask is None and self.beam_size == 1
        if not one or self.backend != "block_sparse" or (need_weights and self.gives_weights):
            return False
        dropout = self.dropout_module
        drops = dropout.p > 0.0 and (self.training or dropout.apply_during_inference)
        known = query.device.type == "cpu" and query.dtype in op.DTYPES and self.head_dim <= op.LARGEST_HEAD
        return known and not drops and not torch.is_grad_enabled() and native.missing() is None

    def _step(
        self,
        query: Tensor,
        key: Tensor | None,
        key_padding_mask: Tensor | None,
        padding: Padding | None,
        incremental_state: dict,
        static_kv: bool,
    ) -> Tensor:
        """One token, [1, B, C]; keys and values are kept as fairseq keeps them."""
        saved = self._get_input_buffer(incremental_state)
        if not (static_kv and "prev_key" in saved):
            source = query if self.self_attention else key
            new = {"prev_key": self.k_proj(source), "prev_value": self.v_proj(source)}
            for name, x_TBC in new.items():
                x_BHTD = self._split_heads(x_TBC)
                saved_BHTD = [saved[name]] if name in saved else []
                new[name] = torch.cat([*saved_BHTD, x_BHTD], 2)
            new["prev_key_padding_mask"] = self._append_prev_key_padding_mask(
                key_padding_mask,
                saved.get("prev_key_padding_mask"),
                query.size(1),
                new["prev_key"].size(2),
                static_kv,
            )
            saved = new
            self._set_input_buffer(incremental_state, saved)
        keys, padded_BS = saved["prev_key"], saved["prev_key_padding_mask"]
        if padded_BS is not None and padding is not None and padded_BS is padding.mask and not padding.facts[1]:
            padded_BS = None
        start = self._first_query(1, keys.size(2), incremental_state)
        mask = self._covering(start, 1, keys.size(2), decoding=True)
        record(self.site, None, mask, _BY_KEPT_KEYS)
        out_BHTD = few_queries.few_queries(
            self._split_heads(self.q_proj(query)),
            keys,
            saved["prev_value"],
            mask,
            causal=False,  # it is the last, and sees every key
            query_offset=start,
            key_padding_mask=None if padded_BS is None else padded_BS.bool(),
            scale=self.scaling,
        )
        return self.out_proj(_merge_heads(out_BHTD))

    def _reason_against_operator(self, queries: int, keys: int, attn_mask: Tensor | None) -> str | None:
        """Why a call cannot be computed under the mask as it is: something else than it, padding and the decoder's
        future is hidden, or the call is longer."""
        mask = self.layer_mask
        if queries > mask.query_length or keys > mask.key_length:
            return "positions beyond the mask are computed, too"
        if mask.causal != (attn_mask is not None):
            return "the model's own mask is not that of its site"
        if mask.causal and (mask.query_length != mask.key_length or not hides_only_the_future(attn_mask)):
            return "the model's own mask hides more than the future"
        return None

    def _is_regular(self, padding: Padding | None, attn_mask: Tensor | None, step: bool = False) -> bool:
        """Whether all that is hidden is what the site hides: the future in the decoder, and padding on the right.

        ``step``: a single query, the last, which has no future.
        """
        if padding is not None:
            shortest, _, left = padding.facts
            if shortest == 0 or left or (step and self.site == "dec-self") or self.beam_size > 1:
                return False
        if attn_mask is None:
            return step or self.site != "dec-self"
        return self.site == "dec-self" and not step and hides_only_the_future(attn_mask)

    @property
    def layer_mask(self) -> LayerMask:
        """The buffer in the form that the operator takes."""
        # A checkpoint is read into the buffer after the model is built, and a move to a device makes a new buffer.
        mask, version = self.prune_mask, self.prune_mask._version
        if self._layer_mask is None or self._layer_mask[0] is not mask or self._layer_mask[1] != version:
            step, lengths = self.block_size, mask.shape[1:]
            blocks = mask[:, ::step, ::step].cpu().contiguous()  # a block is pruned whole: any cell tells
            made = LayerMask(blocks, step, *lengths, causal=self.site == "dec-self", source=f"{self.site} mask")
            self._layer_mask = (mask, version, made)
        return self._layer_mask[2]

    def _irregular_mask(self, scores_BHTS: Tensor, incremental_state: dict | None) -> ScoreMask:
        """The same for scores in which something else is hidden, by -inf, than the site hides."""
        visible = scores_BHTS > -math.inf
        if self.prune_mask is None:
            return ScoreMask.build(None, visible, scores_BHTS.dtype)
        queries, keys = scores_BHTS.shape[2:]
        start = self._first_query(queries, keys, incremental_state)
        mask = self._covering(start, queries, keys, decoding=incremental_state is not None)
        return _any_score_mask(mask, start, queries, keys, visible, scores_BHTS)

    def _probabilities(self, scores_BHTS: Tensor, mask: ScoreMask | None) -> Tensor:
        """[B, H, T, S], seen by the observer in float32; ``mask`` is None where all is hidden already."""
        blind = None
        if mask is not None:
            blind = mask.blind
            for rows in (mask.uniform, blind):
                if rows is not None:
                    scores_BHTS = scores_BHTS.masked_fill(rows, 0.0)
            scores_BHTS = scores_BHTS.add_(mask.additive)
        # float32, as fairseq's softmax is, whatever the scores are
        p_BHTS = normalize(scores_BHTS.float(), self.normalizer)
        if blind is not None:
            p_BHTS = p_BHTS.masked_fill(blind, 0.0)
        if self.observer is not None:
            self.observer(p_BHTS.detach())
        return p_BHTS.type_as(scores_BHTS)

    def _weigh(self, p_BHTS: Tensor, values: Tensor) -> Tensor:
        """[T, B, C]; ``values`` is [sentences * H, S, D]: the beams of a sentence share it in cross-attention."""
        batch, heads, queries, keys = p_BHTS.shape
        if len(values) == batch * heads:
            out = torch.bmm(p_BHTS.view(-1, queries, keys), values)
            return out.transpose(0, 1).reshape(queries, batch, -1)
        values = values.view(-1, heads, keys, self.head_dim)
        sentences = values.size(0)
        # Beams become more queries of their sentence, so that its values need no copies.
        p = p_BHTS.view(sentences, -1, heads, queries, keys).transpose(1, 2).reshape(sentences, heads, -1, keys)
        out = (p @ values).view(sentences, heads, -1, queries, self.head_dim)
        return _merge_heads(out.transpose(1, 2).reshape(batch, heads, queries, self.head_dim))

    def _first_query(self, queries: int, keys: int, incremental_state: dict | None) -> int:
        """The position of the first query of this call: when decoding, the cached ones came before."""
        if incremental_state is None:
            return 0
        if self.site == "dec-self":
            return keys - queries
        # Cross-attention sees the whole source at every step; the decoder's own cache, one call ago, counts the steps.
        return self.sibling._get_input_buffer(incremental_state)["prev_key"].size(2) - queries

    def _covering(self, start: int, queries: int, keys: int, decoding: bool) -> LayerMask:
        """The mask, long enough for these positions."""
        mask = self.layer_mask
        if start + queries <= mask.query_length and keys <= mask.key_length:
            return mask
        lengths = f"{mask.query_length} queries and {mask.key_length} keys"
        own_text = decoding and (self.site == "dec-self" or keys <= mask.key_length)
        if self.beyond_pattern == "error" or (self.beyond_pattern == "decoding" and not own_text):
            raise InputError(
                f"{self.site} attention: expected at most {lengths}, the lengths of its pattern, found "
                f"{start + queries} queries and {keys} keys; --beyond dense prunes nothing beyond it"
            )
        self._say_once(f"{self.site} attention: longer than its pattern ({lengths})")
        return extended(mask, start + queries, keys)

    def _say_once(self, message: str) -> None:
        if not getattr(self, "_said", False):
            self._said = True
            logger.info("%s, unpruned beyond", message)

    def _split_heads(self, x_TBC: Tensor) -> Tensor:
        return x_TBC.view(*x_TBC.shape[:2], self.num_heads, self.head_dim).permute(1, 2, 0, 3)


def _merge_heads(x_BHTD: Tensor) -> Tensor:
    """[T, B, C]"""
    return x_BHTD.permute(2, 0, 1, 3).flatten(2)


def _any_score_mask(
    mask: LayerMask, start: int, queries: int, keys: int, visible: Tensor | None, like: Tensor
) -> ScoreMask:
    """For whatever is visible."""
    pruned_HTS = mask.cells(like.device)[:, start : start + queries, :keys]
    return ScoreMask.build(pruned_HTS, visible, like.dtype)


def _visible(padding: Padding | None, attn_mask: Tensor | None) -> Tensor | None:
    """bool, broadcastable to [B, 1, T, S]: what the model shows; None for everything."""
    visible = None if attn_mask is None else attn_mask > -math.inf
    if padding is None:
        return visible
    real_B11S = ~padding.mask[:, None, None, :]
    return real_B11S if visible is None else visible & real_B11S


__all__ = ["MASK_NAME", "Observer", "PrunedAttention"]

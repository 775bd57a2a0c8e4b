"""Transformer-XL (Dai et al., 2019): a language model with segment recurrence and relative positions.

Written from the paper; names follow the published PyTorch implementation. Batches come first: ids are [B, T].
A prune mask, if any, is a buffer of the model: a checkpoint evaluates with the mask it was trained with.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from attention_pruning import InputError, PruneMask
from attention_pruning.ops.choice import BACKENDS
from attention_pruning.ops.layer_mask import LayerMask
from attention_pruning.recipe import require_choice
from dropout import dropout
from model_config import ModelConfig
from proj_adaptive_softmax import AdaptiveEmbedding, ProjectedAdaptiveLogSoftmax
from relative_attention import AttentionMask, PositionalEmbedding, RelPartialLearnableMultiHeadAttn


class PositionwiseFF(nn.Module):
    """Two linear layers with ReLU, dropout and a residual."""

    def __init__(self, d_model: int, d_inner: int, dropout: float, pre_lnorm: bool = False) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(d_model, d_inner), nn.Linear(d_inner, d_model)
        self.layer_norm = nn.LayerNorm(d_model)
        self.dropout, self.pre_lnorm = dropout, pre_lnorm

    def forward(self, hidden_BTE: Tensor) -> Tensor:
        """[B, T, E] -> [B, T, E]"""
        inner = self.inner(self.layer_norm(hidden_BTE) if self.pre_lnorm else hidden_BTE)
        inner = dropout(F.relu(inner, inplace=True), self.dropout, self.training)
        output = hidden_BTE + dropout(self.outer(inner), self.dropout, self.training)
        return output if self.pre_lnorm else self.layer_norm(output)


class DecoderLayer(nn.Module):
    """Relative attention followed by the position-wise network."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.dec_attn = RelPartialLearnableMultiHeadAttn(
            config.n_head, config.d_model, config.d_head, config.dropout, config.dropatt, config.pre_lnorm, index
        )
        self.pos_ff = PositionwiseFF(config.d_model, config.d_inner, config.dropout, config.pre_lnorm)


def extended(pruned_LHTK: Tensor, length: int, slots: int) -> Tensor:
    """Pruned cells for at least so long a segment and memory; what they did not cover is not pruned.

    Parameters
    ----------
    pruned_LHTK : Tensor
        bool [layer, head, T, M + T]
    length, slots : int
        Tokens of a segment, memory slots.

    Returns
    -------
    Tensor
        bool [layer, head, T', M' + T'], T' and M' the greater of both; the memory is right-aligned.
    """
    covered = pruned_LHTK.size(2)
    older, later = slots - (pruned_LHTK.size(3) - covered), length - covered
    return F.pad(pruned_LHTK, (max(0, older), max(0, later), 0, max(0, later)))


@dataclass
class Memory:
    """What the model keeps of the segments before.

    Training keeps hidden states [B, M, E] per layer, as published. Evaluation keeps the keys and values made of them
    [B, H, M, D]: the weights stand still, so projecting them again at every segment would give the same numbers.
    """

    length: int
    states: list[Tensor] | None = None
    keys_values: list[tuple[Tensor, Tensor]] | None = None
    position_keys: dict[int, list[Tensor]] = field(default_factory=dict)

    def layer(self, index: int) -> Tensor | tuple[Tensor, Tensor] | None:
        """The entry of one layer; None while nothing is remembered."""
        if self.length == 0:
            return None
        return self.states[index] if self.states is not None else self.keys_values[index]


class MemTransformerLM(nn.Module):
    """The language model.

    Parameters
    ----------
    config : ModelConfig
    mask : PruneMask, optional
        Made at this model's lengths: ``tgt_len`` queries, ``mem_len + tgt_len`` keys. None: dense.
    beyond : {"error", "dense"}
        What becomes of lengths that the mask does not cover, see :meth:`prune`.

    Raises
    ------
    InputError
        If the mask does not fit the model.
    """

    def __init__(self, config: ModelConfig, mask: PruneMask | None = None, beyond: str = "error") -> None:
        super().__init__()
        self.config = config
        self.word_emb = AdaptiveEmbedding(
            config.n_token, config.d_embed, config.d_model, config.cutoffs, config.div_val
        )
        self.pos_emb = PositionalEmbedding(config.d_model, config.clamp_len)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.n_layer))
        biases = (config.n_head, config.d_head)
        if config.untie_r:
            biases = (config.n_layer, *biases)
        self.r_w_bias, self.r_r_bias = nn.Parameter(torch.empty(biases)), nn.Parameter(torch.empty(biases))
        self.crit = ProjectedAdaptiveLogSoftmax(self.word_emb, config.tied, config.tie_projs)
        self.register_buffer("pruned", None)
        self._masks: dict[tuple, list[AttentionMask]] = {}
        self._layer_masks: dict[tuple[int, int | None], list[LayerMask]] = {}
        if mask is not None:
            self.prune(mask, beyond)

    def initialize(
        self, init: str = "normal", init_range: float = 0.1, init_std: float = 0.02, proj_init_std: float = 0.01
    ) -> None:
        """Draw the weights: matrices from ``init``, projections of embedding and softmax from a narrower normal,
        normalisation gains around one, linear and softmax biases zero."""

        def draw(weight: Tensor) -> None:
            if init == "uniform":
                nn.init.uniform_(weight, -init_range, init_range)
            else:
                nn.init.normal_(weight, 0.0, init_std)

        for module in self.modules():
            if isinstance(module, nn.Linear):
                draw(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.weight, 1.0, init_std)
                nn.init.zeros_(module.bias)
        softmax = self.crit
        for weight in [*self.word_emb.tables, *softmax.weights, self.r_w_bias, self.r_r_bias]:
            draw(weight)
        for projection in [*self.word_emb.projections, *softmax.projections.values()]:
            nn.init.normal_(projection, 0.0, proj_init_std)
        nn.init.zeros_(softmax.bias)
        if softmax.n_clusters:
            draw(softmax.cluster_weight)
            nn.init.zeros_(softmax.cluster_bias)

    def prune(self, mask: PruneMask, beyond: str = "error") -> None:
        """Prune attention with a mask from now on; a mask that prunes nothing leaves the model as it is.

        Parameters
        ----------
        mask : PruneMask
        beyond : {"error", "dense"}
            Where the model's lengths exceed the mask's: refuse, or leave what the mask does not cover unpruned.

        Raises
        ------
        InputError
            If the mask is of another model, or does not cover the lengths of this one.
        """
        config = self.config
        queries, keys = config.tgt_len, config.mem_len + config.tgt_len
        if beyond == "dense":  # what is longer than the mask need not be covered
            queries, keys = min(queries, mask.query_length), min(keys, mask.key_length)
        mask.check_model(layers=config.n_layer, heads=config.n_head, query_length=queries, key_length=keys, site="self")
        cells = torch.stack([mask.cells(layer) for layer in range(config.n_layer)])
        cells = extended(cells, config.tgt_len, config.mem_len)
        self.set_pruned(cells if bool((cells & mask.visible).any()) else None)

    def set_pruned(self, pruned_LHTK: Tensor | None) -> None:
        """Set the mask itself: bool [layer, head, T, M + T] for segments up to T tokens after up to M memory slots."""
        self.pruned = None if pruned_LHTK is None else pruned_LHTK.to(self.r_w_bias.device)
        self._masks.clear()
        self._layer_masks.clear()

    def set_backend(self, backend: str) -> None:
        """What computes pruned attention, see ``attention_pruning.pruned_attention``; "auto" unless set."""
        require_choice("backend", backend, BACKENDS)
        for layer in self.layers:
            layer.dec_attn.backend = backend

    @contextlib.contextmanager
    def at_lengths(self, tgt_len: int, mem_len: int) -> Iterator[None]:
        """Other lengths for a while, as for a validation amid training."""
        before = self.config
        self.config = dataclasses.replace(before, tgt_len=tgt_len, mem_len=mem_len)
        try:
            yield
        finally:
            self.config = before

    @property
    def covered(self) -> tuple[int, int]:
        """Segment length and memory slots that the mask covers; the model's own where it is dense."""
        if self.pruned is None:
            return self.config.tgt_len, self.config.mem_len
        return self.pruned.size(2), self.pruned.size(3) - self.pruned.size(2)

    def pruned_cells(self) -> Tensor:
        """What the mask prunes at the model's lengths, bool [layer, head, tgt_len, mem_len + tgt_len]; needs a mask."""
        config, slots = self.config, self.covered[1]
        return self.pruned[:, :, : config.tgt_len, slots - config.mem_len : slots + config.tgt_len]

    def biases(self, layer: int) -> tuple[Tensor, Tensor]:
        """u and v of a layer, [H, D] each: the same in all layers unless ``untie_r``."""
        if not self.config.untie_r:
            return self.r_w_bias, self.r_r_bias
        return self.r_w_bias[layer], self.r_r_bias[layer]

    def visibility(self, length: int, memory_length: int) -> Tensor:
        """What the structure shows, bool [T, K]: no future, and with ``same_length`` the last ``mem_len`` keys only."""
        own_key, key = self._own_keys(length, memory_length)
        visible = key <= own_key
        return visible & ~self._past(length, memory_length) if self.config.same_length else visible

    def _past(self, length: int, memory_length: int) -> Tensor:
        """The older keys, which ``same_length`` hides: bool [T, K]."""
        own_key, key = self._own_keys(length, memory_length)
        return key <= own_key - self.config.mem_len

    def _own_keys(self, length: int, memory_length: int) -> tuple[Tensor, Tensor]:
        """Where each query stands among the keys, [T, 1], and the keys, [1, K]."""
        device = self.r_w_bias.device
        own_key = torch.arange(length, device=device)[:, None] + memory_length
        return own_key, torch.arange(memory_length + length, device=device)[None, :]

    def attention_masks(self, length: int, memory_length: int, dtype: torch.dtype) -> list[AttentionMask]:
        """Per layer, structure and pruning for a segment of ``length`` after ``memory_length`` remembered tokens.

        Rows are positions in the segment, from its start: a shorter segment uses the first rows. Keys are the memory
        slots, right-aligned (a short memory fills the last slots), then the segment.
        """
        key = (length, memory_length, self.config.mem_len, dtype, self.r_w_bias.device)
        if key not in self._masks:
            visible = self.visibility(length, memory_length)
            if self.pruned is None:
                self._masks[key] = [AttentionMask(visible, None, dtype)] * self.config.n_layer
            else:
                self._masks[key] = self._pruned_masks(visible, memory_length, dtype)
        return self._masks[key]

    def _pruned_masks(self, visible_TK: Tensor, memory_length: int, dtype: torch.dtype) -> list[AttentionMask]:
        length, keys = visible_TK.shape
        first = self.covered[1] - memory_length
        rows_LHTK = self.pruned[:, :, :length, first : first + keys]
        masks = []
        for pruned, layer in zip(rows_LHTK, self._operator_masks(memory_length), strict=True):
            if not (layer.prunes and (pruned & visible_TK).any()):  # what same_length hides is not pruned
                masks.append(AttentionMask(visible_TK, None, dtype))
            elif self.config.same_length and (pruned | ~visible_TK).all(-1).any():
                # Such a row is uniform over what it sees, which the operator takes for all that causality shows.
                reason = "rows are left empty, and same_length hides some of what causality shows them"
                masks.append(AttentionMask(visible_TK, pruned, dtype, reason=reason))
            else:
                masks.append(AttentionMask(visible_TK, pruned, dtype, layer))
        return masks

    def _operator_masks(self, memory_length: int) -> list[LayerMask]:
        """Per layer, what is pruned or hidden by ``same_length`` after so many remembered tokens, for the operator."""
        shown = self.config.mem_len if self.config.same_length else None
        if (memory_length, shown) not in self._layer_masks:
            cells_LHTK = self.pruned[..., self.covered[1] - memory_length :].cpu()
            if shown is not None:
                cells_LHTK = cells_LHTK | self._past(cells_LHTK.size(2), memory_length).cpu()
            self._layer_masks[memory_length, shown] = [LayerMask.from_cells(cells, causal=True) for cells in cells_LHTK]
        return self._layer_masks[memory_length, shown]

    def forward(self, data_BT: Tensor, target_BT: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """Negative log-likelihood of the next tokens.

        Parameters
        ----------
        data_BT, target_BT : Tensor
            int64 ids, and the same moved by one.
        memory : Memory, optional
            As returned for the segment before; None at the start of a text.

        Returns
        -------
        nll_BT : Tensor
            In nats.
        memory : Memory

        Raises
        ------
        InputError
            If a pruned model is given a longer segment or memory than its mask covers.
        """
        hidden_BTE, memory = self.hidden(data_BT, memory)
        nll = self.crit(hidden_BTE.reshape(-1, self.config.d_model), target_BT.reshape(-1), self.word_emb)
        return nll.view(data_BT.shape), memory

    def log_probabilities(self, data_BT: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """Log-probabilities of the next token over the whole vocabulary, [B, T, V], and the memory."""
        hidden_BTE, memory = self.hidden(data_BT, memory)
        flat = self.crit.log_probabilities(hidden_BTE.reshape(-1, self.config.d_model), self.word_emb)
        return flat.view(*data_BT.shape, -1), memory

    def hidden(self, data_BT: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """The last layer's output [B, T, E], after dropout, and the memory for the next segment."""
        config, length = self.config, data_BT.size(1)
        memory = Memory(0) if memory is None else memory
        self._check_lengths(length, memory.length)
        masks = self.attention_masks(length, memory.length, self.r_w_bias.dtype)
        key_length = memory.length + length
        without_gradients = not (self.training or torch.is_grad_enabled())
        # Keys and values that were remembered say nothing of hidden states: keys and values go on to be remembered.
        caching = without_gradients or memory.keys_values is not None
        position_keys = memory.position_keys.get(key_length) if without_gradients else None
        if position_keys is None:
            positions = dropout(self.pos_emb(key_length), config.dropout, self.training)
            position_keys = [layer.dec_attn.project_positions(positions) for layer in self.layers]
        hidden = dropout(self.word_emb(data_BT), config.dropout, self.training)
        kept = min(config.mem_len, key_length)
        new: list = []
        for index, layer in enumerate(self.layers):
            remembered = memory.layer(index)
            states = hidden
            hidden, keys_values = layer.dec_attn(
                hidden, remembered, position_keys[index], *self.biases(index), masks[index]
            )
            hidden = layer.pos_ff(hidden)
            if caching:
                new.append(tuple(x[:, :, key_length - kept :].detach() for x in keys_values))
            else:
                new.append(self._remember(remembered, states, kept))
        hidden = dropout(hidden, config.dropout, self.training)
        if caching:
            known = {key_length: position_keys} if without_gradients else {}
            return hidden, Memory(kept, keys_values=new, position_keys=known)
        return hidden, Memory(kept, states=new)

    @staticmethod
    def _remember(before: Tensor | None, states_BTE: Tensor, kept: int) -> Tensor:
        states = states_BTE.detach() if before is None else torch.cat([before, states_BTE.detach()], 1)
        return states[:, states.size(1) - kept :]

    def _check_lengths(self, length: int, memory_length: int) -> None:
        longest, slots = self.covered
        if self.pruned is not None and (length > longest or memory_length > slots):
            raise InputError(
                f"prune mask: covers segments of {longest} tokens after {slots} memory slots, "
                f"found a segment of {length} after {memory_length}"
            )

"""Relative-position attention with segment memory (Dai et al., 2019, sections 3.2 and 3.3).

Letters: B batch, T queries of the segment, M memory slots in use, K = M + T keys, H heads, D head size, E model width.

The score of query i and key j is ``(q_i + u) k_j + (q_i + v) r_{i-j}``. Where nothing is pruned, the second term is one
matrix product per head over all distances, followed by the relative shift, which moves no data (``ops.relative``).
Under a prune mask the library's operator computes both terms, of kept blocks alone where that is faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from attention_pruning.ops.attention import attend as attend_kept
from attention_pruning.ops.call import Call
from attention_pruning.ops.choice import Choice, choose
from attention_pruning.ops.eager import Observer, ScoreMask, attend
from attention_pruning.ops.layer_mask import LayerMask
from attention_pruning.ops.reasons import record
from attention_pruning.ops.relative import RelativeShift
from dropout import dropout


class PositionalEmbedding(nn.Module):
    """Sinusoids of the distances K-1, ..., 0, clamped at ``clamp_len`` when positive."""

    def __init__(self, width: int, clamp_len: int = -1) -> None:
        super().__init__()
        self.clamp_len = clamp_len
        self.register_buffer("inv_freq", 1 / (10000 ** (torch.arange(0.0, width, 2.0) / width)), persistent=False)

    def forward(self, key_length: int) -> Tensor:
        """[K, E]: row j is the distance K-1-j."""
        distance = torch.arange(key_length - 1, -1, -1.0, device=self.inv_freq.device)
        if self.clamp_len > 0:
            distance = distance.clamp_(max=self.clamp_len)
        angle = torch.outer(distance, self.inv_freq)
        return torch.cat([angle.sin(), angle.cos()], -1)


@dataclass(frozen=True)
class AttentionMask:
    """What one layer sees of a segment after a memory.

    Attributes
    ----------
    visible_TK : Tensor
        bool, what the structure shows.
    pruned_HTK : Tensor or None
        bool, what is pruned.
    dtype : torch.dtype
        Of the scores.
    layer : LayerMask or None
        The same for the operator; None where it cannot be used, or nothing is pruned.
    reason : str or None
        Why it cannot.
    """

    visible_TK: Tensor
    pruned_HTK: Tensor | None
    dtype: torch.dtype
    layer: LayerMask | None = None
    reason: str | None = None

    @cached_property
    def scores(self) -> ScoreMask:
        """The same as a mask of all scores."""
        return ScoreMask.build(self.pruned_HTK, self.visible_TK, self.dtype)


class RelPartialLearnableMultiHeadAttn(nn.Module):
    """Multi-head attention with learned content (u) and position (v) biases, shared by all layers.

    Parameters
    ----------
    n_head, d_model, d_head : int
    dropout, dropatt : float
        Dropout on the output and on the probabilities.
    pre_lnorm : bool
        Normalise the input instead of the output.
    index : int
        Which layer this is, for records.
    """

    def __init__(
        self,
        n_head: int,
        d_model: int,
        d_head: int,
        dropout: float,
        dropatt: float,
        pre_lnorm: bool = False,
        index: int = 0,
    ) -> None:
        super().__init__()
        self.index = index
        self.n_head, self.d_head = n_head, d_head
        self.dropout, self.dropatt, self.pre_lnorm = dropout, dropatt, pre_lnorm
        self.qkv_net = nn.Linear(d_model, 3 * n_head * d_head, bias=False)
        self.r_net = nn.Linear(d_model, n_head * d_head, bias=False)
        self.o_net = nn.Linear(n_head * d_head, d_model, bias=False)
        self.layer_norm = nn.LayerNorm(d_model)
        #: Called with the probabilities [B, H, T, K] of every forward pass, before dropout; see PatternAccumulator.
        self.observer: Observer | None = None
        #: What computes pruned attention, see ``pruned_attention``.
        self.backend = "auto"

    def project_positions(self, positions_KE: Tensor) -> Tensor:
        """Position keys of every head, [H, D, K]."""
        return self.r_net(positions_KE).view(-1, self.n_head, self.d_head).permute(1, 2, 0)

    def forward(
        self,
        hidden_BTE: Tensor,
        memory: Tensor | tuple[Tensor, Tensor] | None,
        position_keys_HDK: Tensor,
        u_HD: Tensor,
        v_HD: Tensor,
        mask: AttentionMask,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """One attention layer.

        Parameters
        ----------
        memory : Tensor or (Tensor, Tensor) or None
            Hidden states [B, M, E] (training) or their keys and values [B, H, M, D] (evaluation).
        mask : AttentionMask

        Returns
        -------
        output : Tensor
            [B, T, E], with residual (and normalisation unless ``pre_lnorm``).
        keys_values : (Tensor, Tensor)
            [B, H, K, D] each: what an evaluation remembers.
        """
        batch, length, _ = hidden_BTE.shape
        query_BTHD, keys, values = self._project(hidden_BTE, memory)
        attended = self._attend(query_BTHD, keys, values, position_keys_HDK, u_HD, v_HD, mask)
        output = self.o_net(attended.transpose(1, 2).reshape(batch, length, -1))
        output = hidden_BTE + dropout(output, self.dropout, self.training)
        return output if self.pre_lnorm else self.layer_norm(output), (keys, values)

    def _attend(
        self,
        query_BTHD: Tensor,
        keys: Tensor,
        values: Tensor,
        position_keys_HDK: Tensor,
        u_HD: Tensor,
        v_HD: Tensor,
        mask: AttentionMask,
    ) -> Tensor:
        """[B, H, T, D], by the operator where it leaves out what is pruned, else by all scores."""
        if mask.layer is not None and self.observer is None:
            call = Call.check(
                (query_BTHD + u_HD).transpose(1, 2),
                keys,
                values,
                mask.layer,
                relative=((query_BTHD + v_HD).transpose(1, 2), position_keys_HDK.mT),
                dropout_p=self.dropatt if self.training else 0.0,
                scale=self.d_head**-0.5,
            )
            choice = choose(call, self.backend)
            record("self", self.index, mask.layer, choice, relative=True)
            if choice.backend != "sdpa":
                return attend_kept(call, choice)
        elif mask.pruned_HTK is not None:
            reason = mask.reason or "a pattern is being collected"
            record("self", self.index, None, Choice("eager", reason, refused=mask.reason is not None))
        return self._by_all_scores(query_BTHD, keys, values, position_keys_HDK, u_HD, v_HD, mask.scores)

    def _by_all_scores(
        self,
        query_BTHD: Tensor,
        keys: Tensor,
        values: Tensor,
        position_keys_HDK: Tensor,
        u_HD: Tensor,
        v_HD: Tensor,
        mask: ScoreMask,
    ) -> Tensor:
        """[B, H, T, D], every score computed."""
        batch, length = query_BTHD.shape[:2]
        scale = self.d_head**-0.5
        by_head = ((query_BTHD + v_HD) * scale).permute(2, 0, 1, 3).reshape(self.n_head, batch * length, self.d_head)
        by_distance = torch.bmm(by_head, position_keys_HDK).view(self.n_head, batch, length, -1)
        bias_BHTK = RelativeShift.apply(by_distance).transpose(0, 1)
        fused = not self.training and self.observer is None
        return attend(
            (query_BTHD + u_HD).transpose(1, 2),
            keys,
            values,
            mask,
            bias=bias_BHTK,
            scale=scale,
            dropout_p=self.dropatt if self.training else 0.0,
            observer=self.observer,
            # SDPA with a bias that needs a gradient falls back to a slower path: fused only where it is faster.
            implementation="sdpa" if fused else "eager",
            dropout=partial(dropout, training=True),
        )

    def _project(self, hidden_BTE: Tensor, memory) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = hidden_BTE.shape
        size, shape = self.n_head * self.d_head, (self.n_head, self.d_head)
        if memory is None or isinstance(memory, tuple):
            inputs = self.layer_norm(hidden_BTE) if self.pre_lnorm else hidden_BTE
            query, keys, values = self.qkv_net(inputs).view(batch, length, 3, *shape).unbind(2)
            keys, values = keys.transpose(1, 2), values.transpose(1, 2)
            if memory is not None:
                keys, values = torch.cat([memory[0], keys], 2), torch.cat([memory[1], values], 2)
            return query, keys, values
        inputs = torch.cat([memory, hidden_BTE], 1)
        if self.pre_lnorm:
            inputs = self.layer_norm(inputs)
        query = F.linear(inputs[:, -length:], self.qkv_net.weight[:size]).view(batch, length, *shape)
        both = F.linear(inputs, self.qkv_net.weight[size:]).view(batch, -1, 2, *shape)
        keys, values = both.unbind(2)
        return query, keys.transpose(1, 2), values.transpose(1, 2)

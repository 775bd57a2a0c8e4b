"""The operator: attention under one layer of a prune mask, by whatever computes it soonest.

Letters in names: B batch, H heads, G heads of keys and values, L queries, S keys, D head size, E that of the values.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import InputError
from . import fused, reference
from .call import Call
from .choice import BACKENDS, Choice, choose
from .cpu import few_queries, op
from .layer_mask import LayerMask
from .layout import BlockLayout
from .reasons import record


def pruned_attention(
    q_BHLD: Tensor,
    k_BGSD: Tensor,
    v_BGSE: Tensor,
    mask: LayerMask | BlockLayout,
    *,
    is_causal: bool = False,
    key_padding_mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    relative: tuple[Tensor, Tensor] | None = None,
    query_offset: int = 0,
    enable_gqa: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    backend: str = "auto",
    dropout_seed: Tensor | int | None = None,
) -> Tensor:
    """Attention with one fixed global prune mask (arXiv 2012.02030, section 3): time falls with what is pruned.

    A pruned score is never part of the softmax. Three kinds of rows are told apart, whatever computes them: a row with
    a kept visible key attends to its kept visible keys; a row left empty, whose visible keys are all pruned, attends
    uniformly over its visible keys, never to padding; a row that sees nothing at all gives 0.

    Everywhere in this library, True means masked: pruned cells, padded keys.

    Parameters
    ----------
    q_BHLD, k_BGSD, v_BGSE : Tensor
        Queries, keys and values; any strides with a contiguous last axis are read without a copy. Under
        ``torch.autocast`` they are cast as torch's own attention casts them.
    mask : LayerMask or BlockLayout
        One layer of a mask, ``PruneMask.layer(i)``, or blocks of one's own. A call may be shorter: its keys are the
        first columns, its queries the rows from ``query_offset`` on.
    is_causal : bool
        Query i sees key j <= i + query_offset, and the memory slots before, of which a mask has as many as it has more
        keys than queries. Under a causal mask it holds without being asked for.
    key_padding_mask : Tensor, optional
        bool [B, S], True = padding, which nobody sees.
    attn_bias : Tensor, optional
        Floats added to the scaled scores, broadcastable to [B, H, L, S], with a gradient if it asks for one. Scores
        below -1e30 are as good as -inf: such a key is hidden.
    relative : (Tensor, Tensor), optional
        Transformer-XL's term of the score: ``(position_q, position_keys)``, [B, H, L, D] and [H, S, D]. Query i and key
        j gain ``position_q_i . r_d * scale``, with d = i + query_offset + (keys - queries of the mask) - j, their
        distance, and r_d row S - 1 - d of the position keys: the first row is the longest distance, the last is 0.
        Queries are then given with their own bias (q + u, and q + v here). Causal attention alone, without groups. In
        the kernel only distances of kept blocks are computed; both have gradients.
    query_offset : int
        The row of the mask in which the first query stands: as many as a cache has tokens.
    enable_gqa : bool
        Whether k and v may have fewer heads, each for H / G heads of the queries in turn; they are not expanded.
    dropout_p : float
        Dropout on the probabilities; 0 outside training. In the kernel the mask is a hash of a seed (``ops.dropout``).
    scale : float, optional
        Of the query-key product; ``1 / sqrt(D)`` by default. The bias is not scaled.
    backend : {"auto", "block_sparse", "flex", "triton", "reference"}
        The compiled kernel (CPU), FlexAttention (GPU; on a CPU inference only), the Triton kernels (GPU), or plain
        torch. "auto" takes what was measured to be fastest (``ops.choice``), of which torch's fused attention under the
        mask is one.
    dropout_seed : Tensor or int, optional
        64 bits; drawn from torch's generator by default.

    Returns
    -------
    Tensor
        [B, H, L, E]; from the compiled kernel in the order of memory of the queries.

    Raises
    ------
    InputError
        For anything else, and for a backend that was asked for and cannot do it, with the reason.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, found {backend!r}")
    call = Call.check(
        q_BHLD,
        k_BGSD,
        v_BGSE,
        mask,
        is_causal=is_causal,
        key_padding_mask=key_padding_mask,
        attn_bias=attn_bias,
        relative=relative,
        query_offset=query_offset,
        enable_gqa=enable_gqa,
        dropout_p=dropout_p,
        scale=scale,
        dropout_seed=dropout_seed,
    )
    choice = choose(call, backend)
    if choice.refused and backend != "auto":
        raise InputError(f"backend {backend}: expected another call or backend, found that {choice.reason}")
    record("attention", None, call.mask, choice, call.relative is not None)
    return attend(call, choice)


def attend(call: Call, choice: Choice) -> Tensor:
    """[B, H, L, E], by the backend that was chosen."""
    if choice.backend == "sdpa":
        return fused.attend(call)
    if choice.backend == "reference":
        return reference.attend(call)
    if choice.backend == "flex":
        from . import flex

        return flex.attend(call, choice.layout)
    if choice.backend == "triton":
        from .triton import op as triton_op

        return triton_op.attend(call, choice.layout)
    options = {
        "causal": call.causal,
        "query_offset": call.query_offset,
        "key_padding_mask": call.key_padding_mask,
        "bias": call.bias,
        "relative": call.relative,
        "scale": call.scale,
    }
    if choice.kept_keys:
        return few_queries.few_queries(call.q, call.k, call.v, call.mask, **options)
    dropout = {"dropout_p": call.dropout_p, "dropout_seed": call.dropout_seed()}
    return op.block_sparse(call.q, call.k, call.v, choice.layout, **options, **dropout)


class PrunedAttention(nn.Module):
    """:func:`pruned_attention` as a module, for models put together by hand.

    Parameters
    ----------
    mask : LayerMask or BlockLayout
    dropout_p : float
        In training mode alone.
    enable_gqa, scale, backend
        As in :func:`pruned_attention`.
    """

    def __init__(
        self,
        mask: LayerMask | BlockLayout,
        *,
        dropout_p: float = 0.0,
        enable_gqa: bool = False,
        scale: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.mask, self.dropout_p, self.enable_gqa, self.scale, self.backend = (
            mask,
            dropout_p,
            enable_gqa,
            scale,
            backend,
        )

    def forward(
        self,
        q_BHLD: Tensor,
        k_BGSD: Tensor,
        v_BGSE: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        relative: tuple[Tensor, Tensor] | None = None,
        query_offset: int = 0,
    ) -> Tensor:
        """[B, H, L, E]"""
        return pruned_attention(
            q_BHLD,
            k_BGSD,
            v_BGSE,
            self.mask,
            key_padding_mask=key_padding_mask,
            attn_bias=attn_bias,
            relative=relative,
            query_offset=query_offset,
            enable_gqa=self.enable_gqa,
            dropout_p=self.dropout_p if self.training else 0.0,
            scale=self.scale,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"{self.mask}, backend={self.backend}"

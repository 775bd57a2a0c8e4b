"""The relative term of a score, as in Transformer-XL (Dai et al., 2019, section 3.3), by its definition and by torch.

The score of query i and key j gains ``position_q_i . r_d``, with d = i + ``Call.diagonal`` - j the distance of the two:
what causality shows has distances of 0 and more, and the last query is S - 1 away from the first key. Row n of the
position keys is the distance S - 1 - n, so their order is that of the keys, as the last query sees them: query i takes
row j + L - 1 - i for key j.

Letters in names: B batch, H heads, L queries, S keys, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .call import Call


def by_definition(call: Call) -> Tensor:
    """[B, H, L, S], scaled: the row of each cell looked up. What causality hides gets some row."""
    position_q_BHLD, position_keys_HSD = call.relative
    by_row = torch.einsum("bhld,hsd->bhls", position_q_BHLD, position_keys_HSD)
    query, key = (torch.arange(n, device=by_row.device) for n in (call.queries, call.keys))
    row_LS = (key[None, :] + call.queries - 1 - query[:, None]).clamp(max=call.keys - 1)
    return by_row.gather(-1, row_LS.expand_as(by_row)) * call.scale


def by_shift(call: Call) -> Tensor:
    """The same by one product for each head and a view. Cells that causality hides hold numbers of other cells, and
    their gradient has to be zero."""
    position_q_BHLD, position_keys_HSD = call.relative
    batch, heads, queries, size = position_q_BHLD.shape
    by_head = (position_q_BHLD * call.scale).transpose(0, 1).reshape(heads, batch * queries, size)
    by_row = torch.bmm(by_head, position_keys_HSD.mT).view(heads, batch, queries, call.keys)
    return RelativeShift.apply(by_row).transpose(0, 1)


class RelativeShift(torch.autograd.Function):
    """Realign products with position keys, [..., L, S] by row, so that column j of query i is its product with row
    j + L - 1 - i.

    Query i begins L - 1 - i numbers into its row: a view with a row stride of S - 1 and an offset of L - 1, for which
    nothing is moved. Cells of later keys (j > S - L + i) read the next row; they must be masked out (their gradient is
    then zero, which the backward pass relies on).
    """

    @staticmethod
    def forward(ctx, by_row: Tensor) -> Tensor:  # noqa: D102 (contiguous)
        *_, queries, keys = by_row.shape
        stride = (*by_row.stride()[:-2], keys - 1, 1)
        return by_row.as_strided(by_row.shape, stride, by_row.storage_offset() + queries - 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # noqa: D102
        *batch, queries, keys = gradient.shape
        by_row = gradient.new_empty(*batch, queries * keys)
        by_row[..., : queries - 1] = 0.0  # distances beyond the first query's reach
        rows = by_row[..., queries - 1 : queries - 1 + queries * (keys - 1)].view(*batch, queries, keys - 1)
        rows.copy_(gradient[..., :-1])
        by_row[..., -1] = gradient[..., -1, -1]  # the last key is seen by the last query alone
        return by_row.view(*batch, queries, keys)

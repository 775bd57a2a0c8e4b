"""Until which row of a mask a key is needed: what decides when a PrunedCache lets it go.

Letters in names: B batch, H heads, G heads of keys and values, S keys, Q rows and K columns of a mask, d distances in
blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..distance_mask import DistanceMask
from ..ops.layer_mask import LayerMask
from ..structure import expand_blocks

#: Later than any row.
FOREVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class LastRows:
    """The last row that needs a key, as a function of its column, for any of the query heads that share it.

    Needed is what a row keeps, and everything where a row is left empty.

    Attributes
    ----------
    table_GK : Tensor
        int64: of the first columns; -1 for none, FOREVER for every row.
    period : int
        The columns behind the table are as its last ``period``, moved by multiples of it; 0 for a mask of one length,
        all of whose columns are in the table.
    """

    table_GK: Tensor
    period: int = 0

    def to(self, device: torch.device) -> LastRows:
        return replace(self, table_GK=self.table_GK.to(device))

    def of(self, column_BGS: Tensor) -> Tensor:
        """int64 [B, G, S], of int64 columns."""
        table_BGK = self.table_GK.expand(len(column_BGS), -1, -1)
        if not self.period:
            return table_BGK.gather(2, column_BGS)
        beyond_BGS = (column_BGS - (self.table_GK.shape[1] - self.period)).clamp(min=0)
        moved_BGS = beyond_BGS // self.period * self.period
        return table_BGK.gather(2, column_BGS - moved_BGS) + moved_BGS


def last_rows(mask: LayerMask, kv_heads: int) -> LastRows:
    """Those of a causal mask of one length."""
    return mask.once(("last_rows", kv_heads), lambda: LastRows(_last_rows(mask, kv_heads)))


def _last_rows(mask: LayerMask, kv_heads: int) -> Tensor:
    kept_Gqk = ~mask.pruned.unflatten(0, (kv_heads, -1)).all(1)
    blocks = kept_Gqk.shape[1]
    last_Gk = blocks - 1 - kept_Gqk.flip(1).byte().argmax(1)
    last_Gk = ((last_Gk + 1) * mask.block_size).clamp(max=mask.query_length) - 1
    last_Gk = last_Gk.masked_fill(~kept_Gqk.any(1), -1)
    last_GK = expand_blocks(last_Gk[:, None], mask.block_size, 1, mask.key_length)[:, 0]
    return torch.maximum(last_GK, last_empty_row(mask, kv_heads)[:, None])


def last_empty_row(mask: LayerMask, kv_heads: int) -> Tensor:
    """int64 [G]: the last row that is left empty in any of the query heads that share a head; -1: none."""
    empty_HQ = mask.first_kept(torch.device("cpu")) >= mask.key_length
    rows = torch.arange(mask.query_length)
    return torch.where(empty_HQ, rows, -1).unflatten(0, (kv_heads, -1)).amax((1, 2))


def last_rows_by_distance(mask: DistanceMask, layer: int, kv_heads: int) -> LastRows:
    """Those of one layer of a mask by distance: a key's own row and the longest distance that its group keeps; the
    first positions never leave. No row is left empty."""
    size = mask.block_size
    kept_Gd = mask.kept[layer].unflatten(0, (kv_heads, -1)).any(1)
    place_d = torch.arange(1, kept_Gd.shape[1] + 1)
    longest_G1 = (kept_Gd * place_d).amax(1, keepdim=True) - 1  # in blocks; -1 where first positions alone are kept
    band_GK = (mask.sinks + (longest_G1 + 1) * size - 1).expand(-1, size)
    sinks_GK = band_GK.new_full((kv_heads, mask.sinks), FOREVER)
    return LastRows(torch.cat([sinks_GK, band_GK], 1), period=size)

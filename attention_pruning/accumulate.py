"""Collect an AttentionPattern from the attention probabilities of a model, batch by batch.

Letters in names: B batch, H heads, Q queries, K keys, R a run of queries; q and k count blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .arrays import as_tensor
from .counts import CellCounts
from .errors import InputError
from .files.tensors import MetadataValue
from .layer_sums import LayerSums, Structure
from .pattern import AttentionPattern
from .processes import gathered, meeting_device, process_count, summed
from .structure import block_count, resolve_structure

#: What two accumulators that are added up must have in common, in the order of PatternAccumulator's arguments.
_ARGUMENTS = ("layers", "heads", "query_length", "key_length", "site", "causal", "block_size")


class PatternAccumulator:
    """Running sums of attention probabilities in float64, and how often each cell was observed.

    Feed it every layer of every batch with :meth:`update`, then :meth:`finalize`. Feed probabilities after softmax or
    entmax and before dropout, from a model in evaluation mode without gradients.

    Parameters
    ----------
    layers, heads, query_length, key_length : int
        Of the pattern. The lengths are the longest that any batch may have.
    site : str
        One of ``structure.SITES``.
    causal : bool, optional
        By default only ``dec-self`` is causal. Transformer-XL is ``site="self", causal=True``.
    block_size : int
        With B > 1 the sums are kept over B x B blocks: layers * heads * (Q/B) * (K/B) numbers instead of layers * heads
        * Q * K. A block's average is then the mean over its observations, so often-seen cells weigh more; it equals
        ``pattern.pooled(B)`` where all allowed cells of the block were seen equally often. Where a sequence ends inside
        a block, its cells up to the end are observed and no others.

    Attributes
    ----------
    sequences : int
        Rows of the batches that had a real query (counted at layer 0).
    tokens : int
        Real queries seen (counted at layer 0).
    structure : Structure
        What the site shows to its queries.

    Raises
    ------
    InputError
        For an unknown site, or sizes below 1.

    Notes
    -----
    Sums live on the device of the probabilities that they were made from until :meth:`finalize`, whose pattern is on
    the CPU. What is counted, the tokens and not their attention, is on the CPU from the start.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        query_length: int,
        key_length: int,
        site: str,
        causal: bool | None = None,
        block_size: int = 1,
    ) -> None:
        sizes = (layers, heads, query_length, key_length, block_size)
        if min(sizes) < 1:
            raise InputError(
                "accumulator: expected layers, heads, query_length, key_length and block_size of 1 or more, found "
                f"{sizes}"
            )
        self.layers, self.heads = layers, heads
        self.query_length, self.key_length = query_length, key_length
        self.site = site
        self.causal = resolve_structure(site, causal, query_length, key_length)
        self.structure = Structure(site, self.causal, query_length, key_length)
        self.block_size = block_size
        self.sequences = 0
        self.tokens = 0
        # Made at the first update of a layer, on its device: float64 [H, q, k].
        self._sums: list[Tensor | None] = [None] * layers
        self._counts = [CellCounts(query_length, key_length, self.causal) for _ in range(layers)]

    def update(
        self,
        layer: int,
        probabilities_BHQK: Tensor,
        real_query_BQ: Tensor | None = None,
        real_key_BK: Tensor | None = None,
        query_offset: int = 0,
        key_offset: int = 0,
        visible_QK: Tensor | None = None,
    ) -> None:
        """Add the attention of one layer for one batch.

        Parameters
        ----------
        layer : int
            From 0.
        probabilities_BHQK : Tensor
            [B, heads, Q, K], any floating dtype and device; Q and K may be shorter than the pattern's. Here and below,
            what ``torch.as_tensor`` takes will do, such as a numpy array.
        real_query_BQ, real_key_BK : Tensor, optional
            bool, True = a real token, False = padding. None: all real. A cell of a sequence counts only if its query
            and its key are real; what the probabilities say elsewhere, nan included, is never looked at.
        query_offset, key_offset : int
            Where the batch's first query and key stand in the pattern. Transformer-XL with a memory of m < mem_len
            slots gives ``key_offset = mem_len - m``.
        visible_QK : Tensor, optional
            bool [Q, K]: what a structure beyond causality shows in this batch, such as a window. Hidden cells are not
            observed.

        Raises
        ------
        InputError
            For what is no array, or if the batch is longer than the pattern, has other heads or a mask of another
            shape, or attends to hidden cells (told here or by :meth:`finalize`).
        """
        p_BHQK = as_tensor(probabilities_BHQK, "attention probabilities")
        self._check(layer, p_BHQK, query_offset, key_offset)
        batch, _, *lengths = p_BHQK.shape
        real_query_BQ = _checked_bools("real_query_BQ", real_query_BQ, (batch, lengths[0]))
        real_key_BK = _checked_bools("real_key_BK", real_key_BK, (batch, lengths[1]))
        visible_QK = _checked_bools("visible_QK", visible_QK, tuple(lengths))
        real_query_BQ, real_key_BK = _unless_all(real_query_BQ), _unless_all(real_key_BK)
        sums = self.layer_sums(layer, *lengths, query_offset, key_offset)
        sums.add(p_BHQK, real_query_BQ, real_key_BK, visible_RK=visible_QK)
        self.count(sums, batch, real_query_BQ, real_key_BK, visible_QK)
        self.join(sums)

    def _check(self, layer: int, p: Tensor, query_offset: int, key_offset: int) -> None:
        if not (isinstance(layer, int) and 0 <= layer < self.layers):
            raise InputError(f"layer: expected 0 to {self.layers - 1}, found {layer!r}")
        if p.ndim != 4 or p.shape[1] != self.heads or not p.is_floating_point():
            raise InputError(
                f"attention probabilities: expected floats of shape [batch, {self.heads} heads, query, key], found "
                f"{p.dtype} of {list(p.shape)}"
            )
        queries, keys = p.shape[2:]
        if query_offset < 0 or key_offset < 0:
            raise InputError(f"offsets: expected 0 or more, found query_offset {query_offset}, key_offset {key_offset}")
        if query_offset + queries > self.query_length or key_offset + keys > self.key_length:
            raise InputError(
                f"attention probabilities: expected at most {self.query_length} queries and {self.key_length} keys, "
                f"found {queries} queries from {query_offset} and {keys} keys from {key_offset}"
            )

    def _allocate(self, layer: int, device: torch.device) -> None:
        if self._sums[layer] is None:
            device = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
            self._sums[layer] = torch.zeros(self.shape[1:], dtype=torch.float64, device=device)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Layers, heads, and blocks of queries and of keys."""
        blocks = (block_count(length, self.block_size) for length in (self.query_length, self.key_length))
        return (self.layers, self.heads, *blocks)

    def layer_sums(self, layer: int, queries: int, keys: int, query_offset: int = 0, key_offset: int = 0) -> LayerSums:
        """For a batch whose probabilities come by runs of rows: what adds them up, until :meth:`join`."""
        return LayerSums(layer, self.structure, self.block_size, (queries, keys), (query_offset, key_offset))

    def join(self, sums: LayerSums, calls: int = 1) -> None:
        """Add what a layer attended to in a batch, or its mean over ``calls`` that were added up."""
        if sums.total is None:
            return
        self._allocate(sums.layer, sums.total.device)
        target = self._sums[sums.layer]
        rows, columns = (
            slice(offset // self.block_size, offset // self.block_size + length)
            for offset, length in zip(sums.offsets, sums.total.shape[1:], strict=True)
        )
        total = sums.total if calls == 1 else sums.total / calls
        target[:, rows, columns] += total.to(target.device)

    def count(
        self,
        sums: LayerSums,
        batch: int,
        real_query_BQ: Tensor | None = None,
        real_key_BK: Tensor | None = None,
        visible_QK: Tensor | None = None,
    ) -> None:
        """Say once which cells of a batch a layer observes; arguments as of :meth:`update`."""
        self._counts[sums.layer].add(batch, real_query_BQ, real_key_BK, sums.lengths, sums.offsets, visible_QK)
        if sums.layer == 0:
            self.sequences += batch if real_query_BQ is None else int(real_query_BQ.any(1).sum())
            self.tokens += batch * sums.lengths[0] if real_query_BQ is None else int(real_query_BQ.sum())

    def merge(self, other: PatternAccumulator) -> None:
        """Add what another accumulator of the same dimensions saw.

        Raises
        ------
        InputError
            If it was made with other arguments.
        """
        if self.arguments() != other.arguments():
            raise InputError(f"merge: expected an accumulator of {self.arguments()}, found {other.arguments()}")
        for layer, sums in enumerate(other._sums):
            if sums is not None:
                self._allocate(layer, sums.device)
                self._sums[layer] += sums.to(self._sums[layer].device)
                self._counts[layer].merge(other._counts[layer])
        self.sequences += other.sequences
        self.tokens += other.tokens

    def arguments(self) -> tuple:
        """Those that it was made with, in their order."""
        return tuple(getattr(self, name) for name in _ARGUMENTS)

    def all_reduce(self) -> None:
        """Make every process's accumulator hold what all of them saw together; call it once, after the last update.

        A process may have had no batch. Without an initialised ``torch.distributed`` it does nothing.

        Raises
        ------
        InputError
            In every process, if they were made with different arguments; nothing is added up then.
        """
        _require_alike(gathered(self.arguments()), "accumulator")
        if process_count() == 1:
            return
        for layer in range(self.layers):
            self._allocate(layer, meeting_device())  # a process may have had no batch
            self._sums[layer] = summed(self._sums[layer])
        everywhere = gathered([counts.corners for counts in self._counts])
        lengths = (self.query_length, self.key_length)
        self._counts = [
            CellCounts(*lengths, self.causal, torch.cat(corners)) for corners in zip(*everywhere, strict=True)
        ]
        self.sequences, self.tokens = summed(torch.tensor([self.sequences, self.tokens])).tolist()

    def state(self) -> tuple[Tensor, Tensor, dict[str, object]]:
        """What was seen so far, to be kept and given to :meth:`restore`.

        Returns
        -------
        tuple
            The sums, float64 [layers, H, q, k]; what is counted, int64 [n, 4] of layer, query, key and change; and
            lengths, sequences and tokens.
        """
        nothing = torch.zeros(self.shape[1:], dtype=torch.float64)
        corners = [F.pad(counts.corners, (1, 0), value=layer) for layer, counts in enumerate(self._counts)]
        facts = {"lengths": [self.query_length, self.key_length], "sequences": self.sequences, "tokens": self.tokens}
        sums = torch.stack([nothing if one is None else one.cpu() for one in self._sums])
        return sums, torch.cat(corners), facts

    def restore(self, sums: Tensor, corners: Tensor, facts: Mapping[str, object]) -> None:
        """Be what another accumulator with the same arguments was, by its :meth:`state`."""
        self._sums = list(sums)
        lengths = (self.query_length, self.key_length)
        self._counts = [
            CellCounts(*lengths, self.causal, corners[corners[:, 0] == layer, 1:]) for layer in range(self.layers)
        ]
        self.sequences, self.tokens = facts["sequences"], facts["tokens"]

    def finalize(self, metadata: Mapping[str, MetadataValue] | None = None) -> AttentionPattern:
        """The pattern of everything seen so far; ``sequences`` and ``tokens`` join the metadata.

        Raises
        ------
        InputError
            If nothing was seen, if the layers did not see the same cells equally often, or if a query attended to keys
            that it cannot see.
        """
        corners = [counts.corners for counts in self._counts]
        missing = [layer for layer, counts in enumerate(self._counts) if not counts.any()]
        if missing:
            raise InputError(f"pattern: expected observations of every layer, found none of layers {_listed(missing)}")
        odd = [layer for layer, found in enumerate(corners) if not torch.equal(found, corners[0])]
        if odd:
            raise InputError(
                f"pattern: expected every layer to see what layer 0 saw, found other counts at layers {_listed(odd)}"
            )
        count_qk = self._counts[0].blocks(self.block_size)
        if self.block_size == 1:
            for layer, sums in enumerate(self._sums):
                self.structure.refuse_leak(layer, sums.masked_fill(self.structure.visible().to(sums.device), 0.0))
        average = torch.stack([sums.cpu() / count_qk.clamp(min=1) for sums in self._sums]).float()
        return AttentionPattern(
            average,
            count_qk if self.block_size == 1 else self._counts[0],
            self.site,
            self.causal,
            self.block_size,
            metadata={**(metadata or {}), "sequences": self.sequences, "tokens": self.tokens},
        )


def _require_alike(arguments: list[tuple], name: str) -> None:
    """Refuse, with InputError, accumulators of the processes (by rank) that were made with different arguments."""
    for rank, each in enumerate(arguments):
        for argument, expected, found in zip(_ARGUMENTS, arguments[0], each, strict=True):
            if expected != found:
                raise InputError(
                    f"{name}: expected {argument} {expected}, that of process 0, in every process, found {found} in "
                    f"process {rank}"
                )


def _checked_bools(name: str, bools: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    if bools is None:
        return None
    bools = as_tensor(bools, name)
    if bools.dtype != torch.bool or tuple(bools.shape) != shape:
        raise InputError(f"{name}: expected bools of shape {list(shape)}, found {bools.dtype} of {list(bools.shape)}")
    return bools


def _unless_all(real_BN: Tensor | None) -> Tensor | None:
    """None when every token is real, which is the common and the fast case."""
    return None if real_BN is None or real_BN.all() else real_BN


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))

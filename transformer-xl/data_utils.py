"""Streams of consecutive segments for language modelling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attention_pruning import InputError


class LMOrderedIterator:
    """Cut a text into ``batch_size`` parallel streams and walk them segment by segment.

    Row b of every batch continues row b of the batch before, which is what segment recurrence needs. As in the
    published code the last ``len(ids) % batch_size`` tokens are left out and the last segment may be shorter.

    Parameters
    ----------
    ids : Tensor
        int64 [N]
    batch_size, tgt_len : int
    rank, world_size : int
        This process reads its equal share of the rows.
    name : str
        Of the text, for messages.
    max_steps : int
        Segments to walk, -1 for all.
    flag : str
        That ``batch_size`` comes from, for messages.

    Raises
    ------
    InputError
        If the text is too short for the batch, the batch does not divide among the processes, or nothing is to be read.
    """

    def __init__(
        self,
        ids: Tensor,
        batch_size: int,
        tgt_len: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        name: str = "text",
        max_steps: int = -1,
        flag: str = "--batch_size",
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise InputError(f"{flag}: expected a positive multiple of the {world_size} processes, found {batch_size}")
        steps = ids.numel() // batch_size
        if steps < 2:
            raise InputError(
                f"{name}: expected at least {2 * batch_size} tokens for {batch_size} streams, found {ids.numel()}"
            )
        rows = ids[: steps * batch_size].view(batch_size, steps)
        share = batch_size // world_size
        if max_steps == 0 or max_steps < -1:
            raise InputError(f"{name}: expected at least 1 segment to read, or -1 for all, found {max_steps}")
        if max_steps > 0:
            rows = rows[:, : max_steps * tgt_len + 1]
        self.rows = rows[rank * share : (rank + 1) * share].contiguous()
        self.tgt_len = tgt_len

    def __len__(self) -> int:
        return -(-(self.rows.size(1) - 1) // self.tgt_len)

    def segment(self, index: int) -> tuple[Tensor, Tensor]:
        """Ids and targets [B, T] of one segment."""
        start = index * self.tgt_len
        end = min(start + self.tgt_len, self.rows.size(1) - 1)
        return self.rows[:, start:end], self.rows[:, start + 1 : end + 1]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(len(self)):
            yield self.segment(index)

    @property
    def targets(self) -> int:
        """Number of predicted tokens in one pass."""
        return self.rows.size(0) * (self.rows.size(1) - 1)


def stream_counts(iterator: LMOrderedIterator, mem_len: int, visibility: Callable[[int, int], Tensor]) -> Tensor:
    """How often one pass uses each attention cell.

    Parameters
    ----------
    visibility : callable
        ``(length, memory_length) -> bool [T, M + T]``, the model's structure.

    Returns
    -------
    Tensor
        int64 [tgt_len, mem_len + tgt_len], memory right-aligned.
    """
    tgt_len = iterator.tgt_len
    counts = torch.zeros(tgt_len, mem_len + tgt_len, dtype=torch.int64)
    batch, steps = iterator.rows.size(0), iterator.rows.size(1) - 1
    uses: Counter[tuple[int, int]] = Counter()
    memory = 0
    for start in range(0, steps, tgt_len):
        length = min(tgt_len, steps - start)
        uses[length, memory] += batch
        memory = min(mem_len, memory + length)
    for (length, memory), times in uses.items():
        counts[:length, mem_len - memory : mem_len + length] += times * visibility(length, memory).cpu()
    return counts

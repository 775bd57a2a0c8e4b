"""Why a call was computed as it was: a table for whoever asks, and a warning where pruning saved nothing.

Pruned must mean faster, or say why not: each call's choice has a reason. One warning is given for each site and reason.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import nn

from .choice import Choice, kernel_layout, triton_layout
from .layer_mask import LayerMask


class DenseAttentionWarning(UserWarning):
    """A pruned layer computes every score: the result is right, but neither time nor memory is saved."""


@dataclass(frozen=True)
class Explained:
    """How one call of one layer was computed.

    Attributes
    ----------
    site, layer
        Where, as the model names it.
    backend, reason : str
        See ``ops.choice.Choice``.
    computed, blocks : int
        Blocks that were computed, and those that have a visible cell, over all heads; 0 of 0 where the layer prunes
        nothing.
    block_size : int
        Their side; 0 likewise.
    """

    site: str
    layer: int | None
    backend: str
    reason: str
    computed: int
    blocks: int
    block_size: int


_recording: ContextVar[list[Explained] | None] = ContextVar("attention_pruning_recording", default=None)
_warned: set[tuple[str, str]] = set()


def record(site: str, layer: int | None, mask: LayerMask | None, choice: Choice, relative: bool = False) -> None:
    """Note a choice, of a call with a relative term or without, where somebody records, and warn, once for each site
    and reason, if it saves nothing though it should."""
    _note(
        site,
        layer,
        mask,
        choice.backend,
        choice.reason,
        choice.kept_keys,
        choice.layout is not None,
        relative,
        choice.refused,
    )


def _note(
    site: str,
    layer: int | None,
    mask: LayerMask | None,
    backend: str,
    reason: str,
    kept_keys: bool,
    laid_out: bool,
    relative: bool,
    refused: bool,
) -> None:
    rows = _recording.get()
    if rows is not None:
        computed, blocks, size = _count(mask, backend, kept_keys, laid_out, relative)
        rows.append(Explained(site, layer, backend, reason, computed, blocks, size))
    if refused and (site, reason) not in _warned:
        _warned.add((site, reason))
        warnings.warn(
            f"{site} attention is pruned, but every score of it is computed: {reason}; "
            "attention_pruning.explain(model, batch) shows each layer",
            DenseAttentionWarning,
            stacklevel=4,
        )


def _count(
    mask: LayerMask | None, backend: str, kept_keys: bool, laid_out: bool, relative: bool
) -> tuple[int, int, int]:
    """Blocks that are computed, of how many, and their side. Of kept keys those of the whole mask."""
    if kept_keys:
        return *mask.kept_count, mask.block_size
    layout = None
    if laid_out:
        layout = triton_layout(mask) if backend == "triton" else kernel_layout(mask, relative)[0]
    every_block = layout is None and mask is not None and mask.prunes and mask.has_whole_blocks
    counted = mask.layout(mask.whole_block) if every_block else layout
    blocks, size = (0, 0) if counted is None else (counted.visible_count, counted.block_size)
    return blocks if layout is None else layout.column.numel(), blocks, size


# While torch.compile makes a graph a choice is a constant of it: noted then, instead of being traced.
_note._dynamo_marked_constant = True


@contextlib.contextmanager
def recorded() -> Iterator[list[Explained]]:
    """Everything that is computed within, call by call."""
    rows: list[Explained] = []
    token = _recording.set(rows)
    try:
        yield rows
    finally:
        _recording.reset(token)


def explain(
    model: nn.Module | Callable[..., object], batch: Mapping[str, object], show: Callable[[str], None] | None = print
) -> list[Explained]:
    """Run a model on a batch and say what computed each layer, why, and how many blocks of how many.

    Parameters
    ----------
    model : nn.Module or callable
        Anything whose attention goes through this library: a pruned transformers model, one with ``PrunedAttention``
        modules, a function.
    batch : mapping
        Its keyword arguments.
    show : callable, optional
        Gets the table as text; None for silence.

    Returns
    -------
    list of Explained
        One for each call, in order. A layer that prunes nothing is the dense layer.
    """
    with recorded() as rows, torch.no_grad():
        model(**batch)
    if show is not None:
        show(as_table(rows))
    return rows


def as_table(rows: list[Explained]) -> str:
    """The table of ``explain``: calls that were computed alike share a line."""
    title = ("site", "layer", "backend", "blocks computed", "reason")
    lines: list[tuple[str, ...]] = []
    for row in rows:
        blocks = f"{row.computed} of {row.blocks} ({row.block_size})" if row.blocks else "all scores"
        layer = "" if row.layer is None else str(row.layer)
        lines.append((row.site, layer, row.backend, blocks, row.reason))
    widths = [max(len(line[i]) for line in [title, *lines]) for i in range(len(title))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [title, *lines]
    )

"""The ``.npy`` files of the published code: average attention as bare five-dimensional arrays.

They hold no observation counts, no site and no history. Letters in names: H heads, Q queries, K keys.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..pattern import AttentionPattern
from .whole import file_name, written_whole

#: For each layout, where layer, head, query and key stand among the five axes; the one left over has length 1.
LAYOUTS = {
    "transformer-xl": (0, 4, 1, 2),  # layer, query, key, 1, head
    "fairseq": (0, 2, 3, 4),  # layer, 1, head, query, key
    "bert": (0, 2, 3, 4),
}


def read_published(
    path: str | Path, layout: str | None = None, *, site: str, causal: bool | None = None
) -> AttentionPattern:
    """Read a pattern in a published layout.

    Parameters
    ----------
    layout : str, optional
        One of ``LAYOUTS``; by default inferred from which axis has length 1.
    site, causal
        As in AttentionPattern. Transformer-XL is ``site="self", causal=True``.

    Returns
    -------
    AttentionPattern
        Its count is 1 where any layer or head is not zero, else 0; the metadata says so.

    Raises
    ------
    InputError
        If the file is missing, needs pickle, is no such array, or fits more than one layout.
    """
    array = _load_array(path)
    layout = _infer_layout(path, array.shape) if layout is None else _check_layout(path, layout, array.shape)
    average_LHQK = np.ascontiguousarray(array.transpose(*LAYOUTS[layout], _unit_axis(layout))[..., 0])
    count_QK = (average_LHQK != 0).any((0, 1))
    metadata = {
        "read_from_layout": layout,
        "count": "1 where any layer or head is not zero: the .npy layout has no counts",
    }
    return AttentionPattern(
        torch.from_numpy(average_LHQK), torch.from_numpy(count_QK), site, causal, metadata=metadata, source=str(path)
    )


def write_published(pattern: AttentionPattern, path: str | Path, layout: str) -> None:
    """Write the averages of a pattern in a published layout (float32); counts, site and metadata are lost.

    Raises
    ------
    InputError
        For an unknown layout, a pooled pattern, or a path that cannot be written.
    """
    _require_layout(layout)
    if pattern.pool != 1:
        raise InputError(
            f"{pattern.source}: expected a pattern of cells for a .npy layout, found one pooled by {pattern.pool}"
        )
    axes = (*LAYOUTS[layout], _unit_axis(layout))
    array = pattern.average.numpy()[..., None].transpose(np.argsort(axes))
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)


def _load_array(path: str | Path) -> np.ndarray:
    path = file_name(path)
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: expected a .npy file, found: {error.strerror or error}") from error
    except Exception as error:
        # Not a .npy, truncated, or in need of pickle: ValueError. Of a damaged header numpy lets out whatever Python's
        # tokenizer and parser say of it (TokenError, SyntaxError...), and of a damaged shape MemoryError.
        raise InputError(
            f"{path}: expected a whole .npy file of plain numbers, found: {' '.join(str(error).split())}"
        ) from error
    if array.dtype.kind != "f" or array.ndim != 5:
        raise InputError(f"{path}: expected floats with five axes, found {array.dtype} of shape {list(array.shape)}")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which no average is
        return array.astype(np.float32)


def _unit_axis(layout: str) -> int:
    return 10 - sum(LAYOUTS[layout])  # of the axes 0 to 4, the one that is not listed


def _require_layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise InputError(f"layout: expected one of {', '.join(LAYOUTS)}, found {layout!r}")


def _check_layout(path: str | Path, layout: str, shape: tuple[int, ...]) -> str:
    _require_layout(layout)
    if shape[_unit_axis(layout)] != 1:
        raise InputError(
            f"{path}: expected axis {_unit_axis(layout)} of layout {layout} to have length 1, found shape {list(shape)}"
        )
    return layout


def _infer_layout(path: str | Path, shape: tuple[int, ...]) -> str:
    transformer_xl, fairseq = (shape[_unit_axis(layout)] == 1 for layout in ("transformer-xl", "fairseq"))
    if transformer_xl == fairseq:
        raise InputError(
            f"{path}: expected length 1 at either axis 3 (transformer-xl) or axis 1 (fairseq, bert), found shape "
            f"{list(shape)}; name the layout"
        )
    return "transformer-xl" if transformer_xl else "fairseq"

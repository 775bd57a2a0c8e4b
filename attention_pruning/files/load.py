"""One way from a file to what it holds, for every script that takes a pattern or a mask."""

from __future__ import annotations

from pathlib import Path

from ..distance_mask import DistanceMask
from ..errors import InputError
from ..make import from_pattern
from ..mask import PruneMask
from ..pattern import AttentionPattern
from ..recipe import MaskRecipe
from .published import read_published
from .tensors import file_name, read_stored

#: What has files of this library, told apart by their format.
_FILES = {AttentionPattern: AttentionPattern.FILES, PruneMask: (PruneMask.FILE,), DistanceMask: (DistanceMask.FILE,)}
_CLASSES = {kind.format: owner for owner, kinds in _FILES.items() for kind in kinds}


def load_any(
    path: str | Path, *, site: str | None = None, causal: bool | None = None, layout: str | None = None
) -> AttentionPattern | PruneMask | DistanceMask:
    """Read a pattern or a mask of this library, whichever the file is, or a published ``.npy`` pattern.

    Parameters
    ----------
    site, causal
        A ``.npy`` says nothing about itself, so it needs a site. For other files, checked against what they say.
    layout
        Of a ``.npy``, see ``published.read_published``.

    Raises
    ------
    InputError
        If the file is none of these, contradicts what is given, or is a ``.npy`` and no site is given.
    """
    return _read(path, tuple(_FILES), site, causal, layout)


def load_pattern(
    path: str | Path, *, site: str | None = None, causal: bool | None = None, layout: str | None = None
) -> AttentionPattern:
    """Read a pattern file of this library, or a published ``.npy``; arguments and errors as in :func:`load_any`."""
    return _read(path, (AttentionPattern,), site, causal, layout)


def load_made_mask(path: str | Path) -> PruneMask | DistanceMask:
    """Read a mask file of this library, of one length or by distance; errors as in :func:`load_any`."""
    return _read(path, (PruneMask, DistanceMask), None, None, None)


def load_mask(
    path: str | Path,
    recipe: MaskRecipe | float | str | None = None,
    *,
    site: str | None = None,
    causal: bool | None = None,
    lengths: tuple[int, int] | None = None,
    **fields: object,
) -> PruneMask:
    """The mask in a mask file, or the mask that a pattern file gives by a recipe.

    Parameters
    ----------
    path : str or Path
        A mask or pattern of this library, or a pattern in a published ``.npy`` layout (which needs ``site``).
    recipe : MaskRecipe, float or str, optional
        A pattern needs its tau; what else it leaves open takes its default, the block size the pattern's pool. With a
        mask, what it says must be the mask's own, but for what concerns patterns alone, ``crop`` and ``unobserved``.
    site, causal : optional
        What the file must say, if given.
    lengths : (int, int), optional
        Queries and memory slots that a mask by distance is to cover, which has no lengths of its own.
    **fields
        Of the recipe, by name.

    Raises
    ------
    InputError
        If the file is missing or broken or neither of these, lacks its tau, contradicts what is given, or is a mask by
        distance and no lengths are given.
    """
    recipe = MaskRecipe.of(recipe, **fields)
    loaded = load_any(path, site=site, causal=causal)
    if isinstance(loaded, PruneMask | DistanceMask):
        _require_same(loaded, recipe.recorded())
        if isinstance(loaded, PruneMask):
            return loaded
        if lengths is None:
            raise InputError(f"{path}: expected a mask of one length, found a mask by distance, which holds for any")
        return loaded.at(*lengths)
    if recipe.tau is None:
        raise InputError(f"{path}: expected a tau, since this is a pattern and not yet a mask, found none")
    return from_pattern(loaded, recipe.closed(block_size=loaded.pool))


def _read(
    path: str | Path, classes: tuple[type, ...], site: str | None, causal: bool | None, layout: str | None
) -> AttentionPattern | PruneMask | DistanceMask:
    path = file_name(path)
    if path.suffix == ".npy":
        if site is None:
            raise InputError(
                f"{path}: expected a site to be given, since a .npy file does not name its own, found none"
            )
        return read_published(path, layout, site=site, causal=causal)
    if layout is not None:
        raise InputError(f"{path}: expected a .npy file where a layout ({layout}) is given, found another kind of file")
    stored = read_stored(path, *(kind for owner in classes for kind in _FILES[owner]))
    loaded = _CLASSES[stored.kind.format].from_stored(stored)
    _require_same(loaded, {"site": site, "causal": causal})
    return loaded


def _require_same(loaded: PruneMask | DistanceMask | AttentionPattern, given: dict[str, object]) -> None:
    for name, value in given.items():
        found = getattr(loaded, name)
        if value is not None and value != found:
            raise InputError(f"{loaded.source}: expected {name} {value}, as given, found {found} in the file")

"""One way from a file to a PruneMask, for every script that takes a pattern or a mask."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..make.rules import parse_tau
from ..mask import MASK_FORMAT, PruneMask
from ..pattern import PATTERN_FORMAT, AttentionPattern
from .published import read_published
from .tensors import read_header


def load_pattern(
    path: str | Path, *, site: str | None = None, causal: bool | None = None, layout: str | None = None
) -> AttentionPattern:
    """Read a pattern file of this library, or a published ``.npy``.

    Parameters
    ----------
    site, causal
        A ``.npy`` says nothing about itself, so it needs a site. For other files, checked against what they say.
    layout
        Of a ``.npy``, see ``published.read_published``.

    Raises
    ------
    InputError
        If the file is no pattern, contradicts what is given, or is a ``.npy`` and no site is given.
    """
    if Path(path).suffix == ".npy":
        if site is None:
            raise InputError(
                f"{path}: expected a site to be given, since a .npy file does not name its own, found none"
            )
        return read_published(path, layout, site=site, causal=causal)
    if layout is not None:
        raise InputError(f"{path}: expected a .npy file where a layout ({layout}) is given, found another kind of file")
    pattern = AttentionPattern.load(path)
    _require_same(pattern, site=site, causal=causal)
    return pattern


def load_any(
    path: str | Path, *, site: str | None = None, causal: bool | None = None, layout: str | None = None
) -> AttentionPattern | PruneMask:
    """Read a pattern or a mask, whichever the file is; arguments and errors as in :func:`load_pattern`."""
    if Path(path).suffix == ".npy" or layout is not None or not is_mask_file(path):
        return load_pattern(path, site=site, causal=causal, layout=layout)
    return load_mask(path, site=site, causal=causal)


def load_mask(
    path: str | Path,
    tau: float | str | None = None,
    *,
    rule: str | None = None,
    scope: str | None = None,
    block_size: int | None = None,
    row_floor: str | None = None,
    site: str | None = None,
    causal: bool | None = None,
    crop: bool = True,
) -> PruneMask:
    """The mask in a mask file, or the mask that a pattern file gives at ``tau``.

    Parameters
    ----------
    path : str or Path
        A mask or pattern of this library, or a pattern in a published ``.npy`` layout (which needs ``site``).
    tau : float or str, optional
        Needed for a pattern. With a mask, it must be the mask's own or absent.
    rule, scope, block_size, row_floor : optional
        For a pattern by default "published", "layer", the pattern's pool, "keep-best". With a mask, as tau.
    site, causal : optional
        What the file must say, if given.
    crop : bool
        For patterns only, see ``PruneMask.from_pattern``.

    Raises
    ------
    InputError
        If the file is missing or broken or neither of these, lacks its tau, or contradicts what is given.
    """
    tau = None if tau is None else parse_tau(tau)
    if Path(path).suffix != ".npy" and is_mask_file(path):
        mask = PruneMask.load(path)
        given = {"tau": tau, "rule": rule, "scope": scope, "block_size": block_size, "row_floor": row_floor}
        _require_same(mask, **given, site=site, causal=causal)
        return mask
    pattern = load_pattern(path, site=site, causal=causal)
    if tau is None:
        raise InputError(f"{path}: expected a tau, since this is a pattern and not yet a mask, found none")
    return PruneMask.from_pattern(
        pattern,
        tau,
        rule=rule or "published",
        scope=scope or "layer",
        block_size=pattern.pool if block_size is None else block_size,
        row_floor=row_floor or "keep-best",
        crop=crop,
    )


def is_mask_file(path: str | Path) -> bool:
    """Whether a file is a mask (True) or a pattern (False) of this library.

    Raises
    ------
    InputError
        If it is missing, broken or neither.
    """
    found = read_header(path).get("format")
    if found not in (MASK_FORMAT, PATTERN_FORMAT):
        raise InputError(f"{path}: expected a file of format {PATTERN_FORMAT!r} or {MASK_FORMAT!r}, found {found!r}")
    return found == MASK_FORMAT


def _require_same(loaded: PruneMask | AttentionPattern, **given: object) -> None:
    for name, value in given.items():
        found = getattr(loaded, name)
        if value is not None and value != found:
            raise InputError(f"{loaded.source}: expected {name} {value}, as given, found {found} in the file")

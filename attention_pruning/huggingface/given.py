"""What is given to ``prune_model``: masks, or patterns to make them from, alone, in a list or by site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath

import numpy as np
from torch import Tensor

from .. import make
from ..distance_mask import DistanceMask
from ..errors import InputError
from ..mask import PruneMask
from ..pattern import AttentionPattern

Mask = PruneMask | DistanceMask
Masks = Mask | Mapping[str, Mask] | Iterable[Mask]
Patterns = AttentionPattern | Mapping[str, AttentionPattern] | Iterable[AttentionPattern]

_EXPECTED = (
    "masks: expected a PruneMask or an AttentionPattern with tau=, one for each site, alone, in a list or by site"
)


def masks_by_site(
    given: Masks | Patterns, tau: float | str | None = None, recipe: Mapping[str, object] | None = None
) -> dict[str, Mask]:
    """Masks by site; patterns become masks by ``tau`` and the other arguments of ``make.from_pattern``.

    Raises
    ------
    InputError
        If anything else was given, two for one site or one under the name of another, patterns without tau, or tau
        without patterns.
    """
    by_site = _by_site(given)
    patterns = [site for site, found in by_site.items() if isinstance(found, AttentionPattern)]
    if tau is None and patterns:
        raise InputError(f"masks: expected tau= with patterns, found none with that of {patterns[0]}")
    if tau is None and recipe:
        raise InputError(f"{next(iter(recipe))}: expected patterns and tau= with it, found no tau")
    if tau is not None and len(patterns) < len(by_site):
        raise InputError(f"tau: expected none with a PruneMask, which has its own, found {tau}")
    return {site: make.from_pattern(by_site[site], tau, **(recipe or {})) for site in patterns} if patterns else by_site


def _by_site(given: Masks | Patterns) -> dict[str, Mask | AttentionPattern]:
    """What was given, sorted by site; anything but masks and patterns is refused."""
    if isinstance(given, Mask | AttentionPattern):
        return {given.site: given}
    if isinstance(given, Mapping):
        sites, found = list(given), list(given.values())
    elif isinstance(given, Iterable) and not isinstance(given, str | bytes | Tensor | np.ndarray):
        sites, found = None, list(given)
    else:
        raise InputError(f"{_EXPECTED}, found {_told(given)}")
    for one in found:
        if not isinstance(one, Mask | AttentionPattern):
            raise InputError(f"{_EXPECTED}, found {_told(one)} among several")
    if not found:
        raise InputError("masks: expected at least one PruneMask, found none; unprune_model takes masks away")
    for site, one in zip(sites or [], found, strict=sites is not None):
        if one.site != site:
            raise InputError(f"{named(one)}: expected one for {site}, under which it was given, found {one.site}")
    if len({one.site for one in found}) != len(found):
        raise InputError(f"masks: expected one for each site, found {[one.site for one in found]}")
    return {one.site: one for one in found}


def _told(found: object) -> str:
    title = type(found).__name__
    if isinstance(found, str | PurePath):
        return f"{title} {str(found)!r}; PruneMask.load reads a file"
    if isinstance(found, Tensor | np.ndarray):
        return f"{title} of shape {list(found.shape)}; AttentionPattern makes one a pattern"
    return title


def named(one: Mask | AttentionPattern) -> str:
    """What to blame: the mask (or pattern), with the file behind it."""
    title = "pattern" if isinstance(one, AttentionPattern) else "mask"
    return title if one.source in ("mask", "pattern") else f"{title} of {one.source}"

"""Where attention happens and what its structure lets a query see.

Letters in names: Q queries, K keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InputError

SITES = ("self", "enc-self", "dec-self", "enc-dec")


def visible_cells(query_length: int, key_length: int, causal: bool) -> Tensor:
    """The cells that the structure shows to a query: bool [Q, K].

    Without causality, all of them. With it, key <= query + (K - Q): the first K - Q keys are memory slots, the rest is
    the segment of the queries.
    """
    if not causal:
        return torch.ones(query_length, key_length, dtype=torch.bool)
    queries, keys = torch.arange(query_length), torch.arange(key_length)
    return keys[None, :] <= queries[:, None] + (key_length - query_length)


def resolve_structure(site: str, causal: bool | None, query_length: int, key_length: int) -> bool:
    """Check the site and say whether it is causal: as told, else only ``dec-self`` is.

    Raises
    ------
    InputError
        For an unknown site, or a causal one with fewer keys than queries.
    """
    if site not in SITES:
        raise InputError(f"site: expected one of {', '.join(SITES)}, found {site!r}")
    if causal not in (None, True, False):
        raise InputError(f"causal: expected true or false, found {causal!r}")
    causal = site == "dec-self" if causal is None else bool(causal)
    if causal and key_length < query_length:
        raise InputError(
            f"causal attention: expected at least as many keys as queries, found {query_length} queries and "
            f"{key_length} keys"
        )
    return causal

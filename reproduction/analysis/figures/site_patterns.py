"""A site's average attention beside the masks that were made of it, and what each mask prunes, layer by layer.

Letters in names: L layers, H heads, Q queries, K keys.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from attention_pruning import AttentionPattern, InputError, PruneMask
from attention_pruning.make.rules import bounding_box


@dataclass(frozen=True)
class Site:
    """One site of attention of one trained model.

    Attributes
    ----------
    title : str
    pattern : AttentionPattern
        Of cells, not of blocks.
    masks : dict
        tau -> PruneMask, ascending; all of them made of ``pattern``.
    """

    title: str
    pattern: AttentionPattern
    masks: dict[float, PruneMask]


def add_site_flag(parser: argparse.ArgumentParser) -> None:
    """Declare --site, which `read_sites` reads."""
    parser.add_argument(
        "--site",
        nargs="+",
        action="append",
        required=True,
        metavar="TITLE PATTERN MASK",
        help="a name, a pattern file, and the data-informed masks made of it; once for each site",
    )


def read_sites(given: Sequence[Sequence[str]]) -> list[Site]:
    """Read what --site named.

    Raises
    ------
    InputError
        If a site lacks a file, a pattern is pooled, or a mask is a control, of another pattern, or of a tau again.
    """
    sites = []
    for words in given:
        if len(words) < 3:
            raise InputError(f"--site: expected a title, a pattern and at least one mask, found {' '.join(words)!r}")
        title, pattern_file, *mask_files = words
        pattern = AttentionPattern.load(pattern_file)
        if pattern.pool != 1:
            raise InputError(f"{pattern_file}: expected a pattern of cells, found one of blocks of {pattern.pool}")
        sites.append(Site(title, pattern, _read_masks(pattern, mask_files)))
    return sites


def _read_masks(pattern: AttentionPattern, files: Sequence[str | Path]) -> dict[float, PruneMask]:
    masks: dict[float, PruneMask] = {}
    for file in files:
        mask = PruneMask.load(file)
        made_of = mask.metadata.get("pattern_fingerprint")
        if mask.kind != "data" or made_of != pattern.fingerprint:
            raise InputError(
                f"{file}: expected a data-informed mask of {pattern.source} (fingerprint {pattern.fingerprint}), found "
                f"a {mask.kind} mask of {made_of}"
            )
        if mask.tau in masks:
            raise InputError(f"{file}: expected one mask of each tau, found {mask.tau:g} again")
        masks[mask.tau] = mask
    return dict(sorted(masks.items()))


def focus(pattern: AttentionPattern) -> np.ndarray:
    """How far each head's average is from uniform: 0 is uniform attention, 1 is one key for every query.

    One minus the entropy of a query's average attention over that of a uniform one, averaged over the queries that have
    a choice. It is the focus of the *average*: a head that looks at another place in every sentence has little.

    Returns
    -------
    numpy.ndarray
        float64 [L, H]
    """
    allowed_QK = pattern.allowed.numpy()
    choices_Q = allowed_QK.sum(1)
    with_choice_Q = choices_Q > 1
    if not with_choice_Q.any():
        return np.ones((pattern.layers, pattern.heads))
    average_LHQK = pattern.average.double().numpy()[:, :, with_choice_Q]
    total_LHQ1 = average_LHQK.sum(-1, keepdims=True)
    share_LHQK = np.divide(average_LHQK, total_LHQ1, out=np.zeros_like(average_LHQK), where=total_LHQ1 > 0)
    log_LHQK = np.log(share_LHQK, out=np.zeros_like(share_LHQK), where=share_LHQK > 0)
    entropy_LHQ = -(share_LHQK * log_LHQK).sum(-1)
    return (1 - entropy_LHQ / np.log(choices_Q[with_choice_Q])).mean(-1)


def lost_attention(pattern: AttentionPattern, mask: PruneMask) -> np.ndarray:
    """The share of the attention probability that lay on the cells that a mask prunes: float64 [L, H].

    A cell's average times how often it was observed is the probability that it got in all.
    """
    attention_LHQK = pattern.average.double() * pattern.count
    pruned_LHQK = np.stack([mask.cells(layer).numpy() for layer in range(mask.layers)])
    return (attention_LHQK.numpy() * pruned_LHQK).sum((2, 3)) / attention_LHQK.sum((2, 3)).numpy()


def ranked_cells(mask: PruneMask) -> int:
    """How many cells of a head the share tau was counted on.

    Under the rule ``allowed`` the allowed ones, under ``published`` the bounding box of what was observed, or all.
    """
    if mask.rule == "allowed":
        return int(mask.allowed.sum())
    box: Tensor = mask.allowed[bounding_box(mask.allowed)] if mask.recipe.crop is not False else mask.allowed
    return box.numel()


def layer_table(sites: Sequence[Site]) -> pd.DataFrame:
    """What each mask prunes from each layer, all shares as fractions.

    Returns
    -------
    pandas.DataFrame
        One row a site, tau and layer: ``effective_sparsity`` (pruned allowed cells / allowed cells), ``already_zero``
        (of the cells that tau counts as pruned, the share that structure had left without attention, or that the row
        floor gave back; 0 if more went than tau says), ``lost_attention`` and ``focus`` (see there; means over heads).
    """
    rows = []
    for site in sites:
        focus_L = focus(site.pattern).mean(1)
        allowed = int(site.pattern.allowed.sum())
        for tau, mask in site.masks.items():
            lost_L = lost_attention(site.pattern, mask).mean(1)
            for layer, effective in enumerate(mask.layer_sparsity):
                already_zero = max(0.0, 1 - effective * allowed / (tau * ranked_cells(mask))) if tau else 0.0
                known = {"site": site.title, "rule": mask.rule, "tau": tau, "layer": layer}
                numbers = {"effective_sparsity": effective, "already_zero": already_zero}
                rows.append(known | numbers | {"lost_attention": lost_L[layer], "focus": focus_L[layer]})
    return pd.DataFrame(rows)

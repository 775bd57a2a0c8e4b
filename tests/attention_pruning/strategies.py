"""What hypothesis draws: small patterns with ties, holes and every site."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from attention_pruning import AttentionPattern
from attention_pruning.make import from_pattern
from attention_pruning.structure import visible_cells

#: For every property test of this folder: no deadline (the machine may be busy), and few enough examples to stay quick.
law = settings(deadline=None, max_examples=80)

taus = st.one_of(
    st.sampled_from([0.0, 0.1, 0.2, 0.29, 0.5, 0.57, 0.9, 1.0]), st.integers(0, 100).map(lambda n: n / 100)
)
sizes = st.integers(1, 3)
seeds = st.integers(0, 2**31)
choices = st.fixed_dictionaries(
    {
        "rule": st.sampled_from(["published", "allowed"]),
        "scope": st.sampled_from(["layer", "head", "row", "model"]),
        "row_floor": st.sampled_from(["keep-best", "none"]),
        "unobserved": st.sampled_from(["keep", "prune"]),
        "crop": st.booleans(),
    }
)


@st.composite
def structures(draw, longest=7):
    """A site, whether it is causal, and lengths that it can have."""
    site = draw(st.sampled_from(["self", "enc-self", "dec-self", "enc-dec"]))
    causal = draw(st.sampled_from([None, True, False]))
    queries, keys = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    if causal or (causal is None and site == "dec-self"):
        queries, keys = min(queries, keys), max(queries, keys)
    return site, causal, queries, keys


@st.composite
def patterns(draw, longest=7, unobserved=True):
    """A pattern whose averages have ties, seen everywhere or (if ``unobserved``) with holes."""
    site, causal, queries, keys = draw(structures(longest))
    layers, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 5, 1000]))
    holes = draw(st.sampled_from([0.0, 0.3, 0.8])) if unobserved else 0.0
    count = rng.integers(1, 5, (queries, keys)) * (rng.random((queries, keys)) >= holes)
    count[queries - 1, 0] = 1  # visible in every structure: a pattern has seen something
    nothing = np.zeros((layers, heads, queries, keys))
    allowed = AttentionPattern(nothing, count, site, causal).allowed.numpy()
    average = rng.integers(0, levels, nothing.shape) / levels * allowed
    return AttentionPattern(average, count, site, causal, metadata={"seed": 3, "model": "abc"})


def cell_set(mask_QK):
    """The (query, key) tuples of a bool tensor, or those of any other number of axes."""
    return {tuple(index) for index in mask_QK.nonzero().tolist()}


def uniform_mask(queries, keys, tau, site, causal=None, heads=1, **chosen):
    """The mask of a pattern of noise, seen everywhere."""
    average = torch.rand(1, heads, queries, keys, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.01
    visible = visible_cells(queries, keys, site == "dec-self" if causal is None else causal)
    pattern = AttentionPattern(average * visible, torch.ones(queries, keys), site, causal)
    return from_pattern(pattern, tau, rule="allowed", **chosen)

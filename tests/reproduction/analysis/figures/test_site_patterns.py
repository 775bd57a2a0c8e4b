"""What masks take from patterns, against brute force, and which files make a site."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tiny_sites import TAUS, pattern, write_site, write_two_sites

from attention_pruning import AttentionPattern, InputError, PruneMask
from attention_pruning.make import from_pattern, random_like
from reproduction.analysis.figures.site_patterns import (
    Site,
    focus,
    layer_table,
    lost_attention,
    ranked_cells,
    read_sites,
)


def test_focus_is_0_for_uniform_attention_and_1_for_one_key() -> None:
    uniform = np.full((6, 6), 1 / 6)
    one_key = np.eye(6)
    made = AttentionPattern(np.stack([uniform, one_key])[None], np.ones((6, 6)), "self")
    assert focus(made) == pytest.approx(np.array([[0.0, 1.0]]))
    causal = np.tril(np.ones((6, 6))) / np.arange(1, 7)[:, None]
    made = AttentionPattern(causal[None, None], np.tril(np.ones((6, 6))), "dec-self")
    assert focus(made) == pytest.approx(np.zeros((1, 1)), abs=1e-6)


def test_focus_is_one_minus_relative_entropy() -> None:
    made = pattern("dec-self", 2, 3, 5, 5)
    for layer in range(2):
        for head in range(3):
            found = []
            for query in range(1, 5):  # the first query has no choice
                row = made.average[layer, head, query, : query + 1].double().tolist()
                share = [value / sum(row) for value in row]
                found.append(1 + sum(p * math.log(p) for p in share) / math.log(query + 1))
            assert focus(made)[layer, head] == pytest.approx(sum(found) / 4)


def test_a_pattern_without_choices_is_focused() -> None:
    made = AttentionPattern(np.ones((1, 2, 1, 1)), np.ones((1, 1)), "self")
    assert focus(made).tolist() == [[1.0, 1.0]]


def test_lost_attention_is_the_share_of_all_attention_that_lay_on_pruned_cells() -> None:
    made = pattern("enc-dec", 2, 2, 4, 5)
    mask = from_pattern(made, 0.6)
    for layer in range(2):
        for head in range(2):
            lost = whole = 0.0
            for query in range(4):
                for key in range(5):
                    got = float(made.average[layer, head, query, key]) * int(made.count[query, key])
                    whole += got
                    lost += got if mask.pruned[layer, head, query, key] else 0.0
            assert lost_attention(made, mask)[layer, head] == pytest.approx(lost / whole)


def test_what_tau_counts_but_structure_had_left_empty() -> None:
    """Of 36 cells of a causal square 15 are empty. Tau 0.5 counts 18, the nearest percentile takes 19: 4 are real."""
    made = pattern("dec-self", 3, 1, 6, 6)
    table = layer_table([Site("decoder", made, {0.5: from_pattern(made, 0.5)})])
    assert table["effective_sparsity"].tolist() == pytest.approx([4 / 21] * 3)
    assert table["already_zero"].tolist() == pytest.approx([1 - 4 / 18] * 3)
    assert (table["lost_attention"] < 4 / 21).all() and table["layer"].tolist() == [0, 1, 2]
    made = pattern("dec-self", 3, 1, 4, 4)
    by_allowed = from_pattern(made, 0.3, rule="allowed", row_floor="none")
    table = layer_table([Site("decoder", made, {0.3: by_allowed})])
    assert table["already_zero"].tolist() == pytest.approx([0.0] * 3, abs=1e-9)


@pytest.mark.parametrize(("crop", "cells"), [(True, 4 * 5), (False, 6 * 6)])
def test_the_published_rule_ranks_what_was_observed_or_the_whole(crop: bool, cells: int) -> None:
    count = np.zeros((6, 6))
    count[:4, :5] = 1
    made = AttentionPattern(count[None, None] / 5, count, "self")
    assert ranked_cells(from_pattern(made, 0.5, crop=crop)) == cells


def test_files_become_sites(tmp_path: Path) -> None:
    decoder, cross = read_sites(write_two_sites(tmp_path))
    assert (decoder.title, cross.title) == ("decoder", "cross")
    assert decoder.pattern.causal and cross.pattern.heads == 3
    assert tuple(decoder.masks) == TAUS and cross.masks[0.8].tau == 0.8


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    made = pattern("enc-self", 1, 2, 4, 4)
    own, half, most = write_site(tmp_path / "own", made)
    other = write_site(tmp_path / "other", pattern("enc-self", 1, 2, 4, 4, seed=9))
    with pytest.raises(InputError, match="expected a title, a pattern and at least one mask"):
        read_sites([["title", own]])
    with pytest.raises(InputError, match="expected a data-informed mask of .*found a data mask of"):
        read_sites([["title", own, half, other[1]]])
    with pytest.raises(InputError, match="expected one mask of each tau, found 0.5 again"):
        read_sites([["title", own, half, half]])
    control = tmp_path / "random.safetensors"
    random_like(PruneMask.load(most), seed=1).save(control)
    with pytest.raises(InputError, match="found a random mask"):
        read_sites([["title", own, str(control)]])
    pooled = tmp_path / "pooled.safetensors"
    made.pooled(2).save(pooled)
    with pytest.raises(InputError, match="expected a pattern of cells, found one of blocks of 2"):
        read_sites([["title", str(pooled), half]])

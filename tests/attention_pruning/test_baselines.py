"""Laws of the controls: random, window and distance masks prune as much as the mask that they are like."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import brute_force
from attention_pruning import AttentionPattern, InputError
from attention_pruning.make import distance_like, from_pattern, random_like, shuffled_heads_like, window_like
from attention_pruning.make.controls import distance_scores, random_scores, window_scores
from attention_pruning.structure import visible_cells
from strategies import cell_set, choices, law, patterns, seeds, sizes, taus, uniform_mask


def allowed_blocks(mask):
    return brute_force.blocks_of(cell_set(mask.allowed), mask.block_size)


def pruned_allowed(mask):
    """By layer, how many allowed blocks are pruned."""
    found = [at[0] for at in cell_set(mask.pruned) if at[2:] in allowed_blocks(mask)]
    return [found.count(layer) for layer in range(mask.layers)]


@law
@given(patterns(), taus, choices, seeds)
def test_controls_agree_with_loops(pattern, tau, chosen, seed):
    data = from_pattern(pattern, tau, **chosen)
    allowed = cell_set(data.allowed)
    for use, weights in (
        (None, dict.fromkeys(allowed, 1)),
        (pattern.count, {at: int(pattern.count[at]) for at in allowed}),
    ):
        for found, scores in (
            (random_like(data, seed, use), random_scores(data, seed)),
            (window_like(data, use), window_scores(data)),
            (distance_like(data, pattern, use), distance_scores(data, pattern)),
        ):
            score = torch.stack([scores(layer) for layer in range(data.layers)]).numpy()
            assert cell_set(found.pruned) == brute_force.prune_as_much(
                cell_set(data.pruned), score, allowed, data.row_floor, weights
            )


@law
@given(patterns(), taus, choices, st.integers(1, 3), seeds)
def test_shuffled_heads_are_the_heads_of_the_mask_and_none_is_where_it_was(pattern, tau, chosen, size, seed):
    data = from_pattern(pattern, tau, block_size=size, **chosen)
    if data.heads == 1:
        with pytest.raises(InputError, match="expected at least two heads to shuffle, found 1"):
            shuffled_heads_like(data, seed)
        return
    found = shuffled_heads_like(data, seed)
    assert found == shuffled_heads_like(data, seed)
    assert (found.kind, found.seed, found.rule, found.tau) == ("shuffled-heads", seed, data.rule, data.tau)
    assert found.metadata["like_fingerprint"] == data.fingerprint
    assert found.layer_sparsity == data.layer_sparsity and found.effective_sparsity == data.effective_sparsity
    for ours, theirs in zip(found.pruned, data.pruned, strict=True):
        assert sorted(head.numpy().tobytes() for head in ours) == sorted(head.numpy().tobytes() for head in theirs)


def test_every_head_of_a_layer_moves_and_layers_by_themselves():
    # Each head of each layer keeps another key, so that a mask says which head it is of.
    pattern = AttentionPattern(torch.stack([torch.eye(5)[:, None].expand(5, 5, 5)] * 6), torch.ones(5, 5), "enc-self")
    data = from_pattern(pattern, 0.8, rule="allowed", scope="head")
    owner = (~data.pruned[0, :, 0]).long().argmax(-1)
    assert owner.tolist() == [0, 1, 2, 3, 4]
    orders = [
        (~layer[:, 0]).long().argmax(-1).tolist()
        for seed in range(4)
        for layer in shuffled_heads_like(data, seed).pruned
    ]
    assert all(sorted(order) == owner.tolist() for order in orders)
    assert not any(place == head for order in orders for place, head in enumerate(order))
    assert len(set(map(tuple, orders))) > 6


@law
@given(patterns(), taus, choices, st.integers(1, 3), seeds)
def test_controls_keep_what_they_are_like(pattern, tau, chosen, size, seed):
    data = from_pattern(pattern, tau, block_size=size, **chosen)
    for kind, make in (
        ("random", lambda: random_like(data, seed)),
        ("window", lambda: window_like(data)),
        ("distance", lambda: distance_like(data, pattern)),
    ):
        try:
            found = make()
        except InputError as error:  # ragged blocks can share a row's last block in the data, and not by chance
            assert size > 1 and data.row_floor == "keep-best" and "all that leave every row a block" in str(error)
            continue
        assert pruned_allowed(found) == pruned_allowed(data)
        assert found.empty_rows == 0 or data.row_floor == "none"
        assert torch.equal(found.allowed, data.allowed)
        differs = cell_set(found.pruned ^ data.pruned)
        assert {at[2:] for at in differs} <= allowed_blocks(data)
        assert (found.kind, found.seed) == (kind, seed if kind == "random" else None)
        origin = {"like_fingerprint": data.fingerprint, "like_in": "effective_sparsity"}
        origin |= {"distances_fingerprint": pattern.fingerprint} if kind == "distance" else {}
        assert found.metadata == data.metadata | origin
        for name in ("site", "causal", "tau", "rule", "scope", "row_floor", "block_size"):
            assert getattr(found, name) == getattr(data, name)


@law
@given(patterns(), taus, choices, st.integers(0, 3))
def test_sinks_go_last(pattern, tau, chosen, sinks):
    """No key of the first ones is pruned while another one that may go is left, in any row of the layer."""
    data = from_pattern(pattern, tau, **chosen)
    if data.causal and data.key_length > data.query_length and sinks:
        with pytest.raises(InputError, match="sinks: expected keys that start with the text, found"):
            window_like(data, sinks=sinks)
        return
    for found, plain in (
        (window_like(data, sinks=sinks), window_like(data)),
        (distance_like(data, pattern, sinks=sinks), distance_like(data, pattern)),
    ):
        assert pruned_allowed(found) == pruned_allowed(data)
        if sinks == 0:
            assert found == plain and found.metadata == plain.metadata
            continue
        assert found.metadata == plain.metadata | {"sinks": sinks}
        assert found.empty_rows == 0 or data.row_floor == "none"
        first = torch.arange(data.key_length) < sinks
        for layer_HQK in found.pruned:
            if (layer_HQK & data.allowed & first).any():
                left = ~layer_HQK & data.allowed & ~first
                assert left.sum((0, 2)).max() == 0 or data.row_floor == "keep-best" and left.sum(-1).max() <= 1


@pytest.mark.parametrize("sinks", [-1, 1, True, 2.0])
def test_sinks_are_whole_blocks(sinks):
    data = uniform_mask(8, 8, 0.5, "enc-self", block_size=2)
    with pytest.raises(InputError, match="sinks: expected a multiple of the block size 2, found"):
        window_like(data, sinks=sinks)


def test_controls_of_equal_use_count_a_rare_position_for_what_it_is():
    count = torch.full((4, 4), 10)
    count[3], count[:, 3] = 1, 1  # a sentence in ten is four tokens long
    average = (torch.rand(1, 2, 4, 4) + torch.eye(4)) / 2
    average[..., :, 3] = 0
    data = from_pattern(AttentionPattern(average, count, "enc-self"), 0.25, rule="allowed", row_floor="none")
    assert data.effective_sparsity == 0.25 and data.evaluated_sparsity(count) == 4 / 97
    found = random_like(data, 3, count)
    assert abs(found.evaluated_sparsity(count) - 4 / 97) <= 10 / (2 * 97)
    assert found.effective_sparsity < 0.25
    with pytest.raises(InputError, match="expected whole counts"):
        window_like(data, count.float())


@law
@given(st.integers(1, 6), st.integers(0, 6), st.integers(1, 4), taus, seeds)
def test_block_baselines_are_always_found_where_all_was_observed(queries, memory, size, tau, seed):
    average = torch.rand(2, 2, queries, queries + memory, generator=torch.Generator().manual_seed(seed))
    count = torch.ones(queries, queries + memory)
    for causal in (False, True):
        visible = visible_cells(*count.shape, causal)
        pattern = AttentionPattern(average * visible, count, "self", causal)
        data = from_pattern(pattern, tau, rule="allowed", block_size=size)
        by_distance = distance_like(data, pattern)
        for found in (random_like(data, seed), window_like(data), by_distance):
            assert pruned_allowed(found) == pruned_allowed(data)
            assert found.empty_rows == 0


def test_a_random_mask_is_fixed_by_its_seed_and_uniform():
    data = uniform_mask(30, 30, 0.5, "enc-self")
    masks = [random_like(data, seed) for seed in range(200)]
    assert random_like(data, 7).fingerprint == masks[7].fingerprint
    assert len({mask.fingerprint for mask in masks}) == 200
    often = torch.stack([mask.pruned for mask in masks]).double().mean(0)
    # 900 shares of 200 draws at 1/2: mean exactly 1/2, each within 5.5 standard deviations of sqrt(1/4/200)
    assert abs(float(often.mean()) - data.effective_sparsity) < 1e-12
    assert float((often - 0.5).abs().max()) < 5.5 * math.sqrt(0.25 / 200)


def test_a_window_is_a_band_around_the_diagonal():
    distance = (torch.arange(8)[:, None] - torch.arange(8)).abs()
    band = int((distance <= 2).sum())
    data = uniform_mask(8, 8, (64 - band) / 64, "enc-self", heads=2, row_floor="none")
    for head in window_like(data).pruned[0]:
        assert torch.equal(head, distance > 2)


@law
@given(patterns(), taus, choices, sizes)
def test_distances_are_judged_by_the_mean_of_their_allowed_cells(pattern, tau, chosen, size):
    data = from_pattern(pattern, tau, block_size=size, **chosen)
    average = pattern.pooled(size).average.numpy()
    expected = brute_force.by_distance(average, cell_set(pattern.allowed), size)
    scores = distance_scores(data, pattern)
    found = torch.stack([scores(layer) for layer in range(data.layers)]).numpy()
    assert found == pytest.approx(expected, rel=1e-12)
    # equal along a diagonal to the last bit: what is equal is a tie
    for i, j in np.ndindex(found.shape[2] - 1, found.shape[3] - 1):
        assert (found[..., i, j] == found[..., i + 1, j + 1]).all()


@law
@given(patterns(), taus, choices, seeds)
def test_only_the_means_of_distances_count(pattern, tau, chosen, seed):
    data = from_pattern(pattern, tau, **chosen)
    flat = AttentionPattern(
        torch.stack([distance_scores(data, pattern)(layer) for layer in range(data.layers)]) * pattern.allowed,
        pattern.count,
        pattern.site,
        pattern.causal,
    )
    exact = distance_like(data, pattern)
    again = distance_like(data, flat)
    kept = [distance_scores(data, flat)(layer) for layer in range(data.layers)]
    # float32 may make two means equal, which changes the order among them; the attention that is kept is the same
    for layer, score in enumerate(kept):
        sums = [float((score * (~mask.pruned[layer] & pattern.allowed)).sum()) for mask in (exact, again)]
        assert math.isclose(*sums, rel_tol=1e-5, abs_tol=1e-9)


def test_a_mask_by_distance_keeps_what_a_head_attends_to_and_nothing_about_positions():
    distance = torch.arange(6)[:, None] - torch.arange(6)
    average = torch.full((1, 2, 6, 6), 0.1)
    average[0, 0][distance == 0], average[0, 1][distance == 2] = 0.9, 0.8
    average[0, :, :, 0] += 0.5  # every query looks at the first key, too: a column, and no distance
    pattern = AttentionPattern(average / 2, torch.ones(6, 6), "enc-self")
    data = from_pattern(pattern, 0.73, rule="allowed", row_floor="none")
    assert not data.pruned[0, :, :, 0].any()
    found = distance_like(data, pattern)
    kept = ~found.pruned[0]
    assert int(kept.sum()) == 20 and kept[0][distance == 0].all() and kept[1][distance == 2].all()
    assert found.pruned[0, :, 1:5, 0].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 1}, "expected heads 2, that of mask, found 1"),
        ({"keys": 5}, "expected key_length 4, that of mask, found 5"),
        ({"site": "enc-dec"}, "expected site enc-self, that of mask, found enc-dec"),
        ({"unseen": 1}, "expected the allowed cells of mask, found others"),
    ],
)
def test_distances_of_other_attention_are_refused(changes, message):
    def pattern(heads=2, keys=4, site="enc-self", unseen=0):
        count = torch.ones(4, keys)
        count[3, :unseen] = 0
        return AttentionPattern(torch.rand(1, heads, 4, keys) * (count > 0), count, site)

    with pytest.raises(InputError, match=message):
        distance_like(from_pattern(pattern(), 0.5), pattern(**changes))


def test_a_causal_window_follows_the_memory():
    queries, memory = 4, 3
    distance = torch.arange(queries)[:, None] + memory - torch.arange(queries + memory)
    data = uniform_mask(queries, queries + memory, 1.0, "self", causal=True)  # keep-best: one cell of a row stays
    window = window_like(data)
    assert torch.equal(~window.pruned[0, 0] & window.visible, distance == 0)


def test_a_cross_attention_window_joins_the_corners_of_what_was_observed():
    count = torch.zeros(6, 9)
    count[:3, :6] = 1  # three queries, six keys observed: query q looks at keys 2q and 2q + 1
    pattern = AttentionPattern(torch.rand(1, 1, 6, 9) * count, count, "enc-dec")
    window = window_like(from_pattern(pattern, 0.67, rule="allowed", row_floor="none"))
    expected = torch.arange(6)[:, None] == torch.arange(9) // 2
    assert torch.equal(~window.pruned[0, 0] & window.allowed, expected & window.allowed)


@pytest.mark.parametrize("seed", [-1, 0.5, "1", True, None])
def test_a_random_mask_needs_a_whole_seed(seed):
    with pytest.raises(InputError, match="seed: expected a whole number of at least 0"):
        random_like(uniform_mask(4, 4, 0.5, "self"), seed)

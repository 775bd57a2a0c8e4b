"""Laws of masks by distance: what they keep at any length, and what of a pattern they keep."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import AttentionPattern, DistanceMask, InputError, PruneMask, make, pruned_attention
from attention_pruning.files.load import load_any
from attention_pruning.ops.bands import band_layout, kept_cells
from attention_pruning.ops.layout import BlockLayout


@st.composite
def masks(draw, block_sizes=(1, 2, 16)):
    """Any mask by distance: 2 layers, 2 heads, up to 40 distances."""
    size = draw(st.sampled_from(block_sizes))
    sinks = draw(st.integers(0, 3)) * size if size > 1 else draw(st.sampled_from([0, 1, 4, 16, 19, 33]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    kept = torch.rand(2, 2, draw(st.integers(1, 40)), generator=generator) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    if not sinks:
        kept[..., 0] = True
    return DistanceMask(kept, sinks=sinks, block_size=size)


def keeps(mask: DistanceMask, layer: int, head: int, query: int, key: int) -> bool:
    """By the definition, in whole numbers."""
    distance = query // mask.block_size - key // mask.block_size
    return key < mask.sinks or (distance < mask.kept.shape[2] and bool(mask.kept[layer, head, distance]))


def cells(mask: DistanceMask, layer: int, length: int, memory: int = 0) -> torch.Tensor:
    """bool [H, length, memory + length]: what is pruned of what causality shows."""
    pruned = torch.zeros(mask.heads, length, memory + length, dtype=torch.bool)
    for head in range(mask.heads):
        for query in range(length):
            for key in range(query + memory + 1):
                pruned[head, query, key] = not keeps(mask, layer, head, query + memory, key)
    return pruned


@settings(deadline=None, max_examples=25)
@given(masks(), st.integers(1, 70))
def test_every_form_of_a_mask_keeps_what_its_definition_says(mask, length):
    expected = torch.stack([cells(mask, layer, length) for layer in range(mask.layers)])
    fixed = mask.at(length)
    visible = fixed.visible
    for layer in range(mask.layers):
        of_length = mask.layer(layer, length)
        assert torch.equal(fixed.cells(layer) & visible, expected[layer])
        position = torch.arange(length)
        assert torch.equal(mask.pruned(layer, position[:, None], position) & visible, expected[layer])
        found = of_length.cells(torch.device("cpu"))[:, :length, :length]
        assert torch.equal(found & visible, expected[layer])
    share = Fraction(int(expected.sum()), mask.layers * mask.heads * length * (length + 1) // 2)
    assert mask.sparsity(length) == pytest.approx(float(share), abs=1e-12)
    assert mask.sparsity(length) == pytest.approx(fixed.effective_sparsity, abs=1e-12)
    assert fixed.empty_rows == 0 and fixed.kind == "distance"


@settings(deadline=None, max_examples=25)
@given(masks(block_sizes=(1,)), st.sampled_from([16, 32]), st.integers(1, 14))
def test_the_layout_of_a_band_is_that_of_its_cells(mask, size, blocks):
    length = size * blocks
    found = band_layout(mask.kept[0], mask.sinks, length, size)
    expected = BlockLayout.from_cells(kept_cells(mask.kept[0], mask.sinks, length), size, causal=True)
    assert torch.equal(found.row_start, expected.row_start) and torch.equal(found.column, expected.column)
    assert torch.equal(found.cells, expected.cells)
    assert len(found.bits) <= len(expected.bits)


def test_a_long_layout_takes_no_more_bits_than_a_short_one():
    kept = torch.ones(2, 100, dtype=torch.bool)
    kept[:, 1::2] = False
    short, long = (band_layout(kept, 4, length, 16) for length in (512, 8192))
    assert len(long.bits) == len(short.bits)
    assert long.key_length == 8192 and len(long.column) < 2 * 512 * 10


@settings(deadline=None, max_examples=20)
@given(masks(), st.integers(1, 40), st.integers(0, 5))
def test_memory_slots_stand_before_the_queries(mask, length, slots):
    memory = slots * mask.block_size
    if mask.sinks and memory:
        with pytest.raises(InputError, match="expected no sinks for a memory"):
            mask.at(length, memory)
        return
    fixed = mask.at(length, memory)
    for layer in range(mask.layers):
        expected = cells(mask, layer, length, memory)
        assert torch.equal(fixed.cells(layer) & fixed.visible, expected)


@pytest.mark.parametrize("block_size", [1, 32])
def test_attention_under_any_length_is_that_under_its_cells(block_size):
    torch.manual_seed(0)
    mask = DistanceMask(torch.rand(1, 2, 6) < 0.5, sinks=4 * block_size, block_size=block_size)
    for length in (40, 300, 700):
        q, k, v = torch.randn(3, 1, 2, length, 16).unbind(0)
        expected = pruned_attention(q, k, v, mask.at(length).layer(0), backend="reference")
        found = pruned_attention(q, k, v, mask.layer(0, length))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def pattern_of(length: int, memory: int = 0, heads: int = 2, pool: int = 1, seed: int = 0) -> AttentionPattern:
    generator = torch.Generator().manual_seed(seed)
    count = torch.ones(length, memory + length, dtype=torch.int64).tril(memory)
    scores = torch.randn(2, heads, length, memory + length, generator=generator)
    pattern = AttentionPattern(scores.masked_fill(count == 0, -torch.inf).softmax(-1), count, "self", True)
    return pattern.pooled(pool)


def means_by_distance(pattern: AttentionPattern, sinks: int) -> dict[tuple[int, int, int], float]:
    """(layer, head, distance) -> the mean over its cells, sinks apart; for cells."""
    memory, found = pattern.key_length - pattern.query_length, {}
    for layer in range(pattern.layers):
        for head in range(pattern.heads):
            by_distance: dict[int, list[float]] = {}
            for query, key in pattern.allowed.nonzero().tolist():
                if key >= sinks:
                    by_distance.setdefault(query + memory - key, []).append(
                        float(pattern.average[layer, head, query, key].double())
                    )
            found |= {(layer, head, d): sum(values) / len(values) for d, values in by_distance.items()}
    return found


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 99), st.sampled_from(["0", "0.3", "0.5", "0.9", "1"]), st.sampled_from(["layer", "head", "model"]),
    st.sampled_from([(0, 0), (4, 0), (0, 5)]),
)  # fmt: skip
def test_the_least_attended_distances_go_within_the_share(seed, tau, scope, sinks_memory):
    sinks, memory = sinks_memory
    pattern = pattern_of(12, memory, seed=seed)
    mask = make.by_distance(pattern, tau, sinks=sinks, scope=scope)
    means, allowed = means_by_distance(pattern, sinks), int(pattern.allowed.sum())
    apart = [q + memory - k for q, k in pattern.allowed.nonzero().tolist() if k >= sinks]
    cells_of = Counter(apart)
    group = {"layer": lambda *key: key[0], "head": lambda *key: key, "model": lambda *key: 0}[scope]
    sizes = {"layer": pattern.heads, "head": 1, "model": pattern.heads * pattern.layers}
    for name in {group(layer, head) for layer, head, _ in means}:
        of_group = [key for key in means if group(key[0], key[1]) == name and (sinks or key[2])]
        ranked = sorted(of_group, key=lambda key: (means[key], key[0], key[1], -key[2]))
        gone, total = [], 0
        for key in ranked:
            total += cells_of[key[2]]
            if total > Fraction(tau) * allowed * sizes[scope]:
                break
            gone.append(key)
        kept = {key for key in of_group if bool(torch.nn.functional.pad(mask.kept, (0, 40))[key])}
        assert kept == set(of_group) - set(gone)
    assert mask.observed == 12 + memory and mask.tau == float(tau)
    if not memory:
        assert mask.effective_sparsity <= float(tau) + 1e-9
        assert mask.effective_sparsity == pytest.approx(mask.at(12).effective_sparsity)


def test_blocks_are_judged_by_their_pooled_averages():
    pattern = pattern_of(64, pool=16)
    mask = make.by_distance(pattern, 0.5, sinks=4)
    assert mask.block_size == 16 and mask.sinks == 16 and mask.effective_sparsity <= 0.5
    assert mask == make.by_distance(pattern_of(64), 0.5, sinks=16, block_size=16)
    assert make.by_distance(pattern, 0, sinks=0).sparsity(64) == 0.0


def test_a_file_gives_the_mask_back(tmp_path):
    mask = make.by_distance(pattern_of(20), "0.7", sinks=3)
    mask.save(tmp_path / "m.safetensors")
    for found in (DistanceMask.load(tmp_path / "m.safetensors"), load_any(tmp_path / "m.safetensors")):
        assert found == mask and hash(found) == hash(mask)
        for name in ("sinks", "tau", "scope", "observed", "metadata", "site", "block_size", "effective_sparsity"):
            assert getattr(found, name) == getattr(mask, name)
    with pytest.raises(InputError, match="expected a file of format .attention-pruning/mask/1."):
        PruneMask.load(tmp_path / "m.safetensors")
    longer = DistanceMask(torch.nn.functional.pad(mask.kept, (0, 5)), sinks=3)
    assert longer == mask and longer.span == mask.span


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kept_LHd": torch.ones(2, 3)}, "expected kept_LHd to be bools"),
        ({"sinks": 3, "block_size": 2}, "sinks to be a multiple of the block size 2, 16777216 at most, found 3"),
        ({"sinks": -1}, "found -1"),
        ({"site": "enc-self"}, "expected the site self or dec-self"),
        ({"site": "elsewhere"}, "site: expected one of"),
        ({"kept_LHd": torch.tensor([[[True], [False]]])}, "queries without a key in layer 0, head 1"),
        ({"tau": 3}, "tau: expected a fraction"),
    ],
)
def test_what_is_no_mask_by_distance_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        DistanceMask(**{"kept_LHd": torch.ones(1, 1, 2, dtype=torch.bool)} | arguments)


def test_what_gives_no_mask_by_distance_is_refused():
    with pytest.raises(InputError, match="sinks: expected 0 for a pattern with memory slots, found 4"):
        make.by_distance(pattern_of(8, 4), 0.5)
    with pytest.raises(InputError, match="scope: expected one of layer, head, model, found 'row'"):
        make.by_distance(pattern_of(8), 0.5, scope="row")
    average = torch.full((1, 1, 3, 3), 1 / 3)
    both_ways = AttentionPattern(average, torch.ones(3, 3, dtype=torch.int64), "self")
    with pytest.raises(InputError, match="expected causal attention for a mask by distance, found self"):
        make.by_distance(both_ways, 0.5)
    with pytest.raises(InputError, match="expected block size 16"):
        make.by_distance(pattern_of(32, pool=16), 0.5, block_size=4)
    with pytest.raises(InputError, match="expected a PruneMask"):
        make.random_like(make.by_distance(pattern_of(8), 0.5), 1)

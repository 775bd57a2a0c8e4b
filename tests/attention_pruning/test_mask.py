"""Laws of PruneMask: rules, scopes, blocks, row floor, sparsities, files; and of load_mask."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import brute_force
from attention_pruning import AttentionPattern, InputError, PatternAccumulator, PruneMask
from attention_pruning.files.load import load_mask
from attention_pruning.files.published import write_published
from attention_pruning.make import distance_like, from_pattern, random_like
from attention_pruning.recipe import parse_tau
from strategies import cell_set, choices, law, patterns, seeds, sizes, taus, uniform_mask


def cells(mask):
    """Every pruned (layer, head, query, key)."""
    return cell_set(torch.stack([mask.cells(layer) for layer in range(mask.layers)]))


@law
@given(patterns(), taus, choices, sizes)
def test_rules_scopes_blocks_ties_and_row_floor(pattern, tau, chosen, size):
    mask = from_pattern(pattern, tau, block_size=size, **chosen)
    average = pattern.pooled(size).average.numpy()
    visible, allowed = cell_set(pattern.visible), cell_set(pattern.allowed)
    expected = brute_force.prune(average, visible, allowed, tau, size=size, **chosen)
    assert cell_set(mask.pruned) == expected
    expected_cells = brute_force.cells_of(expected, size, pattern.query_length, pattern.key_length)
    assert cells(mask) == expected_cells

    layers, heads = mask.layers, mask.heads
    assert math.isclose(
        mask.effective_sparsity, brute_force.effective_sparsity(expected_cells, allowed, layers, heads), abs_tol=1e-12
    )
    assert math.isclose(sum(mask.layer_sparsity) / layers, mask.effective_sparsity, abs_tol=1e-12)
    assert mask.nominal_sparsity == tau
    assert mask.empty_rows == brute_force.empty_rows(expected_cells, allowed, layers, heads)
    assert mask.empty_rows == 0 or chosen["row_floor"] == "none"
    for kernel in (1, 2, 4):
        skipped = brute_force.block_sparsity(expected_cells, visible, allowed, layers, heads, kernel)
        assert math.isclose(mask.block_sparsity(kernel), skipped, abs_tol=1e-12)


@law
@given(patterns(), st.integers(1, 3), choices)
def test_a_pooled_pattern_gives_the_mask_of_its_cells(pattern, size, chosen):
    of_cells = from_pattern(pattern, 0.5, block_size=size, **chosen)
    of_blocks = from_pattern(pattern.pooled(size), 0.5, block_size=size, **chosen)
    assert of_cells.fingerprint == of_blocks.fingerprint


@law
@given(patterns(), choices, sizes)
def test_tau_zero_prunes_nothing(pattern, chosen, size):
    mask = from_pattern(pattern, 0, block_size=size, **chosen)
    assert not mask.pruned.any()
    assert mask.effective_sparsity == mask.block_sparsity(2) == 0.0


@law
@given(patterns(), taus, st.sampled_from(["layer", "head", "row", "model"]))
def test_rule_allowed_prunes_the_floor_of_its_share(pattern, tau, scope):
    mask = from_pattern(pattern, tau, rule="allowed", scope=scope, row_floor="none")
    groups = {}
    for layer, head in np.ndindex(mask.layers, mask.heads):
        for query, key in cell_set(mask.allowed):
            members = groups.setdefault(brute_force.group_of((layer, head, query, key), scope), [])
            members.append(bool(mask.pruned[layer, head, query, key]))
    for members in groups.values():
        assert sum(members) == math.floor(Fraction(str(tau)) * len(members))
    if scope == "layer":  # nominal = effective, to one cell a layer
        assert abs(mask.effective_sparsity - tau) * int(mask.allowed.sum()) * mask.heads < 1


def test_the_floor_is_that_of_the_number_as_written():
    pattern = AttentionPattern((torch.arange(100.0).reshape(1, 1, 10, 10) + 1) / 100, torch.ones(10, 10), "self")
    for percent in range(101):  # 0.29 * 100 is 28.999999999999996 in floating point
        mask = from_pattern(pattern, percent / 100, rule="allowed", row_floor="none")
        assert int(mask.pruned.sum()) == percent


@law
@given(patterns(), taus, taus, choices, sizes)
def test_a_larger_tau_prunes_a_superset(pattern, one, other, chosen, size):
    less, more = (from_pattern(pattern, tau, block_size=size, **chosen) for tau in sorted((one, other)))
    assert not (less.pruned & ~more.pruned).any()


@law
@given(patterns(), taus, choices, sizes, st.data())
def test_evaluated_sparsity_weighs_cells_by_their_use(pattern, tau, chosen, size, data):
    mask = from_pattern(pattern, tau, block_size=size, **chosen)
    queries, keys = data.draw(st.integers(1, mask.query_length)), data.draw(st.integers(1, mask.key_length))
    count = torch.randint(0, 9, (queries, keys), generator=torch.Generator().manual_seed(data.draw(seeds)))
    count *= mask.visible[:queries, :keys]
    if not count.any():
        return
    full = np.zeros((mask.query_length, mask.key_length), dtype=int)
    full[:queries, :keys] = count.numpy()
    expected = brute_force.evaluated_sparsity(cells(mask), full, mask.layers, mask.heads)
    assert math.isclose(mask.evaluated_sparsity(count), expected, abs_tol=1e-12)


@law
@given(patterns(), sizes, st.data())
def test_a_slice_is_the_part_of_the_mask_and_dense_beyond_it(pattern, size, data):
    mask = from_pattern(pattern, 0.7, block_size=size)
    starts = [data.draw(st.integers(0, length + 2)) for length in (mask.query_length, mask.key_length)]
    lengths = [data.draw(st.integers(1, 9)) for _ in range(2)]
    layer = data.draw(st.integers(0, mask.layers - 1))
    found = mask.slice(layer, starts[0], lengths[0], starts[1], lengths[1], beyond="dense")
    assert found.shape == (mask.heads, *lengths)
    everything = cells(mask)
    for head, query, key in np.ndindex(*found.shape):
        assert bool(found[head, query, key]) == ((layer, head, query + starts[0], key + starts[1]) in everything)
    if starts[0] + lengths[0] > mask.query_length or starts[1] + lengths[1] > mask.key_length:
        with pytest.raises(InputError, match=f"at most {mask.query_length} queries and {mask.key_length} keys"):
            mask.slice(layer, starts[0], lengths[0], starts[1], lengths[1])
    else:
        assert torch.equal(mask.slice(layer, starts[0], lengths[0], starts[1], lengths[1]), found)


@law
@given(patterns(), taus, choices, sizes, st.sampled_from(["data", "random", "distance"]))
def test_saved_and_loaded_is_the_same(tmp_path_factory, pattern, tau, chosen, size, kind):
    path = tmp_path_factory.mktemp("mask") / "mask.safetensors"
    mask = from_pattern(pattern, tau, block_size=size, **chosen | {"row_floor": "none"})
    if kind != "data":
        mask = random_like(mask, 11) if kind == "random" else distance_like(mask, pattern)
    mask.save(path)
    content = path.read_bytes()
    loaded = PruneMask.load(path)
    assert torch.equal(loaded.pruned, mask.pruned) and torch.equal(loaded.allowed, mask.allowed)
    for name in ("site", "causal", "tau", "rule", "scope", "row_floor", "block_size", "kind", "seed", "metadata"):
        assert getattr(loaded, name) == getattr(mask, name)
    assert (loaded.fingerprint, loaded.effective_sparsity) == (mask.fingerprint, mask.effective_sparsity)
    assert loaded.source == str(path)
    loaded.save(path)
    assert path.read_bytes() == content


def test_a_mask_knows_what_it_was_made_from():
    pattern = AttentionPattern(torch.rand(1, 1, 4, 4), torch.ones(4, 4), "self", metadata={"model": "m", "tokens": 9})
    mask = from_pattern(pattern, 0.5, unobserved="prune", crop=False)
    origin = {"pattern_fingerprint": pattern.fingerprint, "unobserved": "prune", "crop": False}
    assert mask.metadata == {"model": "m", "tokens": 9} | origin


def averaged(queries, keys, site, causal):
    """A pattern of random attention, seen everywhere, with its memory full."""
    accumulator = PatternAccumulator(2, 2, queries, keys, site, causal)
    scores = 2 * torch.randn(2, 3, 2, queries, keys, generator=torch.Generator().manual_seed(5))
    for layer in range(2):
        accumulator.update(layer, scores[layer].masked_fill(~accumulator.structure.visible(), -math.inf).softmax(-1))
    return accumulator.finalize()


@pytest.mark.parametrize(("tau", "effective"), [(0.2, 0.0), (0.5, 0.34), (0.9, 0.87)])
def test_the_published_rule_spends_tau_on_structural_zeros(tau, effective):
    transformer_xl = averaged(150, 300, "self", True)
    assert round(1 - float(transformer_xl.visible.float().mean()), 3) == 0.248
    mask = from_pattern(transformer_xl, tau, rule="published", crop=False)
    assert abs(mask.effective_sparsity - effective) < 0.006
    of_array = float(mask.pruned.float().mean())
    # the percentile is "nearest": to one cell a layer, or all structural zeros where tau asks for fewer
    assert abs(of_array - max(tau, 11175 / 45000)) <= 1 / 45000

    decoder = averaged(64, 64, "dec-self", None)
    assert round(1 - float(decoder.visible.float().mean()), 2) == 0.49
    if tau == 0.2:
        assert from_pattern(decoder, tau, rule="published").effective_sparsity == 0.0


def test_rows_that_lost_all_get_their_best_block_back_and_no_other():
    average = torch.tensor([[[[0.1, 0.3, 0.3], [0.9, 0.8, 0.7]]]])
    pattern = AttentionPattern(average, torch.ones(2, 3), "self")
    assert from_pattern(pattern, 0.5, rule="allowed").pruned[0, 0].tolist() == [
        [True, True, False],  # of equals, the one that is pruned last stays
        [False, False, False],
    ]
    bare = from_pattern(pattern, 0.5, rule="allowed", row_floor="none")
    assert bare.empty_rows == 1 and bare.pruned[0, 0, 0].all()


# Bad input


@pytest.mark.parametrize(
    ("given_tau", "tau"), [(0, 0.0), (1, 1.0), ("0.9", 0.9), (" 1 ", 1.0), ("9e-1", 0.9), (np.float32(0.9), 0.9)]
)
def test_tau_is_a_fraction(given_tau, tau):
    assert parse_tau(given_tau) == tau


@pytest.mark.parametrize(
    ("bad", "hint"),
    [
        (90, "found '90'; for 90 percent write 0.9"),
        ("90", "for 90 percent write 0.9"),
        ("90%", "found '90%'; for 90 percent write 0.9"),
        ("0.5%", "for 0.5 percent write 0.005"),
        (1.5, "for 1.5 percent write 0.015"),
        (100, "for 100 percent write 1"),
        (-0.1, "such as 0.9 for 90 percent"),
        (900, "such as 0.9 for 90 percent"),
        (math.nan, "such as 0.9"),
        (math.inf, "such as 0.9"),
        ("much", "found 'much'"),
        (True, "found 'True'"),
        (None, "found 'None'"),
    ],
)
def test_what_is_no_fraction_is_refused_with_the_fraction_meant(bad, hint):
    with pytest.raises(InputError) as caught:
        parse_tau(bad)
    assert str(caught.value).startswith("tau: expected a fraction between 0 and 1, found ")
    assert hint in str(caught.value)


PATTERN = AttentionPattern(torch.rand(2, 3, 4, 5) * 0.9 + 0.1, torch.ones(4, 5), "enc-dec")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": 90}, "write 0.9"),
        ({"rule": "lowest"}, "rule: expected one of published, allowed, found 'lowest'"),
        ({"scope": "block"}, "scope: expected one of layer, head, row, model, found 'block'"),
        ({"row_floor": True}, "row_floor: expected one of keep-best, none, found True"),
        ({"unobserved": "drop"}, "unobserved: expected one of keep, prune"),
        ({"block_size": 0}, "block_size: expected a whole number of 1 or more, found 0"),
        ({"pattern": PATTERN.pooled(2), "block_size": 4}, "expected block size 2, the pattern's own pool, found 4"),
        ({"pattern": PATTERN.pooled(2)}, "expected block size 2, the pattern's own pool, found 1"),
        (
            {"pattern": AttentionPattern(torch.zeros(1, 1, 2, 2), torch.zeros(2, 2), "self")},
            "at least one observed cell, found none",
        ),
    ],
)
def test_masks_that_cannot_be_made_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        from_pattern(**{"pattern": PATTERN, "tau": 0.5} | arguments)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (torch.ones(5, 5, dtype=torch.int64), r"at most 4 queries and 5 keys, found \[5, 5\]"),
        (torch.ones(4, dtype=torch.int64), r"found \[4\]"),
        (torch.ones(4, 5), "whole counts"),
        (-torch.ones(4, 5, dtype=torch.int64), "none negative"),
        (torch.zeros(4, 5, dtype=torch.int64), "some above 0"),
    ],
)
def test_counts_that_do_not_fit_are_refused(count, message):
    with pytest.raises(InputError, match=message):
        from_pattern(PATTERN, 0.5).evaluated_sparsity(count)


def test_counts_of_the_future_are_refused():
    mask = uniform_mask(3, 3, 0.5, "dec-self")
    with pytest.raises(InputError, match="visible cells only"):
        mask.evaluated_sparsity(torch.ones(3, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"layers": 6}, "expected layers 6, that of the model, found 2"),
        ({"layers": 2, "heads": 4}, "expected heads 4, that of the model, found 3"),
        ({"query_length": 5}, "expected query_length 5, that of the model, found 4"),
        ({"key_length": 4}, "expected key_length 4, that of the model, found 5"),
        ({"site": "self"}, "expected site self, that of the model, found enc-dec"),
    ],
)
def test_a_mask_of_another_model_is_refused_by_name(tmp_path, model, message):
    path = tmp_path / "mask.safetensors"
    from_pattern(PATTERN, 0.5).save(path)
    mask = load_mask(path)
    mask.check_model(layers=2, heads=3, query_length=4, key_length=5, site="enc-dec")
    with pytest.raises(InputError) as caught:
        mask.check_model(**model)
    assert str(caught.value) == f"{path}: {message}"


def test_bad_mask_files_are_refused(tmp_path):
    good, path = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    mask = from_pattern(PATTERN, 0.5)
    mask.save(good)
    tensors = {"pruned": mask.pruned, "allowed": mask.allowed}
    header = {"format": "attention-pruning/mask/1", "site": '"enc-dec"', "causal": "false", "tau": "0.5"}
    header |= {"rule": '"allowed"', "scope": '"layer"', "row_floor": '"none"', "block_size": "1", "kind": '"data"'}
    header |= {"seed": "null", "metadata": "{}", "effective_sparsity": str(mask.effective_sparsity)}
    save_file(tensors, path, header)
    assert PruneMask.load(path).fingerprint == mask.fingerprint
    writers = {
        "whole safetensors file": lambda: path.write_bytes(good.read_bytes()[:100]),
        "format 'attention-pruning/mask/1', found 'attention-pruning/pattern/1'": lambda: PATTERN.save(path),
        "'pruned' to be torch.bool, found torch.float32": lambda: save_file(
            tensors | {"pruned": PATTERN.average}, path, header
        ),
        "header fields": lambda: save_file(tensors, path, header | {"more": "1"}),
        "write 0.9": lambda: save_file(tensors, path, header | {"tau": "90"}),
        "kind: expected one of data, random, window, dist": lambda: save_file(
            tensors, path, header | {"kind": '"best"'}
        ),
        r"pruned to be bools \[layer, head, query, key\], found torch.bool of \[4, 5\]": lambda: save_file(
            tensors | {"pruned": mask.pruned[0, 0].clone()}, path, header
        ),
        "expected 2 x 3 blocks of 2 for 4 queries and 5 keys, found 4 x 5": lambda: save_file(
            tensors, path, header | {"block_size": "2"}
        ),
        "expected effective sparsity 0.75, as its header says, found": lambda: save_file(
            tensors, path, header | {"effective_sparsity": "0.75"}
        ),
        "all of them visible": lambda: save_file(tensors, path, header | {"causal": "true"}),
        "causal: expected true or false, found 'no'": lambda: save_file(tensors, path, header | {"causal": '"no"'}),
    }
    for expected, write in writers.items():
        write()
        with pytest.raises(InputError, match=expected) as caught:
            PruneMask.load(path)
        assert "\n" not in str(caught.value)


# load_mask


@pytest.fixture
def files(tmp_path):
    """A pattern, a pooled pattern, a mask of the first and a published file."""
    PATTERN.save(tmp_path / "pattern.safetensors")
    PATTERN.pooled(2).save(tmp_path / "pooled.safetensors")
    from_pattern(PATTERN, 0.4, rule="allowed", scope="head").save(tmp_path / "mask.safetensors")
    write_published(PATTERN, tmp_path / "published.npy", "fairseq")
    return tmp_path


def test_load_mask_makes_the_mask_of_a_pattern(files):
    path = files / "pattern.safetensors"
    assert load_mask(path, "0.4").fingerprint == from_pattern(PATTERN, 0.4).fingerprint
    chosen = {"rule": "allowed", "scope": "row", "block_size": 2, "row_floor": "none"}
    found = load_mask(path, 0.4, **chosen, site="enc-dec", causal=False)
    assert found.fingerprint == from_pattern(PATTERN, 0.4, **chosen).fingerprint
    assert found.source == str(path)
    assert load_mask(path, 0.4, crop=False).metadata["crop"] is False
    assert load_mask(files / "pooled.safetensors", 0.4).block_size == 2
    published = load_mask(files / "published.npy", 0.4, site="enc-dec")
    assert published.fingerprint == load_mask(path, 0.4).fingerprint


def test_load_mask_takes_a_mask_as_it_is(files):
    path = files / "mask.safetensors"
    expected = PruneMask.load(path).fingerprint
    assert load_mask(path).fingerprint == expected
    own = {"rule": "allowed", "scope": "head", "block_size": 1, "row_floor": "keep-best", "site": "enc-dec"}
    assert load_mask(path, "0.40", **own, causal=False, crop=False).fingerprint == expected


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mask", {"tau": 0.5}, "expected tau 0.5, as given, found 0.4 in the file"),
        ("mask", {"rule": "published"}, "expected rule published, as given, found allowed in the file"),
        ("mask", {"scope": "layer"}, "expected scope layer, as given, found head in the file"),
        ("mask", {"block_size": 16}, "expected block_size 16, as given, found 1 in the file"),
        ("mask", {"row_floor": "none"}, "expected row_floor none, as given, found keep-best in the file"),
        ("mask", {"site": "self"}, "expected site self, as given, found enc-dec in the file"),
        ("mask", {"causal": True}, "expected causal True, as given, found False in the file"),
        ("pattern", {"tau": 0.5, "site": "self"}, "expected site self, as given, found enc-dec in the file"),
        ("pattern", {}, "expected a tau, since this is a pattern and not yet a mask, found none"),
        ("pooled", {"tau": 0.5, "block_size": 1}, "expected block size 2, the pattern's own pool, found 1"),
    ],
)
def test_load_mask_refuses_contradictions(files, name, arguments, message):
    path = files / f"{name}.safetensors"
    with pytest.raises(InputError) as caught:
        load_mask(path, **arguments)
    assert str(caught.value) == f"{path}: {message}"


def test_load_mask_refuses_what_is_neither(files):
    with pytest.raises(InputError, match="expected a site to be given"):
        load_mask(files / "published.npy", 0.5)
    with pytest.raises(InputError, match="found no such file"):
        load_mask(files / "nothing.safetensors", 0.5)
    save_file({"weight": torch.ones(2)}, files / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="model.safetensors: expected a file of format .*pattern/1' or .*, found 'pt'"):
        load_mask(files / "model.safetensors", 0.5)
    with pytest.raises(InputError, match="write 0.9"):
        load_mask(files / "pattern.safetensors", 90)

"""Laws of AttentionPattern and PatternAccumulator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import brute_force
from attention_pruning import AttentionPattern, InputError, PatternAccumulator
from attention_pruning.structure import visible_cells
from strategies import cell_set, law, patterns, structures
from warm_python import spawn


@st.composite
def collections(draw):
    """The arguments of an accumulator and a few batches for it: padded, short, shifted, seen through a window."""
    site, causal, queries, keys = draw(structures(longest=6))
    layers, heads = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    accumulator = (layers, heads, queries, keys, site, causal)
    visible = visible_cells(queries, keys, PatternAccumulator(*accumulator).causal).numpy()
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batches = []
    for _ in range(draw(st.integers(1, 3))):
        rows, q, k = rng.integers(1, 20), rng.integers(1, queries + 1), rng.integers(1, keys + 1)
        query_offset, key_offset = rng.integers(0, queries - q + 1), rng.integers(0, keys - k + 1)
        p = rng.random((layers, rows, heads, q, k), dtype=np.float32)
        window = rng.random((q, k)) < draw(st.sampled_from([0.7, 2.0]))
        p *= visible[query_offset : query_offset + q, key_offset : key_offset + k] & window
        padding = draw(st.booleans())
        real_query = rng.random((rows, q)) < (0.6 if padding else 2.0)
        real_key = rng.random((rows, k)) < (0.6 if padding else 2.0)
        p[:, ~(real_query[:, None, :, None] & real_key[:, None, None, :]).repeat(heads, 1)] = np.nan
        batches.append((p, real_query, real_key, int(query_offset), int(key_offset), window))
    return accumulator, batches


def collect(accumulator, batches):
    for p, real_query, real_key, query_offset, key_offset, window in batches:
        for layer in range(len(p)):
            accumulator.update(
                layer,
                torch.from_numpy(p[layer]),
                None if real_query.all() else torch.from_numpy(real_query),
                None if real_key.all() else torch.from_numpy(real_key),
                query_offset,
                key_offset,
                None if window.all() else torch.from_numpy(window),
            )
    return accumulator


def saw_nothing(arguments, batches):
    layers, heads, queries, keys, _, _ = arguments
    causal = PatternAccumulator(*arguments).causal
    return not brute_force.accumulate(batches, layers, heads, queries, keys, causal)[1]


@law
@given(collections())
def test_accumulator_is_the_mean_over_real_visible_cells(collection):
    arguments, batches = collection
    layers, heads, queries, keys, _, _ = arguments
    accumulator = collect(PatternAccumulator(*arguments), batches)
    average, count = brute_force.accumulate(batches, layers, heads, queries, keys, accumulator.causal)
    if not count:
        with pytest.raises(InputError, match="none of layers"):
            accumulator.finalize()
        return
    pattern = accumulator.finalize({"model": "m"})
    assert cell_set(pattern.count) == set(count)
    for cell in np.ndindex(queries, keys):
        assert pattern.count[cell] == count.get(cell, 0)
        for at in np.ndindex(layers, heads):
            assert abs(float(pattern.average[at + cell]) - average.get(at + cell, 0.0)) < 1e-6
    assert pattern.metadata == {
        "model": "m",
        "sequences": sum(int(real_query.any(1).sum()) for _, real_query, *_ in batches),
        "tokens": sum(int(real_query.sum()) for _, real_query, *_ in batches),
    }


@law
@given(collections(), st.integers(1, 3), st.randoms())
def test_batch_size_order_and_workers_do_not_matter(collection, block_size, random):
    arguments, batches = collection
    if saw_nothing(arguments, batches):
        return
    expected = collect(PatternAccumulator(*arguments, block_size), batches).finalize()
    rows = [
        (p[:, row : row + 1], real_query[row : row + 1], real_key[row : row + 1], *offsets)
        for p, real_query, real_key, *offsets in batches
        for row in range(p.shape[1])
    ]
    random.shuffle(rows)
    workers = [collect(PatternAccumulator(*arguments, block_size), rows[start::2]) for start in (0, 1)]
    workers[0].merge(workers[1])
    found = workers[0].finalize()
    torch.testing.assert_close(found.average, expected.average, atol=1e-6, rtol=0)
    assert torch.equal(found.count, expected.count)
    assert found.metadata == expected.metadata


@law
@given(collections(), st.integers(2, 4))
def test_pooled_accumulation_is_the_mean_over_observations_of_a_block(collection, size):
    arguments, batches = collection
    if saw_nothing(arguments, batches):
        return
    cells = collect(PatternAccumulator(*arguments), batches).finalize()
    blocks = collect(PatternAccumulator(*arguments, block_size=size), batches).finalize()
    assert torch.equal(blocks.count, cells.count)
    assert (blocks.pool, blocks.query_length, blocks.key_length) == (size, cells.query_length, cells.key_length)
    for layer, head, i, j in np.ndindex(*blocks.average.shape):
        inside = (slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size))
        weights = cells.count[inside].double()
        mean = float((cells.average[layer, head][inside] * weights).sum() / max(float(weights.sum()), 1.0))
        assert math.isclose(float(blocks.average[layer, head, i, j]), mean, abs_tol=1e-6)


@law
@given(st.integers(1, 9), st.integers(0, 5), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_pooled_accumulation_equals_pooling_where_all_cells_were_seen_equally_often(
    queries, memory, size, causal, seed
):
    arguments = (1, 2, queries, queries + memory, "self", causal)
    hidden = ~visible_cells(queries, queries + memory, causal)
    scores = torch.randn(3, 2, queries, queries + memory, generator=torch.Generator().manual_seed(seed))
    p = scores.masked_fill(hidden, -math.inf).softmax(-1)
    cells, blocks = PatternAccumulator(*arguments), PatternAccumulator(*arguments, block_size=size)
    cells.update(0, p)
    blocks.update(0, p)
    torch.testing.assert_close(blocks.finalize().average, cells.finalize().pooled(size).average, atol=1e-6, rtol=0)
    # a softmax row sums to one, so does the mean of rows
    torch.testing.assert_close(cells.finalize().average.sum(-1), torch.ones(1, 2, queries), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ten_million_observations_move_a_mean_by_at_most_one_in_a_million(dtype):
    # Values that no binary fraction meets exactly; many batches, and sizes around and beyond what float32 adds at once.
    values = torch.tensor([[0.1, 0.7], [1 / 3, 0.0009]]).to(dtype)
    some, all_of_them = (PatternAccumulator(1, 1, 2, 2, "self") for _ in range(2))
    for batch in (1, 15, 17, 679_967, *[16] * 20_000):
        some.update(0, values.expand(batch, 1, 2, 2))
    for _ in range(10):
        all_of_them.merge(some)
    pattern = all_of_them.finalize()
    assert pattern.count.tolist() == [[10_000_000] * 2] * 2
    torch.testing.assert_close(pattern.average[0, 0].double(), values.double(), atol=1e-6, rtol=0)


def test_every_layer_must_see_the_same():
    accumulator = PatternAccumulator(4, 1, 2, 2, "self")
    p = torch.full((3, 1, 2, 2), 0.5)
    for layer in range(4):
        accumulator.update(layer, p[: 3 - layer % 2])
    with pytest.raises(InputError, match="layers 1, 3$"):
        accumulator.finalize()


def test_a_layer_never_seen_is_named():
    accumulator = PatternAccumulator(3, 1, 2, 2, "self")
    accumulator.update(1, torch.full((3, 1, 2, 2), 0.5))
    with pytest.raises(InputError, match="none of layers 0, 2$"):
        accumulator.finalize()


@pytest.mark.parametrize("block_size", [1, 2])
def test_attention_to_the_future_is_refused(block_size):
    accumulator = PatternAccumulator(1, 1, 3, 3, "dec-self", block_size=block_size)
    with pytest.raises(InputError, match="layer 0: expected no attention to keys that a query cannot see"):
        accumulator.update(0, torch.full((1, 1, 3, 3), 1 / 3))
        accumulator.finalize()


def test_attention_outside_the_window_of_a_batch_is_refused():
    accumulator = PatternAccumulator(1, 1, 2, 2, "self")
    accumulator.update(0, torch.full((1, 1, 2, 2), 0.5))
    with pytest.raises(InputError, match="expected no attention to keys that a query cannot see"):
        accumulator.update(0, torch.full((1, 1, 2, 2), 0.5), visible_QK=torch.eye(2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probabilities_BHQK": torch.ones(1, 2, 5, 6)}, "at most 4 queries and 6 keys, found 5 queries .* 6 keys"),
        (
            {"probabilities_BHQK": torch.ones(1, 2, 4, 5), "key_offset": 2},
            "at most 4 queries and 6 keys, found .* from 2",
        ),
        ({"probabilities_BHQK": torch.ones(1, 2, 4, 5), "query_offset": -1}, "query_offset -1"),
        ({"probabilities_BHQK": torch.ones(1, 3, 4, 6)}, r"2 heads.*\[1, 3, 4, 6\]"),
        ({"probabilities_BHQK": torch.ones(2, 4, 6)}, r"found torch.float32 of \[2, 4, 6\]"),
        ({"probabilities_BHQK": torch.ones(1, 2, 4, 6), "layer": 2}, "layer: expected 0 to 1, found 2"),
        (
            {"probabilities_BHQK": torch.ones(1, 2, 4, 6), "real_key_BK": torch.ones(1, 4, dtype=torch.bool)},
            r"real_key_BK: expected bools of shape \[1, 6\]",
        ),
        (
            {"probabilities_BHQK": torch.ones(1, 2, 4, 6), "real_query_BQ": torch.ones(1, 4)},
            r"real_query_BQ: expected bools of shape \[1, 4\], found torch.float32",
        ),
        (
            {"probabilities_BHQK": torch.ones(1, 2, 4, 6), "visible_QK": torch.ones(6, 4, dtype=torch.bool)},
            r"visible_QK: expected bools of shape \[4, 6\]",
        ),
    ],
)
def test_batches_that_do_not_fit_are_refused(arguments, message):
    accumulator = PatternAccumulator(2, 2, 4, 6, "enc-dec")
    with pytest.raises(InputError, match=message):
        accumulator.update(**{"layer": 0} | arguments)


def test_merge_refuses_another_shape():
    with pytest.raises(InputError, match="merge: expected an accumulator of"):
        PatternAccumulator(1, 1, 2, 2, "self").merge(PatternAccumulator(1, 1, 2, 3, "self"))


def test_all_reduce_without_processes_changes_nothing():
    accumulator = PatternAccumulator(1, 1, 2, 2, "self")
    accumulator.update(0, torch.full((3, 1, 2, 2), 0.25))
    before = accumulator.finalize()
    accumulator.all_reduce()
    assert accumulator.finalize().fingerprint == before.fingerprint


def _reduce_in_process(rank, meeting_point, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    accumulator = PatternAccumulator(2, 1, 2, 3, "self", causal=True)
    if rank == 0:  # the other process has had no batch at all
        for layer in range(2):
            accumulator.update(layer, torch.tensor([[[[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]]]]))
    accumulator.all_reduce()
    accumulator.finalize().save(f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_all_reduce_gives_every_process_the_pattern_of_all(tmp_path):
    spawn(_reduce_in_process, (str(tmp_path / "meeting"), str(tmp_path)), 2)
    first, second = (AttentionPattern.load(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert first.fingerprint == second.fingerprint
    assert first.metadata == second.metadata == {"sequences": 1, "tokens": 2}
    assert first.average[1, 0].tolist() == [[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]]


@law
@given(patterns(), st.integers(1, 4))
def test_pooled_is_the_mean_over_allowed_cells(pattern, size):
    expected = brute_force.pooled(pattern.average.numpy(), cell_set(pattern.allowed), size)
    found = pattern.pooled(size)
    np.testing.assert_allclose(found.average.numpy(), expected, atol=1e-6)
    assert torch.equal(found.allowed, pattern.allowed)


@law
@given(structures())
def test_visible_cells(structure):
    site, causal, queries, keys = structure
    pattern = AttentionPattern(np.zeros((1, 1, queries, keys)), np.zeros((queries, keys)), site, causal)
    assert pattern.causal == (site == "dec-self" if causal is None else causal)
    assert cell_set(pattern.visible) == brute_force.visible_cells(queries, keys, pattern.causal)


@law
@given(patterns(), st.integers(1, 3))
def test_saved_and_loaded_is_the_same(tmp_path_factory, pattern, size):
    path = tmp_path_factory.mktemp("pattern") / "pattern.safetensors"
    pattern = pattern.pooled(size)
    pattern.save(path)
    content = path.read_bytes()
    loaded = AttentionPattern.load(path)
    assert torch.equal(loaded.average, pattern.average) and loaded.average.dtype == torch.float32
    assert torch.equal(loaded.count, pattern.count) and loaded.count.dtype == torch.int64
    for name in ("site", "causal", "pool", "metadata", "fingerprint"):
        assert getattr(loaded, name) == getattr(pattern, name)
    assert loaded.source == str(path)
    loaded.save(path)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["pattern.safetensors"]


def test_the_fingerprint_tells_patterns_apart():
    average, count = torch.full((1, 1, 2, 2), 0.5), torch.ones(2, 2)
    prints = [
        AttentionPattern(average, count, "self").fingerprint,
        AttentionPattern(average, count, "enc-self").fingerprint,
        AttentionPattern(average, count * 2, "self").fingerprint,
        AttentionPattern(average / 2, count, "self").fingerprint,
        AttentionPattern(average[..., :1, :1], count, "self", pool=2).fingerprint,
        AttentionPattern(average * torch.ones(2, 2).tril(), count, "self").fingerprint,
        AttentionPattern(average * torch.ones(2, 2).tril(), count, "self", causal=True).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert AttentionPattern(average, count, "self", metadata={"a": 1}).fingerprint == prints[0]


ONES = torch.ones(1, 1, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"average": torch.ones(1, 2, 3)}, r"shape \[layer, head, query, key\], found \[1, 2, 3\]"),
        ({"average": torch.ones(1, 0, 2, 3)}, r"found \[1, 0, 2, 3\]"),
        ({"count": torch.ones(2)}, r"count of shape \[query, key\], found \[2\]"),
        ({"count": torch.ones(3, 3)}, "average of 3 x 3 .* found 2 x 3"),
        ({"count": torch.full((2, 3), 0.5)}, "whole numbers as counts"),
        ({"count": torch.full((2, 3), -1)}, "counts of at least 0, found -1"),
        ({"average": ONES * math.nan}, "finite averages"),
        ({"average": ONES * -1}, "finite averages of at least 0"),
        ({"site": "encoder"}, "site: expected one of self, self-local, enc-self, dec-self, enc-dec, found 'encoder'"),
        ({"site": "dec-self"}, "not visible .* on 1 such cells, the first at query 0, key 2"),
        ({"count": torch.tensor([[1, 1, 1], [1, 0, 1]])}, "never observed.* query 1, key 1"),
        ({"average": torch.ones(1, 1, 3, 2), "count": torch.ones(3, 2), "causal": True}, "3 queries and 2 keys"),
        ({"lengths": (3, 2)}, r"lengths \[3, 2\], found \[2, 3\]"),
        ({"pool": 2}, "average of 1 x 2 .* pool 2, found 2 x 3"),
        ({"pool": 0}, "whole number of 1 or more, found 0"),
        ({"metadata": {"a": [1]}}, r"metadata: .* 'a': \[1\]"),
    ],
)
def test_what_is_no_pattern_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        AttentionPattern(**{"average": ONES, "count": torch.ones(2, 3), "site": "self"} | arguments)


def test_a_pooled_pattern_is_pooled_by_its_own_block_size_only():
    pattern = AttentionPattern(torch.ones(1, 1, 4, 4), torch.ones(4, 4), "self").pooled(2)
    assert pattern.pooled(2) is pattern
    with pytest.raises(InputError, match="expected block size 2, the pattern's own pool, found 4"):
        pattern.pooled(4)


def test_bad_files_are_refused(tmp_path):
    good, path = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    AttentionPattern(ONES, torch.ones(2, 3), "self").save(good)
    header = {"format": "attention-pruning/pattern/1"}
    tensors = {"average": ONES, "count": torch.ones(2, 3, dtype=torch.int64)}
    writers = {
        "no such file": lambda: None,
        "whole safetensors file": lambda: path.write_bytes(good.read_bytes()[:-1]),
        "whole safetensors file, found": lambda: torch.save(tensors, path),
        "attention-pruning/pattern/2', found None": lambda: save_file(tensors, path),
        "found 'pt'": lambda: save_file(tensors, path, {"format": "pt"}),
        "attention-pruning/pattern/2', found 'attention-pruning/mask/1'": lambda: save_file(
            tensors, path, {"format": "attention-pruning/mask/1"}
        ),
        r"tensors \['average', 'count'\], found \['weight'\]": lambda: save_file({"weight": ONES}, path, header),
        "'count' to be torch.int64, found torch.float32": lambda: save_file(
            tensors | {"count": torch.ones(2, 3)}, path, header
        ),
        r"header fields \['causal'.*\], found \[\]": lambda: save_file(tensors, path, header),
        "JSON values in the header": lambda: save_file(tensors, path, header | {"site": "self"}),
    }
    for expected, write in writers.items():
        write()
        with pytest.raises(InputError, match=expected) as caught:
            AttentionPattern.load(path)
        assert str(caught.value).startswith(f"{path}: expected ") and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="found a folder"):
        AttentionPattern.load(tmp_path)


def test_nothing_is_left_behind_where_a_file_cannot_be_written(tmp_path):
    pattern = AttentionPattern(ONES, torch.ones(2, 3), "self")
    with pytest.raises(
        InputError, match="missing/p.safetensors: expected a folder that can be written to, found: No such"
    ):
        pattern.save(tmp_path / "missing" / "p.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: expected the name of a file to write, found a folder"):
        pattern.save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]

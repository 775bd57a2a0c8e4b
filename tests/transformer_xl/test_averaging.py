"""Laws of averaging: a cell's mean is over all segments that use it, however they are batched."""

from __future__ import annotations

import pytest
import torch

import compute_mask
from attention_pruning import AttentionPattern, PruneMask
from compute_mask import average_attention
from data_utils import LMOrderedIterator
from model_file import load_model
from naive_xl import naive_hidden
from reproduction.data.language.corpus import Corpus
from tiny_xl import flags, random_cells, random_ids, read_json, tiny_model

ROWS, STEPS = 4, 19  # 18 targets a row: four full segments and one of two tokens


def collect(model, rows_BN, **more):
    iterator = LMOrderedIterator(rows_BN.reshape(-1), len(rows_BN), model.config.tgt_len, **more)
    return average_attention(model, iterator)


def brute_force(model, rows_BN):
    """Sum of every probability of every layer of every text, float64, and how many there were."""
    config = model.config
    shape = (config.n_layer, config.n_head, config.tgt_len, config.mem_len + config.tgt_len)
    total, times = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.int64)
    for row in rows_BN[:, :-1]:
        memories = None
        for segment in row.split(config.tgt_len):
            _, memories, probabilities = naive_hidden(model, segment, memories)
            for layer, of_layer in enumerate(probabilities):
                for head, query, key, p in of_layer:
                    total[layer, head, query, key] += p
                    times[layer, head, query, key] += 1
    return total, times


@pytest.mark.parametrize(
    "changes",
    [{}, {"pre_lnorm": True}, {"mem_len": 3}, {"mem_len": 0}, {"clamp_len": 2, "mem_len": 11}, {"same_length": True}],
)
def test_equals_a_loop_that_stores_every_probability(changes):
    """With a memory that is short at first, and so fills the last slots only."""
    model, rows = tiny_model(**changes), random_ids(2, STEPS)
    pattern = collect(model, rows).finalize()
    total, times = brute_force(model.double(), rows)
    assert (times == pattern.count).all()
    torch.testing.assert_close(pattern.average.double(), total / times.clamp(min=1), atol=1e-6, rtol=0)
    slots = model.config.mem_len
    assert slots <= 4 or pattern.count[0, slots - 1] > pattern.count[0, 0]  # the first slot is empty for longest


def test_a_pruned_model_is_averaged_as_it_attends():
    """Pruned cells are zero but counted; a row with nothing left is uniform over what it sees."""
    model, rows = tiny_model(), random_ids(1, STEPS)
    dense = collect(model, rows).finalize()
    model.set_pruned(random_cells(model, 0.8))
    pattern = collect(model, rows).finalize()
    total, times = brute_force(model.double(), rows)
    assert torch.equal(pattern.count, dense.count) and (times < pattern.count).any()
    torch.testing.assert_close(pattern.average.double(), total / pattern.count.clamp(min=1), atol=1e-6, rtol=0)


def test_the_pattern_of_a_pruned_model_says_under_which_mask(trained, words, tmp_path):
    for name in ("dense", "pruned"):
        out, checkpoint = tmp_path / f"{name}.safetensors", trained[name] / "model.safetensors"
        compute_mask.main(flags(checkpoint=checkpoint, data=words, out=out, batch_size=2, device="cpu"))
    assert "observed_under_mask" not in AttentionPattern.load(tmp_path / "dense.safetensors").metadata
    mask = PruneMask.load(trained["pruned"] / "mask.safetensors")
    found = AttentionPattern.load(tmp_path / "pruned.safetensors").metadata["observed_under_mask"]
    assert found == mask.fingerprint


@pytest.mark.parametrize("how", ["one by one", "in another order", "by two processes", "in uneven parts"])
def test_batches_order_and_processes_do_not_change_a_pattern(how):
    model, rows = tiny_model(), random_ids(ROWS, STEPS)
    expected = collect(model, rows).finalize()
    parts = {
        "one by one": lambda: [collect(model, row[None]) for row in rows],
        "in another order": lambda: [collect(model, rows[[2, 0, 3, 1]])],
        "by two processes": lambda: [collect(model, rows, rank=rank, world_size=2) for rank in range(2)],
        "in uneven parts": lambda: [collect(model, rows[3:]), collect(model, rows[:3])],
    }[how]()
    for part in parts[1:]:
        parts[0].merge(part)
    found = parts[0].finalize()
    assert torch.equal(found.count, expected.count)
    torch.testing.assert_close(found.average, expected.average, atol=1e-6, rtol=0)
    assert (parts[0].sequences, parts[0].tokens) == (ROWS * 5, ROWS * 18)


@pytest.mark.parametrize("pool", [2, 3])
def test_a_pooled_pattern_is_the_mean_over_the_observations_of_each_block(pool):
    model, rows = tiny_model(), random_ids(2, STEPS)
    cells = collect(model, rows).finalize()
    iterator = LMOrderedIterator(rows.reshape(-1), 2, 4)
    pooled = average_attention(model, iterator, pool).finalize()
    weighted = cells.average.double() * cells.count
    for i, j in torch.cartesian_prod(*(torch.arange(n) for n in pooled.average.shape[2:])).tolist():
        block = (..., slice(i * pool, (i + 1) * pool), slice(j * pool, (j + 1) * pool))
        expected = weighted[block].sum((-1, -2)) / max(int(cells.count[block].sum()), 1)
        torch.testing.assert_close(pooled.average[..., i, j].double(), expected, atol=1e-6, rtol=0)
    assert torch.equal(pooled.count, cells.count)


def test_dropout_is_off_and_nothing_stays_behind():
    model, rows = tiny_model(dropout=0.5, dropatt=0.5), random_ids(2, STEPS)
    expected = collect(model, rows).finalize()
    assert torch.equal(collect(model.train(), rows).finalize().average, expected.average)
    assert all(layer.dec_attn.observer is None for layer in model.layers)
    model.layers[1].pos_ff = None  # breaks within a forward pass
    with pytest.raises(TypeError):
        collect(model, rows)
    assert all(layer.dec_attn.observer is None for layer in model.layers)


# -- the script --------------------------------------------------------------------------------------------------------


def test_the_script_averages_what_the_function_does(words, trained, tmp_path):
    checkpoint, out = trained["dense"] / "model.safetensors", tmp_path / "new" / "pattern.safetensors"
    lengths = {"tgt_len": 3, "mem_len": 5}
    options = {"checkpoint": checkpoint, "data": words, "out": out, "split": "valid", "batch_size": 2}
    compute_mask.main(flags(**options, **lengths, device="cpu"))
    pattern, corpus = AttentionPattern.load(out), Corpus.load(words)
    loaded = load_model(checkpoint, **lengths)
    accumulator = average_attention(loaded.model, LMOrderedIterator(corpus.split("valid"), 2, 3))
    assert torch.equal(pattern.average, accumulator.finalize().average)
    assert (pattern.site, pattern.causal) == ("self", True)
    tokens = 2 * (corpus.split("valid").numel() // 2 - 1)
    expected = {
        "model": "transformer-xl",
        "model_fingerprint": loaded.fingerprint,
        "data": "words",
        "data_fingerprint": corpus.fingerprint,
        "split": "valid",
        "sequences": 2 * -(-tokens // 2 // 3),
        "tokens": tokens,
        "seed": 1111,
    }
    assert pattern.metadata == expected
    record = read_json(tmp_path / "new" / "pattern.run.json")
    assert record["pattern"] == pattern.fingerprint and record["flags"]["tgt_len"] == 3
    assert sorted(file.name for file in out.parent.iterdir()) == ["pattern.run.json", "pattern.safetensors"]


def test_max_batches_reads_the_beginning(words, trained, tmp_path):
    options = {"checkpoint": trained["dense"] / "model.safetensors", "data": words, "batch_size": 5, "device": "cpu"}
    compute_mask.main(flags(**options, out=tmp_path / "few.safetensors", max_batches=3))
    few = AttentionPattern.load(tmp_path / "few.safetensors")
    assert (few.metadata["sequences"], few.metadata["tokens"]) == (15, 60)
    model = load_model(options["checkpoint"]).model
    ids = Corpus.load(words).split("train")
    rows = ids[: ids.numel() // 5 * 5].view(5, -1)[:, :13]
    torch.testing.assert_close(few.average, collect(model, rows).finalize().average, atol=1e-6, rtol=0)

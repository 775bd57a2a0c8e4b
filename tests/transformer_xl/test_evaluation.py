"""Laws of eval.py: perplexity and sparsity equal loops over tokens and over attention cells."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eval as evaluate_script  # the script's name is that of a builtin
import evaluation
import train
from attention_pruning import PruneMask
from attention_pruning.make import by_distance
from data_utils import LMOrderedIterator, stream_counts
from model_file import load_model
from reproduction.data.language.corpus import Corpus, write_corpus
from tiny_xl import flags, law, random_ids, random_pattern, read_json, tiny_model, training_flags, word_lines


def rows_of(folder, split, batch):
    ids = Corpus.load(folder).split(split)
    return ids[: ids.numel() // batch * batch].view(batch, -1)


def brute_force_nll(model, rows_BN):
    """Token by token: the log-probability of each next token, memory carried along."""
    tgt_len, memory, total, tokens = model.config.tgt_len, None, 0.0, 0
    with torch.no_grad():
        for start in range(0, rows_BN.size(1) - 1, tgt_len):
            segment = rows_BN[:, start : min(start + tgt_len, rows_BN.size(1) - 1)]
            log_probs, memory = model.log_probabilities(segment, memory)
            for b in range(rows_BN.size(0)):
                for t in range(segment.size(1)):
                    total -= log_probs[b, t, rows_BN[b, start + t + 1]].item()
                    tokens += 1
    return total / tokens, tokens


def used_cells(rows_BN, config):
    """(query, key) of every use of an attention cell in one pass, key positions counted in mem_len slots."""
    batch, length, cells = rows_BN.size(0), rows_BN.size(1) - 1, []
    for position in range(length):
        start = position // config.tgt_len * config.tgt_len
        query = position - start
        oldest = max(0, start - config.mem_len)
        if config.same_length:
            oldest = max(oldest, position - config.mem_len + 1)
        cells += [(query, config.mem_len + key - start) for key in range(oldest, position + 1)] * batch
    return cells


@pytest.mark.parametrize("name", ["dense", "pruned"])
@pytest.mark.parametrize(
    "lengths",
    [{}, {"tgt_len": 3, "mem_len": 2}, {"tgt_len": 1, "mem_len": 6}, {"same_length": True, "clamp_len": 4}],
    ids=str,
)
def test_metrics_equal_loops(name, lengths, trained, words, tmp_path, capsys):
    out, checkpoint = tmp_path / "metrics.json", trained[name] / "model.safetensors"
    evaluate_script.main(
        flags(checkpoint=checkpoint, data=words, out=out, batch_size=3, label=["tau=0.7"], device="cpu", **lengths)
    )
    model, written = load_model(checkpoint, **lengths).model, read_json(out)
    cells = []
    for split in ("valid", "test"):
        rows = rows_of(words, split, 3)
        nll, tokens = brute_force_nll(model, rows)
        found = written["metrics"][split]
        assert found["nll"] == pytest.approx(nll, abs=1e-5) and found["tokens"] == tokens
        assert found["perplexity"] == pytest.approx(math.exp(nll), rel=1e-4)
        assert "bits_per_character" not in found
        cells += used_cells(rows, model.config)
    assert written["tau"] == 0.7
    if name == "dense":
        assert [written[kind] for kind in ("effective_sparsity", "evaluated_sparsity", "block_sparsity")] == [0, 0, 0]
        return
    mask = PruneMask.load(trained[name] / "mask.safetensors")
    pruned = model.pruned_cells()
    share = sum(pruned[:, :, query, key].double().mean().item() for query, key in cells) / len(cells)
    assert written["evaluated_sparsity"] == pytest.approx(share, abs=1e-9)
    assert written["effective_sparsity"] == mask.effective_sparsity
    assert written["block_sparsity"] == mask.block_sparsity(16)
    assert f"evaluated_sparsity {share:.4f}" in capsys.readouterr().out


def test_the_validation_of_a_training_is_this_evaluation(trained, words, tmp_path):
    """Same streams (--eval_batch_size 3), same number."""
    for folder in trained.values():
        options = {"checkpoint": folder / "model.safetensors", "data": words, "split": "valid", "batch_size": 3}
        evaluate_script.main(flags(**options, out=tmp_path / "metrics.json", device="cpu"))
        found = read_json(tmp_path / "metrics.json")["metrics"]
        assert found["valid"]["nll"] == read_json(folder / "run.json")["valid_nll"]
        assert list(found) == ["valid"]
        record = read_json(tmp_path / "metrics.run.json")
        assert record["model"] == load_model(folder / "model.safetensors").fingerprint
        assert record["corpus"] == Corpus.load(words).fingerprint and record["flags"]["batch_size"] == 3


def test_bits_per_character(characters, tmp_path):
    folder = tmp_path / "run"
    train.main(training_flags(characters, folder, max_step=3))
    checkpoint = folder / "model.safetensors"
    evaluate_script.main(flags(checkpoint=checkpoint, data=characters, out=tmp_path / "m.json", batch_size=2))
    found = read_json(tmp_path / "m.json")["metrics"]["test"]
    nll, _ = brute_force_nll(load_model(checkpoint).model, rows_of(characters, "test", 2))
    assert found["bits_per_character"] == pytest.approx(nll / math.log(2), rel=1e-5)


def test_without_out_nothing_is_written(trained, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "model.safetensors"
    shutil.copy(trained["pruned"] / "model.safetensors", checkpoint)
    evaluate_script.main(flags(checkpoint=checkpoint, data=words, max_eval_steps=2))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert "words valid: nll" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [1, 3])
def test_max_eval_steps_reads_the_beginning(steps, trained, words, tmp_path):
    checkpoint = trained["dense"] / "model.safetensors"
    evaluate_script.main(
        flags(checkpoint=checkpoint, data=words, out=tmp_path / "m.json", max_eval_steps=steps, batch_size=2)
    )
    found = read_json(tmp_path / "m.json")["metrics"]["valid"]
    nll, tokens = brute_force_nll(load_model(checkpoint).model, rows_of(words, "valid", 2)[:, : 4 * steps + 1])
    assert found["tokens"] == tokens == 8 * steps and found["nll"] == pytest.approx(nll, abs=1e-5)


@pytest.mark.parametrize("lengths", [{"tgt_len": 5}, {"mem_len": 7}, {"tgt_len": 8, "mem_len": 8}], ids=str)
def test_a_pruned_model_beyond_its_lengths_is_refused(lengths, trained, words, tmp_path, refused):
    checkpoint, found = trained["pruned"] / "model.safetensors", {"tgt_len": 4, "mem_len": 6, **lengths}
    message = refused(
        evaluate_script.main, flags(checkpoint=checkpoint, data=words, out=tmp_path / "m.json", **lengths)
    )
    assert message.startswith(f"{checkpoint}: its prune mask covers tgt_len 4 and mem_len 6")
    asked = f"found --tgt_len {found['tgt_len']} --mem_len {found['mem_len']}"
    assert message.endswith(f"{asked}; --beyond dense leaves the rest unpruned")
    assert not list(tmp_path.iterdir())


def test_the_record_says_what_computed_each_layer(trained, words, tmp_path):
    for name, layers in (("dense", 0), ("pruned", 2)):
        out = tmp_path / f"{name}.json"
        evaluate_script.main(flags(checkpoint=trained[name] / "model.safetensors", data=words, out=out, device="cpu"))
        found = read_json(tmp_path / f"{name}.run.json")["attention"]
        assert [row["layer"] for row in found] == list(range(layers))
        assert all(row["backend"] in ("block_sparse", "sdpa") and row["reason"] for row in found)
    found = read_json(trained["pruned"] / "run.json")["attention"]
    assert [(row["site"], row["layer"]) for row in found] == [("self", 0), ("self", 1)]


LONGER = [{"tgt_len": 5}, {"mem_len": 7}, {"tgt_len": 8, "mem_len": 16, "clamp_len": 10}]


@pytest.mark.parametrize("lengths", LONGER, ids=str)
def test_beyond_its_lengths_a_pruned_model_is_dense_if_asked(lengths, trained, words, tmp_path):
    """As a base model that was pruned at 150/150 is evaluated at 64/640/400: the mask holds where it reaches."""
    checkpoint, out = trained["pruned"] / "model.safetensors", tmp_path / "m.json"
    options = {"checkpoint": checkpoint, "data": words, "split": "test", "batch_size": 2, "device": "cpu", **lengths}
    evaluate_script.main(flags(**options, out=out, beyond="dense"))
    found, model = read_json(out), load_model(checkpoint, "dense", **lengths).model
    cells = load_model(checkpoint).model.pruned
    slots, longer = max(6, lengths.get("mem_len", 6)), max(4, lengths.get("tgt_len", 4))
    assert model.pruned.shape[2:] == (longer, slots + longer)
    assert torch.equal(model.pruned[:, :, :4, slots - 6 : slots + 4], cells)
    assert model.pruned.sum() == cells.sum()  # nothing else
    nll, _ = brute_force_nll(model, rows_of(words, "test", 2))
    assert found["metrics"]["test"]["nll"] == pytest.approx(nll, abs=1e-5)
    assert 0 < found["evaluated_sparsity"] < found["effective_sparsity"]


def test_a_text_with_another_vocabulary_is_refused(trained, tmp_path, refused):
    text, checkpoint = tmp_path / "text", trained["dense"] / "model.safetensors"
    lines = {split: word_lines(20, seed, words=29) for seed, split in enumerate(("train", "valid", "test"))}
    vocabulary = write_corpus(text, "others", lines).vocabulary_fingerprint
    message = refused(evaluate_script.main, flags(checkpoint=checkpoint, data=text, out=tmp_path / "m.json"))
    assert message.startswith(f"{checkpoint}: ") and "others" in message and vocabulary in message
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_leaves_the_mode_as_it_was(training):
    model = tiny_model(dropout=0.5).train(training)
    iterator = LMOrderedIterator(random_ids(30), 2, 4)
    first, second = (evaluation.evaluate(model, iterator, torch.device("cpu")) for _ in range(2))
    assert first == second  # dropout is off
    assert model.training is training and all(module.training is training for module in model.modules())


# -- streams and cells -------------------------------------------------------------------------------------------------


@law
@given(st.integers(1, 4), st.integers(1, 6), st.integers(2, 60), st.sampled_from([-1, 1, 2]), st.sampled_from([1, 2]))
def test_streams_are_consecutive_and_predict_the_next_token(share, tgt_len, tokens, max_steps, world_size):
    batch = share * world_size
    tokens = max(tokens, 2 * batch)
    streams = [[] for _ in range(batch)]
    for rank in range(world_size):
        iterator = LMOrderedIterator(
            torch.arange(tokens), batch, tgt_len, rank=rank, world_size=world_size, max_steps=max_steps
        )
        segments = list(iterator)
        assert len(segments) == len(iterator)
        assert all(data.size(1) == tgt_len for data, _ in segments[:-1])
        assert iterator.targets == sum(target.numel() for _, target in segments)
        for data, target in segments:
            assert torch.equal(data + 1, target)
            for row, ids in enumerate(data.tolist()):
                streams[rank * share + row] += ids
    length = tokens // batch
    read = length - 1 if max_steps < 0 else min(length - 1, max_steps * tgt_len)
    assert streams == [list(range(row * length, row * length + read)) for row in range(batch)]


@law
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(0, 9), st.integers(2, 25), st.booleans(), st.sampled_from([-1, 2])
)
def test_cell_counts_equal_a_loop_over_tokens(batch, tgt_len, mem_len, steps, same_length, max_steps):
    same_length = same_length and mem_len > 0
    model = tiny_model(tgt_len=tgt_len, mem_len=mem_len, same_length=same_length)
    iterator = LMOrderedIterator(random_ids(batch * steps), batch, tgt_len, max_steps=max_steps)
    expected = torch.zeros(tgt_len, mem_len + tgt_len, dtype=torch.int64)
    for cell in used_cells(iterator.rows, model.config):
        expected[cell] += 1
    assert torch.equal(stream_counts(iterator, mem_len, model.visibility), expected)


@pytest.mark.parametrize("block_size", [1, 2])
def test_a_mask_by_distance_goes_on_at_lengths_that_were_never_trained(block_size, words, run_train, tmp_path):
    pattern = random_pattern()
    mask = by_distance(pattern, 0.5, sinks=0, block_size=block_size)
    mask.save(tmp_path / "mask.safetensors")
    folder, status = run_train("run", fn=tmp_path / "mask.safetensors")
    assert not status and read_json(folder / "run.json")["mask"]["any_length"]
    model = folder / "model.safetensors"
    trained = load_model(model)
    own = mask.at(pattern.query_length, pattern.key_length - pattern.query_length)
    for lengths in ((pattern.query_length, own.key_length - own.query_length), (3, 2), (6, 24), (16, 40)):
        loaded = load_model(model, tgt_len=lengths[0], mem_len=lengths[1])
        expected, visible = mask.at(*lengths), mask.at(*lengths).visible
        for layer in range(mask.layers):
            assert torch.equal(loaded.model.pruned[layer] & visible, expected.cells(layer) & visible)
    assert torch.equal(trained.model.pruned & own.visible, torch.stack([own.cells(0), own.cells(1)]) & own.visible)
    options = {"checkpoint": model, "data": words, "out": tmp_path / "metrics.json", "batch_size": 3}
    evaluate_script.main(flags(**options, device="cpu", tgt_len=6, mem_len=24))
    assert math.isfinite(read_json(tmp_path / "metrics.json")["metrics"]["test"]["perplexity"])

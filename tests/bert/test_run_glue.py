"""Whole runs of run_glue.py on a tiny model: what they write, and the laws of gathering and pruning."""

from __future__ import annotations

import csv
import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from attention_pruning import AttentionPattern, InputError, PruneMask
from attention_pruning.files.published import read_published
from attention_pruning.huggingface import model_masks
from attention_pruning.make import from_pattern
from attention_pruning.sparsity import cell_counts
from reproduction.analysis.table import read_run
from reproduction.data.tasks.glue import find_task, load_task
from reproduction.scores.glue import glue_metrics
from run_glue import set_labels
from tiny_bert import HEADS, LAYERS, LENGTH, random_pattern, read_metrics, save_model, sentence, write_task

pytestmark = pytest.mark.slow


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(first, second) -> bool:
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def rows(data_dir, split):
    return load_task(find_task("MRPC"), data_dir)[split]


def encoded_alone(tokenizer, row):
    """One pair, cut as in a run but never padded."""
    texts = (row["sentence1"], row["sentence2"])
    return tokenizer(*texts, truncation=True, max_length=LENGTH, return_tensors="pt")


def test_dense_and_tau_0_are_the_same_bit_for_bit(run, pattern_file):
    dense = run("glue", "dense", do_train=True, do_eval=True)
    zero = run("glue", "zero", do_train=True, do_eval=True, prune=True, attn_path=pattern_file, tau=0)
    assert same(dense, zero)
    assert read_metrics(dense) == read_metrics(zero)


def test_a_mask_changes_training(run, pattern_file):
    dense = run("glue", "dense", do_train=True)
    pruned = run("glue", "pruned", do_train=True, prune=True, attn_path=pattern_file, tau=0.5)
    assert not same(dense, pruned)


@pytest.mark.parametrize("batch", [8, 3])
def test_the_pattern_is_the_mean_over_sequences_without_their_padding(run, data_dir, tmp_path, batch):
    path = tmp_path / "pattern.safetensors"
    flags = {"save_attention_patterns": True, "attn_path": path, "per_device_eval_batch_size": batch}
    folder = run("glue", "dense", do_train=True, **flags)
    pattern = AttentionPattern.load(path)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    total, count = torch.zeros(LAYERS, HEADS, LENGTH, LENGTH, dtype=torch.float64), torch.zeros(LENGTH, LENGTH)
    for row in rows(data_dir, "train"):
        inputs = encoded_alone(tokenizer, row)
        size = inputs["input_ids"].shape[1]
        with torch.no_grad():
            total[:, :, :size, :size] += torch.cat(model(**inputs, output_attentions=True).attentions)
        count[:size, :size] += 1
    assert torch.equal(pattern.count, count.long()) and count.min() < count.max()
    torch.testing.assert_close(pattern.average, (total / count.clamp(min=1)).float(), atol=1e-6, rtol=0)
    assert pattern.metadata["sequences"] == len(rows(data_dir, "train"))
    assert pattern.metadata["task"] == "MRPC" and pattern.metadata["split"] == "train"


def test_a_pattern_may_be_gathered_later_from_a_sample_and_in_the_published_layout(run, tmp_path):
    gather = {"save_attention_patterns": True, "max_train_samples": 20}
    folder = run("glue", "dense", do_train=True, attn_path=tmp_path / "with.safetensors", **gather)
    run("glue", "later", model_name_or_path=folder, attn_path=tmp_path / "later.safetensors", **gather)
    patterns = [AttentionPattern.load(tmp_path / f"{name}.safetensors") for name in ("with", "later")]
    assert patterns[0].fingerprint == patterns[1].fingerprint
    assert patterns[0].metadata == patterns[1].metadata

    run("glue", "npy", model_name_or_path=folder, attn_path=tmp_path / "avg.npy", **gather)
    assert torch.equal(read_published(tmp_path / "avg.npy", site="self").average, patterns[0].average)
    pruned = run("glue", "pruned", do_train=True, prune=True, attn_path=tmp_path / "avg.npy", tau=0.5)
    assert (pruned / "prune_mask.self.safetensors").is_file()

    samples = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{name}.safetensors"
        run("glue", "sample", model_name_or_path=folder, attn_path=path, max_pattern_samples=5, seed=seed, **gather)
        samples.append(AttentionPattern.load(path))
    assert [sample.metadata["sequences"] for sample in samples] == [5, 5, 5]
    assert samples[0].fingerprint == samples[1].fingerprint != samples[2].fingerprint


def test_a_pattern_is_of_float32_whatever_the_training_was(run, tmp_path):
    """Gathered right after a training in bfloat16, or later from its folder: the same."""
    gather = {"save_attention_patterns": True, "max_train_samples": 20, "bf16": True}
    folder = run("glue", "dense", do_train=True, attn_path=tmp_path / "with.safetensors", **gather)
    run("glue", "later", model_name_or_path=folder, attn_path=tmp_path / "later.safetensors", **gather)
    plain = gather | {"bf16": False}
    run("glue", "plain", model_name_or_path=folder, attn_path=tmp_path / "plain.safetensors", **plain)
    found = [AttentionPattern.load(tmp_path / f"{name}.safetensors") for name in ("with", "later", "plain")]
    assert len({pattern.fingerprint for pattern in found}) == 1
    assert {pattern.metadata["precision"] for pattern in found} == {"float32"}


def test_gathering_changes_neither_training_nor_model(run, tmp_path):
    plain = run("glue", "plain", do_train=True, do_eval=True)
    gather = {"save_attention_patterns": True, "attn_path": tmp_path / "p.safetensors"}
    gathered = run("glue", "gathered", do_train=True, do_eval=True, **gather)
    assert same(plain, gathered)
    assert read_metrics(plain) == read_metrics(gathered)


def test_a_pruned_folder_evaluates_under_its_mask_with_no_pattern_at_hand(run, tmp_path, data_dir):
    path = tmp_path / "gone.safetensors"
    random_pattern().save(path)
    pruned = run("glue", "pruned", do_train=True, do_eval=True, prune=True, attn_path=path, tau=0.7, rule="allowed")
    path.unlink()
    again = run("glue", "again", model_name_or_path=pruned, do_eval=True)
    assert read_metrics(again) == read_metrics(pruned)

    # the same by hand, sequence by sequence
    model = AutoModelForSequenceClassification.from_pretrained(pruned).eval()
    mask = model_masks(model)["self"]
    assert mask.tau == 0.7 and mask.rule == "allowed"
    tokenizer, found, cells = AutoTokenizer.from_pretrained(pruned), [], []
    for row in rows(data_dir, "validation"):
        inputs = encoded_alone(tokenizer, row)
        size = inputs["input_ids"].shape[1]
        found.append(int(model(**inputs).logits.argmax()))
        cells.append(torch.stack([mask.cells(layer)[:, :size, :size] for layer in range(LAYERS)]).flatten())
    metrics = read_metrics(again)
    expected = glue_metrics(find_task("MRPC"), found, rows(data_dir, "validation")["label"])
    assert {name: metrics["metrics"]["validation"][name] for name in expected} == expected
    assert metrics["evaluated_sparsity"] == pytest.approx(float(torch.cat(cells).double().mean()))
    assert metrics["effective_sparsity"] == mask.effective_sparsity


def test_a_pruned_model_is_observed_under_its_mask(run, tmp_path, pattern_file):
    pruned = run("glue", "pruned", do_train=True, prune=True, attn_path=pattern_file, tau=0.7)
    path = tmp_path / "seen.safetensors"
    run("glue", "seen", model_name_or_path=pruned, save_attention_patterns=True, attn_path=path)
    pattern, mask = AttentionPattern.load(path), PruneMask.load(pruned / "prune_mask.self.safetensors")
    assert pattern.metadata["observed_under_mask"] == mask.fingerprint
    cells = torch.stack([mask.cells(layer) for layer in range(LAYERS)])
    # every sequence with this query has this key: such a row is never without a kept one
    certain = (~cells).tril().any(-1, keepdim=True).expand_as(cells)
    assert (cells & certain).sum() > 50
    assert (pattern.average > 0).any() and not pattern.average[cells & certain].any()


def test_the_mask_of_a_folder_may_be_given_again_but_no_other_one(run, refused, tmp_path, pattern_file):
    pruned = run("glue", "pruned", do_train=True, prune=True, attn_path=pattern_file, tau=0.5)
    changes = {"model_name_or_path": pruned, "do_eval": True, "prune": True, "attn_path": pattern_file}
    run("glue", "same", tau=0.5, **changes)
    message = refused("glue", tau=0.6, **changes)
    assert "expected a dense model for --prune, or one pruned by the same mask" in message
    message = refused("glue", model_name_or_path=pruned, do_eval=True, pad_to_max_length=False)
    assert message.startswith("--pad_to_max_length: expected true with a mask")


def test_random_prune_is_the_same_for_the_same_seed(run, pattern_file):
    flags = {"do_train": True, "prune": True, "attn_path": pattern_file, "tau": 0.5, "max_steps": 1}
    data = run("glue", "data", **flags)
    folders = [run("glue", f"r{i}", random_prune=True, prune_seed=seed, **flags) for i, seed in enumerate((1, 1, 2))]
    masks = [PruneMask.load(folder / "prune_mask.self.safetensors") for folder in (data, *folders)]
    assert [mask.kind for mask in masks] == ["data", "random", "random", "random"]
    assert masks[1].fingerprint == masks[2].fingerprint != masks[3].fingerprint
    assert len({int(mask.pruned.sum()) for mask in masks}) == 1


def test_a_mask_file_serves_without_tau_and_a_longer_one_too(run, tmp_path):
    mask = from_pattern(random_pattern(LENGTH + 4), 0.5, block_size=4)
    mask.save(tmp_path / "mask.safetensors")
    folder = run("glue", "pruned", do_eval=True, prune=True, attn_path=tmp_path / "mask.safetensors")
    assert read_metrics(folder)["effective_sparsity"] == mask.effective_sparsity


def test_what_a_run_writes(run, pattern_file):
    labels = {"config": "smoke", "experiment": "glue", "dataset": "MRPC", "variant": "data", "sites": "self"}
    labels |= {"tau": 0.5, "seed": 3, "rule": "published", "block_size": 2}
    flags = {"prune": True, "attn_path": pattern_file, "tau": 0.5, "block_size": 2}
    more = [f"--label={name}={value}" for name, value in labels.items()]
    folder = run("glue", "all", more, do_train=True, do_eval=True, do_predict=True, **flags)
    values = {row["metric"]: row["value"] for row in read_run(folder / "metrics.json")}
    assert {"accuracy", "f1", "loss", "glue_score", "seconds", "eval_seconds", "batch_seconds"} <= values.keys()
    assert values["glue_score"] == pytest.approx(50 * (values["accuracy"] + values["f1"]))
    assert values["sequences"] == 24
    record = json.loads((folder / "run.json").read_text())
    assert record["flags"]["tau"] == "0.5" and record["flags"]["learning_rate"] == 1e-2
    assert record["mask"] == PruneMask.load(folder / "prune_mask.self.safetensors").fingerprint
    assert record["steps"] == 6 and set(record["data_fingerprints"]) == {"train", "validation", "test"}
    for name in ("all_results.json", "config.json", "model.safetensors", "tokenizer.json", "trainer_state.json"):
        assert (folder / name).is_file(), name
    results = json.loads((folder / "all_results.json").read_text())
    assert results["eval_accuracy"] == values["accuracy"] and "train_loss" in results
    with (folder / "MRPC.tsv").open() as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert [row["index"] for row in table] == [str(number) for number in range(10)]
    assert {row["prediction"] for row in table} <= {"0", "1"}


def write_other_tasks(folder):
    """CoLA, STS-B and MNLI of a few rows."""
    rng = random.Random(9)
    cola = [["gj04", str(i % 2), "", sentence(rng)] for i in range(8)]
    write_task(folder, "CoLA", None, {"train": cola, "dev": cola})
    (folder / "glue" / "CoLA" / "test.tsv").write_text("index\tsentence\n0\tba be\n1\tbi\n")
    stsb = [[str(i), sentence(rng), sentence(rng), str(i / 2)] for i in range(8)]
    header = ["index", "sentence1", "sentence2", "score"]
    write_task(folder, "STS-B", header, dict.fromkeys(("train", "dev", "test"), stsb))
    names = find_task("MNLI").labels
    mnli = [[str(i), sentence(rng), sentence(rng), names[i % 3]] for i in range(9)]
    files = ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")
    parts = {file: mnli[: 9 - number] for number, file in enumerate(files)}
    write_task(folder, "MNLI", ["index", "sentence1", "sentence2", "gold_label"], parts)


def test_tasks_of_one_sentence_of_numbers_and_of_two_test_sets(run, tmp_path):
    write_other_tasks(tmp_path / "data")
    everything = {"data_dir": tmp_path / "data", "do_train": True, "do_eval": True, "do_predict": True, "max_steps": 2}
    everything |= {"ignore_mismatched_sizes": True}  # the model's head has two classes

    folder = run("glue", "cola", task_name="cola", **everything)
    assert "matthews_correlation" in read_metrics(folder)["metrics"]["validation"]
    assert len((folder / "CoLA.tsv").read_text().splitlines()) == 3

    folder = run("glue", "stsb", task_name="STS-B", **everything)
    found = read_metrics(folder)["metrics"]["validation"]
    assert found["glue_score"] == pytest.approx(50 * (found["pearson"] + found["spearman"]))
    shown = [line.split("\t")[1] for line in (folder / "STS-B.tsv").read_text().splitlines()[1:]]
    assert len(shown) == 8 and all(0 <= float(value) <= 5 for value in shown)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 1 and model.config.problem_type == "regression"

    folder = run("glue", "mnli", task_name="MNLI", **everything)
    found = read_metrics(folder)["metrics"]
    mean = np.mean([found[f"validation_{part}"]["accuracy"] for part in ("matched", "mismatched")])
    assert found["validation"] == {"glue_score": pytest.approx(100 * mean)}
    assert {"eval_accuracy", "eval_accuracy_mm"} <= json.loads((folder / "eval_results.json").read_text()).keys()
    for part, size in (("m", 6), ("mm", 5)):
        lines = (folder / f"MNLI-{part}.tsv").read_text().splitlines()[1:]
        assert len(lines) == size
        assert {line.split("\t")[1] for line in lines} <= set(find_task("MNLI").labels)


def test_a_model_that_knows_the_classes_in_another_order_is_refused():
    config = BertConfig(id2label={0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"})
    with pytest.raises(InputError, match="classes in MNLI's order, entailment, neutral, contradiction, found"):
        set_labels(config, find_task("MNLI"), "some/model")
    config = BertConfig(num_labels=2)
    set_labels(config, find_task("MNLI"), "some/model")
    assert config.num_labels == 3 and config.id2label[2] == "contradiction"


def test_dynamic_padding_evaluates_alike(run):
    padded = run("glue", "padded", do_train=True, do_eval=True)
    dynamic = run("glue", "dynamic", model_name_or_path=padded, do_eval=True, pad_to_max_length="false")
    first, second = (read_metrics(folder)["metrics"]["validation"] for folder in (padded, dynamic))
    assert second == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize("script", ["glue", "squad"])
def test_accumulated_batches_train_as_one_batch(run, tmp_path, script):
    model = save_model(tmp_path / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    flags = {"model_name_or_path": model, "do_train": True, "max_steps": 1, "optim": "sgd", "max_train_samples": 8}
    one = run(script, "one", per_device_train_batch_size=8, **flags)
    two = run(script, "two", per_device_train_batch_size=2, gradient_accumulation_steps=4, **flags)
    first, second = weights(one), weights(two)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_cells_that_sequences_use_are_counted_as_by_hand(causal):
    lengths = [3, 1, 5, 3]
    expected = torch.zeros(5, 5, dtype=torch.int64)
    for length in lengths:
        for query in range(length):
            for key in range(query + 1 if causal else length):
                expected[query, key] += 1
    assert torch.equal(cell_counts(lengths, lengths, causal), expected)


def test_the_best_checkpoint_may_be_chosen_by_a_metric(run):
    flags = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    folder = run("glue", "best", do_train=True, save_strategy="steps", metric_for_best_model="accuracy", **flags)
    state = json.loads((folder / "trainer_state.json").read_text())
    values = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    assert len(values) == 3 and state["best_metric"] == max(values)

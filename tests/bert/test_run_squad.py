"""Whole runs of run_squad.py on a tiny model: what they write, and what the scores are of."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from attention_pruning import AttentionPattern
from attention_pruning.huggingface import model_masks
from reproduction.analysis.table import read_run
from reproduction.data.tasks.squad import load_squad
from reproduction.scores.squad import squad_metrics
from squad_features import Windows
from tiny_bert import HEADS, LAYERS, random_pattern, read_metrics, write_squad

pytestmark = pytest.mark.slow

SIZE = 32


@pytest.fixture
def pruning(tmp_path):
    random_pattern(SIZE).save(tmp_path / "long.safetensors")
    return {"prune": True, "attn_path": tmp_path / "long.safetensors", "tau": 0.7}


def test_what_a_run_writes(run, data_dir, pruning):
    labels = {"config": "smoke", "experiment": "squad", "dataset": "SQuAD", "variant": "block", "sites": "self"}
    labels |= {"tau": 0.7, "seed": 3, "rule": "published", "block_size": 8}
    more = [f"--label={name}={value}" for name, value in labels.items()]
    folder = run("squad", "all", more, do_train=True, do_eval=True, block_size=8, **pruning)
    values = {row["metric"]: row["value"] for row in read_run(folder / "metrics.json")}
    timing = {"seconds", "eval_seconds", "batch_seconds", "peak_memory_bytes"}
    assert {"exact_match", "f1", "questions", "sequences"} | timing <= values.keys()
    assert all(values[name] > 0 for name in timing)
    assert values["questions"] == 6 < values["sequences"]
    assert values["eval_seconds"] <= values["seconds"]

    questions = load_squad(data_dir)["validation"]
    predictions = json.loads((folder / "predictions.json").read_text())
    answers = json.loads((folder / "answers.json").read_text())
    assert list(predictions) == sorted(questions["id"])
    assert {key: answer["text"] for key, answer in answers.items()} == predictions
    expected = squad_metrics(questions, predictions)
    assert {"exact_match": values["exact_match"], "f1": values["f1"]}.items() <= expected.items()
    results = json.loads((folder / "all_results.json").read_text())
    assert results["eval_f1"] == values["f1"] and "train_loss" in results
    assert json.loads((folder / "run.json").read_text())["task"] == "SQuAD"

    # under the names of transformers' script, too
    assert json.loads((folder / "eval_predictions.json").read_text()) == predictions
    n_best = json.loads((folder / "eval_nbest_predictions.json").read_text())
    assert {key: rows[0]["text"] for key, rows in n_best.items()} == predictions
    for key, rows in n_best.items():
        assert 1 < len(rows) <= 20 and sum(row["probability"] for row in rows) == pytest.approx(1)
        assert rows[0]["start_logit"] + rows[0]["end_logit"] == answers[key]["score"]
    assert not (folder / "eval_null_odds.json").exists()


def test_dense_and_tau_0_are_the_same_bit_for_bit(run, pruning):
    dense = run("squad", "dense", do_train=True, do_eval=True)
    zero = run("squad", "zero", do_train=True, do_eval=True, **pruning | {"tau": 0})
    first, second = (load_file(folder / "model.safetensors") for folder in (dense, zero))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_metrics(dense) == read_metrics(zero)


def test_a_pruned_folder_answers_under_its_mask(run, pruning, data_dir):
    pruned = run("squad", "pruned", do_train=True, do_eval=True, **pruning)
    again = run("squad", "again", model_name_or_path=pruned, do_eval=True)
    assert read_metrics(again) == read_metrics(pruned)
    answers = [json.loads((folder / "answers.json").read_text()) for folder in (pruned, again)]
    assert answers[0] == answers[1]

    # the best span of every question, tried one by one over windows that are read alone
    model = AutoModelForQuestionAnswering.from_pretrained(pruned).eval()
    mask, cells = model_masks(model)["self"], []
    windows = Windows(AutoTokenizer.from_pretrained(pruned), SIZE, 8, 10)
    questions = load_squad(data_dir)["validation"]
    found = windows.evaluation(questions[:])
    best = {}
    for number, key in enumerate(found["example_id"]):
        names = ("input_ids", "attention_mask", "token_type_ids")
        length = sum(found["attention_mask"][number])
        with torch.no_grad():
            output = model(**{name: torch.tensor([found[name][number][:length]]) for name in names})
        cells.append(torch.stack([mask.cells(layer)[:, :length, :length] for layer in range(LAYERS)]).flatten())
        inside = [token for token, bounds in enumerate(found["offset_mapping"][number]) if bounds is not None]
        for first in inside:
            for last in inside:
                if first <= last < first + 30:
                    score = float(output.start_logits[0, first] + output.end_logits[0, last])
                    best[key] = max(best.get(key, -np.inf), score)
    for key, answer in answers[0].items():
        assert answer["score"] == pytest.approx(best[key], abs=1e-4)
    assert read_metrics(again)["evaluated_sparsity"] == pytest.approx(float(torch.cat(cells).double().mean()))


def test_a_pattern_of_all_windows(run, tmp_path, data_dir):
    path = tmp_path / "pattern.safetensors"
    folder = run("squad", "dense", do_train=True, save_attention_patterns=True, attn_path=path)
    pattern = AttentionPattern.load(path)
    model = AutoModelForQuestionAnswering.from_pretrained(folder, attn_implementation="eager").eval()
    windows = Windows(AutoTokenizer.from_pretrained(folder), SIZE, 8, 10).training(load_squad(data_dir)["train"][:])
    total, count = torch.zeros(LAYERS, HEADS, SIZE, SIZE, dtype=torch.float64), torch.zeros(SIZE, SIZE)
    for number, ids in enumerate(windows["input_ids"]):
        length = sum(windows["attention_mask"][number])
        kinds = torch.tensor([windows["token_type_ids"][number][:length]])
        with torch.no_grad():
            output = model(torch.tensor([ids[:length]]), token_type_ids=kinds, output_attentions=True)
        total[:, :, :length, :length] += torch.cat(output.attentions)
        count[:length, :length] += 1
    assert pattern.metadata["sequences"] == len(windows["input_ids"]) > 12
    assert torch.equal(pattern.count, count.long())
    torch.testing.assert_close(pattern.average, (total / count.clamp(min=1)).float(), atol=1e-6, rtol=0)


def test_squad_2_gives_no_answer_where_the_threshold_says_so(run, tmp_path):
    write_squad(tmp_path / "data", train=9, dev=6, version="v2.0")
    flags = {"data_dir": tmp_path / "data", "version_2_with_negative": True}
    folder = run("squad", "dense", do_train=True, do_eval=True, **flags)
    values = read_metrics(folder)["metrics"]["validation"]
    assert {"has_answer_f1", "no_answer_f1"} <= values.keys()
    texts = {}
    for threshold in (-1e6, 1e6):
        where = run("squad", "t", model_name_or_path=folder, do_eval=True, null_score_diff_threshold=threshold, **flags)
        texts[threshold] = set(json.loads((where / "predictions.json").read_text()).values())
    assert texts[-1e6] == {""} and "" not in texts[1e6]

    odds = json.loads((folder / "eval_null_odds.json").read_text())
    answers, n_best = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("answers", "eval_nbest_predictions")
    )
    for key, answer in answers.items():
        assert odds[key] == pytest.approx(answer["null_score"] - answer["score"])
        assert (answer["text"] == "") == (odds[key] > 0)
        assert sum(row["text"] == "" for row in n_best[key]) == 1
    where = run("squad", "best", model_name_or_path=folder, do_eval=True, n_best_size=2, **flags)
    n_best = json.loads((where / "eval_nbest_predictions.json").read_text())
    assert 2 <= max(len(rows) for rows in n_best.values()) <= 3


def test_the_best_checkpoint_may_be_chosen_by_f1(run):
    flags = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    folder = run("squad", "best", do_train=True, save_strategy="steps", metric_for_best_model="f1", **flags)
    state = json.loads((folder / "trainer_state.json").read_text())
    values = [entry["eval_f1"] for entry in state["log_history"] if "eval_f1" in entry]
    assert len(values) == 3 and state["best_metric"] == max(values)

"""Damaged rows, questions, models and checkpoints of fine-tuning."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, BertTokenizer

import own_data
from attention_pruning import PruneMask
from attention_pruning.huggingface import model_masks, prune_model
from checkpoints import find_checkpoint, last_checkpoint
from encoders import load_config, load_model, load_tokenizer
from mutations import answer, as_json, chosen, damaged, damaged_json, damaged_text, fuzzed, strange, written
from own_questions import own_questions
from own_task import own_task

ROWS = [{"sentence1": "a b", "sentence2": "c", "label": "yes"}, {"sentence1": "d", "sentence2": "e f", "label": "no"}]
QUESTIONS = [
    {"id": f"q{number}", "context": "one two", "question": "?", "answers": {"text": ["two"], "answer_start": [4]}}
    for number in range(2)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    """No bars; one cache for all examples, which are told apart by their files."""
    own_data.datasets.disable_progress_bars()


def flags(folder: Path, path: Path, cache: Path) -> Any:
    """As much of the flags as reading asks for."""
    files = {f"{split}_file": None for split in own_data.SPLITS} | {"train_file": str(path)}
    data = SimpleNamespace(dataset_name=None, dataset_config_name=None, version_2_with_negative=False, **files)
    return SimpleNamespace(data=data, model=SimpleNamespace(cache_dir=str(cache), hub={}))


@st.composite
def tables(draw: st.DrawFn, rows: list[dict]) -> tuple[str, bytes]:
    """Ending and content of a file of rows."""
    ending = draw(st.sampled_from([".json", ".jsonl", ".csv", ".tsv"]))
    if ending == ".json":
        return ending, draw(damaged_json(rows))
    if ending == ".jsonl":
        return ending, b"\n".join(as_json(draw(strange(row))) for row in rows)
    mark = "," if ending == ".csv" else "\t"
    cells = [[json.dumps(value) if isinstance(value, dict) else value for value in row.values()] for row in rows]
    text = io.StringIO()
    csv.writer(text, delimiter=mark, lineterminator="\n").writerows([list(rows[0]), *cells])
    return ending, draw(damaged_text(text.getvalue()))


def read_rows(folder: Path, ending: str, content: bytes, read) -> Any:
    cache = folder / "cache"
    try:
        path = written(folder / f"rows{ending}", content)
        return answer(read, flags(folder, path, cache))
    finally:
        shutil.rmtree(cache, ignore_errors=True)


@fuzzed(0.1)
@given(tables(ROWS))
def test_rows_of_a_users_own(folder, table):
    found = read_rows(folder, *table, lambda flags: own_task(own_data.load_own(flags), BertConfig(), "own"))
    if found is not None:
        task, splits = found
        for rows in splits.values():
            labels = np.array(rows["label"][:], dtype=np.float64)
            assert np.isfinite(labels).all()
            assert task.labels is None or ((labels >= 0) & (labels < len(task.labels))).all()
            assert all(isinstance(text, str) for column in task.columns for text in rows[column][:])


@fuzzed(0.1)
@given(tables(QUESTIONS))
def test_questions_of_a_users_own(folder, table):
    found = read_rows(folder, *table, own_questions)
    for row in (found or {}).get("train", []):
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text


# Folders of models


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, bytes]:
    """A pruned model as transformers and the library save it."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=32).save_pretrained(
        folder
    )
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=7, max_position_embeddings=32, **shape))
    pruned = torch.rand(2, 2, 32, 32, generator=torch.Generator().manual_seed(1)) < 0.4
    prune_model(model, PruneMask.from_cells(pruned, site="self"))
    model.save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def arguments(folder: Path) -> Any:
    name = str(folder)
    more = {"tokenizer_name": None, "config_name": None, "model_revision": "main", "ignore_mismatched_sizes": False}
    return SimpleNamespace(model_name_or_path=name, hub={"cache_dir": None, "token": None}, **more)


def load_folder(folder: Path) -> torch.nn.Module:
    """As run_glue.py does."""
    load_tokenizer(arguments(folder), 16)
    config = load_config(arguments(folder), 16)
    return load_model(arguments(folder), AutoModelForSequenceClassification, config)


@fuzzed(0.1)
@given(st.data())
def test_folders_of_models(folder, saved, data):
    place = folder / "model"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    changes = {name: damaged(content) for name, content in saved.items()}
    for name, content in saved.items():
        if name.endswith(".json"):
            changes[name] = damaged_json(json.loads(content))
    name, content = data.draw(chosen(changes))
    for each, whole in (saved | {name: content}).items():
        written(place / each, whole)
    model = answer(load_folder, place)
    if model is not None and name.startswith("prune_mask"):
        assert model_masks(model)


@fuzzed(0.25)
@given(damaged_json({"global_step": 3, "log_history": []}))
def test_a_state_that_is_not_whole_is_passed_over(folder, content):
    place = folder / "run" / "checkpoint-3"
    place.mkdir(exist_ok=True, parents=True)
    written(place / "trainer_state.json", content)
    assert last_checkpoint(folder / "run") in (None, place)


@pytest.fixture(scope="module")
def resumable(tmp_path_factory) -> dict[str, bytes]:
    """What transformers' Trainer leaves of a step, the small files of it."""
    folder = tmp_path_factory.mktemp("resumable")
    save_file({"weight": torch.arange(4.0)}, folder / "model.safetensors")
    torch.save({"state": {0: torch.arange(4.0)}, "param_groups": []}, folder / "optimizer.pt")
    torch.save({"python": (3, (1, 2), None), "cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    written(folder / "trainer_state.json", as_json({"global_step": 3}))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@fuzzed(0.5)
@given(st.data())
def test_checkpoints_to_go_on_from(folder, resumable, data):
    place = folder / "resumed" / "checkpoint-3"
    place.mkdir(exist_ok=True, parents=True)
    name, content = data.draw(chosen({name: damaged(content) for name, content in resumable.items()}))
    for each, whole in (resumable | {name: content}).items():
        written(place / each, whole)
    training = SimpleNamespace(resume_from_checkpoint=None, output_dir=str(place.parent))
    found = answer(find_checkpoint, training, {})
    if found is not None and name.endswith((".pt", ".pth")):  # no tensor is another
        kept, whole = (torch.load(io.BytesIO(one), weights_only=True) for one in (content, resumable[name]))
        assert str(kept) == str(whole)

"""Tokenised rows are made once, mapped from their file, and never taken for those of other data or lengths."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from transformers import AutoTokenizer

from attention_pruning import InputError
from prepared_rows import PreparedRows, prepared_folder, tokenizer_fingerprint
from reproduction.data.tasks.glue import find_task, load_task
from run_files import fingerprint_rows
from run_flags import parse_flags
from run_glue import DataArguments, tokeniser
from tiny_bert import LENGTH, save_tokenizer

STEPS = {"do_train": True, "do_eval": True, "max_steps": 2}


@pytest.fixture
def preparation(command, model_folder, data_dir, tmp_path):
    """Prepare MRPC's training rows with changed flags; ``act`` is called before each batch is tokenised."""

    def call(act=None, rows=None, model=model_folder, **changes):
        flags = parse_flags("", DataArguments, command("glue", "out", do_train=True, prepared_dir=tmp_path, **changes))
        tokenizer, task = AutoTokenizer.from_pretrained(model), find_task("MRPC")
        prepared = PreparedRows(flags, tokenizer, max_seq_length=flags.data.max_seq_length)
        plain = tokeniser(task, tokenizer, flags.data)

        def tokenise(batch):
            if act is not None:
                act()
            return plain(batch)

        tokenise.__name__ = "tokenise"
        rows = load_task(task, data_dir)["train"] if rows is None else rows
        ready = prepared.prepare("train", rows, fingerprint_rows(rows), tokenise, keep=("label",))
        assert prepared.files == {"train": ready.cache_files[0]["filename"]}
        return ready

    return call


def fail():
    raise RuntimeError("tokenised")


def test_rows_are_tokenised_once_and_mapped(preparation):
    before = pyarrow.total_allocated_bytes()
    first = preparation()
    again = preparation(act=fail)
    assert first.cache_files == again.cache_files
    assert first[:] == again[:] and set(first.column_names) >= {"input_ids", "attention_mask", "label"}
    columns = [again.data.column(name) for name in again.column_names]
    assert sum(column.nbytes for column in columns) > 1000
    assert pyarrow.total_allocated_bytes() - before < 1000


@pytest.mark.parametrize(
    "changes", [{"max_seq_length": LENGTH - 1}, {"pad_to_max_length": "false"}, {"overwrite_cache": True}]
)
def test_other_lengths_and_a_cache_to_overwrite_are_tokenised(preparation, changes):
    preparation()
    with pytest.raises(RuntimeError, match="tokenised"):
        preparation(act=fail, **changes)


def test_other_rows_and_another_tokenizer_are_tokenised(preparation, data_dir, tmp_path):
    first = preparation()
    rows = load_task(find_task("MRPC"), data_dir)["train"].select(range(39))
    assert len(preparation(rows=rows)) == 39
    with pytest.raises(RuntimeError, match="tokenised"):
        preparation(act=fail, rows=rows.select(range(38)))
    save_tokenizer(tmp_path / "other")
    settings = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary["ba"], vocabulary["be"] = vocabulary["be"], vocabulary["ba"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(settings))
    assert preparation(model=tmp_path / "other")[:] != first[:]


def test_a_tokenizer_that_was_used_is_the_same_one(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["ba", "be"], padding="max_length", truncation=True, max_length=9)
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.padding_side = "left"
    assert tokenizer_fingerprint(tokenizer) != before


def test_two_jobs_that_prepare_the_same_rows_at_once_both_get_them(preparation):
    inner = []
    outer = preparation(act=lambda: inner.append(preparation()))
    assert inner[0][:] == outer[:] == preparation(act=fail)[:]


def test_a_job_that_dies_leaves_no_rows(preparation, tmp_path):
    with pytest.raises(RuntimeError, match="tokenised"):
        preparation(act=fail)
    assert not list(tmp_path.glob("*.arrow"))
    assert len(preparation()) == 40


def test_a_damaged_file_is_named(preparation):
    path = Path(preparation().cache_files[0]["filename"])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=f"{path}: expected tokenised rows, found a damaged file; --overwrite_cache"):
        preparation()
    assert len(preparation(overwrite_cache=True)) == 40


def test_the_folder_is_chosen_by_flags(command, monkeypatch):
    def folder(**changes):
        line = command("glue", "out", do_eval=True, **{"prepared_dir": None} | changes)
        return prepared_folder(parse_flags("", DataArguments, line))

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path("user"))
    assert folder() == Path("user/prepared")
    assert folder(cache_dir="cache") == Path("cache/prepared")
    assert folder(cache_dir="cache", prepared_dir="here") == Path("here")


@pytest.mark.parametrize("script", ["glue", "squad"])
def test_run_json_says_where_the_rows_are(run, script, tmp_path):
    folder = run(script, "out", prepared_dir=tmp_path / "rows", **STEPS)
    files = json.loads((folder / "run.json").read_text())["prepared"]
    assert set(files) == {"train", "validation"}
    assert {Path(path) for path in files.values()} == set((tmp_path / "rows").glob("*"))
    times = {path: Path(path).stat().st_mtime_ns for path in files.values()}
    run(script, "again", prepared_dir=tmp_path / "rows", **STEPS)
    assert {path: Path(path).stat().st_mtime_ns for path in files.values()} == times


def test_a_folder_that_cannot_be_written_to_is_named(refused, data_dir):
    file = data_dir / "glue" / "MRPC" / "dev.tsv"
    message = refused("glue", do_eval=True, prepared_dir=file)
    assert message.startswith(f"{file}: expected a folder that can be written to")

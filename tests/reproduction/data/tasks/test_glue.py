"""GLUE's files, with all that is odd in the published ones, become one set of columns."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pytest

from attention_pruning import InputError
from reproduction.data import sources as hub
from reproduction.data.tasks import glue
from reproduction.data.tasks.glue import TASKS, Task, find_task, load_task

#: Rows of the published files, without the header.
PUBLISHED = {
    "CoLA": {"train": 8_551, "validation": 1_043, "test": 1_063},
    "SST-2": {"train": 67_349, "validation": 872, "test": 1_821},
    "MRPC": {"train": 3_668, "validation": 408, "test": 1_725},
    "RTE": {"train": 2_490, "validation": 277, "test": 3_000},
    "STS-B": {"train": 5_749, "validation": 1_500, "test": 1_379},
    "WNLI": {"train": 635, "validation": 71, "test": 146},
    "QNLI": {"train": 104_743, "validation": 5_463, "test": 5_463},
}


def write(data_dir: Path, name: str, files: dict[str, str]) -> Path:
    folder = data_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_bytes(text.encode())
    return data_dir


def load(data_dir: Path, name: str, files: dict[str, str]) -> datasets.DatasetDict:
    return load_task(find_task(name), write(data_dir, name, files))


def rows(part: datasets.Dataset) -> list[tuple]:
    return [tuple(row.values()) for row in part]


@pytest.mark.parametrize(
    ("spelling", "name"), [("sst2", "SST-2"), ("SST-2", "SST-2"), ("stsb", "STS-B"), ("bible_order", "Bible-Order")]
)
def test_a_task_is_found_whatever_its_spelling(spelling: str, name: str) -> None:
    assert find_task(spelling).name == name


def test_an_unknown_task_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match="expected one of CoLA, SST-2, .*, found 'AX'"):
        find_task("AX")


def test_the_nine_tasks_are_there_and_consistent() -> None:
    assert {name for name, task in TASKS.items() if task.hub_config} == {*PUBLISHED, "QQP", "MNLI"}
    for task in TASKS.values():
        assert len(task.columns) == len(task.text_fields)
        assert task.labels is None or len(set(task.labels)) == len(task.labels) >= 2


def test_quotation_marks_and_carriage_returns_are_text_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    files = {
        "train.tsv": '\ufeff"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n'
        '1\t7\t8\tHe said "no .\tIt\'s \u2028 "\rno\r\n',
        "test.tsv": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t9\t\ta b \n\n1\t7\t9\tc\td",
    }
    loaded = load(tmp_path, "MRPC", files)
    assert list(loaded) == ["train", "test"]
    assert loaded["train"].column_names == ["sentence1", "sentence2", "label", "idx"]
    assert rows(loaded["train"]) == [('He said "no .', "It's \u2028 \"\rno", 1, 0)]
    assert rows(loaded["test"]) == [("", "a b ", -1, 0), ("c", "d", -1, 1)]
    assert loaded["train"].features["label"].names == ["not_equivalent", "equivalent"]
    assert loaded["train"].info.description == "train.tsv, 1 rows"


def test_cola_has_a_header_in_its_test_file_only(tmp_path: Path) -> None:
    line = "gj04\t{}\t{}\tsentence\n"
    files = {
        "train.tsv": line.format(1, ""),
        "dev.tsv": line.format(0, "*"),
        "test.tsv": "index\tsentence\n0\tThey slept.\n",
    }
    loaded = load(tmp_path, "CoLA", files)
    assert {split: rows(part) for split, part in loaded.items()} == {
        "train": [("sentence", 1, 0)],
        "validation": [("sentence", 0, 0)],
        "test": [("They slept.", -1, 0)],
    }


def test_similarity_is_a_number(tmp_path: Path) -> None:
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
    row = "0\tmain\tMSRvid\t2012\t1\tnone\tnone\ta\tb"
    files = {"dev.tsv": f"{header}\tscore\n{row}\t3.750\n", "test.tsv": f"{header}\n{row}\n"}
    loaded = load(tmp_path, "STS-B", files)
    assert rows(loaded["validation"]) == [("a", "b", 3.75, 0)] and rows(loaded["test"]) == [("a", "b", -1.0, 0)]
    for wrong in ("high", "nan", ""):
        with pytest.raises(InputError, match=f"dev.tsv, line 2: expected a number as score, found '{wrong}'"):
            load(tmp_path, "STS-B", {"dev.tsv": f"{header}\tscore\n{row}\t{wrong}\n"})


def test_mnli_is_evaluated_twice(tmp_path: Path) -> None:
    text = "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\t{}\n"
    files = {
        "train.tsv": text.format("contradiction"),
        "dev_matched.tsv": text.format("neutral"),
        "dev_mismatched.tsv": text.format("entailment"),
        "test_matched.tsv": "index\tsentence1\tsentence2\n0\tc\td\n",
    }
    loaded = load(tmp_path, "MNLI", files)
    found = {split: part["label"][0] for split, part in loaded.items()}
    assert found == {"train": 2, "validation_matched": 1, "test_matched": -1, "validation_mismatched": 0}
    with pytest.raises(InputError, match="line 2: expected entailment or neutral or contradiction .*, found '-'"):
        load(tmp_path, "MNLI", {"train.tsv": text.format("-")})


def test_broken_rows_of_qqp_are_counted_and_keep_their_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    files = {"train.tsv": f"{header}1\t2\t3\ta?\tb?\t0\n4\t5\t6\tcut\n7\t8\t9\t\td?\t1\n"}
    loaded = load(tmp_path, "QQP", files)
    assert rows(loaded["train"]) == [("a?", "b?", 0, 0), ("", "d?", 1, 2)]
    assert "train.tsv: 1 broken rows left out, the first in line 3" in caplog.text
    assert loaded["train"].info.description == "train.tsv, 2 rows, 1 broken rows left out"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\ta\tb\n", "line 3: expected 4 fields .*, found 3"),
        ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", "line 2: expected entailment or not_.* 'maybe'"),
        ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", "line 2: expected entailment or not_entailment .*'1'"),
        ("index\tsentence1\tlabel\n", "line 1: expected a field 'sentence2', found 'index, sentence1, label'"),
        ("index\tsentence1\tsentence2\n", "line 1: expected a field 'label'"),
        ("", "line 1: expected a field 'sentence1', found ''"),
    ],
)
def test_malformed_files_are_refused_by_name_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"RTE/train.tsv, {message}") as caught:
        load(tmp_path, "RTE", {"train.tsv": text})
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "RTE", {})
    (tmp_path / "RTE" / "train.tsv").write_bytes(b"index\xff")
    with pytest.raises(InputError, match="train.tsv: expected UTF-8 text, found an invalid byte at offset 5"):
        load_task(TASKS["RTE"], tmp_path)


MSR = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\ta\tb\n0\t3\t4\tc\td\n1\t5\t6\te\tf\n"


def test_mrpc_as_microsoft_publishes_it(tmp_path: Path) -> None:
    files = {"msr_paraphrase_train.txt": MSR, "msr_paraphrase_test.txt": MSR, "dev_ids.tsv": "3\t4\n"}
    loaded = load(tmp_path, "MRPC", files)
    assert rows(loaded["train"]) == [("a", "b", 1, 0), ("e", "f", 1, 2)]
    assert rows(loaded["validation"]) == [("c", "d", 0, 1)]
    assert loaded["test"]["label"][:] == [1, 0, 1]
    (tmp_path / "MRPC" / "dev_ids.tsv").unlink()
    with pytest.raises(InputError, match="msr_paraphrase_train.txt: expected GLUE's dev_ids.tsv or mrpc_dev_ids.tsv"):
        load_task(TASKS["MRPC"], tmp_path)


def test_both_layouts_of_the_data_folder(tmp_path: Path) -> None:
    text = "sentence\tlabel\n{}\t0\n"
    write(tmp_path, "sst2", {"train.tsv": text.format("beside")})
    assert load_task(TASKS["SST-2"], tmp_path)["train"]["sentence1"][0] == "beside"
    write(tmp_path, "glue/SST-2", {"train.tsv": text.format("within")})
    assert load_task(TASKS["SST-2"], str(tmp_path))["train"]["sentence1"][0] == "within"


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder glue/WNLI or WNLI in it, found neither"):
        load_task(TASKS["WNLI"], tmp_path / "nowhere")
    with pytest.raises(InputError, match="MNLI: expected some of train.tsv, dev_matched.tsv, .*, found none of them"):
        load(tmp_path, "MNLI", {"dev.tsv": ""})
    with pytest.raises(InputError, match="Bible-Order: expected the local folder that .*bible_glue --out FOLDER wrote"):
        load_task(TASKS["Bible-Order"], None)


@pytest.mark.parametrize(
    ("name", "config", "texts"),
    [
        ("QNLI", "qnli", ("question", "sentence")),
        ("RTE", "rte", ("sentence1", "sentence2")),
        ("SST-2", "sst2", ("sentence",)),
    ],
)
def test_the_hub_gives_the_same_columns_at_a_pinned_revision(
    monkeypatch: pytest.MonkeyPatch, name: str, config: str, texts: tuple[str, ...]
) -> None:
    asked: dict = {}

    def load_dataset(path: str, name: str, *, revision: str) -> datasets.DatasetDict:
        asked.update(path=path, name=name, revision=revision)
        columns = {text: [f"in {text}"] for text in texts} | {"label": [1], "idx": [0]}
        return datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load_task(TASKS[name], None)
    found = dict(zip(TASKS[name].columns, (f"in {text}" for text in texts), strict=True))
    assert list(loaded["train"]) == [found | {"label": 1, "idx": 0}]
    assert asked == {"path": "nyu-mll/glue", "name": config, "revision": glue.HUB_REVISION}
    assert len(glue.HUB_REVISION) == 40 and glue.HUB_REVISION in loaded["train"].info.description


@pytest.mark.parametrize("error", [ConnectionError("no\nnetwork"), ValueError("no cache")])
def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"glue/RTE: expected a/b \(c\) .*, found: no .*AP_DATA_DIR") as caught:
        hub.load_from_hub("a/b", "c", "0" * 40, "glue/RTE")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", [TASKS[name] for name in PUBLISHED], ids=lambda task: task.name)
def test_the_published_files_are_read_to_the_last_row(task: Task) -> None:
    data_dir = os.environ.get("AP_DATA_DIR")
    if not data_dir:
        pytest.skip("AP_DATA_DIR is not set")
    if not (Path(data_dir) / "glue" / task.name).is_dir():
        pytest.skip(f"no glue/{task.name} in AP_DATA_DIR")
    loaded = load_task(task, data_dir)
    expected = dict(PUBLISHED[task.name])
    if task.name == "QNLI" and "train" not in loaded:  # a folder may do without the largest file
        del expected["train"]
    assert {split: part.num_rows for split, part in loaded.items()} == expected
    for split, part in loaded.items():
        assert part["idx"][:] == list(range(part.num_rows))
        labels = set(part["label"][:])
        if split == "test":
            assert labels == {-1}
        elif task.labels is None:
            assert min(labels) == 0 and max(labels) == 5
        else:
            assert labels == set(range(len(task.labels)))

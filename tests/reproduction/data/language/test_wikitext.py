"""WikiText from a local folder and from a stand-in for the hub."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from attention_pruning.errors import InputError
from reproduction.data.language import wikitext
from reproduction.data.language.corpus import Corpus, encode
from reproduction.data.language.raw_text import RAW_LAYOUTS, SPLITS

TEXT = {
    "train": " \n = Lobster = \n \n The <unk> lobster @-@ pot \n",
    "valid": " \n = Crab = \n",
    "test": " the <unk> \n \n",
}
LINES = {split: [line.split() for line in text.splitlines()] for split, text in TEXT.items()}


@pytest.fixture(params=RAW_LAYOUTS)
def data_dir(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "data" / "wikitext-2"
    folder.mkdir(parents=True)
    for split, text in TEXT.items():
        (folder / request.param.format(split=split)).write_text(text, encoding="utf-8")
    return tmp_path / "data"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict:
    asked: dict = {}

    def load_dataset(path: str, name: str, *, revision: str) -> datasets.DatasetDict:
        asked.update(path=path, name=name, revision=revision)
        rows = {wikitext.HUB_SPLITS[split]: {"text": text.splitlines(keepends=True)} for split, text in TEXT.items()}
        return datasets.DatasetDict({split: datasets.Dataset.from_dict(columns) for split, columns in rows.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_local_folder_keeps_lines_and_the_unknown_word(tmp_path: Path, data_dir: Path) -> None:
    wikitext.main(["--data-dir", str(data_dir), "--out", str(tmp_path / "c"), "--any-size"])
    corpus = Corpus.load(tmp_path / "c")
    assert corpus.fingerprint == encode("x", LINES).fingerprint
    assert corpus.description["tokens"] == {split: sum(len(line) + 1 for line in LINES[split]) for split in SPLITS}
    assert corpus.vocabulary.count("<unk>") == 1 and corpus.description["unknown"]["train"] == 1
    assert (tmp_path / "c" / "run.json").is_file()


def test_the_environment_names_the_folder(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AP_DATA_DIR", str(data_dir))
    wikitext.main(["--out", str(tmp_path / "c"), "--any-size"])
    assert Corpus.load(tmp_path / "c").description["source"] == "local folder"


def test_the_hub_gives_the_same_corpus_at_a_pinned_revision(tmp_path: Path, hub: dict) -> None:
    corpus = wikitext.prepare(tmp_path / "c", "wikitext-2", any_size=True)
    assert corpus.fingerprint == encode("x", LINES).fingerprint
    assert hub == {"path": "Salesforce/wikitext", "name": "wikitext-2-v1", "revision": wikitext.HUB_REVISION}
    assert len(wikitext.HUB_REVISION) == 40 and wikitext.HUB_REVISION in corpus.description["source"]


@pytest.mark.parametrize(
    "error", [ConnectionError("no\nnetwork"), ValueError("no cache"), FileNotFoundError("no data")]
)
def test_an_unreachable_hub_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match="found: no .*--data-dir or AP_DATA_DIR") as caught:
        wikitext.prepare(tmp_path / "c", "wikitext-103")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_text_of_another_size_is_refused(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(InputError, match="wikitext-2: expected 2,088,628 tokens in train, found 12 "):
        wikitext.prepare(tmp_path / "c", "wikitext-2", data_dir=data_dir)
    assert not (tmp_path / "c").exists()


def test_the_size_check_looks_at_every_number(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = encode("x", LINES)
    tokens, symbols = corpus.description["tokens"], len(corpus.vocabulary)
    monkeypatch.setitem(wikitext.PUBLISHED_SIZES, "wikitext-2", (tokens, symbols))
    wikitext.check_sizes(corpus, "wikitext-2")
    wrong = [({**tokens, split: tokens[split] + 1}, symbols) for split in SPLITS] + [(tokens, symbols - 1)]
    for sizes in wrong:
        monkeypatch.setitem(wikitext.PUBLISHED_SIZES, "wikitext-2", sizes)
        with pytest.raises(InputError, match="wikitext-2: expected"):
            wikitext.check_sizes(corpus, "wikitext-2")


def test_missing_files_are_named_with_their_remedy(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(InputError, match="wikitext-103: expected a folder .*huggingface.co/datasets/Sales"):
        wikitext.prepare(tmp_path / "c", "wikitext-103", data_dir=data_dir)
    (train,) = (data_dir / "wikitext-2").glob("*train*")
    train.unlink()
    with pytest.raises(InputError, match=rf"{train.name}: expected this file .*\(wikitext-2-v1\)"):
        wikitext.prepare(tmp_path / "c", "wikitext-2", data_dir=data_dir)
    with pytest.raises(InputError, match="name must be one of wikitext-2, wikitext-103, found 'wikitext-3'"):
        wikitext.prepare(tmp_path / "c", "wikitext-3")
    assert not (tmp_path / "c").exists()

"""What pruning saves in language modelling: every mask has its row, its ceiling, and the quality of its own kind."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from attention_pruning import InputError
from reproduction.analysis.figures.language_model_efficiency import COLUMNS, main, tabulate
from reproduction.analysis.table import collect
from reproduction.runs.metrics import write_metrics


def setting(name: str, block: int | None, tau: float, skipped: float, inference: float, training: float) -> dict:
    seconds = {"inference": inference, "training": training}
    timed = {step: {"seconds": value, "peak_memory_bytes": 10**9} for step, value in seconds.items()}
    return {"name": name, "block_size": block, "tau": tau, "block_sparsity": skipped} | timed


SETTINGS = [
    setting("dense", None, 0.0, 0.0, 2.0, 6.0),
    setting("cells, tau 0.9", 1, 0.9, 0.6, 1.6, 5.0),
    setting("blocks of 16, tau 0.9", 16, 0.9, 0.8, 1.25, 4.5),
    setting("attention_removed", None, 0.0, 0.0, 1.0, 4.0),
]
MEASURED = {
    "shape": {"n_layer": 2, "d_model": 8, "n_head": 2, "d_head": 4, "n_token": 5000},
    "tgt_len": 64,
    "mem_len": 32,
    "batch_size": 10,
    "rounds": 5,
    "device": "Some Processor",
    "threads": 1,
    "torch": "2.0",
    "settings": SETTINGS,
    "contexts": [{"context": length, "batch_size": 1280 // length, "settings": SETTINGS} for length in (128, 256)],
}


def write_run(folder: Path, variant: str, tau: float, seed: int, perplexity: float) -> Path:
    labels = {"config": "quick", "experiment": "language_modelling", "dataset": "d", "variant": variant}
    labels |= {"sites": "self", "tau": tau, "seed": seed}
    labels |= {"rule": "published", "block_size": 16 if variant.startswith("block") else 1} if tau else {}
    path = folder / variant / f"{tau}" / f"{seed}" / "metrics.json"
    path.parent.mkdir(parents=True)
    shares = dict.fromkeys(("effective_sparsity", "evaluated_sparsity", "block_sparsity"), tau)
    metrics = {"test": {"perplexity": perplexity, "nll": 1.0}, "valid": {"perplexity": 1.0}}
    write_metrics(path, labels, metrics, **shares)
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    chosen = [("dense", 0.0, 1, 40.0), ("dense", 0.0, 2, 42.0), ("data", 0.9, 1, 44.0), ("block16", 0.9, 1, 50.0)]
    return [write_run(tmp_path, *run) for run in [*chosen, ("block16", 0.5, 1, 99.0), ("random", 0.9, 1, 98.0)]]


@pytest.fixture
def table(runs: list[Path]) -> pd.DataFrame:
    return tabulate(MEASURED, collect(runs))


def test_every_setting_has_its_speed_and_its_ceiling(table: pd.DataFrame) -> None:
    assert tuple(table.columns) == COLUMNS
    rows = table[(table["context"] == "64/32") & (table["step"] == "inference")].set_index("masks")
    assert list(rows.index) == ["none", "cells", "blocks of 16", "no attention"]
    assert rows["tokens_per_second"].tolist() == pytest.approx([640 / 2, 640 / 1.6, 640 / 1.25, 640])
    assert rows["speedup"].tolist() == pytest.approx([1, 1.25, 1.6, 2])
    assert rows["ceiling"].tolist()[:3] == pytest.approx([1, 2 / 1.4, 2 / 1.2])
    assert rows["ceiling"].isna().tolist() == [False, False, False, True]


def test_quality_is_that_of_models_trained_under_the_same_kind_of_mask(table: pd.DataFrame) -> None:
    rows = table[(table["context"] == "64/32") & (table["step"] == "training")].set_index("masks")
    # the seed that all of them have
    assert rows.loc["none", ["perplexity", "lowest", "highest", "seeds"]].tolist() == [40, 40, 40, 1]
    assert rows.loc["cells", "perplexity"] == 44
    assert rows.loc["blocks of 16", "perplexity"] == 50
    assert pd.isna(rows.loc["no attention", "perplexity"])
    assert table.loc[table["context"] != "64/32", "perplexity"].isna().all()  # timed only


def test_the_command_writes_table_numbers_and_picture(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "efficiency.json").write_text(json.dumps(MEASURED))
    out = tmp_path / "table.png"
    assert main(["--measured", str(tmp_path / "efficiency.json"), "--metrics", *map(str, runs), "--out", str(out)]) == 0
    with Image.open(out) as picture:
        picture.load()
        assert picture.size == (1800, 1480)
    assert len(pd.read_csv(out.with_suffix(".csv"))) == 3 * 2 * 4
    text = out.with_suffix(".md").read_text()
    assert "| blocks of 16 | 90 | 80.0 | 50.00 | 512 | 1.00 | 1.60 | 1.67 |" in text
    assert "| no attention |  |  |  | 640 | 1.00 | 2.00 |  |" in text
    assert "| 128/128 | 1.25 | 1.60 | 2.00 | 1.20 | 1.33 | 1.50 |" in text
    assert "Measured on Some Processor, 1 thread," in text


def test_a_model_without_other_contexts_has_one_row_of_panels(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "efficiency.json").write_text(json.dumps(MEASURED | {"contexts": []}))
    out = tmp_path / "table.png"
    main(["--measured", str(tmp_path / "efficiency.json"), "--metrics", *map(str, runs), "--out", str(out)])
    with Image.open(out) as picture:
        assert picture.size == (1800, 740)
    assert "other contexts" not in out.with_suffix(".md").read_text().partition("Measured")[0]


def test_other_files_are_refused_in_one_line(runs: list[Path], tmp_path: Path) -> None:
    file, rest = tmp_path / "efficiency.json", ["--metrics", str(runs[0]), "--out", str(tmp_path / "table.png")]
    broken = copy.deepcopy(MEASURED)
    broken["contexts"][1]["settings"] = broken["contexts"][1]["settings"][:-1]
    for content, message in (
        ("{", "expected JSON, found something else"),
        (json.dumps({}), "expected the measurements of a language model, found no shape"),
        (json.dumps(broken), "expected a setting attention_removed, found dense, cells, tau 0.9, blocks of 16"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=message) as refusal:
            main(["--measured", str(file), *rest])
        assert "\n" not in str(refusal.value)

"""The efficiency table: seconds, memory and ceiling of every share, quality where it is known, the published rows."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from attention_pruning import InputError
from reproduction.analysis.figures.efficiency import COLUMNS, ceiling, main, tabulate
from reproduction.analysis.paper import REFERENCE
from reproduction.analysis.table import collect
from reproduction.runs.metrics import write_metrics

#: Name -> tau, skipped blocks, seconds of inference and of training.
TIMED = {
    "dense": (0.0, 0.0, 2.0, 6.0),
    "tau 0.9": (0.9, 0.8, 1.25, 5.0),
    "tau 0.5": (0.5, 0.5, 1.5, 5.5),
    "attention_removed": (0.0, 0.0, 1.0, 4.0),
}
MEASURED = {
    "device": "Some Processor",
    "threads": 1,
    "torch": "2.0",
    "model_name_or_path": "minilm",
    "max_seq_length": 384,
    "batch_size": 8,
    "block_size": 32,
    "rounds": 5,
    "settings": [
        {
            "name": name,
            "tau": tau,
            "block_sparsity": skipped,
            "inference": {"seconds": inference, "peak_memory_bytes": 10**9},
            "training": {"seconds": training, "peak_memory_bytes": 2 * 10**9},
        }
        for name, (tau, skipped, inference, training) in TIMED.items()
    ],
}


def write_run(folder: Path, variant: str, tau: float, seed: int, f1: float) -> Path:
    labels = {"config": "quick", "experiment": "squad", "dataset": "d", "variant": variant, "sites": "self"}
    labels |= {"tau": tau, "seed": seed} | ({"rule": "published", "block_size": 32} if tau else {})
    path = folder / variant / f"{tau}" / f"{seed}" / "metrics.json"
    path.parent.mkdir(parents=True)
    shares = dict.fromkeys(("effective_sparsity", "evaluated_sparsity", "block_sparsity"), tau)
    write_metrics(path, labels, {"validation": {"exact_match": f1 - 10, "f1": f1, "seconds": 3.0}}, **shares)
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    chosen = [("dense", 0.0, 1, 80.0), ("dense", 0.0, 2, 82.0), ("block", 0.9, 1, 70.0), ("data", 0.5, 1, 60.0)]
    return [write_run(tmp_path, *run) for run in chosen]


@pytest.fixture
def table(runs: list[Path]) -> pd.DataFrame:
    return tabulate(MEASURED, collect(runs), pd.read_csv(REFERENCE))


def test_the_ceiling_is_amdahls_law() -> None:
    assert ceiling(2.0, 1.0, 0.0) == 1.0
    assert ceiling(2.0, 1.0, 1.0) == 2.0  # all of attention gone: the model without it
    assert ceiling(2.0, 1.0, 0.5) == pytest.approx(2 / 1.5)


def test_every_share_has_its_row_in_both_steps(table: pd.DataFrame) -> None:
    assert tuple(table.columns) == COLUMNS
    ours = table[table["source"] == "measured"]
    assert ours.groupby("step")["percentage"].apply(list).to_dict() == {
        "inference": [0, 50, 90],
        "training": [0, 50, 90],
    }
    assert ours["speedup"].tolist() == pytest.approx([1, 2 / 1.5, 2 / 1.25, 1, 6 / 5.5, 6 / 5])
    assert ours["ceiling"].tolist() == pytest.approx([1, 2 / 1.5, 2 / 1.2, 1, 6 / 5, 6 / 4.4])
    assert ours["of_ceiling"].tolist() == pytest.approx((ours["speedup"] / ours["ceiling"]).tolist())
    assert ours["memory_gb"].tolist() == [1.0] * 3 + [2.0] * 3


def test_quality_is_of_dense_and_block_runs_alone(table: pd.DataFrame) -> None:
    rows = table[(table["source"] == "measured") & (table["step"] == "inference")].set_index("percentage")
    assert rows.loc[0, ["exact_match", "f1", "seeds"]].tolist() == [70.0, 80.0, 1]  # the seed that the blocks have
    assert rows.loc[90, ["exact_match", "f1", "seeds"]].tolist() == [60.0, 70.0, 1]
    assert rows.loc[50, ["exact_match", "f1", "seeds"]].isna().all()  # cells were pruned there, not blocks


def test_the_published_rows_are_those_of_the_readme(table: pd.DataFrame) -> None:
    rows = table[table["source"] == "published"].set_index("percentage")
    names = ["exact_match", "f1", "seconds", "memory_gb"]
    assert rows.loc[0, names].tolist() == [81.02, 88.63, 95.41, 6.85]
    assert rows.loc[90, names].tolist() == [79.62, 87.32, 86.44, 5.00]
    assert rows.loc[90, "speedup"] == pytest.approx(95.41 / 86.44)


def test_the_command_writes_table_numbers_and_picture(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "efficiency.json").write_text(json.dumps(MEASURED))
    out = tmp_path / "table.png"
    assert main(["--measured", str(tmp_path / "efficiency.json"), "--metrics", *map(str, runs), "--out", str(out)]) == 0
    with Image.open(out) as picture:
        picture.load()
        assert picture.size == (1800, 760)
    assert len(pd.read_csv(out.with_suffix(".csv"))) == 8
    text = out.with_suffix(".md").read_text()
    assert "| 90, published |  | 79.62/87.32 | 86.44 | 5.00 | 1.10 |  |  |" in text
    assert "| 90 | 80.0 | 60.00/70.00 | 1.250 | 1.00 | 1.60 | 1.67 | 96.0 |" in text
    assert "| 50 | 50.0 |  | 5.500 | 2.00 | 1.09 | 1.20 | 90.9 |" in text
    assert "Measured on Some Processor, 1 thread," in text and "8 windows of 384 tokens" in text


def test_other_files_are_refused_in_one_line(runs: list[Path], tmp_path: Path) -> None:
    file, rest = tmp_path / "efficiency.json", ["--metrics", str(runs[0]), "--out", str(tmp_path / "table.png")]
    broken = copy.deepcopy(MEASURED)
    broken["settings"].pop()
    for content, message in (
        (None, "found no such file"),
        ("{", "expected JSON, found something else"),
        ("[]", "expected the measurements of efficiency, found no device"),
        (json.dumps(broken), "expected a setting attention_removed, found dense, tau 0.9, tau 0.5"),
    ):
        if content is not None:
            file.write_text(content)
        with pytest.raises(InputError, match=message) as refusal:
            main(["--measured", str(file), *rest])
        assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="expected a .png file"):
        main(["--measured", str(file), *rest[:-1], "table.svg"])

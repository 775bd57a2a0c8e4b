"""metrics.csv: complete, tidy, exact, and strict about what it is made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import InputError
from reproduction.analysis.table import COLUMNS, collect, main, read_csv, read_run, write_csv
from reproduction.runs.metrics import LABELS, SPARSITIES


def run(**changes: Any) -> dict[str, Any]:
    """The metrics of a data-informed model, with changes."""
    labels = {
        "config": "quick",
        "experiment": "language_modelling",
        "dataset": "bible-bbe",
        "variant": "data",
        "sites": "self",
        "rule": "published",
        "scope": "head",
        "block_size": 1,
        "tau": 0.8,
        "seed": 1,
    }
    sparsities = {"effective_sparsity": 0.73, "evaluated_sparsity": 0.6, "block_sparsity": 0.0}
    metrics = {split: {"perplexity": 60.25, "nll": 4.1, "tokens": 70_000} for split in ("valid", "test")}
    return {**labels, **sparsities, "metrics": metrics, **changes}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


OF_MASKS = ("rule", "scope", "block_size")
DENSE = {"variant": "dense", "tau": 0, **dict.fromkeys(OF_MASKS), **dict.fromkeys(SPARSITIES, 0.0)}
COUNTED = {"variant": "kneser-ney", **dict.fromkeys((*SPARSITIES, *OF_MASKS, "sites", "tau", "seed"))}


def test_the_columns_are_those_of_the_architecture() -> None:
    assert ",".join(COLUMNS) == (
        "config,experiment,dataset,split,variant,sites,rule,scope,block_size,tau,effective_sparsity,evaluated_sparsity,"
        "block_sparsity,seed,metric,value"
    )
    assert set(COLUMNS) == {*LABELS, *SPARSITIES, "split", "metric", "value"}


@pytest.mark.parametrize("changes", [{}, DENSE, COUNTED], ids=["data", "dense", "counted"])
def test_every_value_is_a_row_with_the_labels_of_its_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    content = run(**changes)
    rows = read_run(write(tmp_path / "metrics.json", content))
    assert {(row["split"], row["metric"]): row["value"] for row in rows} == {
        (split, metric): value for split, metrics in content["metrics"].items() for metric, value in metrics.items()
    }
    for row in rows:
        assert set(row) == set(COLUMNS)
        assert all(row[name] == content[name] for name in (*LABELS, *SPARSITIES))


def test_a_further_evaluation_is_a_metric_of_its_own(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, run(**DENSE)) for name in ("metrics.json", "metrics@64-640.json")]
    table = collect(paths)
    assert set(table["metric"]) == {
        name + evaluation for name in ("perplexity", "nll", "tokens") for evaluation in ("", "@64-640")
    }


@pytest.mark.parametrize(("changes", "scope"), [({}, "layer"), (DENSE, None), (COUNTED, None)])
def test_masks_of_metrics_without_a_scope_were_made_by_layer(tmp_path: Path, changes: Any, scope: str | None) -> None:
    content = run(**changes)
    for name, without in (("null", {"scope": None}), ("none", {})):
        old = {key: value for key, value in content.items() if key != "scope"} | without
        rows = read_run(write(tmp_path / name / "metrics.json", old))
        assert {row["scope"] for row in rows} == {scope}
    table = collect([tmp_path / "none" / "metrics.json"])
    table.drop(columns="scope").to_csv(tmp_path / "old.csv", index=False)
    found = read_csv(tmp_path / "old.csv")
    assert tuple(found.columns) == COLUMNS and found["value"].tolist() == table["value"].tolist()
    assert found["scope"].dropna().tolist() == ([] if scope is None else [scope] * len(table))


def test_the_same_model_with_another_scope_is_another_run(tmp_path: Path) -> None:
    paths = [write(tmp_path / scope / "metrics.json", run(scope=scope)) for scope in ("head", "row")]
    assert set(collect(paths)["scope"]) == {"head", "row"}


@pytest.mark.parametrize("field", ["metrics", *(name for name in LABELS if name != "scope"), *SPARSITIES])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    content = run()
    del content[field]
    path = write(tmp_path / "metrics.json", content)
    with pytest.raises(InputError, match=f"{path}: expected the field '{field}', found none"):
        read_run(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speed": 1}, "found 'speed' too"),
        ({"variant": "sparse"}, "variant: expected one of .*, found 'sparse'"),
        ({"experiment": "poetry"}, "experiment: expected one of .*, found 'poetry'"),
        ({"rule": None}, "rule: expected str for variant 'data', found None"),
        ({"scope": "column"}, "scope: expected one of layer, head, row, model, found 'column'"),
        ({"block_size": None}, "block_size: expected int for variant 'data', found None"),
        ({"seed": None}, "seed: expected int for variant 'data', found None"),
        ({"seed": "1"}, "seed: expected int .*, found '1'"),
        ({"seed": True}, "seed: expected int .*, found True"),
        ({"tau": 80}, r"tau: expected a fraction in \[0, 1\], found 80"),
        ({"effective_sparsity": 73.0}, r"effective_sparsity: expected a fraction in \[0, 1\], found 73.0"),
        ({**DENSE, "effective_sparsity": None}, "effective_sparsity: expected number for variant 'dense', found None"),
        ({"metrics": {}}, "metrics: expected at least one entry, found {}"),
        ({"metrics": {"test": {}}}, "metrics.test: expected at least one entry"),
        ({"metrics": {"test": {"perplexity": None}}}, "metrics.test.perplexity: expected a finite number, found None"),
        ({"metrics": {"test": {"perplexity": float("nan")}}}, "metrics.test.perplexity: .*, found nan"),
        ({"metrics": {"test": {"perplexity": "60"}}}, "metrics.test.perplexity: .*, found '60'"),
    ],
)
def test_a_field_without_sense_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "metrics.json", run(**changes))
    with pytest.raises(InputError, match=f"{path}: .*{message}"):
        read_run(path)


@pytest.mark.parametrize(("text", "message"), [("{", "expected JSON"), ("[]", "found list"), ("", "expected JSON")])
def test_a_file_that_is_no_metrics_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_run(write(tmp_path / "metrics.json", text))


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name / "metrics.json", run()) for name in "ab")
    with pytest.raises(InputError, match=f"{second}: .* found those of {first} again"):
        collect([first, second])


def test_a_run_of_another_configuration_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.json", run(config="small"))
    with pytest.raises(InputError, match="expected a run of configuration 'quick', found one of 'small'"):
        collect([path], "quick")


def several(folder: Path) -> list[Path]:
    contents = [run(seed=seed, tau=tau) for seed in (2, 1) for tau in (0.9, 0.2)]
    contents += [run(**DENSE, seed=1) for _ in range(1)] + [run(**COUNTED)]
    return [write(folder / str(number) / "metrics.json", content) for number, content in enumerate(contents)]


def test_the_order_of_the_runs_does_not_matter(tmp_path: Path) -> None:
    paths = several(tmp_path)
    pd.testing.assert_frame_equal(collect(paths), collect(paths[::-1]))


@settings(deadline=None, max_examples=50)
@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1))
def test_numbers_are_read_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, value: float, share: float
) -> None:
    folder = tmp_path_factory.mktemp("numbers")
    content = run(metrics={"test": {"perplexity": value}}, effective_sparsity=share)
    write_csv(collect([write(folder / "metrics.json", content)]), folder / "metrics.csv")
    table = read_csv(folder / "metrics.csv")
    assert table["value"].tolist() == [value]
    assert table["effective_sparsity"].tolist() == [share]


def test_writing_and_reading_is_the_identity(tmp_path: Path) -> None:
    table = collect(several(tmp_path))
    write_csv(table, tmp_path / "metrics.csv")
    pd.testing.assert_frame_equal(read_csv(tmp_path / "metrics.csv"), table, check_dtype=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a table of metrics, found something else"),
        ("a,b\n1,2\n", "expected the columns config,.*, found a,b"),
        (",".join(COLUMNS) + "\n", "found no row"),
        (",".join(COLUMNS) + "\n" + ",".join(["x"] * len(COLUMNS)) + "\n", "found something else"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "metrics.csv", text)
    with pytest.raises(InputError, match=f"{path}: .*{message}"):
        read_csv(path)


def test_the_command_finds_runs_in_a_folder_or_takes_them_by_name(tmp_path: Path) -> None:
    paths = several(tmp_path / "runs")
    by_folder, by_name = tmp_path / "a" / "metrics.csv", tmp_path / "b" / "metrics.csv"
    assert main(["--runs", str(tmp_path / "runs"), "--out", str(by_folder), "--config-name", "quick"]) == 0
    assert main([*map(str, paths), "--out", str(by_name)]) == 0
    assert by_folder.read_bytes() == by_name.read_bytes()


def test_the_command_writes_nothing_if_a_run_is_refused(tmp_path: Path) -> None:
    several(tmp_path / "runs")
    write(tmp_path / "runs" / "bad" / "metrics.json", "{")
    with pytest.raises(InputError):
        main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "metrics.csv")])
    with pytest.raises(InputError, match="found none"):
        main(["--out", str(tmp_path / "metrics.csv")])
    with pytest.raises(InputError, match="found none"):
        main(["--runs", str(tmp_path / "nothing"), "--out", str(tmp_path / "metrics.csv")])
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]

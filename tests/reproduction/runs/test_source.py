"""Which source made a run: recorded by each, and said where it is not what stands here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attention_pruning import InputError
from reproduction.runs import source
from reproduction.runs.record import RunRecord
from reproduction.runs.source import loaded_source, main, other_source

ROOT = Path(__file__).parents[3]


def record(path: Path, code: dict[str, str] | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"script": "x.py"} | ({} if code is None else {"code": code})))


def test_a_record_has_what_was_loaded_and_nothing_else(tmp_path: Path) -> None:
    RunRecord("x.py", {}).write(tmp_path / "run.json")
    code = json.loads((tmp_path / "run.json").read_text())["code"]
    assert code == loaded_source()
    assert {
        "attention_pruning/mask.py",
        "reproduction/runs/record.py",
        "attention_pruning/ops/cpu/csrc/kernel.cpp",
    } <= set(code)
    assert not [name for name in code if name.startswith(("tests/", ".venv", "attention_pruning/cli"))]
    assert all(len(found) == 8 for found in code.values())


def test_runs_of_this_source_are_not_worth_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "a/run.json", loaded_source())
    assert other_source(tmp_path) == other_source(tmp_path / "none") == ""
    assert main(["--runs", str(tmp_path)]) == 0 and capsys.readouterr().out == ""


def test_other_source_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = loaded_source()
    names = sorted(code)[:5]
    record(tmp_path / "a/run.json", code)
    record(tmp_path / "b/metrics.run.json", code | dict.fromkeys(names[:1], "00000000"))
    record(tmp_path / "c/run.json", {"transformer-xl/gone.py": "12345678"})
    expected = f"2 of 3 runs ({names[0]}, transformer-xl/gone.py changed since)."
    assert other_source(tmp_path) == f"Made by another version of the source code than this repository's: {expected}"
    record(tmp_path / "c/run.json", code | dict.fromkeys(names, "00000000"))
    assert f"({', '.join(names[:3])}, 2 more changed since)" in other_source(tmp_path)
    main(["--runs", str(tmp_path)])
    assert "`make figure FRESH=1` makes all of them again" in capsys.readouterr().out
    record(tmp_path / "c/run.json", code)
    record(tmp_path / "b/metrics.run.json", None)
    assert "1 of 3 runs (of a version that did not record it)." in other_source(tmp_path)


def test_a_record_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(InputError, match="run.json: expected a run's record"):
        other_source(tmp_path)


@pytest.mark.slow
def test_a_changed_file_counts_wherever_it_was_loaded(tmp_path: Path) -> None:
    """In a copy of the repository, with one of its files edited after the run."""
    for part in ("attention_pruning", "reproduction"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    program = (
        "import json; from reproduction.runs.source import loaded_source; import reproduction.data.language.corpus\n"
        "json.dump({'code': loaded_source()}, open('runs/run.json', 'w'))"
    )
    (tmp_path / "runs").mkdir()

    def run(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    run("-c", program)
    assert run("-m", "reproduction.runs.source", "--runs", "runs") == ""
    for name, counts in (("data/language/corpus.py", True), ("analysis/table.py", False)):
        file = tmp_path / "reproduction" / name
        before = file.read_text()
        file.write_text(before + "\n# changed\n")
        found = run("-m", "reproduction.runs.source", "--runs", "runs")
        assert ("1 of 1 runs (reproduction/data/language/corpus.py changed since)" in found) == counts
        file.write_text(before)


def test_the_caption_says_so_and_the_figure_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from matplotlib.figure import Figure

    from reproduction.analysis.figures.style import save_with_caption

    record(tmp_path / "runs/run.json", {"reproduction/gone.py": "12345678"})
    save_with_caption(Figure(), "A caption.\n", tmp_path / "f.png", tmp_path / "runs")
    remark = other_source(tmp_path / "runs")
    assert (tmp_path / "f.md").read_text() == f"A caption.\n\n{remark}\n" and remark in capsys.readouterr().out
    record(tmp_path / "runs/run.json", loaded_source())
    save_with_caption(Figure(), "A caption.\n", tmp_path / "f.png", tmp_path / "runs")
    assert (tmp_path / "f.md").read_text() == "A caption.\n"


def test_hashes_are_of_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "reproduction").mkdir()
    (tmp_path / "reproduction/a.py").write_bytes(b"x = 1\n")
    monkeypatch.setattr(source, "ROOTS", (tmp_path,))
    source._hash.cache_clear()
    try:
        assert source._hash("reproduction/a.py") == "9e26bf36"
        assert source._hash("reproduction/b.py") == "none"
    finally:
        source._hash.cache_clear()

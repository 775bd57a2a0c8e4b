"""Every notebook runs from its first cell to its last, and is kept as a reader should find it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import nbformat
import pytest

from warm_python import python

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: Runs the cells of a notebook in order and in one namespace, without a Jupyter kernel, which is no need of ours.
RUNNER = """
import json, sys
namespace = {"__name__": "__main__"}
for number, cell in enumerate(json.loads(open(sys.argv[1], encoding="utf-8").read())["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
"""


def run(notebook: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """In an empty folder and without a connection."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1"}
    command = [python(), "-c", RUNNER, notebook]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_there_are_two() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == ["look_at_a_pattern", "prune_any_model"]


def test_a_cell_that_fails_is_a_failure(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell("found = 1"), nbformat.v4.new_code_cell("assert found == 2")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "wrong.ipynb")
    found = run(tmp_path / "wrong.ipynb", tmp_path)
    assert found.returncode != 0 and "cell 1" in found.stderr and "AssertionError" in found.stderr


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_is_kept_without_outputs_and_says_what_each_cell_does(notebook: Path) -> None:
    found = nbformat.read(notebook, as_version=4)
    nbformat.validate(found)
    assert found.cells[0].cell_type == "markdown" and found.cells[0].source.startswith("# ")
    for before, cell in zip(found.cells, found.cells[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown", cell.source
            assert cell.outputs == [] and cell.execution_count is None
    assert json.loads(notebook.read_text())["nbformat"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_runs_and_leaves_nothing_behind(notebook: Path, tmp_path: Path) -> None:
    found = run(notebook, tmp_path)
    assert found.returncode == 0, found.stderr
    assert "nan" not in found.stdout and found.stdout
    assert list(tmp_path.iterdir()) == []

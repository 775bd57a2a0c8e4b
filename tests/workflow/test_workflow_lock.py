"""A run of the workflow that is killed locks nobody out, and one that works is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = Path(".snakemake") / "locks"
_WORKS = "import runpy, sys; runpy.run_path(sys.argv[1]); print('works', flush=True); input()"


def start(folder: Path) -> subprocess.Popen:
    """A process that does what the Snakefile does first, and goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKS, ROOT / "rules" / "lock.smk"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    assert process.stdout.readline() == "works\n"
    return process


def locked(folder: Path) -> Path:
    lock = folder / LOCKS / "0.input.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    return lock


def test_what_a_killed_run_has_locked_is_free_and_what_a_living_one_has_is_not(tmp_path):
    with start(tmp_path) as works:
        lock = locked(tmp_path)
        with start(tmp_path) as second:
            assert lock.exists()
            works.kill()
            works.wait()
            with start(tmp_path) as third:  # the second still works
                assert lock.exists()
                third.kill()
            second.kill()
    with start(tmp_path) as after:
        assert not lock.exists() and lock.parent.exists()
        after.kill()


def test_a_folder_that_cannot_be_written_to_is_left_to_snakemake(tmp_path):
    (tmp_path / ".snakemake").touch()
    with start(tmp_path) as works:
        works.kill()


@pytest.mark.slow
def test_the_workflow_starts_where_one_was_killed(tmp_path):
    """Locks of all that it makes and reads, as Snakemake leaves them."""
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path]
    snakemake += ["--configfile", ROOT / "config" / "smoke.yaml", "--cores", "1", "language_modelling"]
    lock = locked(tmp_path)
    lock.with_name("0.output.lock").write_text("results/smoke/language_modelling.csv\n")
    done = subprocess.run(
        [*map(str, snakemake), "--until", "corpus"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0 and "cannot be locked" not in done.stderr, done.stderr

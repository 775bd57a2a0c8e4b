"""What `python -m build` makes of the library: a source distribution, and from it a wheel that works once installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "attention_pruning"
CSRC = "attention_pruning/ops/cpu/csrc"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
#: What the build front end calls, in the folder of the sources and with the environment's setuptools.
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
COMPILER = shutil.which("c++") or shutil.which("g++")


def build(what: str, sources: Path, out: Path, **environment: str) -> Path:
    """The one file that a build leaves in a new or empty folder."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, f"build_{what}", str(out)]
    done = subprocess.run(command, cwd=sources, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = out.iterdir()
    return found


def files_of_the_library() -> set[str]:
    """Its files as the repository has them: neither caches nor compiled kernels."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in LIBRARY.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: a build leaves folders of its own beside the sources."""
    sources = tmp_path_factory.mktemp("sources")
    for name in ("attention_pruning", "reproduction"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy2(file, sources)
    (sources / "tests").mkdir()
    shutil.copy2(ROOT / "tests" / "conftest.py", sources / "tests")
    return sources


@pytest.fixture(scope="module")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", sources, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the unpacked source distribution alone; the kernel without optimisation, in a fraction of the time."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    compiler = folder / "quick-compiler"
    compiler.write_text(f'#!/bin/sh\nexec {COMPILER or "false"} "$@" -O0\n')
    compiler.chmod(0o755)
    return build("wheel", folder / f"attention_pruning-{VERSION}", folder / "dist", CXX=str(compiler))


def test_the_source_distribution_is_the_library_and_what_compiles_its_kernel(sdist: Path) -> None:
    assert sdist.name == f"attention_pruning-{VERSION}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    expected = files_of_the_library()
    assert {f"{CSRC}/kernel.cpp", f"{CSRC}/problem.h"} <= expected <= names
    beside = {name for name in names - expected if not name.startswith("attention_pruning.egg-info/")}
    assert beside == {
        *("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in"),
        *("PKG-INFO", "pyproject.toml", "setup.cfg", "setup.py"),
    }


def test_an_editable_installation_finds_the_experiments_too(sources: Path, tmp_path: Path) -> None:
    """The whole repository is on Python's path, as scripts that are run by hand need it; no compiler is needed."""
    wheel = zipfile.ZipFile(build("editable", sources, tmp_path / "dist", CXX="false"))
    (path,) = (wheel.read(name).decode().strip() for name in wheel.namelist() if name.endswith(".pth"))
    assert Path(path) == sources and (Path(path) / "reproduction" / "__init__.py").is_file()


@pytest.mark.slow
def test_the_wheel_is_the_library_alone(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    kernels = {name for name in names if name.endswith((".so", ".pyd"))}
    information = {name for name in names if name.startswith(f"attention_pruning-{VERSION}.dist-info/")}
    assert f"attention_pruning-{VERSION}.dist-info/licenses/LICENSE" in information
    assert names - kernels - information == {name for name in files_of_the_library() if not name.startswith(CSRC)}
    assert all(name.startswith("attention_pruning/ops/cpu/_block_sparse_") for name in kernels)
    assert bool(kernels) == bool(COMPILER)


@pytest.mark.slow
def test_the_wheel_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    """Its dependencies are the environment's, all else comes from the wheel."""
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", target, wheel], check=True)
    program = Path(__file__).with_name("installed_library.py")
    environment = os.environ | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, program, *(["--kernel"] if COMPILER else [])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["folder"] == str(target / "attention_pruning") and found["version"] == VERSION
    assert bool(found["builds"]) == bool(COMPILER)
    command = [target / "bin" / "attention-pruning", "--help"]
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0 and "usage: attention-pruning" in shown.stdout
    assert {path.name for path in target.iterdir() if "dist-info" not in path.name} == {"attention_pruning", "bin"}

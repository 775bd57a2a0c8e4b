"""The two commands: what they check, when they install, and what exactly is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PINS = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What make needs to know of a checkout, with nothing installed."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "config", tmp_path / "config")
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # What an outer make hands down would change what this one does.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "-C", folder, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def install(folder: Path) -> None:
    """Pretend that the environment stands."""
    stamp = folder / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()


def python_that(folder: Path, beginning: str) -> Path:
    """An interpreter that runs a line of its own before what it is told to."""
    program = folder / "python-of-old"
    program.write_text(f"""#!/bin/sh\nexec "{sys.executable}" -c "{beginning}\n$2"\n""")
    program.chmod(0o755)
    return program


def test_help_names_the_commands_and_configurations(checkout: Path) -> None:
    found = make(checkout)
    assert found.returncode == 0
    for command in ("install", "figure", "report", "test", "test-fast", "lint", "docs", "clean"):
        assert f"make {command} " in found.stdout
    for word in ("smoke", "quick", "small", "paper"):
        assert word in found.stdout
    assert "schema" not in found.stdout


def test_a_missing_python_is_named_with_the_way_to_get_it(checkout: Path) -> None:
    found = make(checkout, "figure", "PYTHON=python-that-is-not-there")
    assert found.returncode != 0
    assert "error: python-that-is-not-there was not found; Python 3.11 or newer is needed" in found.stderr
    assert not (checkout / ".venv").exists()


def test_an_old_python_is_refused(checkout: Path) -> None:
    old = python_that(checkout, "import sys; sys.version_info = (3, 10, 4)")
    found = make(checkout, "figure", f"PYTHON={old}")
    assert found.returncode != 0
    assert "error: Python 3.11 or newer is needed" in found.stderr
    assert "is 3.10.4" in found.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_without_venv_is_refused(checkout: Path) -> None:
    bare = python_that(checkout, "import sys; sys.modules['ensurepip'] = None")
    found = make(checkout, "test", f"PYTHON={bare}")
    assert found.returncode != 0
    assert "error: Python's venv module is missing" in found.stderr
    assert "apt-get install python3-venv" in found.stderr


@pytest.mark.parametrize("compiles", [True, False])
def test_without_a_compiler_all_but_fairseq_is_installed_and_said(checkout: Path, compiles: bool) -> None:
    tools, told = checkout / "tools", checkout / "told.txt"
    tools.mkdir()
    for name in ("sh", "make", "nproc", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    if compiles:
        (tools / "g++").symlink_to("sh")
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!{tools}/sh\nif [ "$1" = -m ]; then echo "$@" >>"{told}"; fi\n')
    python.chmod(0o755)
    for _ in range(2):  # said again, until there is a compiler
        told.write_text("")
        found = make(checkout, "install", f"PATH={tools}", f"PYTHON={python}")
        assert found.returncode == 0, found.stderr
        installed = told.read_text()
        if compiles:
            break
        assert "warning: no C++ compiler was found: fairseq, which translation needs" in found.stderr
        assert "apt-get install g++" in found.stderr and len(found.stderr.splitlines()) == 1
    assert "-r requirements.lock" in installed and "-e ." in installed
    assert ("fairseq==0.12.2" in installed) == compiles == (checkout / ".venv" / ".installed").exists()


def test_an_unknown_configuration_is_named(checkout: Path) -> None:
    install(checkout)
    found = make(checkout, "figure", "CONFIG=huge")
    assert found.returncode != 0
    assert "error: CONFIG=huge: there is no config/huge.yaml" in found.stderr


def test_it_installs_once_and_again_only_when_the_pins_change(checkout: Path) -> None:
    assert "pip install" in make(checkout, "--dry-run", "figure").stdout
    install(checkout)
    assert "pip install" not in make(checkout, "--dry-run", "figure").stdout
    for name in ("requirements.lock", "pyproject.toml"):
        stamp = checkout / ".venv" / ".installed"
        later = stamp.stat().st_mtime + 10
        os.utime(checkout / name, (later, later))
        assert "pip install" in make(checkout, "--dry-run", "figure").stdout
        os.utime(stamp, (later, later))


@pytest.mark.parametrize("command", ["figure", "report", "test", "test-fast"])
def test_a_command_runs_what_it_promises(checkout: Path, command: str) -> None:
    install(checkout)
    found = make(checkout, "--dry-run", command, "CONFIG=smoke", "CORES=3").stdout
    if command == "figure":
        assert "snakemake figure --cores 3 --configfile config/smoke.yaml" in found
    elif command == "report":
        made = "snakemake shown --cores 3 --configfile config/smoke.yaml --allowed-rules shown configuration"
        shown = "snakemake shown --configfile config/smoke.yaml --report results/report.html"
        assert -1 < found.find(made) < found.find(shown)
    elif command == "test-fast":
        assert "-m pytest" in found and '-m "not slow"' in found and "--lint" not in found
    else:
        assert all(tool in found for tool in ("ruff check", "snakefmt --check", "snakemake --lint", "-m pytest"))


def test_the_site_has_an_environment_of_its_own_with_the_pins_of_its_extra(checkout: Path) -> None:
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"]
    found = make(checkout, "--dry-run", "docs").stdout
    assert "mkdocs build --strict" in found and ".venv-docs/bin/python -m pip install" in found
    program = (ROOT / "Makefile").read_text().split("define DOCS_PINS\n")[1].split("\nendef")[0]
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout.split() == pins


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("command", ["figure", "report"])
def test_a_configuration_that_is_not_there_is_refused_before_an_installation(checkout: Path, command: str) -> None:
    found = make(checkout, command, "CONFIG=typo")
    assert found.returncode != 0 and "error: CONFIG=typo: there is no config/typo.yaml" in found.stderr
    assert not (checkout / ".venv").exists()


def test_a_report_of_nothing_is_refused(checkout: Path) -> None:
    install(checkout)
    found = make(checkout, "report")
    assert found.returncode != 0
    assert (
        "error: results/quick/metrics.csv: expected what make figure CONFIG=quick leaves, found nothing" in found.stderr
    )


def test_a_report_only_draws() -> None:
    """No rule that make report allows runs a model."""
    text = (ROOT / "Makefile").read_text()
    allowed = set(text.split("DRAWING :=")[1].split("\n\n")[0].replace("\\", " ").split())
    rules = "\n".join(path.read_text() for path in [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")])
    found = {match[1]: match[2] for match in re.finditer(r"(?ms)^rule (\w+):\n(.*?)(?=^\S|\Z)", rules)}
    (drawing,) = re.findall(r"(?ms)^for name,[^\n]+ in DRAWN\.items\(\):\n(.*?)(?=^\S|\Z)", rules)
    names = re.findall(r'(?m)^    "(\w+)": \(', rules.partition("\nDRAWN = {")[2])
    found |= {f"draw_{name}": drawing for name in names}
    assert allowed <= found.keys()
    for name in allowed - {"shown"}:
        assert 'runtime=job_runtime("small")' in found[name], name


def other_python(folder: Path, version: tuple[int, int]) -> Path:
    program = folder / "other-python"
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)
    return program


def test_another_python_than_the_environments_is_refused(checkout: Path) -> None:
    install(checkout)
    own = checkout / ".venv" / "bin" / "python"
    own.parent.mkdir()
    own.symlink_to(sys.executable)
    same, other = (other_python(checkout, (sys.version_info[0], sys.version_info[1] + more)) for more in (0, 1))
    found = make(checkout, "same-python", f"PYTHON={other}")
    assert found.returncode != 0 and "error: PYTHON: expected that of the environment, which Python 3." in found.stderr
    assert "same-python" not in make(checkout, "--dry-run", "lint").stdout
    other_python(checkout, sys.version_info[:2])
    assert make(checkout, "same-python", f"PYTHON={same}").returncode == 0


def test_fresh_keeps_what_was_run_under_another_name(checkout: Path) -> None:
    for folder in ("runs/quick", "results/quick", "runs/small"):
        (checkout / folder).mkdir(parents=True)
    (checkout / "runs/quick/run.json").write_text("{}")
    assert "set-aside" in (ROOT / "Makefile").read_text()
    found = make(checkout, "set-aside")
    assert found.returncode == 0 and found.stdout.count("FRESH: ") == 2
    assert not (checkout / "runs/quick").exists() and (checkout / "runs/small").exists()
    assert len(list(checkout.glob("runs/quick.before-*/run.json"))) == 1
    install(checkout)
    assert "before-" in make(checkout, "--dry-run", "figure", "FRESH=1").stdout
    assert "before-" not in make(checkout, "--dry-run", "figure").stdout


def test_clean_removes_one_configurations_work_and_no_reference(checkout: Path) -> None:
    kept = [checkout / "runs/small/a", checkout / "results/small/b", checkout / "results/reference/c"]
    gone = [checkout / "runs/quick/a", checkout / "results/quick/b", checkout / "results/ap_figure.png"]
    gone.append(checkout / "results/report.html")
    for file in kept + gone:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    refused = make(checkout, "clean")
    assert refused.returncode != 0 and "expected y, or SURE=1 on the command line" in refused.stderr
    assert all(file.exists() for file in kept + gone)
    assert make(checkout, "clean", "SURE=1").returncode == 0
    assert all(file.exists() for file in kept)
    assert not any(file.exists() for file in gone)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_pin_is_exact() -> None:
    assert len(PINS) > 50
    for pin in PINS:
        # A local version such as 2.13.0+cpu exists on some indexes only.
        exact, _, condition = pin.partition(" ; ")
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", exact), pin
        assert bool(condition) == pin.startswith("triton="), pin  # which there is on Linux alone


def test_every_direct_need_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = dict(project["optional-dependencies"])
    # The site has an environment of its own: its extra is its lock.
    assert all(re.fullmatch(r"[a-z-]+==[0-9.]+", need) for need in extras.pop("docs"))
    needs = [*project["dependencies"], *(need for extra in extras.values() for need in extra)]
    names = {normal(re.split(r"[<>=!~ ]", need)[0]) for need in needs}
    assert names <= {normal(pin.partition("==")[0]) for pin in PINS}


DEPLOY = ROOT / "envs" / "environment.post-deploy.sh"


def test_fairseq_is_installed_without_its_bounds_at_the_version_that_its_launcher_wants() -> None:
    version = re.search(r'FAIRSEQ_VERSION = "(.*)"', (ROOT / "fairseq" / "shims.py").read_text())[1]
    for recipe in (ROOT / "Makefile", DEPLOY):
        assert f"--no-deps fairseq=={version}\n" in recipe.read_text(), recipe
    assert not any(pin.startswith("fairseq=") for pin in PINS)


def test_the_library_needs_three_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.split(r"[<>=]", need)[0] for need in project["dependencies"]} == {"numpy", "safetensors", "torch"}


def test_the_conda_environment_has_the_same_pins_and_a_compiler() -> None:
    needs = yaml.safe_load((ROOT / "envs" / "environment.yaml").read_text())["dependencies"]
    assert sorted(next(part["pip"] for part in needs if isinstance(part, dict))) == sorted(PINS)
    assert {"python=3.11", "pip", "cxx-compiler"} <= {part for part in needs if isinstance(part, str)}


def test_the_conda_environment_gets_fairseq_and_this_repository(tmp_path: Path) -> None:
    """Whatever the Makefile installs beside the pins, in the same order."""
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\necho "$@" >> "$PIP_LOG"\n')
    pip.chmod(0o755)
    log = tmp_path / "log"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PIP_LOG": str(log)}
    subprocess.run(["bash", DEPLOY], cwd=ROOT, env=environment, check=True)
    made = re.findall(
        r"pip install --quiet --disable-pip-version-check (--no-deps .*)", (ROOT / "Makefile").read_text()
    )
    assert log.read_text().splitlines() == [f"install {command}" for command in made]
    found = subprocess.run(["bash", DEPLOY], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and found.stderr.startswith(f"error: {tmp_path}: expected the repository")

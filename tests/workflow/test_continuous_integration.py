"""What machines run, on GitHub, in a container and before a commit: targets of the Makefile and the pinned tools."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
#: Programs that build distributions in an environment of their own; all else is a target of the Makefile.
BUILDERS = ("pipx run build", 'pipx run --spec "cibuildwheel==')
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def read(file: Path) -> Any:
    # YAML 1.1 reads the key `on` as true; as text it is what GitHub sees.
    return yaml.load(file.read_text(), yaml.BaseLoader)


def steps(file: Path) -> list[dict[str, Any]]:
    return [step for job in read(file)["jobs"].values() for step in job["steps"]]


def commands(file: Path) -> list[str]:
    return [step["run"] for step in steps(file) if "run" in step]


def dockers_make() -> list[list[str]]:
    """The words behind make, of the steps that build the image and of what it runs."""
    text = (ROOT / "Dockerfile").read_text()
    built = [shlex.split(words) for words in re.findall(r"(?m)^RUN (?:\S+=\S+ )*make (.*)$", text)]
    entry, command = (json.loads(re.search(rf"(?m)^{word} (\[.*\])$", text)[1]) for word in ("ENTRYPOINT", "CMD"))
    folder = re.search(r"(?m)^WORKDIR (.*)$", text)[1]
    assert entry == ["make", "-C", folder]
    return [*built, command]


def require_target(words: list[str]) -> None:
    """Make knows how to make it; nothing is run."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "-C", ROOT, "--dry-run", *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_check_of_targets_can_fail() -> None:
    with pytest.raises(AssertionError, match="No rule to make target"):
        require_target(["no-such-target"])


def test_there_are_checks_and_wheels() -> None:
    assert [file.name for file in WORKFLOWS] == ["ci.yml", "wheels.yml"]
    assert {command.split()[1] for command in commands(WORKFLOWS[0])} == {"lint", "browser", "test"}
    assert read(WORKFLOWS[1])["on"]["push"] == {"tags": ["v*"]}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_run_what_the_makefile_has(file: Path) -> None:
    for command in commands(file):
        if not command.startswith(BUILDERS):
            program, *words = shlex.split(command)
            assert program == "make", command
            require_target(words)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_actions_are_pinned_by_their_major_version_and_may_only_read(file: Path) -> None:
    used = [step["uses"] for step in steps(file) if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in used)
    assert read(file)["permissions"] == {"contents": "read"}


def test_every_python_that_the_library_promises_is_tested_and_gets_wheels() -> None:
    tested = read(WORKFLOWS[0])["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert tested == ["3.11", "3.12", "3.13"] and PROJECT["project"]["requires-python"] == f">={tested[0]}"
    settings = PROJECT["tool"]["cibuildwheel"]
    assert settings["build"] == [f"cp{version.replace('.', '')}-*" for version in tested]
    program = re.fullmatch(r"python \{project\}/(\S+) --kernel", settings["test-command"])[1]
    assert (ROOT / program).is_file()


def test_the_image_is_made_by_the_makefile() -> None:
    made = dockers_make()
    assert ["install", "PYTHON=python"] in made and made[-1] == ["figure"]
    for words in made:
        require_target(words)


def test_the_image_copies_what_an_installation_needs() -> None:
    """A file that make waits for, and one that setuptools reads, come before the environment is made."""
    before = (ROOT / "Dockerfile").read_text().partition("make install")[0]
    copied = {word for line in re.findall(r"(?m)^COPY (.*)$", before) for word in line.split()[:-1]}
    assert {"Makefile", "requirements.lock", "setup.py", "MANIFEST.in", "LICENSE", "attention_pruning"} <= copied
    assert {"pyproject.toml", PROJECT["project"]["readme"]} <= copied
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_has_no_runs_in_it_and_the_tests_that_it_can_run() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv*", "runs", "data", "results/*", "!results/reference", "**/*.so"} <= set(ignored)
    assert not {"tests", ".github", "docs", "notebooks", "config"} & set(ignored)


def test_hooks_before_a_commit_are_the_environments_own_tools() -> None:
    """Nothing is downloaded, so their versions are those of requirements.lock."""
    (source,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert source["repo"] == "local" and all(hook["language"] == "system" for hook in source["hooks"])
    used = {hook["entry"].split()[0] for hook in source["hooks"]}
    assert used == {".venv/bin/ruff", ".venv/bin/snakefmt"}
    pinned = {line.partition("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert {Path(tool).name for tool in used} <= pinned


def test_hooks_look_at_what_they_are_for() -> None:
    hooks = {hook["id"]: hook for hook in read(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]}
    assert {"python", "pyi", "jupyter"} == set(hooks["ruff-check"]["types_or"]) == set(hooks["ruff-format"]["types_or"])
    snakefiles = [path.relative_to(ROOT).as_posix() for path in [ROOT / "Snakefile", *(ROOT / "rules").rglob("*.smk")]]
    assert len(snakefiles) > 3 and all(re.search(hooks["snakefmt"]["files"], name) for name in snakefiles)
    assert not re.search(hooks["snakefmt"]["files"], "reproduction/documents/blocks.py")


@pytest.mark.parametrize("name", ["bug", "question"])
def test_forms_of_issues_are_what_github_reads(name: str) -> None:
    form = read(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert form["name"] and form["description"] and form["body"]
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["type"] in ("textarea", "input", "dropdown") and field["attributes"]["label"] for field in fields)
    assert any(field["validations"]["required"] == "true" for field in fields)

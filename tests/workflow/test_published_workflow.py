"""What a stranger reads of the workflow and of the repository before running anything."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
KEYS = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text())["properties"].keys()


def test_the_table_of_keys_is_the_schemas() -> None:
    rows = re.findall(r"(?m)^\| (`.*?`) \|", (ROOT / "config" / "README.md").read_text())
    named = [key for row in rows for key in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(KEYS)


def test_the_configurations_that_are_named_are_there() -> None:
    text = (ROOT / "config" / "README.md").read_text().partition("\n\n")[2].partition(":")[0]
    named = set(re.findall(r"`(\w+)`", text))
    assert named == {path.stem for path in (ROOT / "config").glob("*.yaml")} - {"schema"}


def test_the_catalogue_gets_what_it_asks_for() -> None:
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert usage["software-stack-deployment"]["conda"] and (ROOT / "envs" / "environment.yaml").is_file()
    flag, file = usage["mandatory-flags"]["flags"].split()
    assert flag == "--configfile" and (ROOT / file).is_file()


def test_the_changelog_knows_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version in text and "\n## [Unreleased]\n" in text
    headings = set(re.findall(r"(?m)^### (.*)$", text))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_contributors_are_told_commands_and_pages_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"\bmake ([a-z]+)", text)) <= targets
    pages = re.findall(r"\]\(([^)]+)\)", text + (ROOT / "config" / "README.md").read_text().replace("](../", "]("))
    assert pages and all((ROOT / page).exists() or (ROOT / "config" / page).exists() for page in pages)
    assert all((ROOT / name).is_file() for name in re.findall(r"python -m pytest (\S+)", text))

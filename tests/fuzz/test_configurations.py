"""Damaged configurations, through the workflow's own reading and checking, and through its parsing where they pass."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from snakemake.api import SnakemakeApi
from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import ConfigSettings, OutputSettings, ResourceSettings

from mutations import as_json, damaged, fuzzed, strange, written

ROOT = Path(__file__).parents[2]
NAMES = ("smoke", "quick", "small", "paper")
CONFIGURATIONS = {name: yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text()) for name in NAMES}
SCHEMA = json.dumps(yaml.safe_load((ROOT / "config" / "schema.yaml").read_text()))
#: As much of Snakemake's own as the checks ask for.
WORKFLOW = SimpleNamespace(
    basedir=ROOT,
    modifier=SimpleNamespace(skip_validation=False),
    sourcecache=SimpleNamespace(open=lambda file: io.StringIO(SCHEMA)),
)
CHECKS = compile((ROOT / "rules" / "validation.smk").read_text(), "rules/validation.smk", "exec")


#: Values that the schema allows, where more is needed than it can say.
ODD = [
    ("data_dir", "a\x00b"),
    ("data_dir", "\ud800"),
    ("data_dir", ""),
    ("data_dir", "~nobody/x"),
    ("experiments", ["glue"]),
    ("first_seeds", 10**30),
    ("resources.threads", 10**30),
    ("resources.mem_mb", 1 << 62),
    ("language_modelling.dataset.name", ".*"),
    ("language_modelling.dataset.name", "a b'; true"),
    ("language_modelling.model.n_layer", 10**30),
    ("language_modelling.pruning.taus", [1e-300]),
    ("language_modelling.pruning.taus", [0.5, 0.50]),
    ("language_modelling.pruning.taus", []),
    ("translation.site_taus", [1]),
    ("glue.dataset.tasks", ["MRPC", "CoLA"]),
    ("glue.task_lengths", {"MRPC": {"max_seq_length": 8}}),
    ("squad.dataset.name", "x/../y"),
    ("out_of_distribution.names", {}),
]


@pytest.fixture(scope="module", autouse=True)
def same_environment() -> Iterator[None]:
    """The workflow's rules set variables for its jobs."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def checked(path: Path) -> dict[str, Any] | None:
    """The configuration of a file, defaults filled in; None if Snakemake or we refuse it in one line."""
    try:
        config = load_configfile(str(path))
        WORKFLOW.overwrite_configfiles = [path]
        exec(CHECKS, {"config": config, "workflow": WORKFLOW, "Path": Path})
    except UnicodeDecodeError:  # of Snakemake itself, before any of our rules is read
        return None
    except WorkflowError as error:
        assert str(error).strip()
        return None
    assert all(math.isfinite(number) for number in numbers(config))
    return config


def numbers(values: Any) -> Iterator[float]:
    """Every number in nested values."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, dict | list):
            yield from numbers(value)
        elif isinstance(value, int | float):
            yield value


def parsed(path: Path, folder: Path) -> None:
    """Read all the rules with a configuration, as a dry run does before it plans; refused in one line or not."""
    with SnakemakeApi(OutputSettings()) as api, contextlib.redirect_stderr(io.StringIO()):
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=2),
            config_settings=ConfigSettings(configfiles=[path]),
            snakefile=ROOT / "Snakefile",
            workdir=folder,
        )
        try:
            assert len(list(workflow._workflow.rules)) > 50
        except WorkflowError as error:
            assert str(error).strip()


@st.composite
def configurations(draw: st.DrawFn) -> bytes:
    """A committed configuration with strange values."""
    content = CONFIGURATIONS[draw(st.sampled_from(NAMES))]
    return as_json(draw(strange(content)))  # which is YAML, and read sooner


@fuzzed(0.1)
@given(st.data())
def test_damaged_bytes(folder, data):
    name = data.draw(st.sampled_from(NAMES))
    checked(written(folder / "some.yaml", data.draw(damaged((ROOT / "config" / f"{name}.yaml").read_bytes()))))


@fuzzed()
@given(configurations())
def test_strange_values(folder, content):
    checked(written(folder / "some.yaml", content))


@fuzzed(0.025)
@given(st.data())
def test_what_passes_is_parsed(folder, data):
    """Every one of these passes the checks: among strange values few do."""
    config = copy.deepcopy(CONFIGURATIONS["smoke"])
    edits = data.draw(st.lists(st.sampled_from(ODD), min_size=1, max_size=3))
    for way, value in edits:
        *outer, last = way.split(".")
        place = config
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    path = written(folder / "odd.yaml", as_json(config))
    if checked(path) is not None:
        parsed(path, folder)

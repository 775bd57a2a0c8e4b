"""The configurations here, and what the workflow plans for one of them or for one's own."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml
from snakemake.utils import validate

from warm_python import python

ROOT = Path(__file__).parents[2]
SCHEMA = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text())
NAMES = ("smoke", "quick", "small", "paper")
EXPERIMENTS = ("language_modelling", "translation", "glue", "squad")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())


def filled(config: dict[str, Any]) -> dict[str, Any]:
    """A validated copy, defaults filled in."""
    config = copy.deepcopy(config)
    validate(config, str(ROOT / "config" / "schema.yaml"))
    return config


def plan(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A dry run in an empty folder, without any data at hand."""
    command = [python(), "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    environment = {name: value for name, value in os.environ.items() if name != "AP_DATA_DIR"}
    return subprocess.run(
        [*map(str, command), "--cores", "2", "--dry-run", "--printshellcmds", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        check=False,
    )


@functools.cache
def planned(*arguments: str) -> str:
    """What a dry run says that finds nothing in its folder and leaves nothing there: made once."""
    with tempfile.TemporaryDirectory() as folder:
        found = plan(Path(folder), *arguments)
        assert found.returncode == 0, found.stdout
        assert {path.name for path in Path(folder).iterdir()} <= {".snakemake"}
    return found.stdout


def printed_by(program: str, *arguments: str) -> Any:
    """The JSON that a Python program prints, in a process of its own that finds this repository's packages."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [python(), "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

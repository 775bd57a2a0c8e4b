"""Every job says what it needs, and profiles say where it runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from configurations import ROOT, SCHEMA, filled, printed_by, read

JOBS_OF_A_PLAN = """
import json, logging, sys
from snakemake.cli import main
from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent
jobs = []
def note(record):
    if getattr(record, "event", None) == LogEvent.JOB_INFO:
        resources = {name: value for name, value in record.resources.items() if isinstance(value, int)}
        jobs.append((record.rule_name, resources))
    return True
logger.addFilter(note)
try:
    main(sys.argv[1:])
finally:
    print(json.dumps(jobs))
"""
TARGETS = {"figure", "everything"}


@pytest.mark.parametrize("name", ("smoke", "paper"))
def test_every_job_brings_its_time_and_memory_and_those_with_a_model_its_gpu(name: str, tmp_path: Path) -> None:
    snakefile = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path)]
    config = ["--configfile", str(ROOT / "config" / f"{name}.yaml")]
    found = printed_by(JOBS_OF_A_PLAN, "figure", "everything", *snakefile, *config, "--cores", "4", "--dry-run")
    jobs = [(rule, resources) for rule, resources in found if rule not in TARGETS]
    resources = filled(read(name))["resources"]
    for rule, has in jobs:
        assert has["mem_mb"] > 0 and has["runtime"] > 0, rule
        runs_a_model = rule.startswith(("train_", "average_", "evaluate_")) or rule in ("finetune", "translate")
        assert has.get("gpu", 0) == (resources["gpu"] if runs_a_model else 0), rule
    kinds = {"train_language_model": "language_modelling", "train_translation": "translation", "finetune": "finetuning"}
    for rule, kind in kinds.items():
        assert {has["runtime"] for other, has in jobs if other == rule} == {resources["runtime"][kind]}
    assert {"draw_pattern_gallery", "draw_structural_zeros", "draw_controls"} <= {rule for rule, _ in jobs}


def test_the_paper_asks_for_a_gpu_and_days() -> None:
    resources = read("paper")["resources"]
    assert resources["gpu"] == 1 and resources["device"] == "cuda" and resources["data_mem_mb"] >= 32_000
    assert set(resources["runtime"]) == set(SCHEMA["properties"]["resources"]["properties"]["runtime"]["properties"])
    assert min(resources["runtime"][kind] for kind in ("language_modelling", "translation")) >= 24 * 60


def test_profiles_say_where_and_never_what(tmp_path: Path) -> None:
    """Options of Snakemake and of its plug-in for Slurm alone; gpu is counted on one machine and not on a cluster."""
    profiles = {path.parent.name: yaml.safe_load(path.read_text()) for path in ROOT.glob("profiles/*/config.yaml")}
    assert set(profiles) == {"default", "slurm"}
    assert profiles["slurm"].pop("executor") == "slurm"
    options = subprocess.run([sys.executable, "-m", "snakemake", "--help"], capture_output=True, text=True).stdout
    for profile in profiles.values():
        for option in profile:
            assert f"--{option}" in options, option
        assert not {"configfile", "configfiles", "config"} & set(profile)
    texts = [file.read_text() for file in (ROOT / "rules").glob("*.smk")]
    rules = [rule for text in texts for rule in re.split(r"\n(?:use )?rule ", text)[1:]]
    with_gpu = {rule.partition(":")[0] for rule in rules if "gpu=job_resource" in rule}
    # A rule that is used as another one has its resources.
    derived = [re.match(r"(\w+) as (\w+) with:", rule) for rule in rules]
    with_gpu |= {match[2] for match in derived if match and match[1] in with_gpu}
    named = re.findall(r"- (\w+):slurm_partition=GPU", (ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    assert set(named) == with_gpu and len(with_gpu) == 13
    # The default profile holds beside --profile, which would leave one GPU job at a time on a whole cluster.
    assert profiles["default"]["resources"] == ["gpu=1"]
    assert 'resource_scopes:\n    gpu="local",\n' in (ROOT / "Snakefile").read_text()


def test_every_rule_logs_and_bounds_itself() -> None:
    for file in (ROOT / "rules").glob("*.smk"):
        for rule in re.split(r"\n(?= *(?:use )?rule\b.*:\n)", file.read_text())[1:]:
            directives = ["log:", "message:"]
            if not rule.lstrip().startswith("use "):  # which has the bounds of the rule that it uses
                directives += ["threads:", "resources:", "mem_mb", "runtime"]
            for directive in directives:
                assert directive in rule, f"{file.name}: {rule.partition(':')[0]}: {directive}"

"""Every job says what it needs, and profiles say where it runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from configurations import ROOT, SCHEMA, filled, plan, printed_by, read
from warm_python import python

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
LISTED = (ROOT / "Snakefile").read_text().partition("localrules:")[2].partition("\n\n")[0]
LOCAL = set(re.findall(r"(?m)^    (\w+),$", LISTED))


@pytest.mark.slow
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
    if name == "paper":
        submitted = len([rule for rule, _ in jobs if rule not in LOCAL and not rule.startswith(("collect_", "draw_"))])
        assert f"of which {submitted} are submitted" in (ROOT / "docs" / "reproducing.md").read_text()
    assert {"draw_pattern_gallery", "draw_structural_zeros", "draw_controls"} <= {rule for rule, _ in jobs}


def test_the_paper_asks_for_a_gpu_and_days() -> None:
    resources = read("paper")["resources"]
    assert resources["gpu"] == 1 and resources["device"] == "cuda" and resources["data_mem_mb"] >= 32_000
    assert set(resources["runtime"]) == set(SCHEMA["properties"]["resources"]["properties"]["runtime"]["properties"])
    assert min(resources["runtime"][kind] for kind in ("language_modelling", "translation")) >= 24 * 60


@pytest.mark.slow
def test_profiles_say_where_and_never_what(tmp_path: Path) -> None:
    """Options of Snakemake and of its plug-in for Slurm alone; gpu is counted on one machine and not on a cluster."""
    profiles = {path.parent.name: yaml.safe_load(path.read_text()) for path in ROOT.glob("profiles/*/config.yaml")}
    assert set(profiles) == {"default", "slurm"}
    assert profiles["slurm"].pop("executor") == "slurm-checked"
    options = subprocess.run([python(), "-m", "snakemake", "--help"], capture_output=True, text=True).stdout
    for profile in profiles.values():
        for option in profile:
            # The executor's own are known where it is installed.
            assert f"--{option}" in options or option.startswith("slurm-checked-"), option
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


def test_short_jobs_are_not_submitted() -> None:
    rules = {}
    for file in (ROOT / "rules").glob("*.smk"):
        for text in re.split(r"\n(?:use )?rule ", file.read_text())[1:]:
            name, base = re.match(r"(\w+)(?: as (\w+))?", text).groups()
            rules[base or name] = text
    short = {name for name, text in rules.items() if 'runtime=job_runtime("small")' in text}
    assert short and short <= LOCAL <= set(rules)
    # And what collects and draws, which has its name from a list.
    assert (ROOT / "rules" / "figures.smk").read_text().count("        localrule: True\n") == 2
    assert not [name for name in LOCAL if "gpu=" in rules[name] or "data_mem_mb" in rules[name]]


def test_jobs_that_share_gpus_are_told_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = """
import contextlib, io, json, os, sys
from snakemake.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print(json.dumps(os.environ.get("AP_DEVICES")))
"""
    target = "runs/paper/language_modelling/wikitext-103/corpus/corpus.json"
    snakefile = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path), "--dry-run", "--cores", "4"]
    config = ["--configfile", str(ROOT / "config" / "paper.yaml")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert printed_by(told, target, *snakefile, "--resources", "gpu=2", *config) == "4,6"
    assert printed_by(told, target, *snakefile, *config) is None
    done = plan(tmp_path, target, "--resources", "gpu=4", *config)
    assert done.returncode != 0
    assert "CUDA_VISIBLE_DEVICES: expected 4 devices for --resources gpu=4, found 4,6,7" in done.stdout


def test_every_rule_logs_and_bounds_itself() -> None:
    for file in (ROOT / "rules").glob("*.smk"):
        for rule in re.split(r"\n(?= *(?:use )?rule\b.*:\n)", file.read_text())[1:]:
            directives = ["log:", "message:"]
            if not rule.lstrip().startswith("use "):  # which has the bounds of the rule that it uses
                directives += ["threads:", "resources:", "mem_mb", "runtime"]
            for directive in directives:
                assert directive in rule, f"{file.name}: {rule.partition(':')[0]}: {directive}"

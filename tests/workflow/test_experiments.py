"""A configuration may ask for some of its experiments: what is drawn is about them, and nothing else is run."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from configurations import ROOT, plan, read
from warm_python import python

pytestmark = pytest.mark.slow

SCRIPTS = {
    "language_modelling": "transformer-xl/train.py",
    "translation": "fairseq/train.py",
    "glue": "bert/src/run_glue.py",
    "squad": "bert/src/run_squad.py",
}
SMOKE = ("--configfile", str(ROOT / "config" / "smoke.yaml"))


@pytest.mark.parametrize(
    ("chosen", "targets", "drawn"),
    [
        (["translation"], ["everything", "ood_table"], {"ap_figure", "ood_table"}),
        (["language_modelling"], ["everything", "mask_comparison"], {"ap_figure", "mask_comparison"}),
        (["glue"], ["everything"], {"ap_figure", "glue_tasks"}),
        (["glue", "squad"], ["ood_table"], {"ood_table"}),
    ],
)
def test_only_the_chosen_experiments_are_run_and_drawn(
    chosen: list[str], targets: list[str], drawn: set[str], tmp_path: Path
) -> None:
    found = plan(tmp_path, *targets, *SMOKE, "--config", f"experiments=[{','.join(chosen)}]")
    assert found.returncode == 0, found.stdout
    assert [name for name, script in SCRIPTS.items() if script in found.stdout] == chosen
    figures = ("ap_figure", "glue_tasks", "mask_comparison", "ood_table")
    assert {name for name in figures if f"results/smoke/{name}." in found.stdout} == drawn


def test_a_figure_of_nothing_is_refused(tmp_path: Path) -> None:
    found = plan(tmp_path, *SMOKE, "--config", "experiments=[squad]")
    assert found.returncode != 0
    assert "smoke.yaml: experiments: ['squad'] does not contain" in found.stdout


def test_controls_are_trained_wherever_they_are_asked_for(tmp_path: Path) -> None:
    taus = read("smoke")["translation"]["pruning"]
    for switch, expected in (("False", taus["control_taus"]), ("True", taus["taus"])):
        found = plan(tmp_path, "translation", *SMOKE, "--config", f"controls_at_every_tau={switch}")
        assert found.returncode == 0, found.stdout
        for variant in taus["controls"]:
            trained = set(re.findall(rf"{variant}/tau([0-9.]+)/seed1/training", found.stdout))
            assert trained == {f"{tau:g}" for tau in expected}


def test_a_long_run_goes_in_parts_by_seed(tmp_path: Path) -> None:
    small = ("--configfile", str(ROOT / "config" / "small.yaml"))
    config = read("small")["glue"]
    seeds, controls = config["seeds"], config["pruning"]["controls"]
    assert seeds == [1, 2, 3]
    for first in (1, 2, 3):
        found = plan(tmp_path, "glue", "squad", *small, "--config", f"first_seeds={first}").stdout
        assert {int(seed) for seed in re.findall(r"/seed([0-9]+)/", found)} == set(seeds[:first])
        for variant in controls:
            trained = set(re.findall(rf"CoLA/{variant}/tau0.8/seed([0-9]+)/training", found))
            assert {int(seed) for seed in trained} == set(seeds[:first]), "a control has the seeds of what it controls"


def test_no_seed_at_all_is_refused(tmp_path: Path) -> None:
    smoke = ("--configfile", str(ROOT / "config" / "smoke.yaml"))
    none = plan(tmp_path, "language_modelling", *smoke, "--config", "first_seeds=0")
    assert none.returncode != 0 and "smoke.yaml: first_seeds: " in none.stdout


def own_config(folder: Path, **sections: object) -> tuple[str, str]:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({"name": "own", **sections}))
    return "--configfile", str(path)


def test_an_experiment_that_is_not_run_needs_no_section(tmp_path: Path) -> None:
    smoke = read("smoke")
    one = own_config(tmp_path, translation=smoke["translation"], experiments=["translation"])
    found = plan(tmp_path, *one)
    assert found.returncode == 0, found.stdout
    assert [name for name, script in SCRIPTS.items() if script in found.stdout] == ["translation"]
    for target in ("glue", "squad", "language_modelling", "efficiency_table", "language_model_efficiency"):
        refused = plan(tmp_path, target, *one)
        assert refused.returncode != 0 and "expected a section " in refused.stdout, target
    both = own_config(tmp_path, translation=smoke["translation"])
    assert "experiments: expected a section language_modelling in the configuration" in plan(tmp_path, *both).stdout


@pytest.mark.parametrize(
    ("target", "section", "changes", "place"),
    [
        ("mask_comparison", "translation", {"mask_comparison": {"taus": [], "choices": []}}, "mask_comparison.taus"),
        ("translation_sites", "translation", {"site_taus": []}, "translation.site_taus"),
        ("entmax_comparison", "translation", {"entmax": {"taus": []}}, "translation.entmax.taus"),
        ("ood_table", "out_of_distribution", {"names": {}}, "out_of_distribution.names"),
    ],
)
def test_a_target_that_the_configuration_has_nothing_for_is_refused_before_it_trains(
    target: str, section: str, changes: dict, place: str, tmp_path: Path
) -> None:
    smoke = read("smoke")
    sections = {"translation": smoke["translation"], "experiments": ["translation"]}
    sections[section] = smoke.get(section, {}) | changes
    found = plan(tmp_path, target, *own_config(tmp_path, **sections))
    assert found.returncode != 0
    assert f"{target}: expected something in " in found.stdout and place in found.stdout


def test_the_archives_are_looked_for_in_the_data_folder_of_the_command_line(tmp_path: Path) -> None:
    """Scripts that take an archive find it by AP_DATA_DIR, which the workflow sets."""
    config = read("smoke")
    config["translation"]["dataset"] = {"name": "iwslt14", "source": "iwslt14", "iwslt14": {}}
    del config["translation"]["pairs_comparison"]  # whose fewer pairs that source does not have
    own = own_config(tmp_path, translation=config["translation"], experiments=["translation"])
    command = [python(), "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "AP_DATA_DIR"}
    done = subprocess.run(
        [*command, "translation", "--cores", "1", *own, "--config", f"data_dir={tmp_path}/there", "--until", "pairs"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    log = "\n".join(path.read_text() for path in tmp_path.rglob("*.log") if ".snakemake" not in path.parts)
    assert done.returncode != 0 and f"{tmp_path}/there/iwslt14/de-en.tgz" in log + done.stderr

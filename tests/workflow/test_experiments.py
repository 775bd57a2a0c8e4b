"""A configuration may ask for some of its experiments: what is drawn is about them, and nothing else is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from configurations import ROOT, plan, read

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
    assert seeds == [1, 2, 3] and config["pruning"]["control_seeds"] == [1]
    for first in (1, 2, 3):
        found = plan(tmp_path, "glue", "squad", *small, "--config", f"first_seeds={first}").stdout
        assert {int(seed) for seed in re.findall(r"/seed([0-9]+)/", found)} == set(seeds[:first])
        for variant in controls:
            assert set(re.findall(rf"CoLA/{variant}/tau0.8/seed([0-9]+)/training", found)) == {"1"}


def test_controls_wait_for_their_seeds(tmp_path: Path) -> None:
    config = read("smoke")
    config["language_modelling"]["pruning"]["control_seeds"] = [2]
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(config))
    command = ("language_modelling", "--configfile", str(own), "--config")
    part, whole = (plan(tmp_path, *command, f"first_seeds={first}") for first in (1, 2))
    assert part.returncode == whole.returncode == 0
    control = f"/{config['language_modelling']['pruning']['controls'][0]}/tau"
    assert control in whole.stdout and control not in part.stdout
    none = plan(tmp_path, *command, "first_seeds=0")
    assert none.returncode != 0 and "own.yaml: first_seeds: " in none.stdout

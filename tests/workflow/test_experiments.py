"""A configuration may ask for some of its experiments: what is drawn is about them, and nothing else is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from test_config import ROOT, plan, read

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

"""Out-of-distribution evaluation: every model is planned on request, and none otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configurations import NAMES, ROOT, filled, plan, planned, read

pytestmark = pytest.mark.slow


def figure_models(config: dict[str, Any], experiment: str) -> int:
    """How many models of an experiment there are, all seeds counted."""
    pruning, seeds = config[experiment]["pruning"], config[experiment]["seeds"]
    controls = len(pruning["controls"]) * len(pruning["control_taus"])
    return (1 + len(pruning["taus"]) + controls) * len(seeds)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_planned_away_from_home_on_request(name: str) -> None:
    config, file = filled(read(name)), ("--configfile", str(ROOT / "config" / f"{name}.yaml"))
    names, limit = config["out_of_distribution"]["names"], config["out_of_distribution"]["limit"]
    found = planned("ood_table", *file).splitlines()
    tasks = [task for task in config["glue"]["dataset"]["tasks"] if names.get(task)]
    assert names["language_modelling"] and names["translation"] and names["squad"] and tasks
    for experiment, script, places in (
        ("language_modelling", "transformer-xl/eval.py", [names["language_modelling"]]),
        ("translation", "fairseq/score_translations.py", [names["translation"]]),
        ("glue", "run_glue.py --model_name_or_path", [names[task] for task in tasks]),
        ("squad", "run_squad.py --model_name_or_path", [names["squad"]]),
    ):
        away = [line for line in found if script in line and any(f"evaluation@{place}" in line for place in places)]
        if experiment in ("language_modelling", "translation"):
            away = [line for line in found if script in line and f"/metrics@{places[0]}.json" in line]
        assert len(away) == figure_models(config, experiment) * len(places), experiment
    prepared = [line for line in found if "reproduction.data.shifted." in line]
    assert len(prepared) == 3 + len(tasks)
    assert all((f"--limit {limit} " in f"{line} ") == (limit is not None) for line in prepared)
    # the default target asks for none of it
    assert not [line for line in planned(*file).splitlines() if "reproduction.data.shifted." in line]


def test_what_has_no_name_is_not_evaluated_away(tmp_path: Path) -> None:
    config = read("smoke")
    config["out_of_distribution"]["names"] = {"squad": "bible-ylt-web"}
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(config))
    found = plan(tmp_path, "ood_table", "--configfile", str(own)).stdout
    assert "reproduction.data.shifted.questions" in found
    assert not any(f"reproduction.data.shifted.{name}" in found for name in ("text", "pairs", "tasks"))


def test_the_tau_of_the_contrast_is_chosen_in_the_configuration(tmp_path: Path) -> None:
    config, own = read("smoke"), tmp_path / "own.yaml"

    def planned(taus: dict[str, float]) -> str:
        config["out_of_distribution"]["taus"] = taus
        own.write_text(yaml.safe_dump(config))
        return plan(tmp_path, "ood_table", "--configfile", str(own)).stdout

    highest = "--tau language_modelling=0.9 --tau translation=0.5 --tau glue=0.5 --tau squad=0.9"
    assert f" {highest} --metrics " in planned({})
    assert " --tau language_modelling=0.5 --tau translation=0.5 " in planned({"language_modelling": 0.5})
    refused = "out_of_distribution.taus.language_modelling: expected one of language_modelling.pruning.taus, [0.5, 0.9]"
    assert f"{refused}, found 0.8" in planned({"language_modelling": 0.8})

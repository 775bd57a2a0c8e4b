"""Configurations: strict, complete, in step with the scripts' flags, and each of them plans."""

from __future__ import annotations

import argparse
import copy
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

from attention_pruning.mask import ROW_FLOORS, RULES, SCOPES
from reproduction.data import bible, wikitext

ROOT = Path(__file__).parents[2]
SCHEMA = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text())
NAMES = ("smoke", "quick", "small", "paper")
#: Flags that the workflow gives by itself.
OF_THE_WORKFLOW = {"help", "data", "work_dir", "restart", "seed", "device", "threads", "checkpoint", "out", "label"}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())


def filled(config: dict[str, Any]) -> dict[str, Any]:
    """A validated copy, defaults filled in."""
    config = copy.deepcopy(config)
    validate(config, str(ROOT / "config" / "schema.yaml"))
    return config


def plan(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A dry run in an empty folder, without any data at hand."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    environment = {name: value for name, value in os.environ.items() if name != "AP_DATA_DIR"}
    return subprocess.run(
        [*map(str, command), "--cores", "2", "--dry-run", "--printshellcmds", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        check=False,
    )


def objects(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the schema, with the way to it."""
    if "properties" in schema:
        yield path or "the whole", schema
    for name, below in {**schema.get("properties", {}), **schema.get("$defs", {})}.items():
        yield from objects(below, f"{path}.{name}")


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_is_valid_and_called_like_its_file(name: str) -> None:
    assert filled(read(name))["name"] == name


@pytest.mark.parametrize(("path", "schema"), list(objects(SCHEMA)))
def test_the_schema_is_strict_and_explains_every_key(path: str, schema: dict[str, Any]) -> None:
    assert schema["additionalProperties"] is False
    for name, key in schema["properties"].items():
        explained = key if "description" in key else SCHEMA["$defs"][key["$ref"].rsplit("/", 1)[1]]
        assert explained["description"].endswith("."), name
        assert "default" in key or "(no default)" in explained["description"] or name in schema.get("required", []), (
            name
        )


def keys_of(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The way to every mapping in a configuration."""
    yield ()
    for name, value in config.items():
        if isinstance(value, dict):
            yield from ((name, *rest) for rest in keys_of(value))


@pytest.mark.parametrize("way", list(keys_of(filled(read("smoke")))), ids=".".join)
def test_an_unknown_key_is_refused_by_name_wherever_it_stands(way: tuple[str, ...]) -> None:
    config = read("smoke")
    place = config
    for name in way:
        place = place.setdefault(name, {})
    place["learning_rat"] = 1
    with pytest.raises(WorkflowError, match="learning_rat"):
        filled(config)


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("language_modelling", "pruning", "taus"), [90]),
        (("language_modelling", "pruning", "taus"), ["90%"]),
        (("language_modelling", "pruning", "taus"), [0]),
        (("language_modelling", "pruning", "rule"), "percentile"),
        (("language_modelling", "seeds"), []),
        (("language_modelling", "seeds"), [1, 1]),
        (("language_modelling", "training", "lr"), "3e-3"),
        (("language_modelling", "dataset", "source"), "newspaper"),
        (("resources", "threads"), 0),
        (("name",), "../elsewhere"),
    ],
)
def test_a_value_without_sense_is_refused(way: tuple[str, ...], value: Any) -> None:
    config = read("smoke")
    place = config
    for name in way[:-1]:
        place = place[name]
    place[way[-1]] = value
    with pytest.raises(WorkflowError):
        filled(config)


def script_parser(name: str) -> argparse.ArgumentParser:
    return importlib.import_module(name).parser()


def definition(name: str) -> dict[str, Any]:
    return SCHEMA["$defs"][name]["properties"]


@pytest.mark.parametrize(
    ("keys", "parser", "left_out"),
    [
        pytest.param(
            definition("transformer_xl") | definition("training"),
            lambda: script_parser("train"),
            # Pruning is a mask file here, and validation has the lengths of training.
            {"fn", "th", "rule", "scope", "block_size", "row_floor", "random_prune", "prune_seed", "eval_tgt_len"},
            id="train",
        ),
        pytest.param(definition("evaluation"), lambda: script_parser("eval"), {"split", "max_eval_steps"}, id="eval"),
        pytest.param(
            definition("pattern"), lambda: script_parser("compute_mask"), {"tgt_len", "mem_len", "pool"}, id="pattern"
        ),
        pytest.param(definition("text")["bible"]["properties"], bible.build_parser, set(), id="bible"),
        pytest.param(definition("text")["wikitext"]["properties"], wikitext.build_parser, {"data_dir"}, id="wikitext"),
    ],
)
def test_keys_are_the_scripts_flags_with_the_same_defaults(
    keys: dict[str, Any], parser: Any, left_out: set[str]
) -> None:
    # The seed of a corpus is a key, the seed of a run is the workflow's.
    found = {
        action.dest: action
        for action in parser()._actions
        if action.dest not in OF_THE_WORKFLOW or (action.dest == "seed" and "seed" in keys)
    }
    assert set(keys) == set(found) - left_out
    for name, key in keys.items():
        assert key["default"] == found[name].default, name
        if found[name].choices and "enum" in key:
            assert set(key["enum"]) <= set(found[name].choices), name


def test_the_choices_of_pruning_are_the_librarys() -> None:
    pruning = definition("pruning")
    assert tuple(pruning["rule"]["enum"]) == RULES
    assert tuple(pruning["scope"]["enum"]) == SCOPES
    assert tuple(pruning["row_floor"]["enum"]) == ROW_FLOORS


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_plans_without_its_data(name: str, tmp_path: Path) -> None:
    found = plan(tmp_path, "--configfile", str(ROOT / "config" / f"{name}.yaml"))
    assert found.returncode == 0, found.stdout
    experiment = filled(read(name))["language_modelling"]
    pruning = experiment["pruning"]
    models = 1 + len(pruning["taus"]) + len(pruning["controls"]) * len(pruning["control_taus"])
    jobs = dict(line.split() for line in found.stdout.splitlines() if len(line.split()) == 2)
    assert int(jobs["train"]) == models * len(experiment["seeds"])
    assert int(jobs["pattern"]) == len(experiment["seeds"])
    assert not (tmp_path / "runs").exists()


def test_the_published_experiment_is_the_papers(tmp_path: Path) -> None:
    found = plan(tmp_path, "--configfile", str(ROOT / "config" / "paper.yaml"), "--config", "data_dir=some/where")
    commands = [line for line in found.stdout.splitlines() if "transformer-xl/train.py" in line]
    published = (
        "--n_layer 16 --n_head 10 --d_head 41 --d_model 410 --d_inner 2100 --dropout 0.1 --dropatt 0.0 --adaptive "
        "--cutoffs 20000 40000 200000 --div_val 1 --tgt_len 150 --mem_len 150 --optim adam --lr 0.00025 "
        "--scheduler cosine --warmup_step 0 --max_step 200000 --batch_size 60"
    )
    assert commands
    assert all(part in f"{command} " for command in commands for part in published.replace(" --", " \n--").split("\n"))
    text = found.stdout
    assert "reproduction.data.wikitext --out" in text and "--data-dir some/where" in text
    evaluations = [line for line in text.splitlines() if "transformer-xl/eval.py" in line]
    assert any("--tgt_len 64 --mem_len 640 --clamp_len 400 --same_length" in line for line in evaluations)


def test_quick_is_the_default_and_leaks_into_nothing(tmp_path: Path) -> None:
    assert "runs/quick/" in plan(tmp_path).stdout
    own = tmp_path / "own.yaml"
    incomplete = read("smoke")
    del incomplete["name"]
    own.write_text(yaml.safe_dump(incomplete))
    found = plan(tmp_path, "--configfile", str(own))
    assert found.returncode != 0
    assert "'name' is a required property" in found.stdout


def test_an_unknown_key_stops_the_workflow_before_anything_runs(tmp_path: Path) -> None:
    found = plan(tmp_path, "--config", "colour=blue")
    assert found.returncode != 0
    message = "config/quick.yaml: top level: Additional properties are not allowed ('colour' was unexpected)"
    assert f"{message}; expected some of name, data_dir, resources, language_modelling\n" in found.stdout
    assert len(found.stdout.splitlines()) < 8
    assert [path.name for path in tmp_path.iterdir()] in ([], [".snakemake"])


def test_every_rule_logs_measures_and_bounds_itself() -> None:
    for file in (ROOT / "rules").glob("*.smk"):
        for rule in file.read_text().split("\nrule ")[1:]:
            for directive in ("log:", "benchmark:", "threads:", "resources:", "mem_mb", "message:"):
                assert directive in rule, f"{file.name}: {rule.partition(':')[0]}: {directive}"

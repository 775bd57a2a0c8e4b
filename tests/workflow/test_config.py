"""Configurations: strict, complete, in step with the scripts' flags, and each of them plans."""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

from attention_pruning.kernels.layout import BLOCK_SIZES
from attention_pruning.mask import KINDS, ROW_FLOORS, RULES, SCOPES
from reproduction.curves import VARIANTS
from reproduction.data import bible, bible_glue, bible_pairs, bible_squad, iwslt14, multi30k, wikitext, wmt17

ROOT = Path(__file__).parents[2]
SCHEMA = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text())
NAMES = ("smoke", "quick", "small", "paper")
#: Flags that the workflow gives by itself.
OF_THE_WORKFLOW = {"help", "data", "work_dir", "restart", "seed", "device", "threads", "checkpoint", "out", "label"}
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
        (("translation", "dataset", "source"), "newspaper"),
        (("translation", "site_taus"), [80]),
        (("translation", "entmax"), {"taus": ["50%"]}),
        (("translation", "pruning", "controls_equal"), "nominal_sparsity"),
        (("translation", "mask_comparison"), {"choices": [{"rule": "published"}]}),
        (("translation", "mask_comparison"), {"choices": [{"rule": "published", "scope": "column"}]}),
        (("translation", "mask_comparison"), {"controls": ["data"]}),
        (("translation", "pruning", "control_seeds"), []),
        (("glue", "dataset", "tasks"), ["MRPC", "Poetry"]),
        (("squad", "lengths"), {"max_seq_length": "384"}),
        (("resources", "threads"), 0),
        (("out_of_distribution", "names"), {"language_modelling": "bible-kjv-bbe"}),
        (("out_of_distribution", "names"), {"RTE": "PAWS"}),
        (("out_of_distribution", "limit"), 0),
        (("resources", "runtime"), {"translation": "2d"}),
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


def definition(name: str, part: str | None = None) -> dict[str, Any]:
    """The keys of a definition, or of an object in it."""
    keys = SCHEMA["$defs"][name]["properties"]
    return keys if part is None else keys[part]["properties"]


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
        pytest.param(definition("text", "bible"), bible.build_parser, set(), id="bible"),
        pytest.param(definition("text", "wikitext"), wikitext.build_parser, {"data_dir"}, id="wikitext"),
        pytest.param(definition("pairs", "bible_pairs"), bible_pairs.build_parser, set(), id="bible_pairs"),
        pytest.param(definition("pairs", "multi30k"), multi30k.build_parser, {"data_dir"}, id="multi30k"),
        pytest.param(definition("pairs", "iwslt14"), iwslt14.build_parser, {"archive"}, id="iwslt14"),
        pytest.param(definition("pairs", "wmt17"), wmt17.build_parser, {"archives"}, id="wmt17"),
        pytest.param(definition("glue_tasks", "bible_glue"), bible_glue.build_parser, set(), id="bible_glue"),
        pytest.param(definition("questions", "bible_squad"), bible_squad.build_parser, set(), id="bible_squad"),
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
        default = found[name].default
        assert key["default"] == (list(default) if isinstance(default, tuple) else default), name
        if found[name].choices and "enum" in key:
            assert set(key["enum"]) <= set(found[name].choices), name


def printed_by(program: str, *arguments: str) -> Any:
    """The JSON that a Python program prints, in a process of its own that finds this repository's packages."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


PARSE_BY_FAIRSEQ = """
import json, sys
sys.path.insert(0, "fairseq")
import launcher
launcher.prepare()
from fairseq import options
parsed = []
for line in json.loads(sys.argv[1]):
    words = launcher.rewrite("train", line)
    parsed.append(vars(options.parse_args_and_arch(options.get_training_parser(), input_args=words)))
print(json.dumps(parsed, default=str))
"""


def test_fairseq_takes_every_key_of_translation() -> None:
    every = {"arch": "ap_transformer", "lr": 0.1, "max_update": 7, "max_tokens": 9}
    for name, key in (definition("fairseq_model") | definition("fairseq_training")).items():
        kind = key["type"][0] if isinstance(key.get("type"), list) else key.get("type", "boolean")
        default = {"integer": 3, "number": 0.25, "boolean": True}.get(kind) if key.get("default") is None else None
        every.setdefault(name, key.get("default") if default is None else default)
    lines = []
    for scheduler, foreign in (("inverse_sqrt", "total_num_update"), ("polynomial_decay", "warmup_init_lr")):
        line = ["data", "--optimizer", "adam", "--criterion", "label_smoothed_cross_entropy"]
        for name, value in (every | {"lr_scheduler": scheduler}).items():
            if name != foreign and value is not False:
                line += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        lines.append(line)
    for line, found in zip(lines, printed_by(PARSE_BY_FAIRSEQ, json.dumps(lines)), strict=True):
        assert found["arch"] == "ap_transformer" and found["max_update"] == 7 and found["encoder_layers"] == 3
        assert {word.removeprefix("--").replace("-", "_") for word in line if word.startswith("--")} <= set(found)


DEFAULTS_OF_BERT = """
import json, sys
sys.path.insert(0, "bert/src")
from run_flags import parse_flags
module = __import__(sys.argv[1])
task = ["--task_name", "MRPC"] if sys.argv[1] == "run_glue" else []
line = ["--model_name_or_path", "m", "--output_dir", "o", "--do_eval", *task]
print(json.dumps(parse_flags("", module.DataArguments, line).as_dict(), default=str))
"""


@pytest.mark.parametrize(("script", "lengths"), [("run_glue", "glue_lengths"), ("run_squad", "squad_lengths")])
def test_keys_of_fine_tuning_are_the_scripts_flags_with_the_same_defaults(script: str, lengths: str) -> None:
    found = printed_by(DEFAULTS_OF_BERT, script)
    keys = definition("finetuning") | definition("bert_evaluation") | definition("bert_pattern") | definition(lengths)
    keys |= {name: definition("glue_tasks")[name] for name in ("max_train_samples", "max_eval_samples")}
    keys |= {"model_revision": definition("pretrained")["model_revision"]}
    for name, key in keys.items():
        assert found[name] == key["default"], name


def test_the_choices_of_pruning_are_the_librarys() -> None:
    assert tuple(definition("efficiency")["block_size"]["enum"]) == BLOCK_SIZES
    choices = SCHEMA["$defs"]
    assert tuple(choices["rule"]["enum"]) == RULES
    assert tuple(choices["scope"]["enum"]) == SCOPES
    assert tuple(definition("pruning")["row_floor"]["enum"]) == ROW_FLOORS
    assert ("data", *choices["control"]["enum"]) == KINDS == VARIANTS


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_plans_without_its_data(name: str, tmp_path: Path) -> None:
    found = plan(tmp_path, "--configfile", str(ROOT / "config" / f"{name}.yaml"))
    assert found.returncode == 0, found.stdout
    config = filled(read(name))
    jobs = dict(line.split() for line in found.stdout.splitlines() if len(line.split()) == 2)
    for experiment, training, averaging in (
        ("language_modelling", "train_language_model", "average_language_model"),
        ("translation", "train_translation", "average_translation"),
        ("glue", "finetune", "average_finetuned"),
    ):
        pruning, seeds = config[experiment]["pruning"], len(config[experiment]["seeds"])
        control_seeds = len(pruning["control_seeds"] or config[experiment]["seeds"])
        controls = len(pruning["controls"]) * len(pruning["control_taus"]) * control_seeds
        tasks = len(config[experiment]["dataset"].get("tasks", [None]))
        assert int(jobs[training]) == ((1 + len(pruning["taus"])) * seeds + controls) * tasks, experiment
        assert int(jobs[averaging]) == seeds * tasks, experiment
    assert int(jobs["translate"]) == int(jobs["score_translation"]) == int(jobs["train_translation"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", NAMES)
def test_single_sites_and_questions_are_planned_on_request(name: str, tmp_path: Path) -> None:
    config = filled(read(name))
    file = ("--configfile", str(ROOT / "config" / f"{name}.yaml"))
    found = plan(tmp_path, f"results/{name}/translation_sites.png", *file).stdout
    assert f"--PRUNE_ENC_DEC_ATTN --ENCODER_DECODER_ATTN_PATH runs/{name}/translation/" in found
    alone = [line for line in found.splitlines() if "fairseq/train.py" in line and "@enc-dec" in line]
    assert len(alone) == len(config["translation"]["site_taus"]) * len(config["translation"]["seeds"])
    assert all(" --PRUNE_BOOL " in line and "PRUNE_ENC_SELF" not in line for line in alone)
    found = plan(tmp_path, "squad", *file).stdout
    trained = [line for line in found.splitlines() if "run_squad.py --do_train" in line]
    assert len(trained) == (1 + len(config["squad"]["pruning"]["taus"])) * len(config["squad"]["seeds"])
    assert sum(" --prune --attn_path " in line for line in trained) == len(trained) - len(config["squad"]["seeds"])


@pytest.mark.parametrize("name", NAMES)
def test_the_comparison_with_entmax_is_planned_on_request(name: str, tmp_path: Path) -> None:
    config, file = filled(read(name))["translation"], ("--configfile", str(ROOT / "config" / f"{name}.yaml"))
    models, seeds = 1 + len(config["entmax"]["taus"]), len(config["seeds"])
    found = plan(tmp_path, f"results/{name}/entmax_comparison.png", *file).stdout.splitlines()
    trained = [line for line in found if "fairseq/train.py" in line]
    with_entmax = [line for line in trained if " --USE_ENTMAX" in line]
    assert len(with_entmax) == models * seeds and len(trained) == 2 * len(with_entmax)
    assert all("/entmax-d" in line for line in with_entmax)
    assert sum(" --PRUNE_BOOL " in line for line in with_entmax) == (models - 1) * seeds
    # each by its own patterns
    masks = [line for line in found if "cli mask" in line]
    assert len(masks) == 2 * 3 * (models - 1) * seeds
    assert all(("/entmax-dense/" in line) == ("/entmax-data/" in line) for line in masks)
    averaged = [line for line in found if "compute_attn_score.py" in line]
    assert sorted("--use_entmax" in line for line in averaged) == [False] * seeds + [True] * seeds
    assert all(("--use_entmax" in line) == ("/entmax-dense/" in line) for line in averaged)
    assert len([line for line in found if "fairseq/inspect_checkpoint.py" in line]) == len(trained)
    assert not [line for line in plan(tmp_path, *file).stdout.splitlines() if "entmax" in line]


@pytest.mark.parametrize("name", NAMES)
def test_the_comparison_of_masks_is_planned_on_request(name: str, tmp_path: Path) -> None:
    config, file = filled(read(name)), ("--configfile", str(ROOT / "config" / f"{name}.yaml"))
    found = plan(tmp_path, f"results/{name}/mask_comparison.png", *file).stdout.splitlines()
    for experiment, script, sites in (
        ("language_modelling", "transformer-xl/train.py", 1),
        ("translation", "fairseq/train.py", 3),
    ):
        pruning, own = config[experiment]["pruning"], config[experiment]["mask_comparison"]
        seeds, control_seeds = (len(config[experiment]["seeds"]), len(pruning["control_seeds"] or []))
        of_figure = control_seeds or seeds
        others = [way for way in own["choices"] if (way["rule"], way["scope"]) != (pruning["rule"], pruning["scope"])]
        models = {f"{way['rule']}-{way['scope']}": seeds for way in others} | {"data": seeds}
        models |= {control: of_figure if control in pruning["controls"] else seeds for control in own["controls"]}
        trained = [line for line in found if script in line]
        for variant, number in models.items():
            assert sum(f"/{variant}/tau" in line for line in trained) == number * len(own["taus"]), variant
        assert len(trained) == seeds + sum(models.values()) * len(own["taus"])
        masks = [line for line in found if "cli mask" in line and f"/{experiment}/" in line]
        assert len(masks) == sum(models.values()) * len(own["taus"]) * sites
        for way in others:
            flags = f" --rule {way['rule']} --scope {way['scope']} "
            made = [line for line in masks if f"/{way['rule']}-{way['scope']}/tau" in line]
            assert made and all(flags in line for line in made)
        by_distance = [line for line in masks if "/pattern" in line and " --distance-like " in line]
        assert len(by_distance) == models["distance"] * len(own["taus"]) * sites
        by_use = pruning["controls_equal"] == "evaluated_sparsity"
        assert all(("--equal-use" in line) == by_use for line in by_distance)
    assert not [line for line in plan(tmp_path, *file).stdout.splitlines() if "distance" in line or "-head/" in line]


def test_a_scope_is_said_where_it_is_not_the_one_that_is_meant_without(tmp_path: Path) -> None:
    file = ("--configfile", str(ROOT / "config" / "smoke.yaml"))
    found = plan(tmp_path, "results/smoke/mask_comparison.png", *file).stdout.splitlines()
    evaluated = [line for line in found if "transformer-xl/eval.py" in line or "score_translations.py" in line]
    for variant, labels in (("allowed-row", "rule=allowed --label scope=row"), ("published-head", "scope=head")):
        own = [line for line in evaluated if f" --label variant={variant} " in line]
        assert own and all(f"{labels} --label block_size=1" in line for line in own)
    assert not [line for line in evaluated if "scope=layer" in line]


@pytest.mark.parametrize("name", NAMES)
def test_the_efficiency_table_is_planned_on_request(name: str, tmp_path: Path) -> None:
    config = filled(read(name))["squad"]
    own, file = config["efficiency"], ("--configfile", str(ROOT / "config" / f"{name}.yaml"))
    found = plan(tmp_path, "results/efficiency_table.md", *file).stdout.splitlines()
    trained = [line for line in found if "run_squad.py --do_train" in line]
    assert len(trained) == (1 + len(own["quality_taus"])) * len(config["seeds"])
    masks = [line for line in found if "cli mask" in line]
    assert masks and all(f"--block-size {own['block_size']} " in line and "/block/tau" in line for line in masks)
    (timed,) = (line for line in found if "measure_efficiency.py" in line)
    shown = timed.partition("--masks ")[2].partition(" --")[0].split()
    assert [path.split("/tau")[1].split("/")[0] for path in shown] == [f"{tau:g}" for tau in own["taus"]]
    assert all(f"block_size={own['block_size']}" in line for line in trained if " --prune " in line)
    assert not [line for line in plan(tmp_path, *file).stdout.splitlines() if "efficiency" in line]


def test_controls_of_a_seed_that_no_model_has_are_refused(tmp_path: Path) -> None:
    config = read("smoke")
    config["translation"]["pruning"]["control_seeds"] = [1, 7]
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(config))
    found = plan(tmp_path, "--configfile", str(own))
    assert found.returncode != 0
    assert "translation.pruning.control_seeds: expected some of the experiment's seeds, [1], found 7\n" in found.stdout


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
    general = ("name", "data_dir", "experiments", "controls_at_every_tau", "resources")
    known = ", ".join((*general, *EXPERIMENTS, "out_of_distribution"))
    assert f"{message}; expected some of {known}\n" in found.stdout
    assert len(found.stdout.splitlines()) < 8
    assert [path.name for path in tmp_path.iterdir()] in ([], [".snakemake"])


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
    assert {"draw_patterns", "draw_structural_zeros", "draw_controls", "draw_comparison"} <= {rule for rule, _ in jobs}


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
    assert set(named) == with_gpu and len(with_gpu) == 12
    # The default profile holds beside --profile, which would leave one GPU job at a time on a whole cluster.
    assert profiles["default"]["resources"] == ["gpu=1"]
    assert 'resource_scopes:\n    gpu="local",\n' in (ROOT / "Snakefile").read_text()


def test_every_rule_logs_measures_and_bounds_itself() -> None:
    for file in (ROOT / "rules").glob("*.smk"):
        for rule in re.split(r"\n(?=(?:use )?rule )", file.read_text())[1:]:
            directives = ["log:", "benchmark:", "message:"]
            if not rule.startswith("use "):  # which has the bounds of the rule that it uses
                directives += ["threads:", "resources:", "mem_mb", "runtime"]
            for directive in directives:
                assert directive in rule, f"{file.name}: {rule.partition(':')[0]}: {directive}"

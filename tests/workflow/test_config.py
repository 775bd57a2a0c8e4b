"""Configurations: strict, complete, in step with the scripts' flags."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from snakemake.exceptions import WorkflowError

from attention_pruning.mask import KINDS
from attention_pruning.ops.layout import BLOCK_SIZES
from attention_pruning.recipe import ROW_FLOORS, RULES, SCOPES
from configurations import NAMES, SCHEMA, filled, printed_by, read
from reproduction.analysis.curves import VARIANTS
from reproduction.analysis.table import FURTHER
from reproduction.data.language import bible, wikitext
from reproduction.data.tasks import bible_glue, bible_squad
from reproduction.data.translation import bible_de_en, bible_pairs, iwslt14, multi30k, wmt17
from upstream_flags import REFUSED

#: Flags that the workflow gives by itself.
OF_THE_WORKFLOW = {
    *("help", "data", "work_dir", "restart", "overwrite", "set_aside", "seed", "device", "threads", "checkpoint"),
    *("out", "label"),
}


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
        (("translation", "pairs_comparison"), {"fractions": [1.0]}),
        (("translation", "pairs_comparison"), {"lengths": [0, 10]}),
        (("translation", "pruning", "control_seeds"), [1]),
        (("glue", "dataset", "tasks"), ["MRPC", "Poetry"]),
        (("squad", "lengths"), {"max_seq_length": "384"}),
        (("resources", "threads"), 0),
        (("out_of_distribution", "names"), {"language_modelling": "bible-kjv-bbe"}),
        (("out_of_distribution", "names"), {"RTE": "PAWS"}),
        (("out_of_distribution", "limit"), 0),
        (("out_of_distribution", "taus"), {"glue": 80}),
        (("out_of_distribution", "taus"), {"glue": [0.5]}),
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
            {"fn", "th", "rule", "scope", "block_size", "row_floor", "random_prune", "prune_seed", "eval_tgt_len"}
            | {"beyond", "attention_backend", "tf32", "untie_r", "tie_projs", "logging_dir", "report_to", "restart_dir"}
            | {*REFUSED, "dataset", "multi_gpu", "gpu0_bsz", "dynamic_loss_scale"},
            id="train",
        ),
        pytest.param(
            definition("evaluation"),
            lambda: script_parser("eval"),
            {"split", "max_eval_steps", "beyond", "attention_backend", "dataset", "ext_len", "no_log"},
            id="eval",
        ),
        pytest.param(
            definition("pattern"),
            lambda: script_parser("compute_mask"),
            {"tgt_len", "mem_len", "block_size"},
            id="pattern",
        ),
        pytest.param(definition("text", "bible"), bible.build_parser, set(), id="bible"),
        pytest.param(definition("text", "wikitext"), wikitext.build_parser, {"data_dir"}, id="wikitext"),
        pytest.param(definition("pairs", "bible_pairs"), bible_pairs.build_parser, set(), id="bible_pairs"),
        pytest.param(definition("pairs", "bible_de_en"), bible_de_en.build_parser, {"data_dir"}, id="bible_de_en"),
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
    # The seed of a corpus is a key, the seed of a run is the workflow's. Another name of a flag comes after it.
    found = {
        action.dest: action
        for action in reversed(parser()._actions)
        if action.dest not in OF_THE_WORKFLOW or (action.dest == "seed" and "seed" in keys)
    }
    assert set(keys) == set(found) - left_out
    for name, key in keys.items():
        default = found[name].default
        assert key["default"] == (list(default) if isinstance(default, tuple) else default), name
        if found[name].choices and "enum" in key:
            assert set(key["enum"]) <= set(found[name].choices), name


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
    assert ("data", *choices["control"]["enum"]) == VARIANTS
    further = [name for name in (*FURTHER, "dropout", "dense-longer") if name not in VARIANTS]
    assert choices["comparison_control"]["enum"] == [*VARIANTS[1:], *further]
    # no experiment chooses its cells by hand; with sinks, or of another seed, a mask is of a kind that is there already
    assert set(KINDS) == {*VARIANTS, "shuffled-heads", "custom"}

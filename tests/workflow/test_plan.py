"""What is planned for each configuration: by default, on request, and for one that makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from configurations import EXPERIMENTS, NAMES, ROOT, filled, plan, planned, read

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_plans_without_its_data(name: str) -> None:
    found = planned("--configfile", str(ROOT / "config" / f"{name}.yaml"))
    config = filled(read(name))
    jobs = dict(line.split() for line in found.splitlines() if len(line.split()) == 2)
    for experiment, training, averaging in (
        ("language_modelling", "train_language_model", "average_language_model"),
        ("translation", "train_translation", "average_translation"),
        ("glue", "finetune", "average_finetuned"),
    ):
        pruning, seeds = config[experiment]["pruning"], len(config[experiment]["seeds"])
        controls = len(pruning["controls"]) * len(pruning["control_taus"]) * seeds
        tasks = len(config[experiment]["dataset"].get("tasks", [None]))
        assert int(jobs[training]) == ((1 + len(pruning["taus"])) * seeds + controls) * tasks, experiment
        assert int(jobs[averaging]) == seeds * tasks, experiment
    assert int(jobs["translate"]) == int(jobs["score_translation"]) == int(jobs["train_translation"])


@pytest.mark.parametrize("name", NAMES)
def test_single_sites_and_questions_are_planned_on_request(name: str) -> None:
    config = filled(read(name))
    file = ("--configfile", str(ROOT / "config" / f"{name}.yaml"))
    found = planned(f"results/{name}/translation_sites.png", *file)
    assert f"--PRUNE_ENC_DEC_ATTN --ENCODER_DECODER_ATTN_PATH runs/{name}/translation/" in found
    alone = [line for line in found.splitlines() if "fairseq/train.py" in line and "@enc-dec" in line]
    assert len(alone) == len(config["translation"]["site_taus"]) * len(config["translation"]["seeds"])
    assert all(" --PRUNE_BOOL " in line and "PRUNE_ENC_SELF" not in line for line in alone)
    found = planned("squad", *file)
    trained = [line for line in found.splitlines() if "run_squad.py --do_train" in line]
    assert len(trained) == (1 + len(config["squad"]["pruning"]["taus"])) * len(config["squad"]["seeds"])
    assert sum(" --prune --attn_path " in line for line in trained) == len(trained) - len(config["squad"]["seeds"])


@pytest.mark.parametrize("name", NAMES)
def test_the_comparison_with_entmax_is_planned_on_request(name: str) -> None:
    config, file = filled(read(name))["translation"], ("--configfile", str(ROOT / "config" / f"{name}.yaml"))
    models, seeds = 1 + len(config["entmax"]["taus"]), len(config["seeds"])
    found = planned(f"results/{name}/entmax_comparison.png", *file).splitlines()
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
    assert not [line for line in planned(*file).splitlines() if "entmax" in line]


@pytest.mark.parametrize("name", NAMES)
def test_the_comparison_of_masks_is_planned_on_request(name: str) -> None:
    config, file = filled(read(name)), ("--configfile", str(ROOT / "config" / f"{name}.yaml"))
    found = planned(f"results/{name}/mask_comparison.png", *file).splitlines()
    for experiment, script, sites in (
        ("language_modelling", "transformer-xl/train.py", 1),
        ("translation", "fairseq/train.py", 3),
    ):
        pruning, own = config[experiment]["pruning"], config[experiment]["mask_comparison"]
        seeds = len(config[experiment]["seeds"])
        others = [way for way in own["choices"] if (way["rule"], way["scope"]) != (pruning["rule"], pruning["scope"])]
        models = {f"{way['rule']}-{way['scope']}": seeds for way in others} | {"data": seeds}
        models |= dict.fromkeys(own["controls"], seeds)
        trained = [line for line in found if script in line]
        # what is trained twice as long has no tau
        numbers = {name: n * (1 if name == "dense-longer" else len(own["taus"])) for name, n in models.items()}
        for variant, number in numbers.items():
            assert sum(f"/{variant}/tau" in line for line in trained) == number, variant
        assert len(trained) == seeds + sum(numbers.values())
        masks = [line for line in found if "cli mask" in line and f"/{experiment}/" in line]
        pruned = {name: number for name, number in numbers.items() if name not in ("dropout", "dense-longer")}
        assert len(masks) == sum(pruned.values()) * sites
        for way in others:
            flags = f" --rule {way['rule']} --scope {way['scope']} "
            made = [line for line in masks if f"/{way['rule']}-{way['scope']}/tau" in line]
            assert made and all(flags in line for line in made)
        by_distance = [line for line in masks if "/pattern" in line and " --distance-like " in line]
        assert len(by_distance) == (pruned["distance"] + pruned.get("distance-sinks", 0)) * sites
        by_use = pruning["controls_equal"] == "evaluated_sparsity"
        assert all(("--equal-use" in line) == by_use for line in by_distance)
    assert not [line for line in planned(*file).splitlines() if "distance" in line or "-head/" in line]


@pytest.mark.parametrize("overlay", ["german", "captions"])
def test_fewer_pairs_are_planned_on_request(overlay: str) -> None:
    config: dict = {}
    for name in ("quick", overlay):
        update_config(config, read(name))
    own, name = filled(config)["translation"], config["translation"]["dataset"]["name"]
    asked, seeds = own["pairs_comparison"], len(own["seeds"])
    file = ("--configfile", *(str(ROOT / "config" / f"{name}.yaml") for name in ("quick", overlay)))
    found = planned("pairs_comparison", *file).splitlines()
    datasets = [name, *(f"{name}-{fraction:g}" for fraction in asked["fractions"])]
    prepared = [line for line in found if f"reproduction.data.translation.{own['dataset']['source']} --out" in line]
    assert len(prepared) == len(datasets)
    for dataset, fraction in zip(datasets, [1.0, *asked["fractions"]], strict=True):
        (line,) = (line for line in prepared if f"/{dataset}/pairs " in line)
        assert f" --pairs-fraction {fraction} " in line
        trained = [line for line in found if "fairseq/train.py" in line and f"/{dataset}/binarised" in line]
        assert len(trained) == (1 + len(asked["taus"])) * seeds
        # each by the pattern of as many pairs
        assert all(f"/translation/{dataset}/" in line.partition("--PRUNE")[2] for line in trained if "PRUNE_" in line)
    by_length = [line for line in found if "reproduction.scores.length_scores" in line]
    assert len(by_length) == len(datasets) * (1 + len(asked["taus"])) * seeds
    assert not [line for line in planned(*file).splitlines() if f"{name}-0." in line]


def test_fewer_pairs_of_a_source_without_the_flag_are_refused(tmp_path: Path) -> None:
    config = read("smoke")
    config["translation"]["dataset"] |= {"name": "iwslt14", "source": "iwslt14"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    found = plan(tmp_path, "--configfile", str(tmp_path / "mine.yaml"))
    assert found.returncode != 0
    assert "translation.pairs_comparison.fractions: expected none of the source iwslt14, found some" in found.stdout


def test_further_controls_are_made_as_they_are_called() -> None:
    config, file = read("smoke"), ("--configfile", str(ROOT / "config" / "smoke.yaml"))
    found = planned("mask_comparison", *file).splitlines()
    commands = [line for line in found if "cli mask" in line or "fairseq/train.py" in line or "xl/train.py" in line]

    def of(experiment: str, variant: str) -> list[str]:
        return [line for line in commands if f"/{experiment}/" in line and f"/{variant}/tau" in line]

    masks = [line for line in of("language_modelling", "other-seed") if "cli mask" in line]
    assert len(masks) == 2
    for ours, theirs in ((1, 2), (2, 1)):
        (line,) = (line for line in masks if f"/seed{ours}/mask.safetensors" in line)
        assert f"/dense/tau0/seed{theirs}/pattern.safetensors --tau 0.9" in line
    masks = [line for line in of("language_modelling", "shuffled-heads") if "cli mask" in line]
    assert len(masks) == 2
    assert all(" --shuffled-heads-like runs/" in line and " --seed " in line for line in masks)
    for kind, like in (("window-sinks", " --window-like "), ("distance-sinks", " --distance-like ")):
        masks = [line for line in of("translation", kind) if "cli mask" in line]
        assert len(masks) == 3 and all(like in line and " --sinks 1 " in line for line in masks)
        assert all(" --equal-use " in line for line in masks)
    (longer,) = of("translation", "dense-longer")
    steps = 2 * config["translation"]["training"]["max_update"]
    assert f" --max-update {steps} " in longer and f" --total-num-update {steps} " in longer
    (dropped,) = of("translation", "dropout")
    assert " --attention-dropout 0.5 " in dropped and "PRUNE" not in longer + dropped
    for line in of("language_modelling", "dense-longer"):
        assert f" --max_step {2 * config['language_modelling']['training']['max_step']} " in line
    for line in of("language_modelling", "dropout"):
        assert " --dropatt 0.9 " in line and " --fn " not in line
    evaluated = [line for line in found if "/dropout/tau" in line and "--label variant=dropout" in line]
    assert len(evaluated) == 3 and not any("--label rule=" in line for line in evaluated)
    tasks = config["glue"]["dataset"]["tasks"]
    tuned = [line for line in found if "run_glue.py --do_train" in line and "/window-sinks/tau0.5/" in line]
    assert len(tuned) == len(tasks)


@pytest.mark.parametrize(
    ("experiment", "control", "expected"),
    [
        ("language_modelling", "window-sinks", "expected no masks with sinks, since memory slots come before the"),
        ("translation", "other-seed", "expected two seeds at least with other-seed, found one"),
    ],
)
def test_controls_that_an_experiment_cannot_have_are_refused(
    experiment: str, control: str, expected: str, tmp_path: Path
) -> None:
    config = read("smoke")
    config[experiment]["mask_comparison"]["controls"] = [control]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    found = plan(tmp_path, "--configfile", str(tmp_path / "mine.yaml"))
    assert found.returncode != 0 and f"{experiment}.mask_comparison.controls: {expected}" in found.stdout


def test_a_scope_is_said_where_it_is_not_the_one_that_is_meant_without() -> None:
    file = ("--configfile", str(ROOT / "config" / "smoke.yaml"))
    found = planned("results/smoke/mask_comparison.png", *file).splitlines()
    evaluated = [line for line in found if "transformer-xl/eval.py" in line or "score_translations.py" in line]
    for variant, labels in (("allowed-row", "rule=allowed --label scope=row"), ("published-head", "scope=head")):
        own = [line for line in evaluated if f" --label variant={variant} " in line]
        assert own and all(f"{labels} --label block_size=1" in line for line in own)
    assert not [line for line in evaluated if "scope=layer" in line]


@pytest.mark.parametrize("name", NAMES)
def test_the_efficiency_table_is_planned_on_request(name: str) -> None:
    config = filled(read(name))["squad"]
    own, file = config["efficiency"], ("--configfile", str(ROOT / "config" / f"{name}.yaml"))
    found = planned("results/efficiency_table.md", *file).splitlines()
    trained = [line for line in found if "run_squad.py --do_train" in line]
    assert len(trained) == (1 + len(own["quality_taus"])) * len(config["seeds"])
    masks = [line for line in found if "cli mask" in line]
    assert masks and all(f"--block-size {own['block_size']} " in line and "/block/tau" in line for line in masks)
    (timed,) = (line for line in found if "measure_efficiency.py" in line)
    shown = timed.partition("--masks ")[2].partition(" --")[0].split()
    assert [path.split("/tau")[1].split("/")[0] for path in shown] == [f"{tau:g}" for tau in own["taus"]]
    assert all(f"block_size={own['block_size']}" in line for line in trained if " --prune " in line)
    assert not [line for line in planned(*file).splitlines() if "efficiency" in line]


@pytest.mark.parametrize("names", [*((name,) for name in NAMES), ("quick", "long")], ids="+".join)
def test_what_pruning_saves_a_language_model_is_planned_on_request(names: tuple[str, ...]) -> None:
    config: dict = {}
    for name in names:
        update_config(config, read(name))
    config = filled(config)
    own, seeds = config["language_modelling"]["efficiency"], config["language_modelling"]["seeds"]
    file = ("--configfile", *(str(ROOT / "config" / f"{name}.yaml") for name in names))
    found = planned("language_model_efficiency", *file).splitlines()
    kinds = ["data", *(f"block{size}" for size in own["block_sizes"])]
    trained = [line for line in found if "transformer-xl/train.py" in line]
    assert len(trained) == (1 + len(kinds) * len(own["quality_taus"])) * len(seeds)
    for size in own["block_sizes"]:
        masks = [line for line in found if "cli mask" in line and f"/block{size}/" in line]
        assert masks and all(f"--block-size {size} " in line for line in masks)
    (timed,) = (line for line in found if "measure_language_model.py" in line)
    shown = timed.partition("--masks ")[2].partition(" --")[0].split()
    expected = [[kind, f"tau{tau:g}"] for kind in kinds for tau in own["taus"]]
    assert [path.split("/")[-4:-2] for path in shown] == expected
    assert not [line for line in planned(*file).splitlines() if "efficiency" in line]


def test_a_task_may_have_lengths_of_its_own(tmp_path: Path) -> None:
    config = read("smoke")
    first, second = config["glue"]["dataset"]["tasks"]
    config["glue"]["task_lengths"] = {second: {"max_seq_length": 24}}
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(config))
    found = plan(tmp_path, "glue", "ood_table", "--configfile", str(own)).stdout.splitlines()
    usual = config["glue"]["lengths"]["max_seq_length"]
    for task, length in ((first, usual), (second, 24)):
        lines = [line for line in found if "run_glue.py" in line and f" --task_name {task} " in line]
        for step in ("--do_train", "--save_attention_patterns", "away"):
            assert any(step in line for line in lines), step
        assert all(f" --max_seq_length {length} " in line for line in lines)
        assert all("/glue/prepared " in line for line in lines)
    config["glue"]["task_lengths"] = {"MRPC": {"max_seq_length": 24}}
    own.write_text(yaml.safe_dump(config))
    refused = plan(tmp_path, "--configfile", str(own))
    assert refused.returncode != 0
    assert f"glue.task_lengths: expected some of the tasks, {first}, {second}, found MRPC\n" in refused.stdout


def test_the_published_experiment_is_the_papers() -> None:
    found = planned("--configfile", str(ROOT / "config" / "paper.yaml"), "--config", "data_dir=some/where")
    commands = [line for line in found.splitlines() if "transformer-xl/train.py" in line]
    published = (
        "--n_layer 16 --n_head 10 --d_head 41 --d_model 410 --d_inner 2100 --dropout 0.1 --dropatt 0.0 --adaptive "
        "--cutoffs 20000 40000 200000 --div_val 1 --tgt_len 150 --mem_len 150 --optim adam --lr 0.00025 "
        "--scheduler cosine --warmup_step 0 --max_step 200000 --batch_size 60"
    )
    assert commands
    assert all(part in f"{command} " for command in commands for part in published.replace(" --", " \n--").split("\n"))
    assert "reproduction.data.language.wikitext --out" in found and "--data-dir some/where" in found
    evaluations = [line for line in found.splitlines() if "transformer-xl/eval.py" in line]
    assert any("--tgt_len 64 --mem_len 640 --clamp_len 400 --same_length" in line for line in evaluations)


def test_quick_is_the_default_and_leaks_into_nothing(tmp_path: Path) -> None:
    assert "runs/quick/" in planned()
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
    general = ("name", "data_dir", "experiments", "controls_at_every_tau", "first_seeds", "resources")
    known = ", ".join((*general, *EXPERIMENTS, "out_of_distribution"))
    assert f"{message}; expected some of {known}\n" in found.stdout
    assert len(found.stdout.splitlines()) < 8
    assert [path.name for path in tmp_path.iterdir()] in ([], [".snakemake"])

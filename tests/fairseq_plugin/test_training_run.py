"""Whose run a training folder is, what it starts from, and how it is interrupted."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import torch

import training_run
from attention_pruning import InputError, PruneMask
from plugin.step_table import numbers
from tiny_translation import FAIRSEQ, as_arguments, error_of, prune_flags, run_script
from warm_python import python

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:\n.*is validated against ConfigStore")]

MODEL = [
    *("--arch", "ap_transformer_tiny", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16"),
    *("--optimizer", "adam", "--lr", "0.01", "--max-tokens", "120", "--dropout", "0.1"),
    *("--criterion", "label_smoothed_cross_entropy", "--log-format", "json", "--log-interval", "1", "--seed", "1"),
    *("--cpu", "--no-epoch-checkpoints", "--max-update", "6", "--left-pad-source"),
]


def configuration(data, folder, *more):
    """fairseq's configuration of a training, as its command line gives it."""
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    from fairseq import options

    words = [str(word) for word in (data, "--save-dir", folder, *MODEL, *more)]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))


def claim(data, folder, *more, other="refuse"):
    cfg = configuration(data, folder, *more)
    claimed = training_run.claim(cfg, training_run.starting_point(cfg), other)
    (folder / "checkpoint1.pt").touch()  # as a training leaves: a folder where nothing was trained is nobody's
    return claimed


def train(data, folder, *more):
    done = run_script("train.py", data, "--save-dir", folder, *MODEL, *more)
    return done.stdout + done.stderr


KILLING = """
import os, signal, sys
sys.path[:0] = [{folder!r}]
import launcher
launcher.prepare()
import {module} as module
do = module.{name}
def then_die(*arguments, **options):
    do(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
module.{name} = then_die
launcher.run("train", "")
"""
#: Done first when an epoch ends.
KILLED_AFTER = {
    "once it is saved": ("fairseq.checkpoint_utils", "save_checkpoint"),
    "once it is logged": ("fairseq.logging.metrics", "reset_meters"),
}


def losses(log):
    lines = re.findall(r"\| train_inner \| (\{.*\})", log)
    return {int(line["num_updates"]): line["loss"] for line in map(json.loads, lines)}


def table(folder, split):
    """Name -> step -> value, from steps.csv."""
    with (folder / "steps.csv").open(newline="") as file:
        assert file.readline().strip() == "step,split,name,value"
        rows = [row for row in csv.reader(file) if row[1] == split]
    found = {}
    for step, _, name, value in rows:
        assert int(step) not in found.setdefault(name, {}), "once each"
        found[name][int(step)] = float(value)
    return found


def updates(file):
    return torch.load(file, weights_only=False)["optimizer_history"][-1]["num_updates"]


@pytest.fixture(scope="module")
def dense(data, tmp_path_factory):
    """A finished dense training."""
    folder = tmp_path_factory.mktemp("dense")
    train(data, folder)
    return folder


def test_what_does_not_make_a_run_may_differ(data, tmp_path):
    assert not claim(data, tmp_path).resumes
    (tmp_path / "log").mkdir()
    same = claim(data, tmp_path, "--log-interval", "7", "--tensorboard-logdir", tmp_path / "log", "--num-workers", "3")
    assert same.resumes and not same.grown


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--lr", "0.02"), "lr"),
        (("--max-tokens", "130"), "max_tokens"),
        (("--seed", "2"), "seed"),
        (("--adam-betas", "(0.9, 0.98)"), "adam_betas"),
        (("--update-freq", "2"), "update_freq"),
        (("--USE_ENTMAX",), "USE_ENTMAX"),
        (("--max-update", "5"), "max_update"),
        (("--fp16",), "fp16"),
        (("--reset-optimizer",), "reset_optimizer"),
    ],
)
def test_another_recipe_is_refused_by_hand_and_set_aside_in_the_workflow(data, tmp_path, changed, named):
    folder = tmp_path / "run"
    claim(data, folder)
    with pytest.raises(InputError, match=rf"{folder}: expected .*found {named} .* there and .* here"):
        claim(data, folder, *changed)
    aside = claim(data, folder, *changed, other="set_aside")
    assert not aside.resumes and aside.set_aside == tmp_path / "run.old1"


def test_other_masks_make_another_run(data, pattern_files, tmp_path):
    def flags(**more):
        return as_arguments(prune_flags(pattern_files, ("enc-self",), **more))

    claim(data, tmp_path, *flags())
    assert claim(data, tmp_path, *flags()).resumes
    for more, named in (
        ({"tau": 0.5}, "TAU"),
        ({"rule": "published"}, "rule"),
        ({"scope": "row"}, "scope"),
        ({"beyond_pattern": "dense"}, "beyond_pattern"),
        ({"RANDOM_PRUNE": True}, "RANDOM_PRUNE"),
    ):
        with pytest.raises(InputError, match=rf"found ({named}|masks\.enc-self) "):
            claim(data, tmp_path, *flags(**more))
    with pytest.raises(InputError, match="PRUNE_BOOL"):
        claim(data, tmp_path)
    # the same name, another pattern in it
    file = pattern_files["enc-self"]
    content = file.read_bytes()
    try:
        from attention_pruning import AttentionPattern

        pattern = AttentionPattern.load(file)
        AttentionPattern(pattern.average.flip(1), pattern.count, "enc-self").save(file)
        from plugin.site_masks import _load

        _load.cache_clear()
        with pytest.raises(InputError, match=r"found masks\.enc-self "):
            claim(data, tmp_path, *flags())
    finally:
        file.write_bytes(content)
        _load.cache_clear()


def test_other_data_make_another_run(data, tmp_path):
    import shutil

    shutil.copytree(data, tmp_path / "copy")
    claim(data, tmp_path / "run")
    assert claim(tmp_path / "copy", tmp_path / "run").resumes, "the same data elsewhere"
    with (tmp_path / "copy" / "train.xx-yy.xx.bin").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=r"found data\.train "):
        claim(tmp_path / "copy", tmp_path / "run")


def test_a_run_may_be_made_longer_but_not_a_schedule_that_ends_with_it(data, tmp_path):
    claim(data, tmp_path / "a")
    longer = claim(data, tmp_path / "a", "--max-update", "9")
    assert longer.resumes and longer.grown == [{"max_update": 6, "max_epoch": 0}]
    cosine = ("--lr-scheduler", "cosine", "--lr", "0.001")
    claim(data, tmp_path / "b", *cosine)
    with pytest.raises(InputError, match="max_update"):
        claim(data, tmp_path / "b", *cosine, "--max-update", "9")


def test_a_dense_run_never_passes_as_a_pruned_one(data, dense, pattern_files):
    before = (dense / "checkpoint_last.pt").read_bytes()
    flags = as_arguments(prune_flags(pattern_files, ("enc-self",), beyond_pattern="dense"))
    message = error_of("train.py", data, "--save-dir", dense, *MODEL, *flags)
    assert "expected a folder without a run, or one of this recipe" in message and "--overwrite" in message
    assert (dense / "checkpoint_last.pt").read_bytes() == before and not (dense / "mask-enc-self.safetensors").exists()


def test_a_finished_run_is_left_as_it_is(data, dense):
    before = {file.name: file.read_bytes() for file in dense.iterdir()}
    log = train(data, dense)
    assert "all 6 updates are done" in log and not losses(log)
    assert {file.name: file.read_bytes() for file in dense.iterdir()} == before


@pytest.mark.parametrize("killed", ["once it is saved", "once it is logged", None])
def test_the_table_of_a_run_that_stops_at_the_end_of_an_epoch_goes_on(data, tmp_path, killed):
    """fairseq saves, then logs the averages of the epoch; those of --log-interval run on to the next."""
    clocks = {"wps", "ups", "wall", "train_wall"}

    def run(name, epochs, script=FAIRSEQ / "train.py"):
        flags = ("--max-update", "0", "--max-epoch", epochs, "--log-interval", "7")
        flags = (*flags, "--tensorboard-logdir", tmp_path / name / "log", "--save-dir", tmp_path / name)
        return run_script(script, data, *MODEL, *flags, check=script != killing)

    def rows(name):
        with (tmp_path / name / "log" / "steps.csv").open(newline="") as file:
            return [row for row in csv.reader(file) if row[2] not in clocks]

    killing = tmp_path / "killing.py"
    run("whole", 2)
    assert len({row[0] for row in rows("whole") if row[1] == "train"}) == 2
    inner = {int(row[0]) for row in rows("whole") if row[1] == "train_inner"}
    assert inner and all(step % 7 == 0 for step in inner)
    if killed:
        module, name = KILLED_AFTER[killed]
        killing.write_text(KILLING.format(folder=str(FAIRSEQ), module=module, name=name))
        assert run("parts", 2, killing).returncode == -signal.SIGKILL
    else:
        run("parts", 1)
    assert len({row[0] for row in rows("parts")}) < len({row[0] for row in rows("whole")})
    run("parts", 2)
    assert rows("parts") == rows("whole")


def test_a_damaged_checkpoint_is_no_start(data, dense, tmp_path):
    folder = shutil.copytree(dense, tmp_path / "run")
    content = bytearray((folder / "checkpoint_last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "checkpoint_last.pt").write_bytes(content)
    line = error_of("train.py", data, "--save-dir", folder, *MODEL, "--max-update", "8")
    assert "checkpoint_last.pt: expected a checkpoint of fairseq, found a damaged" in line


def test_what_a_run_starts_from_is_in_its_record(data, dense, pattern_files, tmp_path, board):
    """Once begun, it goes on from its own last checkpoint, and its masks are not replaced; nor is its table."""
    flags = as_arguments(prune_flags(pattern_files, ("enc-self",), beyond_pattern="dense"))
    start = ("--finetune-from-model", dense / "checkpoint_last.pt")
    start = (*start, "--tensorboard-logdir", tmp_path / "log")
    train(data, tmp_path / "tuned", *flags, *start)
    assert set(table(tmp_path / "log", "train_inner")["loss"]) == set(range(1, 7))
    record = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert record["starts_from"]["flag"] == "--finetune-from-model"
    assert record["starts_from"]["path"] == str(dense / "checkpoint_last.pt")
    assert len(record["starts_from"]["fingerprint"]) == len(record["recipe_fingerprint"]) == 16
    other = as_arguments(prune_flags(pattern_files, ("enc-self",), tau=0.3, beyond_pattern="dense"))
    with pytest.raises(InputError, match="found TAU "):
        claim(data, tmp_path / "tuned", *other, *start)
    log = train(data, tmp_path / "tuned", *flags, *start, "--max-update", "8")
    assert sorted(losses(log)) == [7, 8]
    assert updates(tmp_path / "tuned" / "checkpoint_last.pt") == 8
    inner, ends = table(tmp_path / "log", "train_inner"), table(tmp_path / "log", "train")
    assert set(inner["loss"]) == set(inner["lr"]) == set(inner["wps"]) == set(range(1, 9))
    assert set(ends["effective_sparsity"].values()) == {
        PruneMask.load(tmp_path / "tuned" / "mask-enc-self.safetensors").effective_sparsity
    }
    assert set(table(tmp_path / "log", "valid")["loss"]) >= {6, 8}
    shown = board(tmp_path / "log" / "train_inner")  # fairseq's own writer, a folder for each kind of step
    assert shown["loss"] == pytest.approx(inner["loss"], rel=1e-6)


def test_a_start_has_updates_left_and_another_folder(data, dense, tmp_path):
    start = ("--restore-file", dense / "checkpoint_last.pt")
    message = error_of("train.py", data, "--save-dir", tmp_path, *MODEL, *start)
    assert "--restore-file: expected a checkpoint of fewer updates than --max-update 6, found 6 in" in message
    assert not (tmp_path / "checkpoint_last.pt").exists()
    with pytest.raises(InputError, match="--restore-file: expected a checkpoint outside of --save-dir"):
        claim(data, dense, "--restore-file", dense / "checkpoint_best.pt")
    assert claim(data, dense, *start).resumes, "the default, spelt out"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_training_is_saved_and_goes_on(data, tmp_path, number, status, processes):
    """No interval asks for a checkpoint: what there is, the signal has left."""
    flags = ["--max-update", "4000", "--distributed-world-size", str(processes)]
    flags += ["--save-interval", "1000", "--validate-interval", "1000"]
    command = [python(), str(FAIRSEQ / "train.py"), str(data), "--save-dir", str(tmp_path), *MODEL, *flags]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(FAIRSEQ.parent), os.environ.get("PYTHONPATH", "")])}
    log = tmp_path.parent / f"{tmp_path.name}.log"
    with log.open("w") as file:
        # Whoever runs the tests in the background of a shell has Control-C switched off.
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=file,
            stderr=file,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            start_new_session=True,
        )
        while not losses(log.read_text()) and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, number)  # as a terminal and a cluster do: workers get it twice, from their parent, too
        assert process.wait(60) == status, log.read_text()
    first, done = losses(log.read_text()), updates(tmp_path / "checkpoint_last.pt")
    assert done >= 1 and max(first) <= done and not (tmp_path / "run.json").exists()
    assert {file.name for file in tmp_path.glob("checkpoint*")} == {"checkpoint_last.pt"}
    again = train(data, tmp_path, *flags, "--max-update", "4001", "--stop-time-hours", "0.0000001")
    assert min(losses(again)) == done + 1


def test_of_what_fairseq_logs_numbers_go_to_the_table():
    logged = {"loss": torch.tensor(0.5), "num_updates": 3, "name": "x", "wps": 7, "many": torch.zeros(2)}
    assert numbers(logged) == {"loss": 0.5, "wps": 7}

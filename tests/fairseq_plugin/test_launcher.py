"""How command lines of ours become fairseq's."""

import ast
import multiprocessing
import shutil
import signal
import time
from pathlib import Path

import pytest

import launcher
import shims
from attention_pruning import InputError

USER_DIR = ["--user-dir", str(shims.PLUGIN)]


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["d"], ["d", *USER_DIR, "--left-pad-source"]),
        (["d", "--left-pad-source"], ["d", *USER_DIR, "--left-pad-source"]),
        (["d", "--left-pad-source", "False", "--cpu"], ["d", "--cpu", *USER_DIR, "--left-pad-source"]),
        (["--left-pad-source", "d"], ["d", *USER_DIR, "--left-pad-source"]),
        (["d", "--left-pad-source", "True"], ["d", *USER_DIR]),
        (["d", "--left-pad-source=true"], ["d", *USER_DIR]),
        (["d", "--logging_dir", "l"], ["d", "--tensorboard-logdir", "l", *USER_DIR, "--left-pad-source"]),
        (["d", "--logging-dir=l"], ["d", "--tensorboard-logdir=l", *USER_DIR, "--left-pad-source"]),
        (["d", "--user-dir", "mine"], ["d", "--user-dir", "mine", "--left-pad-source"]),
    ],
)
def test_training_arguments(given, passed):
    assert launcher.rewrite("train", given) == passed


def test_preprocessing_gets_the_plug_in_alone():
    assert launcher.rewrite("preprocess", ["--source-lang", "de"]) == ["--source-lang", "de", *USER_DIR]


@pytest.mark.parametrize(
    ("given", "overrides"),
    [
        ([], {"beyond_pattern": "dense"}),
        (["--print-alignment=soft"], {"beyond_pattern": "dense", "gives_weights": True}),
        (["--beyond", "error"], {"beyond_pattern": "error"}),
        (["--beyond-pattern", "error"], {"beyond_pattern": "error"}),
        (
            ["--beyond-pattern=decoding", "--model-overrides", "{'data': 'x'}"],
            {"beyond_pattern": "decoding", "data": "x"},
        ),
        (["--model-overrides", "{'beyond_pattern': 'error'}"], {"beyond_pattern": "error"}),
    ],
)
@pytest.mark.parametrize("command", ["generate", "interactive"])
def test_translating_arguments(command, given, overrides):
    passed = launcher.rewrite(command, ["d", *given])
    position = passed.index("--model-overrides")
    assert ast.literal_eval(passed[position + 1]) == overrides
    rest = [word for word in passed[:position] + passed[position + 2 :] if not word.startswith("--print")]
    assert rest == ["d", *USER_DIR, "--left-pad-source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--left-pad-source=maybe"], "--left-pad-source: expected True or False, found 'maybe'"),
        (["--beyond-pattern", "nothing"], "--beyond: expected one of error, dense, decoding, found 'nothing'"),
        (["--model-overrides", "{"], "--model-overrides: expected a Python dictionary"),
        (["--path", "/nowhere.pt"], "/nowhere.pt: expected a checkpoint of fairseq, found no such file"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        launcher.rewrite("generate", ["d", *arguments])


def test_fairseq_is_required_in_its_version(monkeypatch):
    import fairseq

    monkeypatch.setattr(fairseq, "__version__", "0.10.0")
    with pytest.raises(InputError, match="expected version 0.12.2, found 0.10.0: pip install --no-deps"):
        shims.install()
    monkeypatch.delattr(fairseq, "__version__")
    with pytest.raises(InputError, match="expected version 0.12.2, found none"):
        shims.install()


def test_only_fairseqs_dataclasses_become_hashable():
    from dataclasses import dataclass

    from fairseq.dataclass.configs import CommonConfig

    @dataclass
    class Ours:
        value: int = 0

    assert Ours.__hash__ is None and hash(CommonConfig()) is not None


def test_a_copied_checkpoint_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
    shims.install()
    from fairseq.file_io import PathManager

    source, target = tmp_path / "checkpoint_1_20.pt", tmp_path / "checkpoint_last.pt"
    source.write_text("the new one")
    assert PathManager.copy(str(source), str(target), overwrite=True)
    assert target.read_text() == "the new one"

    def interrupted(source, target):
        Path(target).write_text("the n")
        raise KeyboardInterrupt

    target.write_text("the old one")
    monkeypatch.setattr(shutil, "copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PathManager.copy(str(source), str(target), overwrite=True)
    assert target.read_text() == "the old one"


def test_what_becomes_of_another_run_is_taken_from_the_command_line():
    assert launcher.take_folder_flags(["d", "--lr", "-1", "--set-aside"]) == (["d", "--lr", "-1"], "set_aside")
    assert launcher.take_folder_flags(["--overwrite", "d"]) == (["d"], "overwrite")
    assert launcher.take_folder_flags(["d", "--cpu"]) == (["d", "--cpu"], "refuse")


def test_a_signal_is_passed_on_to_the_processes_of_a_training():
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    worker.start()
    try:
        launcher.pass_on(signal.SIGTERM, None)
        worker.join(30)
        assert worker.exitcode == -signal.SIGTERM
    finally:
        worker.kill()
    with pytest.raises(SystemExit) as ended:
        launcher.pass_on(signal.SIGTERM, None)
    assert ended.value.code == 143


@pytest.mark.parametrize(
    "flags, name",
    [
        (["--ddp-backend", "fully_sharded"], "--ddp-backend"),
        (["--ddp-backend=slowmo"], "--ddp-backend"),
        (["--zero-sharding", "os"], "--zero-sharding"),
        (["--model-parallel-size", "2"], "--model-parallel-size"),
        (["--pipeline-model-parallel"], "--pipeline-model-parallel"),
    ],
)
def test_a_model_spread_over_processes_is_refused(flags, name):
    with pytest.raises(InputError, match=f"{name}: expected the whole model in every process, .* found "):
        launcher.check_whole_models(["data", *flags])
    launcher.check_whole_models(["data", "--ddp-backend", "legacy_ddp", "--zero-sharding", "none"])

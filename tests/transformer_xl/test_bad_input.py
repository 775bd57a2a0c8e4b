"""Bad input to the scripts: one line that names the thing, what was expected and what was found; nothing is written."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import compute_mask
import convert_checkpoint
import eval as evaluate_script  # the script's name is that of a builtin
import train
from attention_pruning.make import from_pattern
from reproduction.data.language.corpus import write_corpus
from reproduction.runs.checkpoint import save_checkpoint
from tiny_xl import flags, random_pattern, read_tensors, training_flags, word_lines
from warm_python import python


def tree(folder):
    """Every file below a folder with its size, folders included."""
    return sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*"))


@pytest.fixture
def untouched(tmp_path, refused):
    """Run a script on bad input: its message is returned, and nothing new lies in ``tmp_path``."""

    def run(main, argv):
        before = tree(tmp_path)
        message = refused(main, argv)
        assert tree(tmp_path) == before
        return message

    return run


def broken_files(folder, whole):
    """Ways in which a file can be no safetensors file at all."""
    content = whole.read_bytes()
    files = {
        "truncated": content[: len(content) // 2],
        "beheaded": content[200:],
        "empty": b"",
        "text": b"once upon a time\n" * 30,
        "pickled": pickle.dumps({"average": [1.0]}),
        "numpy": np.arange(10.0).tobytes(),
    }
    for name, written in files.items():
        (folder / name).write_bytes(written)
    torch.save({"weights": torch.zeros(3)}, folder / "torch")
    (folder / "folder").mkdir()
    return [*files, "torch", "folder"]


BROKEN = ["truncated", "beheaded", "empty", "text", "pickled", "numpy", "torch", "folder", "missing"]
every_broken_file = pytest.mark.parametrize("kind", BROKEN)


# -- patterns and masks ------------------------------------------------------------------------------------------------


@every_broken_file
def test_a_broken_pattern(kind, words, pattern_file, tmp_path, untouched):
    assert {*broken_files(tmp_path, pattern_file), "missing"} == set(BROKEN)
    message = untouched(train.main, training_flags(words, tmp_path / "run", fn=tmp_path / kind, th=0.5))
    assert message.startswith(f"{tmp_path / kind}: expected ") and "found" in message


def test_a_file_of_something_else(words, trained, tmp_path, untouched):
    """A model, or somebody's safetensors, where a pattern belongs; a pattern where a model belongs."""
    model, foreign = trained["dense"] / "model.safetensors", tmp_path / "foreign.safetensors"
    save_file({"average": torch.zeros(2, 2, 4, 10)}, foreign)
    for path, found in ((model, "'transformer-xl/model/1'"), (foreign, "None")):
        message = untouched(train.main, training_flags(words, tmp_path / "run", fn=path, th=0.5))
        assert message.startswith(f"{path}: expected") and "attention-pruning/pattern/1" in message
        assert message.endswith(f"found {found}")


@pytest.mark.parametrize("suffix", [".safetensors", ".npy"])
@pytest.mark.parametrize(
    "changes, name, found",
    [
        ({"n_layer": 3}, "layers", 3),
        ({"n_head": 1}, "heads", 1),
        ({"tgt_len": 5, "mem_len": 5}, "query_length", 5),
        ({"mem_len": 8}, "key_length", 12),
    ],
)
def test_a_pattern_of_another_model(changes, name, found, suffix, words, tmp_path, untouched):
    pattern, path = random_pattern(**changes), tmp_path / f"pattern{suffix}"
    if suffix == ".npy":  # layer, query, key, 1, head
        np.save(path, pattern.average.permute(0, 2, 3, 1)[:, :, :, None].numpy())
    else:
        pattern.save(path)
    expected = {"layers": 2, "heads": 2, "query_length": 4, "key_length": 10}[name]
    message = untouched(train.main, training_flags(words, tmp_path / "run", fn=path, th=0.5))
    assert message == f"{path}: expected {name} {expected}, that of the model, found {found}"


def test_a_pickled_npy(words, tmp_path, untouched):
    path = tmp_path / "pattern.npy"
    np.save(path, np.array([{"layer": 1}], dtype=object), allow_pickle=True)
    message = untouched(train.main, training_flags(words, tmp_path / "run", fn=path, th=0.5))
    assert message.startswith(f"{path}: expected a whole .npy file of plain numbers, found")


def test_a_pattern_that_sees_the_future(words, tmp_path, untouched):
    pattern = random_pattern()
    pattern.causal = False
    pattern.save(tmp_path / "pattern.safetensors")
    argv = training_flags(words, tmp_path / "run", fn=tmp_path / "pattern.safetensors", th=0.5)
    assert "expected causal True, as given, found False" in untouched(train.main, argv)


@pytest.mark.parametrize("th, hint", [("90", "0.9"), ("90%", "0.9"), ("-0.1", "0.9"), ("nan", "0.9"), ("1.5", "0.015")])
def test_a_threshold_that_is_no_fraction(th, hint, words, pattern_file, tmp_path, untouched):
    message = untouched(train.main, training_flags(words, tmp_path / "run", fn=pattern_file, th=th))
    assert message.startswith("tau: expected a fraction between 0 and 1") and repr(th) in message and hint in message


@pytest.mark.parametrize(
    "given, name",
    [
        ({"th": 0.5}, "th"),
        ({"rule": "allowed"}, "rule"),
        ({"block_size": 4}, "block_size"),
        ({"random_prune": True},) * 2,
    ],
)
def test_pruning_flags_without_a_pattern(given, name, words, tmp_path, untouched):
    name = name if isinstance(name, str) else "random_prune"
    message = untouched(train.main, training_flags(words, tmp_path / "run", **given))
    assert message == f"--{name}: expected a pattern to prune by, --fn, beside it, found none"


def test_a_pattern_without_a_threshold(words, pattern_file, tmp_path, untouched):
    message = untouched(train.main, training_flags(words, tmp_path / "run", fn=pattern_file))
    assert message.startswith(f"{pattern_file}: expected a tau") and message.endswith("found none")


def test_a_mask_that_contradicts_the_flags(words, tmp_path, untouched):
    path = tmp_path / "mask.safetensors"
    from_pattern(random_pattern(), 0.5).save(path)
    message = untouched(train.main, training_flags(words, tmp_path / "run", fn=path, th=0.6))
    assert message == f"{path}: expected tau 0.6, as given, found 0.5 in the file"


# -- models and checkpoints --------------------------------------------------------------------------------------------


def reading_flags(checkpoint, data, out):
    return flags(checkpoint=checkpoint, data=data, out=out, device="cpu", batch_size=2)


scripts = pytest.mark.parametrize("script", [evaluate_script, compute_mask], ids=["eval", "compute_mask"])


@scripts
@every_broken_file
def test_a_broken_model(script, kind, words, trained, tmp_path, untouched):
    broken_files(tmp_path, trained["pruned"] / "model.safetensors")
    message = untouched(script.main, reading_flags(tmp_path / kind, words, tmp_path / "new" / "out.safetensors"))
    assert message.startswith(f"{tmp_path / kind}: expected a Transformer-XL model") and "found" in message


def test_a_model_file_of_something_else(words, trained, pattern_file, tmp_path, untouched):
    message = untouched(evaluate_script.main, reading_flags(pattern_file, words, tmp_path / "m.json"))
    assert message.startswith(f"{pattern_file}: expected format 'transformer-xl/model/1'")
    assert message.endswith("found 'attention-pruning/pattern/1'")


@pytest.mark.parametrize(
    "metadata",
    [
        {"format": "transformer-xl/model/1"},
        {"format": "transformer-xl/model/1", "config": "{", "info": "{}"},
        {"format": "transformer-xl/model/1", "config": "{}", "info": "{}"},
        {"format": "transformer-xl/model/1", "config": "[]", "info": "{}"},
    ],
)
def test_a_model_file_with_a_broken_header(metadata, words, trained, tmp_path, untouched):
    path = tmp_path / "model.safetensors"
    save_file(read_tensors(trained["dense"] / "model.safetensors"), path, metadata)
    message = untouched(evaluate_script.main, reading_flags(path, words, tmp_path / "m.json"))
    assert message.startswith(f"{path}: expected") and "found" in message


@pytest.mark.parametrize("kind", [kind for kind in BROKEN if kind not in ("folder", "missing")])
def test_a_broken_checkpoint(kind, words, tmp_path, untouched):
    train.main(training_flags(words, tmp_path / "run", max_step=2))
    checkpoint, files = tmp_path / "run" / "checkpoint.pt", tmp_path / "files"
    files.mkdir()
    broken_files(files, checkpoint)
    checkpoint.write_bytes((files / kind).read_bytes())
    message = untouched(train.main, training_flags(words, tmp_path / "run", max_step=2, restart=True))
    assert message.startswith(f"{checkpoint}: expected a training checkpoint") and "found" in message


def test_a_checkpoint_that_would_run_code(words, tmp_path, untouched):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "caught"),)

    train.main(training_flags(words, tmp_path / "run", max_step=2))
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    torch.save({"format": "reproduction/checkpoint/1", "step": Trap()}, checkpoint)
    message = untouched(train.main, training_flags(words, tmp_path / "run", max_step=2))
    assert message == f"{checkpoint}: expected a training checkpoint, found a foreign file"


def test_a_checkpoint_of_another_program(words, tmp_path, untouched):
    train.main(training_flags(words, tmp_path / "run", max_step=2))
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    save_checkpoint(checkpoint, {"step": 3, "model": {}})
    message = untouched(train.main, training_flags(words, tmp_path / "run", max_step=2))
    assert message.startswith(f"{checkpoint}: expected a checkpoint of train.py")


# -- texts ------------------------------------------------------------------------------------------------------------


def test_an_empty_text(tmp_path, untouched):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("")
    message = untouched(train.main, training_flags(tmp_path, tmp_path / "run"))
    assert message.startswith(str(tmp_path / "train.txt")) and "found none" in message


@pytest.mark.parametrize("data", ["missing", "file", "empty"])
def test_no_text(data, tmp_path, untouched):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    message = untouched(train.main, training_flags(tmp_path / data, tmp_path / "run"))
    assert message.startswith(f"{tmp_path / data}: expected") and "found" in message


@pytest.mark.parametrize("split", ["train", "valid"])
def test_too_little_text_for_the_batch(split, tmp_path, untouched):
    lines = {name: word_lines(2 if name == split else 30, seed) for seed, name in enumerate(("train", "valid", "test"))}
    corpus = write_corpus(tmp_path / "text", "text", lines)
    tokens = corpus.split(split).numel()
    batch = {"train": "batch_size", "valid": "eval_batch_size"}[split]
    message = untouched(train.main, training_flags(tmp_path / "text", tmp_path / "run", **{batch: tokens}))
    expected = (
        f"{tmp_path / 'text'} ({split}): expected at least {2 * tokens} tokens for {tokens} streams, found {tokens}"
    )
    assert message == expected


@scripts
def test_too_little_text_to_read(script, words, trained, tmp_path, untouched):
    checkpoint, out = trained["dense"] / "model.safetensors", tmp_path / "new" / "out"
    message = untouched(script.main, flags(checkpoint=checkpoint, data=words, out=out, batch_size=5000))
    assert "expected at least 10000 tokens for 5000 streams, found" in message


# -- flags and places -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"max_step": 0},
        {"batch_size": 0},
        {"batch_chunk": 0},
        {"log_interval": 0},
        {"checkpoint_interval": 0},
        {"dropout": 1.0},
        {"dropatt": -0.1},
        {"dropout": "nan"},
        {"lr": "nan"},
        {"lr": 0},
        {"n_layer": 0},
        {"tgt_len": 0},
        {"mem_len": -1},
        {"d_model": 15},
        {"threads": -1},
        {"cutoffs": [5, 9]},
        {"div_val": 2},
        {"mom": 0.9},
        {"mom": 0.9, "optim": "adagrad"},
        {"eta_min": 0.1, "scheduler": "constant"},
        {"eta_min": 0.1, "scheduler": "inv_sqrt"},
        {"init_range": 0.2},
        {"prune_seed": 2},
        {"beyond": "dense"},
        {"eval_batch_size": 0},
        {"mixed_precision": "fp16"},
        {"batch_chunk": 3},
        {"max_eval_steps": 0},
        {"max_eval_steps": -2},
    ],
    ids=str,
)
def test_a_flag_that_makes_no_sense(change, words, tmp_path, untouched):
    message = untouched(train.main, training_flags(words, tmp_path / "run", **change))
    name, value = next(iter(change.items()))
    named = {"max_eval_steps": "(valid): expected", "batch_chunk": "--batch_"}.get(name, f"--{name}")
    assert named in message and "expected" in message
    assert "found" in message
    assert (
        str(value) in message
        or name == "batch_chunk"
        or message.endswith("beside it, found none")
        or (message.endswith("words, found none"))
    )


@pytest.mark.parametrize("work_dir", ["file", "file/below", "/proc/nowhere"])
def test_a_work_folder_that_cannot_be(work_dir, words, tmp_path, untouched):
    (tmp_path / "file").touch()
    message = untouched(train.main, training_flags(words, tmp_path / work_dir))
    assert message.startswith(f"{tmp_path / work_dir}: expected a folder that can be written to")


def test_a_work_folder_without_permission(words, tmp_path, untouched, monkeypatch):
    (tmp_path / "closed").mkdir()
    access = os.access  # nothing is forbidden to root, who may be running this
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "closed" and access(path, mode))
    message = untouched(train.main, training_flags(words, tmp_path / "closed"))
    assert message.startswith(f"{tmp_path / 'closed'}: expected a folder that can be written to")


@scripts
@pytest.mark.parametrize("out", ["folder", "file/below"])
def test_an_output_that_cannot_be(script, out, words, trained, tmp_path, untouched, monkeypatch):
    """It is noticed before the work, not after it."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    work = "split_metrics" if script is evaluate_script else "average_attention"
    monkeypatch.setattr(script, work, lambda *_, **__: pytest.fail("the work was done"))
    checkpoint = trained["dense"] / "model.safetensors"
    message = untouched(script.main, reading_flags(checkpoint, words, tmp_path / out))
    assert message.startswith(str(tmp_path / out.split("/")[0])) and "expected" in message and "found" in message


@pytest.mark.parametrize("label", ["colour=red", "tau", "=3", ""])
def test_an_unknown_label(label, words, trained, tmp_path, untouched):
    checkpoint, out = trained["dense"] / "model.safetensors", tmp_path / "m.json"
    message = untouched(evaluate_script.main, [*flags(checkpoint=checkpoint, data=words, out=out), "--label", label])
    assert message.startswith("--label: expected KEY=VALUE") and message.endswith(f"found {label!r}")


def test_a_device_that_is_not_there(words, tmp_path, untouched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = untouched(train.main, training_flags(words, tmp_path / "run", device="cuda"))
    assert message == "--device: expected a CUDA device, found none"


def test_the_command_itself(words, tmp_path):
    """As a shell sees it: exit status 2, one line on stderr."""
    script = Path(train.__file__)
    command = [python(), script, *training_flags(words, tmp_path / "run", th="90%", fn=tmp_path / "none")]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: tau: expected a fraction between 0 and 1, found '90%'; for 90 percent write 0.9\n"
    assert not list(tmp_path.iterdir())


# -- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [train, compute_mask, evaluate_script, convert_checkpoint],
    ids=["train", "compute_mask", "eval", "convert_checkpoint"],
)
def test_help_explains_every_flag_with_its_default(script, capsys):
    parser = script.parser()
    with pytest.raises(SystemExit) as caught:
        script.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0 and " ".join(script.__doc__.split()) in shown
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        flag = action.option_strings[0]
        assert flag in shown and action.help and len(action.help) > 5, f"{flag} is not explained"
        explained = parser._get_formatter()._expand_help(action)
        if action.default is None:
            assert "None" not in explained, f"{flag}: {explained}"
            assert action.required or any(word in explained for word in ("default", "unless", "has its own", "or a"))
        else:
            assert f"(default: {action.default})" in explained, f"{flag}: {explained}"
        assert " ".join(explained.split()) in shown


def test_a_model_spread_over_processes_is_refused(words, tmp_path, monkeypatch, refused):
    """As `accelerate launch --use_fsdp` and its like would have it."""
    for name, found in (("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")):
        with monkeypatch.context() as patch:
            patch.setenv(f"ACCELERATE_USE_{name}", "true")
            message = refused(train.main, training_flags(words, tmp_path / "run"))
        expected = "expected the whole model in every process, as torchrun starts them"
        assert message == f"ACCELERATE_USE_{name}: {expected}, found {found}"
    assert not (tmp_path / "run").exists()

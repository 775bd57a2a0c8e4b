"""Two processes over gloo compute what one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compute_mask
import train
from attention_pruning import AttentionPattern, InputError, PruneMask
from reproduction.data.language.corpus import Corpus
from reproduction.runs.checkpoint import load_checkpoint
from tiny_xl import assert_same_model, flags, read_json, training_flags
from warm_python import python

JOBS = Path(__file__).with_name("distributed_jobs.py")
DROPOUT = {"dropout": 0.3, "dropatt": 0.2}
TRAININGS = {
    # Clusters of rare words, in many batches of one process without a single token of theirs
    "dense": {"adaptive": True, "cutoffs": [4, 20, 28], "div_val": 2, "batch_size": 2, "not_tied": True},
    # Without Adam and clipping, which hide a gradient of the wrong size
    "pruned": {"batch_chunk": 2, "fn": "pattern", "th": 0.7, "optim": "sgd", "clip": 0, "lr": 0.5},
    "whole": {**DROPOUT, "fn": "pattern", "th": 0.7},
}


@pytest.fixture(scope="module")
def argv(words, pattern_file, tmp_path_factory):
    """Flags of a training, and the folder in which two processes or one do it."""
    folder = tmp_path_factory.mktemp("distributed")

    def build(name, processes, **more):
        changes = {**TRAININGS[name], "threads": 1, "log_interval": 5, "eval_batch_size": 4, **more}
        if "fn" in changes:
            changes["fn"] = pattern_file
        work_dir = folder / f"{name}{processes}"
        changes |= {"logging_dir": folder / f"log_{name}{processes}", "report_to": "csv"}
        return work_dir, training_flags(words, work_dir, **changes)

    return build


@pytest.fixture(scope="module")
def averaging(words, trained, tmp_path_factory):
    """Flags of an averaging with short memory, and its output, by two processes or one."""
    folder = tmp_path_factory.mktemp("averaging")

    def build(processes):
        out, checkpoint = folder / f"pattern{processes}.safetensors", trained["dense"] / "model.safetensors"
        return out, flags(checkpoint=checkpoint, data=words, out=out, batch_size=6, mem_len=9, device="cpu")

    return build


@pytest.fixture(scope="module")
def two(argv, averaging, tmp_path_factory):
    """Everything that two processes do here, in one launch: their exit statuses by rank, and what they printed."""
    jobs = tmp_path_factory.mktemp("jobs") / "jobs.json"
    plan = [(train, argv(name, 2)[1], None) for name in TRAININGS]
    plan.append((compute_mask, averaging(2)[1], None))
    # one process gets a signal: both stop after the same step
    plan.append((train, argv("whole", "2stopped")[1], [signal.SIGTERM, 8, 1]))
    plan.append((train, argv("whole", "2stopped", restart=True)[1], None))
    described = [{"script": script.__name__, "argv": words, "signal": sent} for script, words, sent in plan]
    jobs.write_text(json.dumps(described))
    launch = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", JOBS, jobs]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, launch)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads(jobs.with_suffix(f".{rank}.json").read_text()) for rank in range(2)], done.stdout


def losses(log, steps):
    """The printed training losses of the first training in a log."""
    lines = [line for line in log.splitlines() if line.startswith("| step")]
    return [float(line.split("loss ")[1].split()[0]) for line in lines[:steps]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "pruned"])
def test_two_processes_train_like_one_with_the_joined_batch(name, two, argv):
    alone, words = argv(name, 1)
    assert train.main(words) is None
    assert_same_model(argv(name, 2)[0], alone, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_printed_loss_is_that_of_the_joined_batch(two, argv, capsys):
    train.main(argv("dense", "1again")[1])
    assert losses(two[1], 4) == pytest.approx(losses(capsys.readouterr().out, 4), abs=2e-3)
    assert len(losses(two[1], 4)) == 4


@pytest.mark.slow
def test_two_processes_average_like_one(two, averaging):
    out, words = averaging(1)
    compute_mask.main(words)
    one, other = AttentionPattern.load(out), AttentionPattern.load(averaging(2)[0])
    assert torch.equal(one.count, other.count) and one.metadata == other.metadata
    torch.testing.assert_close(one.average, other.average, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_they_continue_exactly(two, argv):
    statuses, _ = two
    assert statuses == [[None, None, None, None, 128 + signal.SIGTERM, None]] * 2
    whole, stopped = argv("whole", 2)[0], argv("whole", "2stopped")[0]
    assert_same_model(whole, stopped)
    assert len(load_checkpoint(stopped / "checkpoint.pt")["processes"]) == 2
    # One process writes the numbers by step, and every number once.
    logs = [(folder.with_name(f"log_{folder.name}") / "steps.csv").read_text() for folder in (whole, stopped)]
    one, other = ([line for line in log.splitlines() if "tokens_per_second" not in line] for log in logs)
    assert one == other and len(one) > 8
    named = [line.rpartition(",")[0] for line in one]
    assert len(set(named)) == len(named)


@pytest.mark.slow
def test_processes_draw_dropout_of_their_own(two, argv):
    state = load_checkpoint(argv("whole", 2)[0] / "checkpoint.pt")
    one, other = (process["random"]["torch"] for process in state["processes"])
    assert not torch.equal(one, other)


@pytest.mark.slow
def test_the_main_process_writes_the_mask(two, argv):
    mask = PruneMask.load(argv("pruned", 2)[0] / "mask.safetensors")
    assert mask.effective_sparsity > 0.5
    assert not [file for file in argv("pruned", 2)[0].iterdir() if file.name.startswith(".")]


def test_a_validation_that_two_processes_cannot_share_is_refused(argv, words):
    _, given = argv("whole", 2, eval_batch_size=3)
    with pytest.raises(InputError, match="--eval_batch_size: expected a positive multiple of the 2 processes, found 3"):
        train.read_text(train.parser().parse_args(given), Corpus.load(words), 0, 2)


@pytest.mark.slow
def test_the_validation_is_that_of_one_process(two, argv):
    """Each process reads its rows, once."""
    alone = argv("dense", "1valid")[0]
    assert train.main(argv("dense", "1valid")[1]) is None
    found, expected = (read_json(folder / "run.json")["valid_nll"] for folder in (argv("dense", 2)[0], alone))
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_size, batch_chunk", [(3, 1), (2, 2), (6, 2)])
def test_a_batch_that_two_processes_cannot_share_is_refused(batch_size, batch_chunk, argv, words):
    _, given = argv("whole", 2, batch_size=batch_size, batch_chunk=batch_chunk)
    expected = f"--batch_size: expected a multiple of --batch_chunk {batch_chunk} x 2 processes, found {batch_size}"
    with pytest.raises(InputError, match=expected):
        train.read_text(train.parser().parse_args(given), Corpus.load(words), 0, 2)

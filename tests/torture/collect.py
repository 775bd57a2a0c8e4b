"""The pattern of a transformers model, with sums on disk after every batch: python collect.py FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

from attention_pruning.huggingface import collect_patterns
from tiny_models import batch_for, make

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    batches = [batch_for("BART", left=seed == 2, seed=seed) for seed in range(40)]
    lengths = {"enc-self": (9, 9), "dec-self": (7, 7), "enc-dec": (7, 9)}
    patterns = collect_patterns(
        make("BART"), batches, lengths=lengths, resume=folder / "sums.safetensors", resume_every=0
    )
    for site, pattern in patterns.items():
        pattern.save(folder / f"{site}.safetensors")

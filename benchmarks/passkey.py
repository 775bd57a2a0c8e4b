"""What masks leave of a pass key: a small decoder learns to say it, and is pruned by its own attention.

A Llama-like model is trained on prompts of random lengths that tell a key somewhere and ask for it at the end.
Its pattern is collected on the same prompts; it is asked as it is, and fine-tuned as long under each mask, at lengths
that it was trained at.

    python benchmarks/passkey.py --out results/benchmarks      # five minutes of one core
"""

from __future__ import annotations

import argparse
import copy
import csv
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attention_pruning import make
from attention_pruning.files.whole import written_whole
from attention_pruning.huggingface import collect_patterns, prune_model
from attention_pruning.huggingface.long_context import FILLER, NEEDLE, QUESTION, passkey, prompt

COLUMNS = ("model", "seed", "tau", "sparsity", "length", "depth", "trials", "found")
_TOKEN = re.compile(r"[A-Za-z]+|\d|[^\w\s]")
WORDS = sorted({*_TOKEN.findall(FILLER + NEEDLE.format(key="0123456789") + QUESTION)})


def encode(text: str) -> list[int]:
    """Words, digits and marks, a token each; 0 pads."""
    return [WORDS.index(token) + 1 for token in _TOKEN.findall(text)]


def batches(arguments: argparse.Namespace, seed: int, number: int) -> Iterator[dict[str, torch.Tensor]]:
    """Prompts of one length each, of random keys and depths; the loss is that of the answer."""
    draw = random.Random(seed)
    for _ in range(number):
        length = draw.randint(48, arguments.length)
        told = [
            prompt(encode, str(draw.randint(10_000, 99_999)), length, draw.random()) for _ in range(arguments.batch)
        ]
        ids = torch.tensor([row for row, _ in told])
        labels = torch.full_like(ids, -100)
        labels[:, -told[0][1] :] = ids[:, -told[0][1] :]
        yield {"input_ids": ids, "labels": labels}


def build(arguments: argparse.Namespace, seed: int) -> transformers.PreTrainedModel:
    """A decoder with rotary positions."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS) + 1,
        hidden_size=arguments.width,
        intermediate_size=2 * arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.heads,
        max_position_embeddings=4096,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(config)


def train(model: transformers.PreTrainedModel, arguments: argparse.Namespace, seed: int, steps: int, lr: float) -> None:
    """AdamW, a warm-up and a linear fall."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    model.train()
    started = time.time()
    for step, batch in enumerate(batches(arguments, seed, steps), 1):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"  step {step} of {steps}: loss {loss.item():.3f}, {time.time() - started:.0f} s", flush=True)
    model.eval()


def main() -> None:
    """Train, prune, fine-tune, ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, help="folder for passkey.csv (default: print only)")
    add("--length", type=int, default=128, help="tokens of the longest prompt (default: 128)")
    add("--tau", type=float, nargs="+", default=[0.5, 0.9], help="shares to prune (default: 0.5 and 0.9)")
    add("--seeds", type=int, nargs="+", default=[1], help="(default: 1)")
    add("--steps", type=int, default=600, help="steps of the training (default: 600)")
    add("--tuning", type=int, default=200, help="steps of each fine-tuning (default: 200)")
    add("--batch", type=int, default=32, help="(default: 32)")
    add("--lr", type=float, default=2e-3, help="(default: 0.002)")
    add("--layers", type=int, default=2, help="(default: 2)")
    add("--heads", type=int, default=4, help="(default: 4)")
    add("--width", type=int, default=128, help="(default: 128)")
    add("--trials", type=int, default=20, help="keys for each length and depth (default: 20)")
    add("--threads", type=int, default=1, help="of torch (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lengths, rows = (arguments.length // 2, arguments.length), []

    def ask(name: str, model: transformers.PreTrainedModel, seed: int, tau: float, sparsity: float) -> None:
        found = passkey(model, encode, lengths, trials=arguments.trials, seed=1000 + seed)
        rows.extend({"model": name, "seed": seed, "tau": tau, "sparsity": round(sparsity, 4), **row} for row in found)
        print(f"{name}, {sparsity:.1%} pruned:", *(f"{row['found']:.2f}" for row in found), flush=True)

    for seed in arguments.seeds:
        dense = build(arguments, seed)
        train(dense, arguments, seed, arguments.steps, arguments.lr)
        ask("dense", dense, seed, 0.0, 0.0)
        seen = [{"input_ids": batch["input_ids"]} for batch in batches(arguments, 10_000 + seed, 60)]
        pattern = collect_patterns(dense, seen, lengths=arguments.length, progress=False)["self"]
        for tau in arguments.tau:
            masks = {
                "cells": make.from_pattern(pattern, tau, rule="allowed"),
                "by distance": make.by_distance(pattern, tau, sinks=0).at(arguments.length),
            }
            masks["window"] = make.window_like(masks["cells"])
            for name, mask in masks.items():
                pruned = prune_model(copy.deepcopy(dense), mask)
                ask(f"{name}, no training", pruned, seed, tau, mask.effective_sparsity)
                train(pruned, arguments, 20_000 + seed, arguments.tuning, arguments.lr / 4)
                ask(f"{name}, fine-tuned", pruned, seed, tau, mask.effective_sparsity)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        with written_whole(arguments.out / "passkey.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()

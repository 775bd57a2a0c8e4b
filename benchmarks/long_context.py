"""Perplexity at lengths that no pattern was collected at: a small decoder under masks by distance.

A Llama-like model is trained at one length, its pattern collected there, and models of the same size trained anew under
masks by distance, with first positions (sinks) and without. All are evaluated on sequences several times as long.

    python benchmarks/long_context.py --corpus CORPUS                     # prepared by reproduction.data.language.bible
    python benchmarks/long_context.py --corpus CORPUS --out results/benchmarks # and writes long_context.csv and .png
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attention_pruning import make
from attention_pruning.huggingface import collect_patterns, prune_model
from attention_pruning.huggingface.long_context import perplexity_by_position
from attention_pruning.huggingface.plots import plot_perplexity
from reproduction.data.language.corpus import Corpus

COLUMNS = ("model", "seed", "tau", "sinks", "sparsity", "first", "last", "tokens", "nll", "perplexity")


def build(vocabulary: int, arguments: argparse.Namespace, seed: int) -> transformers.PreTrainedModel:
    """A decoder with rotary positions and grouped heads."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=arguments.width,
        intermediate_size=2 * arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.heads // 2,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(config)


def windows(ids: torch.Tensor, length: int) -> torch.Tensor:
    """int64 [windows, length], one after another."""
    return ids[: len(ids) // length * length].view(-1, length)


def train(model: transformers.PreTrainedModel, ids: torch.Tensor, arguments: argparse.Namespace, seed: int) -> None:
    """Adam with a linear schedule on windows in an order that the seed draws: the same for all models of a seed."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, arguments.steps // 20, arguments.steps)
    cut, started = windows(ids, arguments.length), time.time()
    model.train()
    for step in range(1, arguments.steps + 1):
        rows = cut[torch.randint(len(cut), (arguments.batch,), generator=generator)]
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            seconds = time.time() - started
            print(f"  step {step} of {arguments.steps}: loss {loss.item():.3f}, {seconds:.0f} s", flush=True)
    model.eval()


def over_seeds(rows: list[dict[str, float]]) -> dict[str, list[dict[str, float]]]:
    """By model and position: the perplexity of the seeds' mean loss, and the lowest and the highest of a seed."""
    places: dict[tuple, list[dict[str, float]]] = {}
    for row in rows:
        places.setdefault((row["model"], row["first"], row["last"]), []).append(row)
    shown: dict[str, list[dict[str, float]]] = {}
    for (name, first, last), found in places.items():
        each = [row["perplexity"] for row in found]
        mean = math.exp(sum(row["nll"] for row in found) / len(found))
        spread = {"lowest": min(each), "highest": max(each)} if len(each) > 1 else {}
        shown.setdefault(name, []).append({"first": first, "last": last, "perplexity": mean, **spread})
    return shown


def write(rows: list[dict[str, float]], folder: Path) -> None:
    """All seeds so far, as a table and as a figure."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "long_context.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    plot_perplexity(over_seeds(rows), folder / "long_context.png")


def main() -> None:
    """Train, prune, train again, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--corpus",
        type=Path,
        required=True,
        help="prepared corpus (python -m reproduction.data.language.bible --out CORPUS)",
    )
    add("--out", type=Path, help="folder for long_context.csv and .png (default: print only)")
    add("--length", type=int, default=512, help="tokens of a training sequence (default: 512)")
    add("--longest", type=int, default=4096, help="tokens of an evaluated sequence (default: 4096)")
    add("--sequences", type=int, default=8, help="evaluated sequences (default: 8)")
    add("--tau", type=float, default=0.9, help="share that masks prune at the training length (default: 0.9)")
    add("--sinks", type=int, nargs="+", default=[0, 4], help="first positions that all queries keep (default: 0 and 4)")
    add("--seeds", type=int, nargs="+", default=[1], help="(default: 1)")
    add("--steps", type=int, default=300, help="steps of each training (default: 300)")
    add("--batch", type=int, default=4, help="(default: 4)")
    add("--lr", type=float, default=3e-3, help="(default: 0.003)")
    add("--layers", type=int, default=3, help="(default: 3)")
    add("--heads", type=int, default=4, help="(default: 4)")
    add("--width", type=int, default=128, help="(default: 128)")
    add("--threads", type=int, default=1, help="of torch (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    corpus = Corpus.load(arguments.corpus)
    test = windows(corpus.split("test"), arguments.longest)[: arguments.sequences]
    held_out = [{"input_ids": row[None]} for row in test]
    train_ids, rows = corpus.split("train"), []

    def evaluate(name: str, model, seed: int, **facts: float) -> None:
        found = perplexity_by_position(model, held_out, arguments.length // 2)
        rows.extend({"model": name, "seed": seed, **facts, **row} for row in found)
        inside = [row["nll"] for row in found if row["last"] < arguments.length]
        beyond = [row["nll"] for row in found if row["first"] >= arguments.length]
        means = (torch.tensor(part).mean().exp().item() for part in (inside, beyond))
        print("{}: perplexity {:.2f} up to the training length, {:.2f} beyond".format(name, *means), flush=True)

    for seed in arguments.seeds:
        dense = build(len(corpus.vocabulary), arguments, seed)
        train(dense, train_ids, arguments, seed)
        evaluate("dense", dense, seed)
        seen = windows(train_ids, arguments.length)[:64].split(arguments.batch)
        pattern = collect_patterns(dense, [{"input_ids": part} for part in seen])["self"]
        for sinks in arguments.sinks:
            mask = make.by_distance(pattern, arguments.tau, sinks=sinks)
            facts = {"tau": arguments.tau, "sinks": sinks, "sparsity": mask.sparsity(arguments.longest)}
            name = f"by distance, {100 * arguments.tau:.0f}%, {sinks or 'no'} sinks"
            pruned = prune_model(build(len(corpus.vocabulary), arguments, seed), mask)
            train(pruned, train_ids, arguments, seed)
            evaluate(name, pruned, seed, **facts)
        if arguments.out is not None:
            write(rows, arguments.out)


if __name__ == "__main__":
    main()

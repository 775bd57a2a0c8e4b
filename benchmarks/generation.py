"""Generation with a random Llama-like decoder under masks that prune 90%: prefill, time of a token, size of the cache.

By context, dense and under masks of single cells, of blocks of 64, and by distance in blocks of 64, each with
transformers' own cache and with a PrunedCache. 256 wide, 8 heads, 2 heads of keys and values, one thread, seconds of
processor time, interleaved, medians. What a cache can drop is the mask's: these keep the first keys (four, or the first
block) and each query's own, and fall with the distance, each head by its own width, with noise; a mask that keeps cells
anywhere at random lets almost no key go. In blocks, short contexts keep more than a tenth: the first block and its own
are that much of what a query sees.

    python benchmarks/generation.py                              # twenty minutes; prints the table
    python benchmarks/generation.py --contexts 512 --rounds 3    # a minute
    python benchmarks/generation.py --out results/benchmarks     # and writes generation-DATE.csv
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from interleave import processor
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import transformers as tf

from attention_pruning import DistanceMask, MaskRecipe, PruneMask
from attention_pruning.huggingface import PrunedCache, prune_model
from attention_pruning.structure import block_count, visible_cells

#: Context: layers and sequences.
SHAPES = {512: (4, 4), 2048: (4, 4), 8192: (2, 1)}
#: The context of each head, in parts of the whole, for the two groups that share keys: e-fold of what it keeps.
WIDTHS = (96, 48, 24, 12, 64, 32, 16, 8)
WIDTH, KV_HEADS, WORDS, SINKS, PRUNED, BLOCK, SEED = 256, 2, 1000, 4, 0.9, 64, 1
#: Tokens before the first that is timed leave room for those that are; each round times some of each model.
LEFT, WARM_UP, TOKENS = 160, 3, 4


@dataclass
class Run:
    """A model with the cache that it writes into."""

    mask: str
    cache: str
    model: tf.PreTrainedModel
    state: object = None
    prefill: list[float] | None = None
    tokens: list[float] | None = None


def build_model(layers: int, context: int) -> tf.PreTrainedModel:
    torch.manual_seed(SEED)
    config = tf.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=len(WIDTHS),
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=context,
        eos_token_id=None,
    )
    return tf.LlamaForCausalLM(config).eval()


def draw_mask(layers: int, context: int, block: int) -> PruneMask:
    """The highest tenth of all visible blocks of a layer, by distance and noise."""
    generator = torch.Generator().manual_seed(SEED)
    side = block_count(context, block)
    place = torch.arange(side, dtype=torch.float32) * block
    distance_qk = place[:, None] - place[None, :]
    visible_qk = distance_qk >= 0
    pruned = torch.empty(layers, len(WIDTHS), side, side, dtype=torch.bool)
    for layer in range(layers):
        scores = [_scores(distance_qk, context / width, generator) for width in WIDTHS]
        drawn = torch.stack([x[visible_qk][:: max(1, side * side // 200_000)] for x in scores])
        least = drawn.flatten().quantile(PRUNED)
        for head, score_qk in enumerate(scores):
            pruned[layer, head] = (score_qk < least) & (distance_qk > 0) & (place >= SINKS)
    recipe = MaskRecipe(PRUNED, rule="allowed", scope="layer", row_floor="keep-best", block_size=block)
    return PruneMask(
        pruned, visible_cells(context, context, True), site="self", causal=True, recipe=recipe, metadata={"seed": SEED}
    )


def draw_distances(layers: int, context: int) -> DistanceMask:
    """The first block, each query's own and the highest distances of a layer, at most a tenth of all visible cells."""
    generator = torch.Generator().manual_seed(SEED)
    side = block_count(context, BLOCK)
    distance_d = torch.arange(side, dtype=torch.float32) * BLOCK
    cells_d = (side - 1 - torch.arange(side)) * BLOCK * BLOCK  # behind the first block
    cells_d[0] = (side - 1) * BLOCK * (BLOCK + 1) // 2
    firsts = BLOCK * (context - BLOCK) + BLOCK * (BLOCK + 1) // 2
    room = len(WIDTHS) * ((1 - PRUNED) * context * (context + 1) / 2 - firsts)
    kept_LHd = torch.zeros(layers, len(WIDTHS), side, dtype=torch.bool)
    for kept_Hd in kept_LHd:
        score_Hd = torch.stack([_scores(distance_d, context / width, generator) for width in WIDTHS])
        score_Hd[:, 0] = torch.inf
        order = score_Hd.flatten().argsort(descending=True)
        fit = cells_d.repeat(len(WIDTHS))[order].cumsum(0) <= room
        kept_Hd.view(-1)[order[fit]] = True
        kept_Hd[:, 0] = True
    return DistanceMask(kept_LHd, sinks=BLOCK, block_size=BLOCK, tau=PRUNED, observed=context)


def draw_masks(layers: int, context: int) -> dict[str, PruneMask | DistanceMask]:
    """By the names of the table."""
    cells, blocks = (draw_mask(layers, context, block) for block in (1, BLOCK))
    return {"cells": cells, f"blocks of {BLOCK}": blocks, "by distance": draw_distances(layers, context)}


def _scores(distance_qk: Tensor, width: float, generator: torch.Generator) -> Tensor:
    noise = torch.rand(distance_qk.shape, generator=generator).clamp_(1e-6).log_().neg_().log_().neg_()  # Gumbel's
    return noise.mul_(0.5).sub_(distance_qk / width)


def timed(run: Run, ids: Tensor, count: int) -> float:
    """Seconds of processor time for so many calls with these tokens."""
    started = time.process_time()
    for _ in range(count):
        run.model(ids, past_key_values=run.state, logits_to_keep=1)
    return time.process_time() - started


def cache_bytes(state: object) -> int:
    if isinstance(state, PrunedCache):
        return state.nbytes
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in state.layers)


def measure(context: int, rounds: int, prefills: int) -> Iterator[dict[str, object]]:
    """Rows of the csv."""
    layers, batch = SHAPES[context]
    models = {"dense": build_model(layers, context)}
    for name, mask in draw_masks(layers, context).items():
        models[name] = prune_model(build_model(layers, context), mask)
    runs = [Run(name, "whole", model, prefill=[], tokens=[]) for name, model in models.items()]
    runs += [Run(name, "pruned", model, prefill=[], tokens=[]) for name, model in models.items() if name != "dense"]
    generator = torch.Generator().manual_seed(SEED)
    prompt = torch.randint(WORDS, (batch, context - LEFT), generator=generator)
    for number in range(prefills + 1):  # the first makes layouts
        for run in runs:
            run.state = PrunedCache(run.model) if run.cache == "pruned" else tf.DynamicCache()
            seconds = timed(run, prompt, 1)
            run.prefill += [seconds] if number else []
    token = prompt[:, :1]
    for number in range(rounds):
        first = number % len(runs)
        for run in runs[first:] + runs[:first]:
            timed(run, token, WARM_UP if number == 0 else 1)
            run.tokens.append(timed(run, token, TOKENS) / TOKENS)
    dense = runs[0]
    for run in runs:
        ratios = [one / other for one, other in zip(dense.tokens, run.tokens, strict=True)]
        yield {
            "context": context, "layers": layers, "batch": batch, "mask": run.mask, "cache": run.cache,
            "prefill_ms": round(1000 * statistics.median(run.prefill), 1),
            "ms_a_token": round(1000 * statistics.median(run.tokens), 2),
            "times_dense": round(statistics.median(ratios), 2),
            "low_dense": round(min(ratios), 2), "high_dense": round(max(ratios), 2),
            "cache_mb": round(cache_bytes(run.state) / 1e6, 2),
        }  # fmt: skip


def write_csv(folder: Path, rows: list[dict[str, object]], rounds: int) -> Path:
    """Write ``generation-DATE.csv``, whole or not at all."""
    today = datetime.date.today().isoformat()
    made = {"rounds": rounds, "threads": 1, "torch": torch.__version__, "machine": processor(), "date": today}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"generation-{today}.csv"
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *made])
        writer.writeheader()
        writer.writerows({**row, **made} for row in rows)
    os.replace(temporary, path)
    return path


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=list(SHAPES), choices=SHAPES, help="tokens in all")
    most = LEFT // (TOKENS + 1) - WARM_UP
    parser.add_argument("--rounds", type=int, default=15, help=f"interleaved rounds of {TOKENS} tokens, at most {most}")
    parser.add_argument("--prefills", type=int, default=3, help="interleaved prefills")
    parser.add_argument("--out", type=Path, default=None, help="folder to write generation-DATE.csv into")
    args = parser.parse_args()
    if not 1 <= args.rounds <= most or args.prefills < 1:
        parser.error(f"--rounds, --prefills: expected 1 to {most} and 1 or more, found {args.rounds}, {args.prefills}")
    torch.set_num_threads(1)
    rows = []
    print("context  mask          cache    prefill, ms  ms a token  times dense  cache, MB")
    with torch.no_grad():
        for context in args.contexts:
            for row in measure(context, args.rounds, args.prefills):
                rows.append(row)
                print(
                    f"{row['context']:7d}  {row['mask']:12s}  {row['cache']:7s}  {row['prefill_ms']:11.1f}  "
                    f"{row['ms_a_token']:10.2f}  {row['times_dense']:11.2f}  {row['cache_mb']:9.2f}",
                    flush=True,
                )
    if args.out is not None:
        print(f"written: {write_csv(args.out, rows, args.rounds)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

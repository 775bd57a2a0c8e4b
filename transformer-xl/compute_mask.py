"""Average the attention of a trained Transformer-XL over a text: step two of Attention Pruning.

The model runs as in an evaluation, memory carried from segment to segment, and each layer's own probabilities are
averaged per head, query position and key position. ``train.py --fn PATTERN --th FRACTION`` prunes by the result.

    python transformer-xl/compute_mask.py --checkpoint runs/dense/model.safetensors --data data/bible-web \\
        --out pattern.safetensors
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from attention_pruning import PatternAccumulator
from data_utils import LMOrderedIterator
from flags import Parser, add_run_flags, choose_device
from mem_transformer import MemTransformerLM
from model_file import load_model
from reproduction.data.language.corpus import SPLITS, Corpus
from reproduction.runs.command import HelpFormatter, limit_threads, run_main
from reproduction.runs.files import prepare_output
from reproduction.runs.record import RunRecord


def parser() -> argparse.ArgumentParser:
    """All flags, with their defaults."""
    top = Parser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    top.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="model.safetensors of a training run; a pruned model is observed under its mask, and the pattern says so",
    )
    top.add_argument("--data", type=Path, required=True, help="folder of the corpus")
    top.add_argument("--out", type=Path, required=True, help="pattern to write (.safetensors)")
    top.add_argument("--split", choices=SPLITS, default="train", help="text to observe")
    top.add_argument("--batch_size", type=int, default=10, help="parallel streams of text, over all processes")
    top.add_argument("--tgt_len", type=int, help="tokens in a segment (default: the model's own)")
    top.add_argument("--mem_len", type=int, help="memory slots (default: the model's own)")
    top.add_argument("--max_batches", type=int, default=-1, help="segments to observe, from the start; -1 for all")
    top.add_argument(
        "--block_size", "--pool", type=int, default=1, help="average over blocks of this side, for long sequences"
    )
    add_run_flags(top)
    return top


@torch.no_grad()
def average_attention(
    model: MemTransformerLM, iterator: LMOrderedIterator, pool: int = 1, progress: bool = False
) -> PatternAccumulator:
    """Run a model over a text and accumulate its attention.

    Parameters
    ----------
    model : MemTransformerLM
        Put into eval mode. Its own lengths decide the pattern's: tgt_len queries, mem_len + tgt_len keys.
    iterator : LMOrderedIterator
    pool : int
        Block size of a pooled pattern.

    Returns
    -------
    PatternAccumulator
        Not yet reduced over processes.
    """
    config, device = model.config, model.r_w_bias.device
    accumulator = PatternAccumulator(
        config.n_layer,
        config.n_head,
        config.tgt_len,
        config.mem_len + config.tgt_len,
        site="self",
        causal=True,
        block_size=pool,
    )

    def observe(layer: int, p_BHTK: Tensor) -> None:
        memory_length = p_BHTK.size(-1) - p_BHTK.size(-2)
        # The accumulator knows causality; same_length hides older keys, too.
        window = model.visibility(p_BHTK.size(-2), memory_length) if config.same_length else None
        # A short memory fills the last slots; a short segment is the beginning of one.
        accumulator.update(layer, p_BHTK, key_offset=config.mem_len - memory_length, visible_QK=window)

    model.eval()
    for index, layer in enumerate(model.layers):
        layer.dec_attn.observer = partial(observe, index)
    try:
        memory = None
        for data_BT, _ in tqdm(iterator, disable=None if progress else True, unit="segment"):
            _, memory = model.hidden(data_BT.to(device), memory)
    finally:
        for layer in model.layers:
            layer.dec_attn.observer = None
    return accumulator


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    limit_threads(args.threads)
    state = PartialState(cpu=choose_device(args.device).type == "cpu")
    corpus = Corpus.load(args.data)
    loaded = load_model(args.checkpoint, tgt_len=args.tgt_len, mem_len=args.mem_len)
    loaded.check_vocabulary(args.checkpoint, corpus)
    record = RunRecord("transformer-xl/compute_mask.py", vars(args))
    model = loaded.model.to(state.device)
    iterator = LMOrderedIterator(
        corpus.split(args.split),
        args.batch_size,
        model.config.tgt_len,
        rank=state.process_index,
        world_size=state.num_processes,
        name=f"{args.data} ({args.split})",
        max_steps=args.max_batches,
    )
    prepare_output(args.out)
    accumulator = average_attention(model, iterator, args.block_size, progress=state.is_main_process)
    accumulator.all_reduce()
    if not state.is_main_process:
        return
    metadata = {
        "model": "transformer-xl",
        "model_fingerprint": loaded.fingerprint,
        "data": corpus.name,
        "data_fingerprint": corpus.fingerprint,
        "split": args.split,
        "sequences": accumulator.sequences,
        "tokens": accumulator.tokens,
        "seed": loaded.info["seed"],
    }
    if loaded.info["mask"] is not None:
        metadata["observed_under_mask"] = loaded.info["mask"]["fingerprint"]
    pattern = accumulator.finalize(metadata)
    pattern.save(args.out)
    record.write(args.out.with_suffix(".run.json"), pattern=pattern.fingerprint, **metadata)
    print(f"{args.out}: {pattern} from {accumulator.tokens:,} tokens of {corpus.name} ({args.split})")


if __name__ == "__main__":
    run_main(main, takes_device=True)

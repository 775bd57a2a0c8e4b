"""Measure what masks save in a language model: seconds and memory of a segment of evaluation, of a step of training.

Dense attention, every mask, and no attention at all are timed in interleaved rounds of one process. The segment is real
text, the memory is full, and the weights are those of a dense training. --contexts adds the same shape at other
lengths, segment and memory alike, dense, under random masks of whole blocks, and without attention: from where on does
pruning pay? There a batch has as many tokens whatever the length.

    python transformer-xl/measure_language_model.py --checkpoint runs/dense/model.safetensors --data data/bible-web \\
        --masks mask90.safetensors --contexts 64 128 256 512 --out efficiency.json
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention_pruning import AttentionPattern, InputError, PruneMask
from attention_pruning.make import from_pattern
from data_utils import LMOrderedIterator
from flags import Parser, add_run_flags, choose_device
from mem_transformer import Memory, MemTransformerLM
from model_config import ModelConfig
from model_file import load_model
from relative_attention import RelPartialLearnableMultiHeadAttn
from reproduction.data.language.corpus import Corpus
from reproduction.runs.command import HelpFormatter, limit_threads, run_main
from reproduction.runs.files import prepare_output, write_json
from reproduction.runs.taking_turns import (
    REMOVED,
    Bench,
    Setting,
    device_name,
    measure_memory,
    measure_seconds,
    measured_settings,
    memory_in_a_process,
)

SEED = 1
#: Share that is pruned at every context length, and the blocks that it is pruned in.
CONTEXT_TAU, CONTEXT_BLOCKS = 0.9, (16, 32)


def without_attention(
    module: RelPartialLearnableMultiHeadAttn,
    hidden_BTE: Tensor,
    memory: Tensor | tuple[Tensor, Tensor] | None,
    position_keys_HDK: Tensor,
    u_HD: Tensor,
    v_HD: Tensor,
    *_: object,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """In place of a layer's forward pass: all projections keep their work, nothing is attended to."""
    query_BTHD, keys, values = module._project(hidden_BTE, memory)
    batch, length, _ = hidden_BTE.shape
    # Every projection takes part, so that each has its gradient.
    positions = (position_keys_HDK[..., -1] + u_HD + v_HD)[:, None]
    attended = query_BTHD.transpose(1, 2) + positions + keys[:, :, -length:] + values[:, :, -length:]
    output = hidden_BTE + module.o_net(attended.transpose(1, 2).reshape(batch, length, -1))
    return output if module.pre_lnorm else module.layer_norm(output), (keys, values)


class LanguageModelBench(Bench):
    """A language model, a segment of text after a full memory, and how long a step takes under a setting.

    Parameters
    ----------
    model : MemTransformerLM
        Dense. Its dropout is left out: it is no part of attention.
    text : LMOrderedIterator
        Segments of ``tgt_len`` tokens; the first ones fill the memory.
    """

    def __init__(self, model: MemTransformerLM, text: LMOrderedIterator) -> None:
        super().__init__(model.r_w_bias.device)
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)
        before = -(-model.config.mem_len // model.config.tgt_len)
        self.segments = [[x.to(self.device) for x in text.segment(index)] for index in range(before + 1)]
        self.memory: dict[str, Memory | None] = {}

    def use(self, setting: Setting) -> None:
        """Change the model's attention, and fill its memories under it."""
        for layer in self.model.layers:
            vars(layer.dec_attn).pop("forward", None)
            if setting.name == REMOVED:
                layer.dec_attn.forward = functools.partial(without_attention, layer.dec_attn)
        self.model.set_pruned(None)
        if setting.mask is not None:
            self.model.prune(setting.mask)
        for step, training in (("inference", False), ("training", True)):
            self.model.train(training)
            self.memory[step] = None
            with torch.no_grad():
                for data_BT, target_BT in self.segments[:-1]:
                    _, self.memory[step] = self.model(data_BT, target_BT, self.memory[step])
        self.work("inference")  # what is made once for a full memory, such as layouts

    def work(self, step: str) -> None:
        """One segment of an evaluation, or one update of a training; the memory stays what it is."""
        data_BT, target_BT = self.segments[-1]
        self.model.train(step == "training")
        if step == "inference":
            with torch.no_grad():
                self.model(data_BT, target_BT, self.memory[step])
            return
        self.optimizer.zero_grad()
        nll_BT, _ = self.model(data_BT, target_BT, self.memory[step])
        nll_BT.float().mean().backward()
        self.optimizer.step()


def read_settings(paths: Sequence[Path], config: ModelConfig) -> list[Setting]:
    """Dense, the masks, and no attention.

    Raises
    ------
    InputError
        If a mask cannot be read, is of another model or other lengths, or is given twice.
    """
    settings = [Setting("dense")]
    for path in paths:
        mask = PruneMask.load(path)
        mask.check_model(
            layers=config.n_layer,
            heads=config.n_head,
            query_length=config.tgt_len,
            key_length=config.mem_len + config.tgt_len,
            site="self",
        )
        settings.append(Setting(f"{blocks_of(mask)}, tau {mask.tau:g}", mask))
    names = [setting.name for setting in settings]
    if len(set(names)) != len(names):
        raise InputError(f"--masks: expected masks that differ in tau or blocks, found {', '.join(names[1:])}")
    return [*settings, Setting(REMOVED)]


def blocks_of(mask: PruneMask) -> str:
    """What a mask prunes, in words."""
    return "cells" if mask.block_size == 1 else f"blocks of {mask.block_size}"


def random_mask(config: ModelConfig, block_size: int) -> PruneMask:
    """Blocks of a random pattern, all that a query may see alike."""
    queries, keys = config.tgt_len, config.mem_len + config.tgt_len
    count = torch.ones(queries, keys, dtype=torch.int64).tril(config.mem_len)
    generator = torch.Generator().manual_seed(SEED)
    average = torch.rand(config.n_layer, config.n_head, queries, keys, generator=generator) * count
    pattern = AttentionPattern(average, count, site="self", causal=True)
    return from_pattern(pattern, CONTEXT_TAU, rule="allowed", block_size=block_size)


def measure_context(dense: MemTransformerLM, ids: Tensor, context: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Medians of one context length: segment and memory of so many tokens each, a batch of ``tokens`` in all."""
    config = dataclasses.replace(dense.config, tgt_len=context, mem_len=context)
    model = MemTransformerLM(config).to(dense.r_w_bias.device)
    model.load_state_dict(dense.state_dict())
    batch = max(1, tokens // context)
    bench = LanguageModelBench(model, LMOrderedIterator(ids, batch, context, name="--contexts", max_steps=2))
    masks = [random_mask(config, size) for size in CONTEXT_BLOCKS]
    settings = [Setting("dense"), *(Setting(blocks_of(mask), mask) for mask in masks), Setting(REMOVED)]
    seconds = measure_seconds(bench, settings, rounds)
    no_memory = {setting.name: dict.fromkeys(seconds, 0) for setting in settings}
    measured = measured_settings(settings, seconds, no_memory)
    for setting in measured:
        for step in seconds:
            del setting[step]["peak_memory_bytes"]
    return {"context": context, "batch_size": batch, "settings": measured}


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = Parser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, help="model.safetensors of a dense training")
    add("--data", required=True, type=Path, help="folder of its corpus")
    add("--masks", nargs="+", required=True, type=Path, metavar="FILE", help="masks of the model's lengths")
    add("--batch_size", type=int, default=8, help="parallel streams of text")
    add("--contexts", type=int, nargs="*", default=[], metavar="LENGTH", help="other lengths of segment and memory")
    add("--rounds", type=int, default=5, help="how often everything is timed; medians count")
    add_run_flags(parser)
    add("--out", required=True, type=Path, help="efficiency.json to write")
    add("--memory_of", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(argv)
    for name in ("batch_size", "rounds"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}: expected at least 1, found {getattr(args, name)}")
    if any(context < 1 for context in args.contexts):
        raise InputError(f"--contexts: expected lengths of at least 1, found {min(args.contexts)}")
    limit_threads(args.threads)
    bench, ids, settings = prepare(args)
    config = bench.model.config
    if args.memory_of is not None:
        (setting,) = (setting for setting in settings if setting.name == args.memory_of)
        print(json.dumps(measure_memory(bench, setting)))
        return
    prepare_output(args.out)
    memory = {setting.name: memory_in_a_process(__file__, argv, setting) for setting in settings}
    seconds = measure_seconds(bench, settings, args.rounds)
    tokens = args.batch_size * config.tgt_len
    bench.use(settings[0])
    contexts = [measure_context(bench.model, ids, context, tokens, args.rounds) for context in args.contexts]
    facts = {
        "shape": {name: getattr(config, name) for name in ("n_layer", "d_model", "n_head", "d_head", "n_token")},
        **{name: getattr(config, name) for name in ("tgt_len", "mem_len")},
        **{name: getattr(args, name) for name in ("batch_size", "rounds")},
        "device": device_name(bench.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    write_json(args.out, facts | {"settings": measured_settings(settings, seconds, memory), "contexts": contexts})
    print(f"{args.out}: {', '.join(setting.name for setting in settings)} on {facts['device']}")


def prepare(args: argparse.Namespace) -> tuple[LanguageModelBench, Tensor, list[Setting]]:
    """The model and its text, ready to be timed; the ids of the text; and the settings.

    Raises
    ------
    InputError
        If a file cannot be read or fits the others not, or the model is pruned.
    """
    device, corpus = choose_device(args.device), Corpus.load(args.data)
    loaded = load_model(args.checkpoint)
    loaded.check_vocabulary(args.checkpoint, corpus)
    if loaded.info["mask"] is not None:
        raise InputError(f"{args.checkpoint}: expected a dense model, found a pruned one")
    config = loaded.model.config
    # Dropout is no part of attention, and draws as much whatever is pruned.
    model = MemTransformerLM(dataclasses.replace(config, dropout=0.0, dropatt=0.0))
    model.load_state_dict(loaded.model.state_dict())
    settings, ids = read_settings(args.masks, config), corpus.split("train")
    text = LMOrderedIterator(ids, args.batch_size, config.tgt_len, name=f"{args.data} (train)")
    return LanguageModelBench(model.to(device), text), ids, settings


if __name__ == "__main__":
    run_main(main, takes_device=True)

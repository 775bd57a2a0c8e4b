"""``attention-pruning calibrate``: a mask for a causal language model within a budget of loss, from a text file."""

from __future__ import annotations

import argparse
import csv
import importlib.util
from pathlib import Path

import torch

from ..errors import InputError
from ..files.whole import written_whole
from ..make.within_budget import TAUS


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add the command to ``attention-pruning``."""
    command = commands.add_parser(
        "calibrate",
        help="make a mask that raises a language model's loss by at most a budget, without training",
        description="Make a mask for a causal language model of transformers: each head is pruned by the share that "
        "the budget allows, given the cost of pruning that head alone. Patterns are of the first half of the windows "
        "of TEXT, losses of the second.",
    )
    command.add_argument("model", metavar="MODEL", help="folder of the model and its tokenizer, or a name on the hub")
    command.add_argument("text", metavar="TEXT", help="a file of plain text, in UTF-8")
    command.add_argument("--budget", type=float, required=True, help="rise of the loss, in nats a token (required)")
    command.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        help="mask to write (.safetensors); .csv goes beside it (required)",
    )
    command.add_argument("--taus", nargs="+", help="shares that are tried (default: 0.25 0.5 0.75 0.9 1)")
    command.add_argument("--length", type=int, default=128, help="tokens of a window (default: 128)")
    command.add_argument("--windows", type=int, default=32, help="windows, from the start of TEXT (default: 32)")
    command.add_argument("--batch-size", type=int, default=8, help="windows of a batch (default: 8)")
    command.add_argument("--block-size", type=int, default=1, help="prune whole blocks of this side (default: 1)")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if importlib.util.find_spec("transformers") is None:
        raise InputError("calibrate: expected transformers, pip install 'attention-pruning[transformers]', found none")
    output = Path(arguments.output)
    if output.suffix != ".safetensors":
        raise InputError(
            f"{output}: expected the name of a .safetensors file to write, found {output.suffix or 'none'}"
        )
    from ..huggingface import calibrate, collect_patterns
    from ..huggingface.causal_text import load_causal, read_windows

    model, tokenizer = load_causal(arguments.model)
    windows = read_windows(arguments.text, tokenizer, arguments.length, arguments.windows)
    batches = [
        {"input_ids": part, "attention_mask": torch.ones_like(part), "labels": part}
        for half in windows.tensor_split(2)
        for part in half.split(arguments.batch_size)
    ]
    seen, held_out = batches[: len(batches) // 2], batches[len(batches) // 2 :]
    patterns = collect_patterns(model, seen, block_size=arguments.block_size)
    taus = arguments.taus or TAUS
    found = calibrate(model, held_out, arguments.budget, patterns=patterns, taus=taus, progress=True)
    (mask,) = found.masks.values()
    mask.save(output)
    with written_whole(output.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
        rows = found.rows()
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    print(
        f"{output}: loss {found.dense_loss:.4f} dense, {found.loss:.4f} under the mask (budget {arguments.budget:g}), "
        f"effective sparsity {mask.effective_sparsity:.4f}"
    )

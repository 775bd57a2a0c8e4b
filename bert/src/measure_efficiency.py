"""Measure what masks of whole blocks save: seconds and memory of a batch in inference, and of a step of training.

Dense attention, every mask, and no attention at all are timed in interleaved rounds of one process. The
time without attention bounds what any mask can save (Amdahl's law). Peak memory is that of a process of its own for
each. The weights are random and every window is full: neither changes what a batch costs. Attention has no dropout
here, for torch's fused attention on a CPU has none, and the dense model would look slower than it need be.

    python bert/src/measure_efficiency.py --model_name_or_path minilm --masks mask50.safetensors mask90.safetensors \\
        --out efficiency.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForQuestionAnswering, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from attention_pruning import InputError, PruneMask
from attention_pruning.huggingface import prune_model, unprune_model
from attention_pruning.huggingface.prune import set_implementation
from attention_pruning.ops.choice import BACKENDS
from attention_pruning.ops.layout import BLOCK_SIZES
from encoders import load_config
from reproduction.runs.command import limit_threads, run_main
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
from run_flags import ModelArguments

SEED = 1


def remove_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: object
) -> tuple[Tensor, None]:
    """In place of attention, in the signature of the AttentionInterface: all projections keep their work."""
    return (query + key + value).transpose(1, 2).contiguous(), None


class EncoderBench(Bench):
    """A model, a batch, and how long a step takes under a setting.

    Parameters
    ----------
    args : argparse.Namespace
        The command's flags.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        AttentionInterface.register(REMOVED, remove_attention)
        AttentionMaskInterface.register(REMOVED, sdpa_mask)
        self.backend = args.attention_backend
        super().__init__(torch.device("cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"))
        config = load_config(ModelArguments(model_name_or_path=args.model_name_or_path), args.max_seq_length)
        config.attention_probs_dropout_prob = 0.0
        torch.manual_seed(SEED)
        self.model: PreTrainedModel = AutoModelForQuestionAnswering.from_config(config).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        shape = (args.batch_size, args.max_seq_length)
        answer = torch.randint(args.max_seq_length, (args.batch_size,), device=self.device)
        tokens = torch.randint(config.vocab_size, shape, device=self.device)
        self.batch = {"input_ids": tokens, "start_positions": answer, "end_positions": answer}

    def use(self, setting: Setting) -> None:
        """Change the model's attention, and let it prepare what it needs once."""
        unprune_model(self.model)
        if setting.mask is not None:
            prune_model(self.model, setting.mask, self.backend)
        elif setting.name == REMOVED:
            set_implementation(self.model, REMOVED)
        self.work("inference", sequences=1)

    def work(self, step: str, sequences: int | None = None) -> None:
        """One batch forward, or a whole step of training."""
        batch = {name: value[:sequences] for name, value in self.batch.items()}
        if step == "inference":
            self.model.eval()
            with torch.no_grad():
                self.model(batch["input_ids"])
        else:
            self.model.train()
            self.model(**batch).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


def read_settings(args: argparse.Namespace) -> list[Setting]:
    """Dense, the masks, and no attention.

    Raises
    ------
    InputError
        If a mask cannot be read, has no blocks that a kernel skips, covers other lengths, or is given twice.
    """
    settings = [Setting("dense")]
    for path in args.masks:
        mask = PruneMask.load(path)
        if mask.block_size % BLOCK_SIZES[0]:
            raise InputError(
                f"{mask.source}: expected a mask of whole blocks whose side is a multiple of {BLOCK_SIZES[0]}, found "
                f"block_size {mask.block_size}"
            )
        mask.check_model(query_length=args.max_seq_length, key_length=args.max_seq_length)
        settings.append(Setting(f"tau {mask.tau:g}", mask))
    names = [setting.name for setting in settings]
    if len(set(names)) != len(names):
        raise InputError(f"--masks: expected masks of different tau, found {', '.join(names[1:])}")
    return [*settings, Setting(REMOVED)]


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="whose shape: folder, name on the hub, or minilm")
    add("--masks", nargs="+", required=True, type=Path, metavar="FILE", help="masks of whole blocks")
    add("--max_seq_length", type=int, default=384, help="tokens of a window (default: 384)")
    add("--batch_size", type=int, default=8, help="windows of a batch (default: 8)")
    add("--rounds", type=int, default=5, help="how often everything is timed; medians count (default: 5)")
    add(
        "--attention_backend",
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what computes pruned attention (default: auto)",
    )
    add("--threads", type=int, default=0, help="CPU threads; 0 leaves it to OMP_NUM_THREADS")
    add("--use_cpu", action="store_true", help="leave a GPU alone")
    add("--out", required=True, type=Path, help="efficiency.json to write")
    add("--memory_of", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(argv)
    for name in ("max_seq_length", "batch_size", "rounds"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}: expected at least 1, found {getattr(args, name)}")
    limit_threads(args.threads)
    settings = read_settings(args)
    if args.memory_of is not None:
        (setting,) = (setting for setting in settings if setting.name == args.memory_of)
        print(json.dumps(measure_memory(EncoderBench(args), setting)))
        return
    prepare_output(args.out)
    memory = {setting.name: memory_in_a_process(__file__, argv, setting) for setting in settings}
    bench = EncoderBench(args)
    seconds = measure_seconds(bench, settings, args.rounds)
    facts = {name: getattr(args, name) for name in ("model_name_or_path", "max_seq_length", "batch_size", "rounds")}
    facts |= {
        "device": device_name(bench.device),
        "threads": torch.get_num_threads(),
        "backend": args.attention_backend,
    }
    facts |= {"torch": torch.__version__, "parameters": bench.model.num_parameters()}
    facts["block_size"] = settings[1].mask.block_size
    measured = measured_settings(settings, seconds, memory)
    write_json(args.out, facts | {"settings": measured})
    print(f"{args.out}: {', '.join(setting.name for setting in settings)} on {facts['device']}")


if __name__ == "__main__":
    run_main(main, takes_device=True)

"""Whole models on a GPU: a batch of inference and a step of training, with attention eager, fused, pruned and left out.

Encoders answer questions at the published shape (SQuAD's 384 tokens), a decoder of GPT-2's small size reads 1024 and
4096. The published table compares with eager attention, which keeps every score; torch's fused attention (SDPA) keeps
none. So both are baselines here, and what lies between them is no merit of pruning. Masks are random blocks: which ones
does not change what they cost. All settings take turns, each round in another order; memory is the peak of a step.

    python benchmarks/models_gpu.py --out results/benchmarks        # at most four minutes
    python benchmarks/models_gpu.py --dry_run                       # tiny, on the CPU: that nothing is broken
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from block_sparse import SEED, Shape, draw_layout
from block_sparse_gpu import interpret
from interleave import BenchmarkError
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertConfig,
    BertForQuestionAnswering,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)
from transformers.masking_utils import sdpa_mask

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attention_pruning import MaskRecipe, PruneMask
from attention_pruning.huggingface import prune_model, unprune_model
from attention_pruning.huggingface.prune import set_implementation
from attention_pruning.ops.choice import BACKENDS
from reproduction.analysis.figures.efficiency import STEPS, ceiling, published_rows
from reproduction.analysis.paper import REFERENCE, read_reference
from reproduction.runs.taking_turns import REMOVED, Bench, Setting, measure_seconds

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: What attention is that is not pruned, by the names that transformers gives; REMOVED is what all of it costs at most.
UNPRUNED = {"eager": "eager", "dense": "sdpa", REMOVED: REMOVED}
TAUS = (0.5, 0.75, 0.9, 0.95)
#: Without dropout of attention, as the encoders' efficiency on a CPU is measured.
BERT = {"attention_probs_dropout_prob": 0.0, "max_position_embeddings": 512}
MINILM = BERT | {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}


@dataclass(frozen=True)
class Case:
    """A model, the sequences of a batch, and the blocks of its masks."""

    name: str
    make: Callable[[], PreTrainedModel]
    length: int
    batch: int
    block: int


def encoder(**shape: float) -> Callable[[], PreTrainedModel]:
    """Makes a BERT that answers questions."""
    return lambda: BertForQuestionAnswering(BertConfig(**shape))


def decoder(positions: int, **shape: float) -> Callable[[], PreTrainedModel]:
    """Makes a GPT-2 language model."""
    return lambda: GPT2LMHeadModel(GPT2Config(n_positions=positions, attn_pdrop=0.0, **shape))


CASES = [
    Case("BERT base", encoder(**BERT), 384, 8, 32),
    Case("GPT-2 small", decoder(1024), 1024, 8, 64),
    Case("GPT-2 small", decoder(4096), 4096, 2, 64),
    Case("MiniLM", encoder(**MINILM), 384, 8, 32),
]
DRY_CASES = [
    Case("tiny BERT", encoder(**TINY), 64, 1, 32),
    Case("tiny GPT-2", decoder(64, n_embd=32, n_layer=1, n_head=2, vocab_size=50), 64, 1, 32),
]


def remove_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: object
) -> tuple[Tensor, None]:
    """In place of attention, in the signature of the AttentionInterface: all projections keep their work."""
    return (query + key + value).transpose(1, 2).contiguous(), None


class ModelBench(Bench):
    """A case in a number format, and how long a step takes under a setting."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device, backend: str) -> None:
        super().__init__(device)
        torch.manual_seed(SEED)
        self.backend = backend
        self.model = case.make().to(device, dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        tokens = torch.randint(self.model.config.vocab_size, (case.batch, case.length), device=device)
        answers = torch.randint(case.length, (case.batch,), device=device)
        decodes = isinstance(self.model, GPT2LMHeadModel)
        self.labels = {"labels": tokens} if decodes else {"start_positions": answers, "end_positions": answers}
        self.tokens = tokens

    def use(self, setting: Setting) -> None:
        """Change the model's attention."""
        unprune_model(self.model)
        if setting.mask is None:
            set_implementation(self.model, UNPRUNED[setting.name])
        else:
            prune_model(self.model, setting.mask, self.backend)

    def work(self, step: str) -> None:
        """One batch forward, or a whole step of training."""
        if step == "inference":
            self.model.eval()
            with torch.no_grad():
                self.model(self.tokens)
        else:
            self.model.train()
            self.model(self.tokens, **self.labels).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def peak_memory(self, step: str) -> float:
        """GB that are allocated at most in a step; 0 without a GPU."""
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        self.run(step)
        return torch.cuda.max_memory_allocated() / 1e9


def draw_mask(case: Case, model: PreTrainedModel, tau: float) -> PruneMask:
    """Blocks drawn uniformly, a block at least in every row."""
    causal = isinstance(model, GPT2LMHeadModel)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    layout = draw_layout(Shape(case.length, case.block, tau, causal), layers * heads)
    allowed = torch.ones(case.length, case.length, dtype=torch.bool)
    return PruneMask(
        ~layout.blocks.unflatten(0, (layers, heads)),
        allowed.tril() if causal else allowed,
        site="self",
        causal=causal,
        recipe=MaskRecipe(tau, rule="allowed", scope="head", row_floor="keep-best", block_size=case.block),
        metadata={"seed": SEED},
    )


def measure(case: Case, dtype: str, args: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    """Rows of the csv for a model in a number format."""
    bench = ModelBench(case, DTYPES[dtype], device, args.attention_backend)
    masks = [draw_mask(case, bench.model, tau) for tau in (TAUS[:1] if args.dry_run else TAUS)]
    settings = [Setting("eager"), Setting("dense"), *(Setting(f"tau {mask.tau:g}", mask) for mask in masks)]
    settings.append(Setting(REMOVED))
    seconds = measure_seconds(bench, settings, args.rounds)
    rows = []
    for setting in settings:
        bench.use(setting)
        for step in STEPS:
            bench.run(step)
            row = {"model": case.name, "dtype": dtype, "length": case.length, "batch": case.batch, "step": step}
            row |= {name: value for name, value in setting.describe().items() if name != "mask"}
            row["seconds"] = statistics.median(seconds[step][setting.name])
            for base in ("eager", "dense"):
                ratios = [a / b for a, b in zip(seconds[step][base], seconds[step][setting.name], strict=True)]
                row[f"times_{base}"] = statistics.median(ratios)
            bounds = [statistics.median(seconds[step][name]) for name in ("dense", REMOVED)]
            row["ceiling"] = ceiling(*bounds, row["block_sparsity"])
            row["memory_gb"] = bench.peak_memory(step)
            rows.append(row)
    return rows


def as_markdown(rows: list[dict[str, object]]) -> str:
    """A table for each model and step, with the published rows beside the encoders' inference."""
    parts, published = [], published_rows(read_reference(REFERENCE))
    eager = published[0]
    for model, dtype, length, step in dict.fromkeys((x["model"], x["dtype"], x["length"], x["step"]) for x in rows):
        found = [x for x in rows if (x["model"], x["dtype"], x["length"], x["step"]) == (model, dtype, length, step)]
        parts.append(f"## {model}, {dtype}, {found[0]['batch']} of {length} tokens: {STEPS[step].lower()}")
        lines = [
            "| attention | blocks skipped (%) | time (ms) | times eager | times SDPA | ceiling | memory (GB) |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for x in found:
            cells = [x["name"], f"{100 * x['block_sparsity']:.1f}", f"{1e3 * x['seconds']:.2f}"]
            cells += [f"{x[name]:.2f}" for name in ("times_eager", "times_dense", "ceiling", "memory_gb")]
            lines.append(f"| {' | '.join(cells)} |")
        if step == "inference" and length == 384:
            for x in published:
                time, gain = f"{1e3 * x['seconds']:.0f}", f"{x['speedup']:.2f}"
                lines.append(f"| published, {x['percentage']:g}% | | {time} | {gain} | | | {x['memory_gb']:.2f} |")
        parts.append("\n".join(lines))
    saved = 100 * (1 - min(x["memory_gb"] for x in published) / eager["memory_gb"])
    parts.append(
        "Speed-ups over eager attention are what the published table shows (its times are of a whole evaluation on a "
        f"GPU that is not named, up to {max(x['speedup'] for x in published):.2f} in time and {saved:.0f}% in memory); "
        "what SDPA gains over eager without pruning anything is the baseline's share of it. The ceiling is over SDPA: "
        "what Amdahl's law leaves if skipped blocks cost nothing."
    )
    return "\n\n".join(parts) + "\n"


def write(folder: Path, rows: list[dict[str, object]], rounds: int) -> Path:
    """Write ``models_gpu-DATE.csv`` and the table beside it, whole or not at all."""
    today = datetime.date.today().isoformat()
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    made = {"rounds": rounds, "torch": torch.__version__, "machine": machine}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"models_gpu-{today}.csv"
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["date", *rows[0], *made])
        writer.writeheader()
        for row in rows:
            rounded = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
            writer.writerow({"date": today, **rounded, **made})
    os.replace(temporary, path)
    path.with_suffix(".md").write_text(as_markdown(rows), encoding="utf-8")
    return path


def run(args: argparse.Namespace) -> list[dict[str, object]]:
    """All measurements that the time allows, printed as they end."""
    AttentionInterface.register(REMOVED, remove_attention)
    AttentionMaskInterface.register(REMOVED, sdpa_mask)
    device, started = torch.device("cpu" if args.dry_run else "cuda"), time.monotonic()
    rows: list[dict[str, object]] = []
    for case in DRY_CASES if args.dry_run else CASES:
        for dtype in ("fp32",) if args.dry_run else ("bf16", "fp32"):
            if time.monotonic() - started > args.seconds:
                print(f"{args.seconds} s are over: {case.name} {dtype} and what follows was not measured", flush=True)
                return rows
            try:
                found = measure(case, dtype, args, device)
            except RuntimeError as error:  # out of memory, say: one model must not cost all others
                print(f"{case.name}, {dtype}: not measured: {error}", file=sys.stderr, flush=True)
                continue
            print(as_markdown(found), flush=True)
            rows += found
    return rows


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="interleaved rounds")
    add("--seconds", type=int, default=180, help="begin nothing new after this time")
    add("--attention_backend", choices=BACKENDS, default="triton", help="what computes pruned attention")
    add("--out", type=Path, default=None, help="folder to write models_gpu-DATE.csv and .md into")
    add("--dry_run", action="store_true", help="one tiny round on the CPU, in Triton's interpreter")
    args = parser.parse_args()
    for name in ("rounds", "seconds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: expected at least 1, found {getattr(args, name)}")
    return args


def main() -> int:
    """Run the benchmark; returns the exit status."""
    args = parse_arguments()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    if args.dry_run:
        interpret()
        args.rounds = 1
    try:
        if not args.dry_run and not torch.cuda.is_available():
            raise BenchmarkError("expected a CUDA device, found none (--dry_run needs none)")
        rows = run(args)
        if not rows:
            raise BenchmarkError(f"nothing was measured in {args.seconds} s")
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.out is not None:
        print(f"written: {write(args.out, rows, args.rounds)} and its .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())

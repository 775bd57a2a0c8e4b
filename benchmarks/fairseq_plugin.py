"""Throughput of translation: training, generation and averaging, the plug-in beside stock fairseq.

Everything is timed interleaved in one process, in seconds of processor time: in each round every model reads the same
batches, and medians over the rounds are reported. Stock fairseq runs twice: as it is, with torch's fused attention
where it takes it, and by its own scores and softmax.

    python benchmarks/fairseq_plugin.py --rounds 11
    python benchmarks/fairseq_plugin.py --only train --out results/benchmarks
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from interleave import BenchmarkError, Step, Timing, Walk, measure, write_csv

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "fairseq")]

# A shape that a CPU trains in minutes: change it and no figure can be compared with an earlier one.
LAYERS, HEADS, WIDTH, INNER, WORDS = 2, 4, 128, 256, 2_000
SENTENCES, SHORTEST, LONGEST = 48, 8, 24
DROPOUT, LEARNING_RATE, CLIP, TAU, BEAM, SEED = 0.1, 5e-3, 1.0, 0.8, 4, 1
SITES = ("enc-self", "dec-self", "enc-dec")
MEASUREMENTS = ("train", "generate", "averaging")
#: The plug-in, dense or pruned, is to be at least so fast as stock fairseq in training and generation.
TARGET = 0.98


def build_task() -> Any:
    """A translation task with a made-up vocabulary and no data."""
    from fairseq.data import Dictionary
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    dictionary = Dictionary()
    for number in range(WORDS):
        dictionary.add_symbol(f"word{number}")
    return TranslationTask(TranslationConfig(left_pad_source=False), dictionary, dictionary)


def draw_batches(task: Any, count: int) -> list[dict[str, Any]]:
    """Batches of sentence pairs of about equal lengths, words as frequent as words are (Zipf)."""
    from fairseq.data import ListDataset
    from fairseq.data.language_pair_dataset import LanguagePairDataset

    generator = torch.Generator().manual_seed(SEED)
    frequency = 1.0 / torch.arange(1, WORDS + 1)
    first, eos = task.source_dictionary.nspecial, torch.tensor([task.source_dictionary.eos()])

    def sentence(length: int) -> torch.Tensor:
        return torch.cat([torch.multinomial(frequency, length, replacement=True, generator=generator) + first, eos])

    batches = []
    for _ in range(count):
        middle = int(torch.randint(SHORTEST, LONGEST - 2, (1,), generator=generator))
        lengths = torch.randint(middle, middle + 3, (2, SENTENCES), generator=generator).tolist()
        sides = [[sentence(length) for length in side] for side in lengths]
        columns = [item for side in sides for item in (ListDataset(side, list(map(len, side))), list(map(len, side)))]
        source, source_sizes, target, target_sizes = columns
        dictionary = task.source_dictionary
        data = LanguagePairDataset(
            source, source_sizes, dictionary, target, target_sizes, dictionary, left_pad_source=False, shuffle=False
        )
        batches.append(data.collater([data[index] for index in range(SENTENCES)]))
    return batches


def random_masks(folder: Path) -> dict[str, Path]:
    """Prune masks at TAU from patterns of random numbers: site -> file."""
    from attention_pruning import AttentionPattern
    from attention_pruning.make import from_pattern

    generator, files = torch.Generator().manual_seed(SEED), {}
    for site in SITES:
        size = LONGEST + 2
        count = torch.ones(size, size, dtype=torch.int64)
        count = count.tril() if site == "dec-self" else count
        average = torch.rand(LAYERS, HEADS, size, size, generator=generator) * count
        files[site] = folder / f"{site}.safetensors"
        from_pattern(AttentionPattern(average, count, site), TAU, rule="allowed").save(files[site])
    return files


def build_model(task: Any, kind: str, files: dict[str, Path]) -> Any:
    """One of the models that are compared; every call gives the same weights."""
    from fairseq.models import ARCH_CONFIG_REGISTRY

    args = argparse.Namespace(
        arch="transformer" if kind.startswith("stock") else "ap_transformer", share_all_embeddings=True
    )
    for side in ("encoder", "decoder"):
        sizes = {
            "embed_dim": WIDTH,
            "ffn_embed_dim": INNER,
            "layers": LAYERS,
            "attention_heads": HEADS,
            "normalize_before": True,
        }
        vars(args).update({f"{side}_{name}": value for name, value in sizes.items()})
    args.dropout = DROPOUT
    if kind.startswith("pruned"):
        args.PRUNE_BOOL = args.PRUNE_ENC_SELF_ATTN = args.PRUNE_DEC_SELF_ATTN = args.PRUNE_ENC_DEC_ATTN = True
        args.ENCODER_SELF_ATTN_PATH, args.DECODER_SELF_ATTN_PATH, args.ENCODER_DECODER_ATTN_PATH = (
            str(files[site]) for site in SITES
        )
        args.beyond_pattern = "dense"
        args.attention_backend = "block_sparse" if kind == "pruned, kept keys" else "auto"
    args.USE_ENTMAX = kind == "entmax"
    ARCH_CONFIG_REGISTRY[args.arch](args)
    torch.manual_seed(SEED)
    model = task.build_model(args)
    if kind == "stock, own scores":
        for module in model.modules():
            if hasattr(module, "skip_embed_dim_check"):
                module.skip_embed_dim_check = True
    return model


def training(task: Any, model: Any, batches: list[dict[str, Any]]) -> Step:
    """One update of fairseq's trainer: forward, label-smoothed loss, backward, clipping, Adam."""
    from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion

    walk = Walk(batches, None)
    criterion = LabelSmoothedCrossEntropyCriterion(task, sentence_avg=False, label_smoothing=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        loss, size, _ = criterion(model, walk.next())
        (loss / size).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


def generation(task: Any, model: Any, batches: list[dict[str, Any]]) -> Step:
    """Beam search over one batch, as long as the longest pattern, so that all models write equally much."""
    from fairseq.sequence_generator import SequenceGenerator

    walk = Walk(batches, None)
    model.eval()
    length = LONGEST - 1
    search = SequenceGenerator([model], task.target_dictionary, beam_size=BEAM, max_len_b=length, min_len=length)

    def step() -> None:
        with torch.no_grad():
            search.generate([model], walk.next())

    return step


def evaluation(model: Any, batches: list[dict[str, Any]]) -> Step:
    """A forward pass over one batch."""
    walk = Walk(batches, None)
    model.eval()

    def step() -> None:
        with torch.no_grad():
            model(**walk.next()["net_input"])

    return step


def averaging(model: Any, batches: list[dict[str, Any]]) -> Step:
    """One batch of ``compute_attn_score.py --all``: a forward pass that adds all attention to three patterns."""
    from plugin.averaging import Lengths, average_attention

    walk, lengths = Walk(batches, None), Lengths(LONGEST + 2, LONGEST + 2)

    def step() -> None:
        average_attention(model, [walk.next()], SITES, lengths, padding=1)

    return step


def check_agreement(stock: Any, dense: Any, batch: dict[str, Any]) -> None:
    """Refuse to time models that compute different things."""
    stock.eval(), dense.eval()
    with torch.no_grad():
        difference = float((stock(**batch["net_input"])[0] - dense(**batch["net_input"])[0]).abs().max())
    if not difference < 1e-4:
        raise BenchmarkError(
            f"stock fairseq and the dense plug-in: expected the same output, found a difference of {difference:.2e}"
        )


def build_steps(kind: str, task: Any, batches: list[dict[str, Any]], files: dict[str, Path]) -> dict[str, Step]:
    """The models of one measurement, each as a step."""
    from attention_pruning.ops.cpu import native

    def model(name: str) -> Any:
        return build_model(task, name, files)

    check_agreement(model("stock"), model("dense"), batches[0])
    if kind == "averaging":
        return {"evaluation": evaluation(model("stock"), batches), "averaging": averaging(model("dense"), batches)}
    make: Callable[..., Step] = training if kind == "train" else generation
    names = ("stock", "stock, own scores", "dense", "pruned", "entmax")
    if kind == "generate" and native.missing() is None:
        names += ("pruned, kept keys",)
    return {name: make(task, model(name), batches) for name in names}


def print_table(timings: list[Timing]) -> None:
    """Print one measurement: each model, beside stock fairseq both ways."""
    by_name = {timing.model: timing for timing in timings}
    for timing in timings:
        line = f"{timing.measurement:10s} {timing.model:18s} {timing.median:8.0f} tokens/s"
        for base in ("stock", "stock, own scores"):
            if base in by_name and base != timing.model:
                middle, low, high = timing.times(by_name[base])
                line += f" | {middle:.2f} x {base} ({low:.2f}..{high:.2f})"
        if timing.model in ("dense", "pruned"):
            reached = timing.times(by_name["stock"])[0] >= TARGET
            line += f" | {'reaches' if reached else 'MISSES'} {TARGET} of stock"
        if timing.model == "averaging":
            line += f" | costs {by_name['evaluation'].times(timing)[0]:.2f} evaluations"
        print(line, flush=True)


def run(args: argparse.Namespace, files: dict[str, Path]) -> list[Timing]:
    """All measurements that the flags ask for, printed as they end."""
    task = build_task()
    batches = draw_batches(task, 8)
    tokens = sum(batch["ntokens"] for batch in batches) // len(batches)
    timings: list[Timing] = []
    for kind in args.only:
        written = SENTENCES * LONGEST if kind == "generate" else tokens
        steps = build_steps(kind, task, batches, files)
        # A whole walk over the batches in a round: they are not equally long.
        repeat = args.repeat or (1 if kind == "generate" else len(batches))
        found = measure(
            kind, steps, tokens=written, warm_up=2, rounds=args.rounds, repeat=repeat, clock=time.process_time
        )
        print_table(found)
        timings += found
    return timings


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), help="what to measure")
    add("--threads", type=int, default=1, help="threads of torch")
    add("--rounds", type=int, default=11, help="interleaved rounds, of which medians are reported")
    add("--repeat", type=int, default=0, help="steps of each model in a round; 0: 8, and 1 for generation")
    add("--out", type=Path, default=None, help="folder to write fairseq_plugin-DATE.csv into")
    args = parser.parse_args()
    for name, least in (("threads", 1), ("rounds", 1), ("repeat", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name}: expected at least {least}, found {getattr(args, name)}")
    return args


def main() -> int:
    """Run the benchmark; returns the exit status."""
    import tempfile

    import launcher

    args = parse_arguments()
    launcher.prepare()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        try:
            timings = run(args, random_masks(Path(folder)))
        except BenchmarkError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    if args.out is not None:
        print(f"written: {write_csv(args.out, 'fairseq_plugin', timings, ('stock', 'dense'), args.threads)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

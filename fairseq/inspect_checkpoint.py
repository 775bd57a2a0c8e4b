"""What a trained translation model shows without translating: exact zeros in its attention, and its training's speed.

The model reads each sentence pair of a split as in training, but in eval mode. entmax gives some keys a probability of
exactly zero, each input others; a mask prunes the same cells in all. Both are counted, at every site:

* ``zeros``: cells that are exactly zero, of all that are allowed (query and key real, and shown by causality);
* ``pruned``: cells that the mask prunes, of all that are allowed;
* ``kept_zeros``: cells that are exactly zero, of those that the mask leaves.

    python fairseq/inspect_checkpoint.py --checkpoint checkpoints/checkpoint_best.pt --data DATA
"""

from __future__ import annotations

import argparse
from pathlib import Path

import launcher

launcher.prepare()

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from attention_pruning import InputError  # noqa: E402
from plugin.batches import collated, load_split, plan_batches  # noqa: E402
from plugin.checkpoint import load_model, read_checkpoint, training_speed  # noqa: E402
from plugin.flags import SITE_FLAGS  # noqa: E402
from plugin.model import PrunedTransformer  # noqa: E402
from plugin.sparsity import sparsities  # noqa: E402
from plugin.zeros import ZeroCounts, count_zeros  # noqa: E402
from reproduction.runs.command import limit_threads, run_main  # noqa: E402
from reproduction.runs.files import prepare_output  # noqa: E402
from reproduction.runs.metrics import parse_labels, write_metrics  # noqa: E402
from reproduction.runs.record import RunRecord  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """All flags, with their defaults."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = top.add_argument
    add("--checkpoint", type=Path, required=True, help="the checkpoint to look into")
    add("--data", type=Path, help="the binarised data (default: the data of the training)")
    add("--split", default="test", help="part of the data to read (default: test)")
    add("--max-tokens", type=int, default=4000, help="tokens in a batch (default: 4000)")
    add("--threads", type=int, default=0, help="CPU threads; 0 leaves it to OMP_NUM_THREADS (default: 0)")
    add("--out", type=Path, help="metrics.json to write, with .run.json beside it (default: print only)")
    add("--label", action="append", default=[], metavar="KEY=VALUE", help="copied into metrics.json; may be repeated")
    return top


def zero_metrics(counts: dict[str, ZeroCounts]) -> dict[str, float]:
    """The shares over all sites, and as ``NAME_SITE`` those of each."""
    metrics = sum(counts.values(), ZeroCounts()).shares()
    for site, count in counts.items():
        metrics |= {f"{name}_{site}": value for name, value in count.shares().items()}
    return metrics


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    limit_threads(args.threads)
    if args.label and args.out is None:
        raise InputError("--label: expected --out beside it, found none")
    labels = parse_labels(args.label)
    if args.out is not None:
        prepare_output(args.out)
    record = RunRecord("fairseq/inspect_checkpoint.py", vars(args))
    seconds, updates = training_speed(read_checkpoint(args.checkpoint))
    # As in generate.py, sentences that are longer than a pattern are read, unpruned where it ends.
    data = None if args.data is None else str(args.data)
    loaded = load_model(args.checkpoint, data=data, beyond_pattern="dense")
    dataset = load_split(loaded.task, args.split)
    batches = plan_batches(loaded.task, dataset, loaded.model, args.max_tokens)
    counts = count_zeros(
        loaded.model,
        tqdm(collated(dataset, batches, torch.device("cpu")), total=len(batches), unit="batch", disable=None),
        list(SITE_FLAGS),
        loaded.task.source_dictionary.pad(),
    )
    zeros, speed = zero_metrics(counts), {"seconds_per_update": seconds, "timed_updates": float(updates)}
    print(f"{args.split}: " + "  ".join(f"{name} {value:.3g}" for name, value in zeros.items()))
    print(f"training: {seconds:.3g} s per update ({updates} updates)")
    if args.out is not None:
        masks = loaded.model.record if isinstance(loaded.model, PrunedTransformer) else {}
        write_metrics(args.out, labels, {args.split: zeros, "train": speed}, **sparsities(loaded.model, masks, dataset))
        cells = {site: vars(count) for site, count in counts.items()}
        record.write(args.out.with_suffix(".run.json"), cells=cells, model_fingerprint=loaded.fingerprint)


if __name__ == "__main__":
    run_main(main)

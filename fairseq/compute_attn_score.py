"""Average the attention of a trained translation model over its data: step two of Attention Pruning.

The model reads each sentence pair as in training, but in eval mode, and each layer's own probabilities are averaged per
head, query position and key position. ``train.py --..._ATTN_PATH FILE --TAU SHARE`` prunes by the result.

    python fairseq/compute_attn_score.py --path checkpoints --fn checkpoint_best.pt --all

``torchrun --nproc_per_node N`` starts several processes, which share the batches; the pattern is the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import launcher

launcher.prepare()

import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402
from tqdm import tqdm  # noqa: E402

from attention_pruning import AttentionPattern, InputError  # noqa: E402
from attention_pruning.files.published import write_published  # noqa: E402
from attention_pruning.processes import together  # noqa: E402
from plugin.averaging import Lengths, average_attention, masks_observed_under  # noqa: E402
from plugin.batches import collated, data_fingerprint, dropped_sentences, load_split, plan_batches  # noqa: E402
from plugin.checkpoint import LoadedModel, load_model  # noqa: E402
from plugin.flags import SITES_BY_TYPE  # noqa: E402
from plugin.model import PrunedTransformer, adopt_attention  # noqa: E402
from reproduction.runs.command import (  # noqa: E402
    HelpFormatter,  # noqa: E402
    limit_threads,
    run_main,
)
from reproduction.runs.record import RunRecord  # noqa: E402

DEFAULT_OUT = Path("avg_attn_probabilities")


def parser() -> argparse.ArgumentParser:
    """All flags, with their defaults."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    add = top.add_argument
    add("--path", type=Path, required=True, help="folder of the checkpoint")
    add("--fn", default="checkpoint_best.pt", help="its file name")
    sites = top.add_mutually_exclusive_group(required=True)
    sites.add_argument("--attn_type", choices=SITES_BY_TYPE, help="the site to average (required, or --all)")
    sites.add_argument("--all", action="store_true", help="all three sites in one pass")
    add("--dataset_name", help="binarised data: a folder, or a name in data-bin/ (default: the data of the training)")
    add("--split", default="train", help="part of the data to observe")
    add("--out", type=Path, help=f"folder to write ATTN_TYPE.safetensors to (default: {DEFAULT_OUT}/NAME OF THE DATA)")
    add("--npy", action="store_true", help="write ATTN_TYPE.npy in the published layout too, which has no counts")
    add(
        "--cuda",
        action=argparse.BooleanOptionalAction,
        help="use a GPU (default: if there is one); the published --cuda switched it off: --no-cuda does that here",
    )
    add("--half", action="store_true", help="run in half precision, as the training did; needs a GPU")
    add(
        "--use_entmax",
        action="store_true",
        help="the model attends with entmax 1.5; its checkpoint must say so too, or be old",
    )
    add(
        "--using_old_model",
        action="store_true",
        help="the checkpoint is stock fairseq's, which knows none of our flags",
    )
    add("--max-tokens", type=int, default=4000, help="tokens in a batch")
    add("--max-batches", type=int, default=-1, help="batches to observe, drawn with --seed; -1 for all")
    add("--seed", type=int, default=1, help="seed that orders the batches")
    add("--threads", type=int, default=0, help="CPU threads; 0 leaves it to OMP_NUM_THREADS")
    return top


def choose_device(cuda: bool | None, half: bool) -> torch.device:
    """The device that --cuda, --no-cuda and --half ask for.

    Raises
    ------
    InputError
        If it takes a GPU and there is none, or --no-cuda is given.
    """
    available = torch.cuda.is_available()
    if cuda and not available:
        raise InputError("--cuda: expected a CUDA device, found none")
    on_gpu = available if cuda is None else cuda
    if half and not on_gpu:
        raise InputError("--half: expected a GPU, found none in use")
    return torch.device("cuda" if on_gpu else "cpu")


def data_folder(name: str | None) -> Path | None:
    """Where the data that --dataset_name names is; None without it.

    Raises
    ------
    InputError
        If it is neither a folder nor the name of one in data-bin/.
    """
    if name is None:
        return None
    for folder in (Path(name), Path("data-bin") / name):
        if folder.is_dir():
            return folder
    raise InputError(f"--dataset_name: expected a folder, or the name of one in data-bin/, found {name!r}")


def check_kind(loaded: LoadedModel, path: Path, args: argparse.Namespace) -> None:
    """Hold --using_old_model and --use_entmax to what the checkpoint says.

    Raises
    ------
    InputError
        If they contradict it.
    """
    ours = isinstance(loaded.model, PrunedTransformer)
    if ours and args.using_old_model:
        raise InputError(
            f"{path}: expected a checkpoint of stock fairseq for --using_old_model, found one of this plug-in"
        )
    if not ours and not args.using_old_model:
        raise InputError(
            f"{path}: expected a checkpoint of this plug-in, found one of stock fairseq: give --using_old_model"
        )
    modules = [module for modules in adopt_attention(loaded.model).values() for module in modules]
    if not ours and args.use_entmax:
        for module in modules:
            module.normalizer = "entmax15"
    found = modules[0].normalizer
    if (found == "entmax15") != args.use_entmax:
        raise InputError(
            f"{path}: expected {'entmax' if args.use_entmax else 'softmax'}, as the flags say, found {found}"
        )


def describe_data(folder: str, split: str, batches: int) -> dict[str, Any]:
    """What the pattern's metadata says of the data: its name, and a fingerprint of the binarised files of the split."""
    return {
        "data": Path(folder).resolve().name,
        "data_fingerprint": data_fingerprint(folder, split),
        "split": split,
        "batches": batches,
    }


def write(patterns: dict[str, AttentionPattern], out: Path, npy: bool) -> None:
    """Write ATTN_TYPE.safetensors, and .npy on request, for each attention type."""
    out.mkdir(parents=True, exist_ok=True)
    for name, pattern in patterns.items():
        pattern.save(out / f"{name}.safetensors")
        if npy:
            write_published(pattern, out / f"{name}.npy", "fairseq")
        print(f"{out / name}.safetensors: {pattern}")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    limit_threads(args.threads)
    device = choose_device(args.cuda, args.half)
    processes = PartialState(cpu=device.type == "cpu")  # as torchrun started them, else this one alone
    device = processes.device
    path = args.path / args.fn
    data = data_folder(args.dataset_name)
    record = RunRecord("fairseq/compute_attn_score.py", vars(args))
    loaded = load_model(path, data=None if data is None else str(data))
    check_kind(loaded, path, args)
    model = loaded.model.to(device)
    model = model.half() if args.half else model
    dataset = load_split(loaded.task, args.split)
    batches = plan_batches(loaded.task, dataset, model, args.max_tokens, args.max_batches, args.seed)

    sites = {name: site for name, site in SITES_BY_TYPE.items() if args.all or name == args.attn_type}
    own = batches[processes.process_index :: processes.num_processes]
    quiet = None if processes.is_main_process else True
    with together():
        accumulators = average_attention(
            model,
            tqdm(collated(dataset, own, device), total=len(own), unit="batch", disable=quiet),
            list(sites.values()),
            Lengths.of(dataset, batches),
            loaded.task.source_dictionary.pad(),
        )
    for accumulator in accumulators.values():
        accumulator.all_reduce()
    if not processes.is_main_process:
        return
    folder = loaded.task.cfg.data
    metadata = {"model": "fairseq", "model_fingerprint": loaded.fingerprint, "seed": args.seed}
    metadata["precision"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    metadata |= describe_data(folder, args.split, len(batches))
    metadata["dropped_sentences"] = dropped_sentences(loaded.task, dataset, model)
    masks = model.record if isinstance(model, PrunedTransformer) else {}
    patterns = {
        name: accumulators[site].finalize(metadata | masks_observed_under(masks, site)) for name, site in sites.items()
    }
    out = args.out or DEFAULT_OUT / metadata["data"]
    write(patterns, out, args.npy)
    fingerprints = {name: pattern.fingerprint for name, pattern in patterns.items()}
    pruned = {"masks": masks} if masks else {}
    record.write(out / "run.json", patterns=fingerprints, **metadata, **pruned)


if __name__ == "__main__":
    run_main(main, takes_device=True)

"""WikiText-2 and WikiText-103 (Merity et al., 2016) as corpora for language modelling.

The text is tokenised already and has its own ``<unk>``, which the vocabulary keeps. It comes from a local folder if one
is named, else from the Hugging Face hub at a pinned revision.
Run ``python -m reproduction.data.language.wikitext --help``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path

from attention_pruning.errors import InputError
from reproduction.data.language.corpus import Corpus, encode
from reproduction.data.language.raw_text import raw_files, read_lines
from reproduction.data.preparation import run_preparation
from reproduction.data.sources import DATA_DIR_VARIABLE
from reproduction.runs.command import run_main

HUB_DATASET = "Salesforce/wikitext"
HUB_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
HUB_CONFIGS = {"wikitext-2": "wikitext-2-v1", "wikitext-103": "wikitext-103-v1"}
HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}

#: Tokens, one ``<eos>`` a line counted, and symbols of the published corpora (``<eos>`` and ``<unk>`` among them).
PUBLISHED_SIZES = {
    "wikitext-2": ({"train": 2_088_628, "valid": 217_646, "test": 245_569}, 33_278),
    "wikitext-103": ({"train": 103_227_021, "valid": 217_646, "test": 245_569}, 267_735),
}


def local_lines(name: str, data_dir: str | os.PathLike[str]) -> dict[str, Iterator[list[str]]]:
    """Return the lines of each split from the folder ``data_dir/name``, read as they are consumed.

    The folder holds ``train.txt valid.txt test.txt`` or ``wiki.{train,valid,test}.tokens``.

    Raises
    ------
    InputError
        If the folder or a split's file is missing; the message says where to get it.
    """
    folder = Path(data_dir) / name
    remedy = f"get it from huggingface.co/datasets/{HUB_DATASET} ({HUB_CONFIGS[name]}), or leave out the local folder"
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder with {name}, found none; {remedy}")
    try:
        files = raw_files(folder)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from error
    return {split: read_lines(file) for split, file in files.items()}


def hub_lines(name: str) -> dict[str, Iterator[list[str]]]:
    """Return the lines of each split from the Hugging Face hub, or from its cache on this machine.

    Raises
    ------
    InputError
        If the hub cannot be reached and the cache has no copy.
    """
    # Imported here because it takes seconds and the local folder does not need it.
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    def lines(split: str) -> Iterator[list[str]]:
        for batch in loaded[split].iter(batch_size=1000):
            for text in batch["text"]:
                yield text.split()

    try:
        loaded = datasets.load_dataset(HUB_DATASET, HUB_CONFIGS[name], revision=HUB_REVISION)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{name}: expected {HUB_DATASET} ({HUB_CONFIGS[name]}) from the Hugging Face hub, found: {reason}; "
            f"connect, or name a local folder that holds {name}/ with --data-dir or {DATA_DIR_VARIABLE}"
        ) from error
    return {split: lines(hub_split) for split, hub_split in HUB_SPLITS.items()}


def check_sizes(corpus: Corpus, name: str) -> None:
    """Refuse a text that is not the published one: tokens of each split and symbols must agree.

    Raises
    ------
    InputError
        At the first number that differs.
    """
    tokens, symbols = PUBLISHED_SIZES[name]
    for split, count in tokens.items():
        found = int(corpus.ids[split].size)
        if found != count:
            raise InputError(
                f"{name}: expected {count:,} tokens in {split}, found {found:,} (--any-size accepts other text)"
            )
    if len(corpus.vocabulary) != symbols:
        raise InputError(f"{name}: expected a vocabulary of {symbols:,}, found {len(corpus.vocabulary):,}")


def prepare(
    out: str | os.PathLike[str],
    name: str = "wikitext-2",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    any_size: bool = False,
) -> Corpus:
    """Prepare WikiText in the folder ``out``; the arguments are the command's flags.

    Memory is about 16 bytes a token: 1.7 GB for the 103 million tokens of WikiText-103.
    """
    if name not in HUB_CONFIGS:
        raise InputError(f"name must be one of {', '.join(HUB_CONFIGS)}, found {name!r}")
    lines: dict[str, Iterable[list[str]]] = dict(local_lines(name, data_dir) if data_dir else hub_lines(name))
    source = "local folder" if data_dir else f"{HUB_DATASET} {HUB_CONFIGS[name]} {HUB_REVISION}"
    corpus = encode(name, lines, extra={"source": source, "split_rule": "as published", "seed": None})
    if not any_size:
        check_sizes(corpus, name)
    corpus.save(out)
    return corpus


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.data.language.wikitext",
        description="Prepare WikiText-2 or WikiText-103 as a corpus for language modelling.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--name", default="wikitext-2", choices=HUB_CONFIGS, help="which corpus")
    parser.add_argument("--out", required=True, default=argparse.SUPPRESS, help="folder to write")
    parser.add_argument(
        "--data-dir",
        default=os.environ.get(DATA_DIR_VARIABLE) or None,
        help="folder that holds NAME/ with train.txt valid.txt test.txt or wiki.{train,valid,test}.tokens; the "
        f"environment variable {DATA_DIR_VARIABLE} sets the default; None: download from the Hugging Face hub",
    )
    parser.add_argument("--any-size", action="store_true", help="accept text whose size is not the published one")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_preparation(build_parser(), prepare, attrgetter("fingerprint", "summary"), argv)


if __name__ == "__main__":
    run_main(main)

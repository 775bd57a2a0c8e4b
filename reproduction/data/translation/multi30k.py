"""Multi30k (Elliott et al., 2016): 29,000 image captions in German and English, as a translation corpus.

The text comes from a local folder if one is named, else from the Hugging Face hub; either way it must be the published
one, byte for byte. Run ``python -m reproduction.data.translation.multi30k --help``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from attention_pruning.errors import InputError
from reproduction.data.preparation import run_preparation
from reproduction.data.sources import DATA_DIR_VARIABLE
from reproduction.data.translation.parallel_text import first_share, read_aligned, report, write_pairs
from reproduction.data.translation.subwords import SentencePieces
from reproduction.runs.command import run_main

FOLDER = "multi30k"
HUB_DATASET = "bentrevett/multi30k"
SOURCE = "github.com/multi30k/dataset, data/task1/raw"
TESTS = ("test_2016_flickr", "test_2017_flickr", "test_2017_mscoco")
HUB_SPLITS = {"train": "train", "val": "validation", "test_2016_flickr": "test"}
LANGUAGES = ("de", "en")

#: SHA-256 of the published files.
CHECKSUMS = {
    "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
    "test_2017_flickr.de": "c3078bc3b36808bf9d20eb2347ed6137016179ef59ec0d2b9b8ecc3fb2880081",
    "test_2017_flickr.en": "ce1450ddc5ab0834502579d77a170849952e15a2938b34cc503bdc25ebb4fb98",
    "test_2017_mscoco.de": "58277df3c75f92f7145a11b910b553d1cf82c439249d4dc237c899609eafac22",
    "test_2017_mscoco.en": "43051fdfa86fd5395182e718a94ca67b1b227b9f7c79596ff0f6b813216981d2",
}


def local_pairs(data_dir: str | os.PathLike[str], part: str) -> list[tuple[str, str]]:
    """German and English lines of ``data_dir/multi30k/PART.{de,en}``.

    Raises
    ------
    InputError
        If a file is missing; the message says where to get it.
    """
    folder = Path(data_dir) / FOLDER
    files = [folder / f"{part}.{language}" for language in LANGUAGES]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: expected a file of Multi30k, found none; get it from {SOURCE}")
    return read_aligned(files)


def hub_pairs(part: str) -> list[tuple[str, str]]:
    """The same from the Hugging Face hub, or from its cache on this machine.

    Raises
    ------
    InputError
        If the hub cannot be reached or does not have this part.
    """
    if part not in HUB_SPLITS:
        raise InputError(
            f"{part}: expected one of {', '.join(HUB_SPLITS)}, which the hub has, found another; name a local folder"
        )
    # Imported here because it takes seconds and the local folder does not need it.
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        loaded = datasets.load_dataset(HUB_DATASET, split=HUB_SPLITS[part])
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"multi30k: expected {HUB_DATASET} from the Hugging Face hub, found: {reason}; connect, or name a local "
            f"folder that holds {FOLDER}/ with --data-dir or {DATA_DIR_VARIABLE}"
        ) from error
    return list(zip(loaded["de"], loaded["en"], strict=True))


def check_text(part: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse text that is not the published one.

    Raises
    ------
    InputError
        Naming the file that it should equal.
    """
    for language, lines in zip(LANGUAGES, zip(*pairs, strict=True), strict=True):
        found = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
        expected = CHECKSUMS[f"{part}.{language}"]
        if found != expected:
            raise InputError(
                f"{part}.{language}: expected the published text (SHA-256 {expected[:16]}...), found {found[:16]}... "
                "(--any-text accepts other text)"
            )


def prepare(
    out: str | os.PathLike[str],
    source: str = "de",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    test: str = TESTS[0],
    vocabulary: int = 8000,
    lower_case: bool = False,
    max_pairs: int | None = None,
    pairs_fraction: float = 1.0,
    any_text: bool = False,
) -> dict:
    """Prepare Multi30k in the folder ``out``; the arguments are the command's flags. Returns its description."""
    if max_pairs is not None and max_pairs < 1:
        raise InputError(f"--max-pairs: expected at least 1, found {max_pairs}")
    splits = {}
    for split, part in (("train", "train"), ("valid", "val"), ("test", test)):
        pairs = local_pairs(data_dir, part) if data_dir else hub_pairs(part)
        if not any_text:
            check_text(part, pairs)
        # Some published lines end with blanks.
        splits[split] = [
            tuple(" ".join(text.lower().split() if lower_case else text.split()) for text in pair) for pair in pairs
        ]
    splits["train"] = splits["train"][:max_pairs]
    languages = LANGUAGES if source == "de" else LANGUAGES[::-1]
    if source != "de":
        splits = {split: [pair[::-1] for pair in pairs] for split, pairs in splits.items()}
    subwords = SentencePieces.learn((text for pair in splits["train"] for text in pair), vocabulary)
    # the subwords are of all pairs, so that corpora of fewer share them
    splits["train"] = first_share(splits["train"], pairs_fraction)
    extra = {
        "source": f"{SOURCE}, {'local folder' if data_dir else HUB_DATASET}",
        "split_rule": f"as published, test: {test}",
        "seed": None,
        "pairs_fraction": pairs_fraction,
        "lower_case": lower_case,
    }
    return write_pairs(out, "multi30k", languages, splits, subwords, extra)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.data.translation.multi30k",
        description="Prepare Multi30k for translation: running text and sentencepiece subwords of three splits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, default=argparse.SUPPRESS, help="folder to write")
    add("--source", default="de", choices=LANGUAGES, help="language to translate; the other is the target")
    add(
        "--data-dir",
        default=os.environ.get(DATA_DIR_VARIABLE) or None,
        help=f"folder that holds {FOLDER}/ with train, val, test_... .de and .en; the environment variable "
        f"{DATA_DIR_VARIABLE} sets the default; None: download from the Hugging Face hub",
    )
    add("--test", default=TESTS[0], choices=TESTS, help="test set; the last one is out of domain")
    add("--vocabulary", type=int, default=8000, help="subwords that both languages share")
    add("--lower-case", action="store_true", help="turn the text to lower case")
    add("--max-pairs", type=int, help="training pairs to keep, from the start; None: all")
    add("--pairs-fraction", type=float, default=1.0, help="share of those pairs to keep, the first ones")
    add("--any-text", action="store_true", help="accept text that is not the published one")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_preparation(build_parser(), prepare, report, argv)


if __name__ == "__main__":
    run_main(main)

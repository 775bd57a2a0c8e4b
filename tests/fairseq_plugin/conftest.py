"""A tiny translation task, and patterns for it."""

import itertools

import pytest
import torch

from attention_pruning import AttentionPattern
from tiny_translation import HEADS, LAYERS, run_script, shims, write_letters

TYPES = {"enc-self": "self-enc", "dec-self": "self-dec", "enc-dec": "enc-dec"}


@pytest.fixture(autouse=True)
def allowed_in_checkpoints():
    """transformers' Trainer, once it has resumed in this process, takes numpy's types off torch's list."""
    torch.serialization.add_safe_globals(shims.SAFE_IN_CHECKPOINTS)


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """Parallel text: each letter becomes its capital, sometimes twice."""
    folder = tmp_path_factory.mktemp("raw")
    write_letters(folder)
    return folder


@pytest.fixture(scope="session")
def data(raw, tmp_path_factory):
    """The same, binarised by our preprocess.py."""
    folder = tmp_path_factory.mktemp("data") / "letters"
    prefixes = itertools.chain(*((f"--{split}pref", raw / split) for split in ("train", "valid", "test")))
    run_script("preprocess.py", "--source-lang", "xx", "--target-lang", "yy", "--destdir", folder, *prefixes)
    return folder


@pytest.fixture(scope="session")
def task(data):
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

    # what fairseq's own parser would fill in
    plain = {"train_subset": "train", "dataset_impl": None, "required_seq_len_multiple": 1, "num_batch_buckets": 0}
    found = TranslationTask.setup_task(TranslationConfig(data=str(data), left_pad_source=False, **plain))
    for split in ("train", "test"):
        found.load_dataset(split)
    return found


@pytest.fixture(scope="session")
def pattern_files(tmp_path_factory):
    """Random patterns over 9 source and 12 target positions, whose rows sum to one: site -> file."""
    folder, generator = tmp_path_factory.mktemp("patterns"), torch.Generator().manual_seed(3)
    files = {}
    for site, (queries, keys) in {"enc-self": (9, 9), "dec-self": (12, 12), "enc-dec": (12, 9)}.items():
        count = torch.ones(queries, keys, dtype=torch.int64)
        count = count.tril() if site == "dec-self" else count
        scores = torch.randn(LAYERS, HEADS, queries, keys, generator=generator).masked_fill(count == 0, -torch.inf)
        files[site] = folder / f"{TYPES[site]}.safetensors"
        AttentionPattern(scores.softmax(-1), count, site, metadata={"source": "drawn"}).save(files[site])
    return files

"""Tiny models, masks and texts for the tests of this folder, and the ways to run the scripts on them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from hypothesis import settings
from safetensors import safe_open

from attention_pruning import AttentionPattern
from mem_transformer import MemTransformerLM, ModelConfig

law = settings(deadline=None, max_examples=25)

SHAPE = {"n_layer": 2, "n_head": 2, "d_head": 6, "d_model": 16, "d_inner": 20}
LENGTHS = {"tgt_len": 4, "mem_len": 6}


def tiny_model(seed: int = 0, n_token: int = 23, **changes) -> MemTransformerLM:
    """A model in eval mode whose weights are large enough for attention to be far from uniform."""
    torch.manual_seed(seed)
    model = MemTransformerLM(ModelConfig(n_token=n_token, **{**SHAPE, **LENGTHS, **changes}))
    model.initialize(init_std=0.4, proj_init_std=0.4)
    return model.eval()


def random_cells(model: MemTransformerLM, share: float = 0.6, seed: int = 1) -> torch.Tensor:
    """Pruned cells of a random mask without a row floor: with a large share some rows keep nothing."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    shape = (config.n_layer, config.n_head, config.tgt_len, config.mem_len + config.tgt_len)
    return torch.rand(shape, generator=generator) < share


def random_ids(*shape: int, n_token: int = 23, seed: int = 2) -> torch.Tensor:
    return torch.randint(n_token, shape, generator=torch.Generator().manual_seed(seed))


def random_pattern(seed: int = 3, **changes) -> AttentionPattern:
    """A pattern of random numbers for the tiny model, or one like it, seen everywhere that is visible."""
    shape = {**SHAPE, **LENGTHS, **changes}
    queries, keys = shape["tgt_len"], shape["mem_len"] + shape["tgt_len"]
    count = torch.ones(queries, keys, dtype=torch.int64).tril(keys - queries)
    generator = torch.Generator().manual_seed(seed)
    average = torch.rand(shape["n_layer"], shape["n_head"], queries, keys, generator=generator) * count
    return AttentionPattern(average, count, site="self", causal=True, metadata={"model": "tiny"})


def word_lines(lines: int, seed: int, words: int = 30) -> list[list[str]]:
    """Sentences of a little language with something to learn: most words have one likely successor."""
    rng = random.Random(seed)
    text = []
    for _ in range(lines):
        word, line = rng.randrange(words), []
        for _ in range(rng.randint(5, 12)):
            line.append(f"w{word}")
            word = (word * 7 + 3) % words if rng.random() < 0.8 else min(rng.randrange(words), rng.randrange(words))
        text.append(line)
    return text


def flags(**options) -> list[str]:
    """Command-line words; True is the bare flag, False and None are none, a list is several words."""
    words = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value if isinstance(value, list | tuple) else [value])
    return words


def training_flags(data: Path, work_dir: Path, **changes) -> list[str]:
    """Flags of a training that takes a second."""
    options = {
        "data": data,
        "work_dir": work_dir,
        **SHAPE,
        **LENGTHS,
        "max_step": 20,
        "batch_size": 4,
        "eval_batch_size": 3,
        "lr": 0.01,
        "log_interval": 7,
        "eval_interval": 10,
        "checkpoint_interval": 6,
        "device": "cpu",
        **changes,
    }
    return flags(**options)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def assert_same_model(one: Path, other: Path, **tolerance: float) -> None:
    """Two work folders hold the same weights, mask and validation loss: bit for bit, or within a tolerance."""
    tensors, others = read_tensors(one / "model.safetensors"), read_tensors(other / "model.safetensors")
    assert tensors.keys() == others.keys()
    tolerance = tolerance or {"atol": 0.0, "rtol": 0.0}
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")
    nll, other_nll = (torch.tensor(read_json(f / "run.json")["valid_nll"], dtype=torch.float64) for f in (one, other))
    torch.testing.assert_close(nll, other_nll, **tolerance)

"""fairseq with the plug-in, in the test's process; its scripts, in their own; tiny untrained models."""

import argparse
import os
import random
import subprocess
import sys
from pathlib import Path

import torch

from warm_python import python

FAIRSEQ = Path(__file__).parents[2] / "fairseq"
sys.path.append(str(FAIRSEQ))

import shims  # noqa: E402

shims.install()
# fairseq puts the plug-in's folder first, where its train.py would hide that of another subproject in the same process.
sys.path[:] = [path for path in sys.path if path != str(FAIRSEQ)] + [str(FAIRSEQ)]

from fairseq.models import ARCH_CONFIG_REGISTRY  # noqa: E402

LAYERS, HEADS = 2, 2


def run_script(name, *arguments, check=True, **options):
    """A script of fairseq/ in a process of its own."""
    command = [python(), str(FAIRSEQ / name), *map(str, arguments)]
    paths = os.pathsep.join(filter(None, [str(FAIRSEQ.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, **options)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def error_of(name, *arguments, **options):
    """The one line of a script that refuses its input."""
    done = run_script(name, *arguments, check=False, **options)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    return lines[0]


def prune_flags(files, sites, tau=0.6, **more):
    """The namespace entries that prune some sites by their pattern files."""
    names = {
        "enc-self": ("PRUNE_ENC_SELF_ATTN", "ENCODER_SELF_ATTN_PATH"),
        "dec-self": ("PRUNE_DEC_SELF_ATTN", "DECODER_SELF_ATTN_PATH"),
        "enc-dec": ("PRUNE_ENC_DEC_ATTN", "ENCODER_DECODER_ATTN_PATH"),
    }
    flags = {"PRUNE_BOOL": True, "TAU": tau, "rule": "allowed"} if sites else {}
    for site in sites:
        flags |= {names[site][0]: True, names[site][1]: str(files[site])}
    return flags | more


def as_arguments(flags):
    """The same on a command line."""
    words = []
    for name, value in flags.items():
        flag = f"--{name if name.isupper() else name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return words


def build(task, arch="ap_transformer_tiny", seed=1, **flags):
    """An untrained model in eval mode, its embeddings large enough that attention is far from uniform."""
    args = argparse.Namespace(arch=arch, encoder_embed_dim=16, encoder_ffn_embed_dim=16, **flags)
    ARCH_CONFIG_REGISTRY[arch](args)
    torch.manual_seed(seed)
    model = task.build_model(args)
    model.namespace = args  # what a checkpoint keeps
    for module in model.modules():
        if hasattr(module, "q_proj"):
            torch.nn.init.normal_(module.q_proj.weight, std=0.3)
            torch.nn.init.normal_(module.k_proj.weight, std=0.3)
    return model.eval()


def batch_of(task, indices, split="test"):
    dataset = task.dataset(split)
    return dataset.collater([dataset[index] for index in indices])


def write_letters(folder):
    """Parallel text in xx and yy: each letter becomes its capital, sometimes twice."""
    draw = random.Random(0)
    for split, number in (("train", 160), ("valid", 24), ("test", 24)):
        sources = [[draw.choice("abcdefghij") for _ in range(draw.randint(1, 8))] for _ in range(number)]
        targets = [[c.upper() for c in s for _ in range(1 + (draw.random() < 0.2))] for s in sources]
        for language, lines in (("xx", sources), ("yy", targets)):
            (folder / f"{split}.{language}").write_text("".join(" ".join(words) + "\n" for words in lines))

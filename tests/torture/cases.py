"""What is killed: a script of every subproject on a tiny model, its inputs, and the command for an output folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
#: Where the tiny models of the tests are, and the scripts.
PATHS = [ROOT, ROOT / "transformer-xl", ROOT / "bert" / "src", TESTS]
PATHS += [TESTS / folder for folder in ("torture", "transformer_xl", "fairseq_plugin", "bert", "attention_pruning")]
NOTHING = re.compile("(?!)")
#: transformers writes these as they come; nothing reads them before a training has said that it is done.
OF_TRANSFORMERS = re.compile(r"checkpoint-\d+/.*|(trainer_state|config|tokenizer.*|special_tokens_map)\.json")


@dataclass(frozen=True)
class Case:
    """A script that is killed and started again.

    Attributes
    ----------
    name : str
    script : Path
    arguments : callable
        From the folder that the run writes to, to its arguments.
    modules : tuple of str
        What it imports once it runs.
    unfinished : pattern
        Paths in the folder that may be half written.
    """

    name: str
    script: Path
    arguments: Callable[[Path], list[str]]
    modules: tuple[str, ...] = ()
    unfinished: re.Pattern[str] = NOTHING


def environment() -> dict[str, str]:
    """Of every process here: one thread, so that the order of sums is always the same."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PATHS)), "OMP_NUM_THREADS": "1"}


def run(*command: object) -> None:
    """A step of the preparations."""
    done = subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[1]}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def transformer_xl(inputs: Path) -> list[Case]:
    """Training, and collection of its pattern."""
    from reproduction.data.language.corpus import write_corpus
    from tiny_xl import flags, random_pattern, training_flags, word_lines

    script, words, pattern = ROOT / "transformer-xl" / "train.py", inputs / "words", inputs / "pattern.safetensors"
    sizes = {"train": (60, 1), "valid": (12, 2), "test": (9, 3)}
    write_corpus(words, "words", {split: word_lines(*size) for split, size in sizes.items()})
    random_pattern().save(pattern)
    run(sys.executable, script, *training_flags(words, inputs / "dense"))

    def train(folder: Path) -> list[str]:
        logged = {"logging_dir": folder / "log", "report_to": "csv"}
        dropout = {"dropout": 0.3, "dropatt": 0.2}
        return training_flags(words, folder, fn=pattern, th=0.7, max_step=60, **dropout, **logged)

    def collect(folder: Path) -> list[str]:
        checkpoint = inputs / "dense" / "model.safetensors"
        return flags(checkpoint=checkpoint, data=words, out=folder / "pattern.safetensors", batch_size=2, device="cpu")

    return [
        Case("transformer-xl/train.py", script, train, ("torch.optim.adam",)),
        Case("transformer-xl/compute_mask.py", ROOT / "transformer-xl" / "compute_mask.py", collect),
    ]


def translation(inputs: Path) -> list[Case]:
    """Training, and collection of its patterns."""
    from tiny_translation import write_letters

    write_letters(inputs)
    data, model, script = inputs / "letters", inputs / "model", ROOT / "fairseq" / "train.py"
    parts = [f"--{split}pref={inputs / split}" for split in ("train", "valid", "test")]
    languages = ["--source-lang", "xx", "--target-lang", "yy"]
    run(sys.executable, ROOT / "fairseq" / "preprocess.py", *languages, "--destdir", data, *parts)
    recipe = [str(data), "--arch", "ap_transformer_tiny", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16"]
    recipe += ["--optimizer", "adam", "--lr", "0.01", "--max-tokens", "120", "--dropout", "0.1", "--seed", "1", "--cpu"]
    recipe += ["--criterion", "label_smoothed_cross_entropy", "--no-epoch-checkpoints", "--max-update", "40"]
    recipe += ["--save-interval-updates", "6", "--keep-interval-updates", "1", "--num-workers", "0"]
    run(sys.executable, script, *recipe, "--save-dir", model)

    def train(folder: Path) -> list[str]:
        return [*recipe, "--save-dir", str(folder), "--logging_dir", str(folder / "log")]

    def collect(folder: Path) -> list[str]:
        return ["--path", str(model), "--fn", "checkpoint_last.pt", "--all", "--out", str(folder), "--no-cuda"]

    modules = ("fairseq_cli.train", "training_run")
    return [
        Case("fairseq/train.py", script, train, modules),
        Case("fairseq/compute_attn_score.py", ROOT / "fairseq" / "compute_attn_score.py", collect),
    ]


def bert(inputs: Path) -> list[Case]:
    """Fine-tuning, with its pattern and under one."""
    from tiny_bert import LENGTH, flag_list, random_pattern, save_model, write_mrpc, write_squad

    model, pattern = save_model(inputs / "bert"), inputs / "pattern.safetensors"
    random_pattern(32).save(pattern)
    write_mrpc(inputs, {"train": 40, "dev": 24, "test": 10})
    write_squad(inputs, train=12, dev=6)
    common = {"model_name_or_path": model, "data_dir": inputs, "use_cpu": True, "seed": 3, "learning_rate": 1e-2}
    common |= {"do_train": True, "do_eval": True, "max_steps": 12, "per_device_train_batch_size": 8}
    common |= {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 2, "logging_steps": 2}

    def folders(folder: Path) -> dict[str, Path]:
        return {"output_dir": folder, "prepared_dir": folder / "prepared", "logging_dir": folder / "log"}

    def glue(folder: Path) -> list[str]:
        gathered = {"save_attention_patterns": True, "attn_path": folder / "pattern.safetensors"}
        task = {"task_name": "MRPC", "max_seq_length": LENGTH, "do_predict": True}
        return flag_list(**common, **folders(folder), **gathered, **task)

    def squad(folder: Path) -> list[str]:
        pruned = {"prune": True, "attn_path": pattern, "tau": 0.5}
        lengths = {"max_seq_length": 32, "doc_stride": 8, "max_query_length": 10}
        return flag_list(**common, **folders(folder), **pruned, **lengths)

    scripts = ROOT / "bert" / "src"
    return [
        Case("bert/src/run_glue.py", scripts / "run_glue.py", glue, unfinished=OF_TRANSFORMERS),
        Case("bert/src/run_squad.py", scripts / "run_squad.py", squad, unfinished=OF_TRANSFORMERS),
    ]


def library(inputs: Path) -> list[Case]:
    """Collection from a transformers model."""
    return [Case("collect_patterns", TESTS / "torture" / "collect.py", lambda folder: [str(folder)])]


#: One room for the inputs of each: several cases, made when they are asked for.
MAKERS = {"transformer-xl": transformer_xl, "fairseq": translation, "bert": bert, "library": library}

"""A tiny BERT with its tokenizer, tiny tasks in GLUE's and SQuAD's layouts, and ways to run the scripts on them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from attention_pruning import AttentionPattern

LAYERS, HEADS, LENGTH = 2, 2, 16
WORDS = [f"{a}{b}" for a in "bdfglm" for b in "aeiou"]
#: Words of several pieces: the vocabulary has single letters and their continuations too.
LONG_WORDS = ["zebra", "Zürich", "walk-in", "x²"]


def save_tokenizer(folder: Path) -> BertTokenizer:
    """A WordPiece tokenizer of short words, letters and punctuation."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *WORDS, *".,-!?"]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_model(folder: Path, *, heads: int = HEADS, positions: int = 64, seed: int = 0, **changes) -> Path:
    """A BERT of random weights, with its tokenizer; its attention is far from uniform."""
    tokenizer = save_tokenizer(folder)
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": heads}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, **shape, **changes)
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for weight in model.bert.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.4)
    model.save_pretrained(folder)
    return folder


def sentence(rng: random.Random, least: int = 1, most: int = 9) -> str:
    return " ".join(rng.choice(WORDS + LONG_WORDS) for _ in range(rng.randint(least, most)))


def write_task(folder: Path, name: str, header: list[str] | None, rows: dict[str, list[list[str]]]) -> None:
    (folder / "glue" / name).mkdir(parents=True)
    for file, lines in rows.items():
        text = "".join("\t".join(fields) + "\n" for fields in ([header] if header else []) + lines)
        (folder / "glue" / name / f"{file}.tsv").write_text(text, encoding="utf-8")


def write_mrpc(folder: Path, sizes: dict[str, int]) -> None:
    """Pairs that are equal or not."""
    rng, rows = random.Random(7), {}
    for file, size in sizes.items():
        rows[file] = []
        for number in range(size):
            first = sentence(rng)
            second = first if number % 2 else sentence(rng)
            rows[file].append([str(number % 2), "1", "2", first, second])
    write_task(folder, "MRPC", ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], rows)


def write_squad(folder: Path, train: int, dev: int, version: str = "v1.1") -> None:
    """Passages of some twenty words, longer than a window; every answer is one to three words of its passage."""
    rng = random.Random(5)
    (folder / "squad").mkdir(parents=True)
    for split, size in (("train", train), ("dev", dev)):
        paragraphs = []
        for number in range(size):
            words = sentence(rng, 15, 30).split()
            first = rng.randrange(len(words))
            answer = " ".join(words[first : first + rng.randint(1, 3)])
            start = len(" ".join(words[:first])) + bool(first)
            answers = [{"text": answer, "answer_start": start}]
            impossible = version == "v2.0" and number % 3 == 0
            question = {
                "id": f"{split}{number}",
                "question": sentence(rng, 1, 4),
                "answers": [] if impossible else answers,
            }
            paragraphs.append({"context": " ".join(words), "qas": [question]})
        content = {"version": version, "data": [{"title": "words", "paragraphs": paragraphs}]}
        (folder / "squad" / f"{split}-{version}.json").write_text(json.dumps(content))


def random_pattern(
    length: int = LENGTH, *, layers: int = LAYERS, heads: int = HEADS, seed: int = 3
) -> AttentionPattern:
    """A pattern of random numbers, seen everywhere."""
    average = torch.rand(layers, heads, length, length, generator=torch.Generator().manual_seed(seed))
    return AttentionPattern(average, torch.ones(length, length, dtype=torch.int64), "self", metadata={"model": "tiny"})


def flag_list(**flags: object) -> list[str]:
    """Keyword arguments as a command line: True is a flag alone, None leaves it out."""
    line: list[str] = []
    for name, value in flags.items():
        if value is not None:
            line += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return line


def read_metrics(folder: Path) -> dict:
    """metrics.json without what a clock or the memory says."""
    content = json.loads((folder / "metrics.json").read_text())
    clocks = ("seconds", "eval_seconds", "batch_seconds", "peak_memory_bytes", "peak_cuda_memory_bytes")
    content["metrics"] = {
        split: {name: value for name, value in values.items() if name not in clocks}
        for split, values in content["metrics"].items()
    }
    return content

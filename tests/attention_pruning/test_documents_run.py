"""Every block of code in the README and the documents runs as it is printed."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import transformers as tf

from attention_pruning.cli import main
from attention_pruning.huggingface import model_masks
from warm_python import python

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
SCRIPTS = ("transformer-xl/", "fairseq/", "bert/src/", "benchmarks/")


def python_blocks(page):
    return [part.split("```")[0] for part in page.read_text().split("```python\n")[1:]]


def command_lines(page):
    """Lines of indented blocks, continued ones joined, without comments."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    lines = (line[4:] for line in text.splitlines() if line.startswith("    ") and not line.startswith("     "))
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what the pages take for granted: a model and its tokenizer in path/to/model."""
    monkeypatch.chdir(tmp_path)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "text",
        "of",
        "the",
        "training",
        "data",
        "another",
        "one",
    ]
    Path("vocab.txt").write_text("\n".join(words))
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
    torch.manual_seed(0)
    tf.BertForMaskedLM(tf.BertConfig(vocab_size=len(words), **shape)).save_pretrained("path/to/model")
    tf.BertTokenizerFast(vocab_file="vocab.txt").save_pretrained("path/to/model")
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_python_blocks_run_as_printed(page, folder, capsys):
    for code in python_blocks(page):
        exec(compile(code, str(page), "exec"), {})
        if "transformers" in code:
            assert len(code.replace("\n\n", "\n").strip().splitlines()) <= 10
            assert model_masks(tf.AutoModelForMaskedLM.from_pretrained("path/to/pruned"))
    printed = capsys.readouterr().out
    assert printed and "None" not in printed
    assert "blocks computed" in printed or not any("explain(" in code for code in python_blocks(page))


def test_the_commands_of_the_library_run_as_printed(folder):
    page = ROOT / "docs" / "library.md"
    exec(python_blocks(page)[0], {})
    ran = 0
    for line in command_lines(page):
        if line.startswith("attention-pruning "):
            assert main(shlex.split(line)[1:]) == 0
            ran += 1
    assert ran >= 5 and Path("mask.png").is_file() and Path("again.safetensors").is_file()


def flags_used():
    """(page, script or module, flags) of every command of ours that a page prints."""
    for page in PAGES:
        for line in command_lines(page):
            command = re.match(r"(?:torchrun \S+ \S+ |\S+=\S+ )*(?:python )?(-m )?(\S+)", line)
            script = command and command[2]
            ours = script and (
                re.fullmatch(rf"({'|'.join(SCRIPTS)})\w+\.py", script) or script.startswith("reproduction.")
            )
            if ours:
                flags = set(re.findall(r"(?<=\s)--?[A-Za-z][\w-]*", line.split(script, 1)[1]))
                yield pytest.param(script, flags, id=f"{page.name}:{script}")


def merged():
    """Each script once, with all flags that pages give it."""
    found = {}
    for case in flags_used():
        script, flags = case.values
        found.setdefault(script, set()).update(flags)
    return sorted(found.items())


@pytest.mark.slow
@pytest.mark.parametrize(("script", "flags"), merged(), ids=[script for script, _ in merged()])
def test_the_flags_that_pages_print_are_flags_of_the_script(script, flags):
    how = ["-m", script] if script.startswith("reproduction.") else [script]
    if not how[-1].startswith("reproduction"):
        assert (ROOT / script).is_file()
    command = [python(), *how, "--help"]
    if script in ("fairseq/train.py", "fairseq/generate.py"):
        command = [python(), script, "x", "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text))
    assert flags <= known, flags - known

"""Texts that the tests of this folder share, and scripts run within the test's process."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, PartialState

import train
from attention_pruning import InputError
from reproduction.data.language.corpus import write_corpus
from reproduction.runs.command import run_main
from tiny_xl import random_pattern, training_flags, word_lines

SIZES = {"train": (60, 1), "valid": (12, 2), "test": (9, 3)}


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> Path:
    """A word corpus: about 550, 110 and 80 tokens of some 30 words."""
    folder = tmp_path_factory.mktemp("corpora") / "words"
    write_corpus(folder, "words", {split: word_lines(*size) for split, size in SIZES.items()})
    return folder


@pytest.fixture(scope="session")
def characters(tmp_path_factory) -> Path:
    """A corpus of characters."""
    folder = tmp_path_factory.mktemp("corpora") / "characters"
    lines = {split: [list(" ".join(line)) for line in word_lines(*size)] for split, size in SIZES.items()}
    write_corpus(folder, "characters", lines, level="character")
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its state in the process; a script expects a process of its own."""
    yield
    AcceleratorState._reset_state(True)
    PartialState._reset_state()


@pytest.fixture
def run_train(words, tmp_path):
    """Train in ``tmp_path / name`` with changed flags; returns the folder and the exit status."""

    def run(name: str, data: Path = words, **changes) -> tuple[Path, int | None]:
        AcceleratorState._reset_state(True)
        folder = tmp_path / name
        return folder, train.main(training_flags(data, folder, **changes))

    return run


@pytest.fixture(scope="session")
def trained(words, pattern_file, tmp_path_factory) -> dict[str, Path]:
    """Work folders of a dense and a pruned model, each trained for 20 steps."""
    AcceleratorState._reset_state(True)
    folders = {name: tmp_path_factory.mktemp("trained") / name for name in ("dense", "pruned")}
    train.main(training_flags(words, folders["dense"]))
    train.main(training_flags(words, folders["pruned"], fn=pattern_file, th=0.7))
    AcceleratorState._reset_state(True)
    return folders


@pytest.fixture(scope="session")
def pattern_file(tmp_path_factory) -> Path:
    """A pattern of random numbers that fits the tiny model."""
    path = tmp_path_factory.mktemp("pattern") / "pattern.safetensors"
    random_pattern().save(path)
    return path


@pytest.fixture
def refused(capsys):
    """Run a script's main on bad input; returns its one line on stderr after ``error: ``."""

    def run(main, argv: list[str]) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run_main(lambda: main(argv))
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert caught.value.code == 2
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert isinstance(caught.value.__context__, InputError)  # not argparse, which would print its usage as well
        return lines[0].removeprefix("error: ")

    return run

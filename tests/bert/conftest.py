"""A tiny model and tiny tasks that the tests of this folder share, and scripts run within the test's process."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

import run_glue
import run_squad
from attention_pruning import InputError
from reproduction.runs.command import run_main
from tiny_bert import LENGTH, flag_list, random_pattern, save_model, write_mrpc, write_squad

SCRIPTS = {"glue": run_glue, "squad": run_squad}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """MRPC and SQuAD of a few rows."""
    folder = tmp_path_factory.mktemp("data")
    write_mrpc(folder, {"train": 40, "dev": 24, "test": 10})
    write_squad(folder, train=12, dev=6)
    return folder


@pytest.fixture(scope="session")
def pattern_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pattern") / "pattern.safetensors"
    random_pattern().save(path)
    return path


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    """Instead of the user's cache of data sets."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch, cache_dir):
    """Accelerate keeps its state in the process; a script expects one of its own, and no folder from outside."""
    monkeypatch.delenv("AP_DATA_DIR", raising=False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache_dir)
    yield
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory) -> Path:
    """Where runs keep tokenised rows, instead of the user's cache."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def command(model_folder, data_dir, prepared_dir, tmp_path):
    """The command line of a small run in ``tmp_path / name``, with changed flags."""

    def line(script: str, name: str, **changes) -> list[str]:
        flags = {
            "model_name_or_path": model_folder,
            "data_dir": data_dir,
            "prepared_dir": prepared_dir,
            "output_dir": tmp_path / name,
            "use_cpu": True,
            "seed": 3,
            "max_steps": 6,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "save_strategy": "no",
        }
        own = {
            "glue": {"task_name": "MRPC", "max_seq_length": LENGTH},
            "squad": {"max_seq_length": 32, "doc_stride": 8, "max_query_length": 10},
        }
        return flag_list(**(flags | own[script] | changes))

    return line


@pytest.fixture
def run(command, tmp_path):
    """Run a script with changed flags, and ``more`` words of the command line; returns its output folder."""

    def call(script: str, name: str, more: Iterable[str] = (), **changes) -> Path:
        SCRIPTS[script].main([*command(script, name, **changes), *more])
        return tmp_path / name

    return call


@pytest.fixture
def refused(command, tmp_path, capsys):
    """Run a script on bad input; returns its one line on stderr, and holds it to writing nothing."""

    def call(script: str, **changes) -> str:
        before = sorted(os.walk(tmp_path))
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run_main(lambda: SCRIPTS[script].main(command(script, "refused", **changes)))
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert caught.value.code == 2 and len(lines) == 1
        assert isinstance(caught.value.__context__, InputError)
        assert sorted(os.walk(tmp_path)) == before
        return lines[0].removeprefix("error: ")

    return call

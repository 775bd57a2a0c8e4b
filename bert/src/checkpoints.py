"""Which checkpoint a training continues from, and what makes two trainings different ones.

transformers writes ``trainer_state.json`` last, so a checkpoint without it was being written when its run was killed.
``recipe.json`` beside the checkpoints says what training they are of: a run of other flags must not continue from them.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from attention_pruning import InputError
from reproduction.runs.folder import require_recipe
from reproduction.runs.json_file import read_json
from reproduction.runs.torch_files import check_archive

_STATE_FILE = "trainer_state.json"
#: What a training leaves in its folder.
TRACES = ("checkpoint-*", "model.safetensors", "prune_mask.*.safetensors", _STATE_FILE)
#: Flags that may differ between a training and its continuation. All others make another training, those included that
#: transformers may yet add.
FREE_FLAGS = frozenset(
    {
        # where things are; data and mask are told apart by their fingerprints
        *("output_dir", "overwrite_output_dir", "set_aside", "data_dir", "attn_path", "resume_from_checkpoint"),
        *("train_file", "validation_file", "test_file", "cache_dir", "prepared_dir", "overwrite_cache", "logging_dir"),
        # what is done before and after the training, and on how much
        *("do_train", "do_eval", "do_predict", "save_attention_patterns", "max_pattern_samples"),
        *("max_eval_samples", "max_predict_samples", "label"),
        # how evaluations are computed; when there is one decides which weights are the best
        *("per_device_eval_batch_size", "eval_accumulation_steps", "eval_on_start", "eval_do_concat_batches"),
        *("eval_use_gather_object", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics"),
        # what is written when
        *("save_strategy", "save_steps", "save_total_limit", "save_on_each_node", "enable_jit_checkpoint"),
        *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node"),
        *("log_level", "log_level_replica", "disable_tqdm", "report_to", "include_num_input_tokens_seen"),
        *("skip_memory_metrics", "run_name", "project", "trackio_space_id", "trackio_bucket_id"),
        *("trackio_static_space_id", "debug", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id"),
        *("hub_strategy", "hub_always_push", "hub_revision"),
        # the machine
        *("use_cpu", "local_rank", "ddp_backend", "ddp_timeout", "torch_empty_cache_steps"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
    }
)


def find_checkpoint(training: TrainingArguments, recipe: Mapping[str, Any]) -> str | None:
    """The checkpoint to continue from: --resume_from_checkpoint, else the last whole one in --output_dir, else None.

    Parameters
    ----------
    training : TrainingArguments
        Whose --resume_from_checkpoint is a folder, or "true" for the last one in --output_dir, which has to be there.
    recipe : mapping
        Of this training, see ``run_folder.make_recipe``.

    Raises
    ------
    InputError
        If the checkpoint that is named is not whole, or is of another training; if a file of the checkpoint is damaged.
    """
    named = training.resume_from_checkpoint
    if named is None or named.lower() == "true":
        checkpoint = last_checkpoint(training.output_dir)
        if named is not None and checkpoint is None:
            raise InputError(f"--resume_from_checkpoint: expected a checkpoint in {training.output_dir}, found none")
        return None if checkpoint is None else _undamaged(checkpoint)
    checkpoint = Path(named)
    if not is_whole(checkpoint):
        raise InputError(f"{checkpoint}: expected a whole checkpoint to resume from, found none")
    require_recipe(checkpoint.parent, recipe)
    return _undamaged(checkpoint)


def _undamaged(checkpoint: Path) -> str:
    """The name of a checkpoint whose files are as they were written, as far as their formats tell."""
    for file in sorted(checkpoint.iterdir()):
        try:
            if file.suffix in (".pt", ".pth"):
                check_archive(file)
                with contextlib.suppress(pickle.UnpicklingError):  # numpy's objects, for example, are not declared safe
                    torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            elif file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
        except (OSError, SafetensorError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError) as error:
            raise InputError(
                f"{file}: expected a whole file of a checkpoint, found a damaged one ({error}); without "
                f"{checkpoint.name} the training goes on from the checkpoint before it"
            ) from error
    return str(checkpoint)


def last_checkpoint(folder: str | Path) -> Path | None:
    """The whole ``checkpoint-STEP`` with the most steps in a folder."""
    numbered = {
        int(match[1]): path
        for path in Path(folder).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and is_whole(path)
    }
    return numbered[max(numbered)] if numbered else None


def remove_unfinished(folder: str | Path, limit: int | None = None) -> None:
    """Remove the checkpoints that a run was writing, or removing, when it was killed.

    Parameters
    ----------
    limit : int, optional
        ``--save_total_limit``: only so many of the last checkpoints stay, and the best one. transformers itself goes by
        the time of a folder, so it takes one that it has begun to remove for the youngest.
    """
    for path in Path(folder).glob("checkpoint-*"):
        if path.is_dir() and not is_whole(path):
            shutil.rmtree(path)
    if (last := last_checkpoint(folder)) is not None:
        best = read_json(last / _STATE_FILE).get("best_model_checkpoint")
        rotate_checkpoints(str(folder), limit, best and str(Path(folder) / Path(best).name))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        return isinstance(read_json(checkpoint / _STATE_FILE), dict)
    except InputError:
        return False

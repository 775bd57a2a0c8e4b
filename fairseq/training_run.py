"""A training of fairseq as one run of one folder: whose it is, what it starts from, how it is interrupted.

fairseq's own loop runs unedited. What it looks up by name while it runs is replaced from here, in each process.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fairseq_cli.train as loop
import torch
from fairseq.logging import metrics
from omegaconf import DictConfig, OmegaConf

from attention_pruning import InputError
from attention_pruning.processes import gathered, is_first_process, process_count, summed, together
from fairseq import checkpoint_utils
from plugin.batches import data_fingerprint
from plugin.flags import RECORD, SITE_FLAGS, PruneFlags
from plugin.lengths import check_lengths
from plugin.model import PrunedTransformer
from plugin.site_masks import load_site_masks, model_shapes
from plugin.sparsity import effective_sparsity
from plugin.step_table import StepTable
from reproduction.runs.checkpoint import Interruption
from reproduction.runs.folder import RunFolder, claim_folder, make_recipe
from reproduction.runs.record import RunRecord
from reproduction.runs.step_log import StepLog

logger = logging.getLogger(__name__)

#: What a training leaves in its folder.
TRACES = ("checkpoint*.pt", "mask-*.safetensors", "run.json")
LAST = "checkpoint_last.pt"  # fairseq's default of --restore-file, too
#: Arguments that may differ between a run and its continuation, beside all whose name begins with "distributed_".
FREE = {
    # paths; what the files hold counts
    *("data", "save_dir", "user_dir", "restore_file", "finetune_from_model", "continue_once", "plasma_path", "_name"),
    *(path for _, path in SITE_FLAGS.values()),
    # logging
    *("no_progress_bar", "log_interval", "log_format", "log_file", "tensorboard_logdir", "wandb_project", "aim_repo"),
    *("aim_run_hash", "azureml_logging", "profile", "reset_logging", "suppress_crashes"),
    # devices, processes and workers; their number counts
    *("cpu", "CUDA", "tpu", "device_id", "nprocs_per_node", "num_workers", "data_buffer_size", "use_plasma_view"),
    *("ddp_backend", "bucket_cap_mb", "find_unused_parameters", "gradient_as_bucket_view", "fast_stat_sync"),
    *("heartbeat_timeout", "broadcast_buffers", "all_gather_list_size", "empty_cache_freq"),
    # which checkpoints are kept, and for how long a machine may be used
    *("no_save", "no_epoch_checkpoints", "no_last_checkpoints", "no_save_optimizer_state", "stop_time_hours"),
    *("keep_interval_updates", "keep_interval_updates_pattern", "keep_last_epochs", "keep_best_checkpoints"),
    *("write_checkpoints_asynchronously", "load_checkpoint_on_all_dp_ranks"),
    RECORD,  # made of the masks
}
MAY_GROW = ("max_update", "max_epoch")
#: What --restore-file starts from, as fairseq's own flags choose; a continuation of the run starts from all of it.
RESETS = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")


def main(cfg: DictConfig, *, other: str, record: RunRecord, **options: Any) -> None:
    """``fairseq_cli.train.main`` for a folder that is this run's; every process of a job calls it.

    Parameters
    ----------
    other : str
        What becomes of a run of another recipe in the folder, see ``reproduction.runs.folder.claim_folder``.
    record : RunRecord
        Written to the folder at the end, by the first process.

    Raises
    ------
    InputError
        In every process, if the folder holds another run, or what the run shall start from cannot be that.
    SystemExit
        With 128 + the signal, after SIGTERM or SIGINT and once the last update is saved.
    """
    claimed = None
    start = starting_point(cfg)
    with together():
        if is_first_process():
            claimed = claim(cfg, start, other)
    folder: RunFolder = gathered(claimed)[0]
    continues = folder.resumes and (folder.path / LAST).is_file()
    if continues:
        _continue(cfg)
    # Else fairseq sends the checkpoint from process to process in a form that today's torch refuses to read.
    cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True
    if process_count() > 1:
        # A signal may come twice, to the whole group and from the parent: the first one counts, whatever follows.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    with Interruption() as interruption:
        trained = _replace_steps(folder, continues, start, interruption)
        loop_main(cfg, **options)
    if interruption.requested:
        logger.info("interrupted: the same command goes on from %s", folder.path / LAST)
        sys.exit(interruption.exit_status)
    if is_first_process() and (trained or not (folder.path / "run.json").exists()):
        record.write(folder.path / "run.json", **folder.facts(), **({"starts_from": start} if start else {}))


#: fairseq's own, before the launcher gives its name to ours.
loop_main = loop.main
_train, _validate_and_save, _progress_bar = loop.train, loop.validate_and_save, loop.progress_bar.progress_bar
_load_checkpoint = checkpoint_utils.load_checkpoint


def starting_point(cfg: DictConfig) -> dict[str, Any] | None:
    """The checkpoint of another run that the flags name: how, its path, and a fingerprint of the file.

    Raises
    ------
    InputError
        If it lies in the folder of this run, whose start it cannot be.
    """
    chosen, folder = cfg.checkpoint, Path(cfg.checkpoint.save_dir)
    for flag, path in (("--restore-file", chosen.restore_file), ("--finetune-from-model", chosen.finetune_from_model)):
        if path in (None, LAST) or Path(path).resolve() == (folder / LAST).resolve():
            continue
        if Path(path).resolve().parent == folder.resolve():
            raise InputError(f"{flag}: expected a checkpoint outside of --save-dir {folder}, found {path}")
        with Path(path).open("rb") as file:
            return {"flag": flag, "path": path, "fingerprint": hashlib.file_digest(file, "sha256").hexdigest()[:16]}
    return None


def claim(cfg: DictConfig, start: dict[str, Any] | None, other: str) -> RunFolder:
    """Make --save-dir this run's, or find that it is."""
    arguments = all_arguments(cfg)
    facts = {"starts_from": start and {name: start[name] for name in ("flag", "fingerprint")}}
    recipe = make_recipe(
        "fairseq/train.py",
        {name: value for name, value in arguments.items() if not name.startswith("distributed_")},
        free=FREE,
        processes=process_count(),
        data=_data_fingerprints(arguments),
        masks=_mask_fingerprints(cfg.model),
        **facts,
    )
    # A schedule that is stretched to the last update would be another one.
    stretched = "max_update" in (cfg.lr_scheduler or {})
    may_grow = () if stretched else MAY_GROW
    return claim_folder(cfg.checkpoint.save_dir, recipe, traces=TRACES, other=other, may_grow=may_grow)


def all_arguments(cfg: DictConfig) -> dict[str, Any]:
    """Every argument by its own name, from the sections of fairseq's configuration and its namespaces."""
    arguments: dict[str, Any] = {}
    for section in sorted(cfg, key=lambda name: isinstance(cfg[name], argparse.Namespace)):
        values = cfg[section]
        if isinstance(values, argparse.Namespace):
            arguments |= vars(values)
        elif isinstance(values, DictConfig):
            arguments |= OmegaConf.to_container(values, resolve=True, enum_to_str=True)
    return arguments


def _data_fingerprints(arguments: dict[str, Any]) -> dict[str, list[str]]:
    """Split -> a fingerprint for each folder of the data."""
    folders = [folder for folder in str(arguments["data"]).split(":") if Path(folder).is_dir()]
    splits = [arguments["train_subset"], *str(arguments["valid_subset"]).split(",")]
    return {split: [data_fingerprint(folder, split) for folder in folders] for split in splits}


def _mask_fingerprints(model: Any) -> dict[str, str]:
    """Site -> the mask that the flags and files give; none for an architecture that knows no masks."""
    if not str(getattr(model, "arch", "")).startswith("ap_"):
        return {}
    masks = load_site_masks(PruneFlags.read(model), model_shapes(model))
    return {site: mask.fingerprint for site, mask in masks.items()}


def _continue(cfg: DictConfig) -> None:
    """Go on from the folder's last checkpoint with all that is in it, however the run was started."""
    changes = {"restore_file": LAST, "finetune_from_model": None, **dict.fromkeys(RESETS, False)}
    for name, value in changes.items():
        cfg.checkpoint[name] = value
        if isinstance(cfg.model, argparse.Namespace):
            setattr(cfg.model, name, value)


def _replace_steps(
    folder: RunFolder, continues: bool, start: dict[str, Any] | None, interruption: Interruption
) -> list[int]:
    """Let fairseq's loop end where there is nothing to do, and where it is interrupted; returns the epochs trained."""
    trained: list[int] = []
    table: StepTable | None = None

    def load_checkpoint(cfg_checkpoint: DictConfig, trainer: Any, **options: Any) -> tuple[dict[str, Any] | None, Any]:
        # fairseq restores no averages at the beginning of an epoch, though those of train_inner run over several.
        state, epoch_itr = _load_checkpoint(cfg_checkpoint, trainer, **options)
        if continues and epoch_itr.iterations_in_epoch == 0:
            averages = state["metrics"]
            metrics.load_state_dict({name: averages[name] for name in ("train_inner",) if name in averages})
        return state, epoch_itr

    def train(cfg: DictConfig, trainer: Any, task: Any, epoch_itr: Any) -> tuple[list[float | None], bool]:
        nonlocal table
        # fairseq asks after an update whether it was the last one, so it would do one too many.
        done, most = trainer.get_num_updates(), cfg.optimization.max_update or math.inf
        if done >= most:
            if not continues and start is not None:
                raise InputError(
                    f"{start['flag']}: expected a checkpoint of fewer updates than --max-update {most}, found {done} "
                    f"in {start['path']}"
                )
            logger.info("%s: all %d updates are done", folder.path, done)
            return [None], True
        if not trained:
            table = _begin(cfg, trainer, task)
        trained.append(epoch_itr.next_epoch_idx)
        return _train(cfg, trainer, task, epoch_itr)

    def validate_and_save(
        cfg: DictConfig, trainer: Any, task: Any, epoch_itr: Any, valid_subsets: list[str], end_of_epoch: bool
    ) -> tuple[list[float | None], bool]:
        done = trainer.get_num_updates()
        if table is not None and (end_of_epoch or done >= (cfg.optimization.max_update or math.inf)):
            # fairseq logs these after the checkpoint is saved: a run that is killed in between would never log them.
            table.add_epoch(done, loop.get_training_stats(metrics.get_smoothed_values("train")))
        losses, stops = _validate_and_save(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
        if not stops and _any_process(interruption.requested):
            interruption.signal = interruption.signal or _SIGNAL_ELSEWHERE
            loop.checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
            stops = True
        return losses, stops

    loop.train, loop.validate_and_save = train, validate_and_save
    loop.checkpoint_utils = SimpleNamespace(**vars(checkpoint_utils) | {"load_checkpoint": load_checkpoint})
    return trained


def _begin(cfg: DictConfig, trainer: Any, task: Any) -> StepTable | None:
    """What is to be done before the first update of this process: check lengths, open the table."""
    model = trainer.get_model()
    masks = model.record if isinstance(model, PrunedTransformer) else {}
    if masks:
        check_lengths(task, model, [cfg.dataset.train_subset, *cfg.dataset.valid_subset.split(",")])
    if not cfg.common.tensorboard_logdir or not is_first_process():
        return None
    log = StepLog(cfg.common.tensorboard_logdir, trainer.get_num_updates(), ("csv",))
    table = StepTable(log, effective_sparsity(masks))
    loop.progress_bar = SimpleNamespace(
        progress_bar=lambda *args, **options: table.bar(_progress_bar(*args, **options))
    )
    return table


_SIGNAL_ELSEWHERE = signal.SIGTERM  # which another process of the job has got


def _any_process(requested: bool) -> bool:
    """Whether any process was asked to stop; all of them learn it at the same update."""
    return requested if process_count() == 1 else bool(summed(torch.tensor(int(requested))))

"""What both scripts do around their task: choose rows, train or continue, gather a pattern, write run.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import Trainer

from attention_pruning import InputError, PruneMask
from attention_pruning.processes import gathered, together
from checkpoints import FREE_FLAGS, TRACES, find_checkpoint, remove_unfinished
from pattern_collection import gather_pattern, save_pattern
from reproduction.runs.files import make_folder, prepare_output
from reproduction.runs.folder import claim_folder, make_recipe
from reproduction.runs.record import RunRecord
from run_files import fingerprint_rows
from run_flags import Flags


def choose_rows(
    splits: DatasetDict, flags: Flags, evaluation: tuple[str, ...], prediction: tuple[str, ...] = ()
) -> dict[str, Dataset]:
    """The rows that each step needs, as the flags limit them.

    Parameters
    ----------
    evaluation, prediction : tuple of str
        Splits for --do_eval and --do_predict.

    Returns
    -------
    dict
        Split -> Dataset.

    Raises
    ------
    InputError
        If a split is missing that a flag asks for.
    """
    training, data = flags.training, flags.data
    wanted: list[tuple[str, str, int | None]] = []
    if training.do_train or flags.pruning.save_attention_patterns:
        flag = "--do_train" if training.do_train else "--save_attention_patterns"
        wanted.append(("train", flag, data.max_train_samples))
    if training.do_eval:
        wanted += [(split, "--do_eval", data.max_eval_samples) for split in evaluation]
    if training.do_predict:
        wanted += [(split, "--do_predict", data.max_predict_samples) for split in prediction]
    rows = {}
    for split, flag, limit in wanted:
        if split not in splits:
            raise InputError(f"{flag}: expected a split {split} in the data, found {', '.join(splits)}")
        found = splits[split]
        rows[split] = found if limit is None else found.select(range(min(limit, len(found))))
    return rows


def prepare_outputs(flags: Flags) -> None:
    """Make the folders that will be written to, once nothing is left to refuse."""
    for folder in filter(None, (flags.logging_dir, flags.training.output_dir)):
        make_folder(folder)
    if flags.pruning.save_attention_patterns:
        prepare_output(flags.pruning.attn_path)


def logging_options(flags: Flags, mask: PruneMask | None) -> dict[str, Any]:
    """What a TimedTrainer logs, and where to."""
    return {"logging_dir": flags.logging_dir, "sparsity": 0.0 if mask is None else mask.effective_sparsity}


class Run:
    """One call of a script: what its steps share, and what run.json will say.

    Parameters
    ----------
    script : str
        Its name.
    flags : Flags
    rows : mapping
        Split -> the rows that are used, before they are tokenised.
    mask : PruneMask or None
        The model's.
    facts
        What else tells this data from other data: the task, the lengths.

    Raises
    ------
    InputError
        If --output_dir holds another training, or --resume_from_checkpoint is of another one.
    """

    def __init__(
        self, script: str, flags: Flags, rows: Mapping[str, Dataset], mask: PruneMask | None, **facts: Any
    ) -> None:
        self.flags, self.mask, self.facts = flags, mask, facts
        self.record = RunRecord(script, flags.as_dict())
        self.fingerprints = {split: fingerprint_rows(part) for split, part in rows.items()}
        self.sources = {split: part.info.description for split, part in rows.items()}
        self.results: dict[str, Any] = {}
        self.checkpoint: str | None = None
        if flags.training.do_train:
            self._claim(script)

    def _claim(self, script: str) -> None:
        """Make --output_dir this training's, and find out what it continues from."""
        training, files = self.flags.training, self.flags.files
        recipe = make_recipe(
            script,
            self.flags.as_dict(),
            free=FREE_FLAGS,
            processes=training.world_size,
            data_fingerprint=self.fingerprints["train"],
            mask=None if self.mask is None else self.mask.fingerprint,
        )
        found = None
        with together():
            checkpoint = find_checkpoint(training, recipe)
            if training.process_index == 0:
                found = claim_folder(training.output_dir, recipe, traces=TRACES, other=files.way)
                # A checkpoint that is named may be older than those that a lower limit leaves.
                limit = training.save_total_limit if training.resume_from_checkpoint is None else None
                remove_unfinished(training.output_dir, limit)
        found = gathered(found)[0]
        self.results |= found.facts()
        # what was in a folder of another recipe is gone by now
        if found.resumes or (checkpoint is not None and Path(checkpoint).exists()):
            self.checkpoint = checkpoint

    def train(self, trainer: Trainer) -> None:
        """Train from the start or from the last checkpoint, and save the model; its mask is saved with it."""
        if trainer.is_world_process_zero() and self.checkpoint is not None:
            print(f"continuing from {self.checkpoint}")
        result = trainer.train(resume_from_checkpoint=self.checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
        self.results |= {"steps": trainer.state.global_step, "continued_from": self.checkpoint}

    def gather(self, trainer: Trainer, dataset: Dataset) -> None:
        """Average attention over the tokenised training data and write the pattern to --attn_path."""
        pruning = self.flags.pruning
        metadata = {
            "data": self.sources["train"],
            "data_fingerprint": self.fingerprints["train"],
            "split": "train",
            "seed": trainer.args.seed,
            **self.facts,
        }
        pattern = gather_pattern(
            trainer, dataset, max_samples=pruning.max_pattern_samples, seed=trainer.args.seed, metadata=metadata
        )
        if trainer.is_world_process_zero():
            save_pattern(pattern, pruning.attn_path)
            print(f"{pruning.attn_path}: {pattern} from {pattern.metadata['sequences']:,} sequences")
        self.results["pattern"] = pattern.fingerprint

    def write(self) -> None:
        """Write run.json."""
        self.record.write(
            Path(self.flags.training.output_dir) / "run.json",
            data_fingerprints=self.fingerprints,
            data=self.sources,
            mask=None if self.mask is None else self.mask.fingerprint,
            **self.facts,
            **self.results,
        )

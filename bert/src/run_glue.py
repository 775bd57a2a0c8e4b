"""Fine-tune and evaluate a transformers model on a task of GLUE, gather its attention pattern, or prune it by one.

The flags are those of transformers' own run_glue.py and of its TrainingArguments. Four are the published additions:
--save_attention_patterns, --prune, --attn_path and --tau.

    STEPS="--model_name_or_path minilm --task_name MRPC --do_train --do_eval"
    python bert/src/run_glue.py $STEPS --output_dir runs/dense --save_attention_patterns --attn_path avg.safetensors
    python bert/src/run_glue.py $STEPS --output_dir runs/pruned --prune --attn_path avg.safetensors --tau 0.5
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForSequenceClassification,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
    set_seed,
)

from attention_pruning import InputError, PruneMask
from encoders import load_config, load_model, load_tokenizer
from own_data import load_own, own_files
from own_task import own_task
from prepared_rows import PreparedRows
from pruning import apply_pruning
from reproduction.data.tasks.glue import Task, find_task, load_task
from reproduction.runs.command import run_main
from reproduction.runs.files import atomic_path
from reproduction.scores.glue import glue_metrics, glue_score
from run_files import real_lengths, report_metrics
from run_flags import Flags, LengthArguments, parse_flags
from run_steps import Run, choose_rows, logging_options, prepare_outputs
from timed_trainer import TimedTrainer


@dataclass(kw_only=True)
class DataArguments(LengthArguments):
    """Which task, and how much of it."""

    task_name: str | None = field(
        default=None,
        metadata={
            "help": "a task of GLUE, or of reproduction.data.tasks.bible_glue (installs with pip); "
            "not with data of your own"
        },
    )
    max_seq_length: int = field(
        default=128, metadata={"help": "tokens of a sequence, special ones included; longer text is cut"}
    )

    def check(self) -> None:
        """Refuse bad limits, and all but one source of data."""
        super().check()
        if (self.task_name is None) != self.is_own:
            others, found = "--dataset_name or --train_file and the like", "both" if self.is_own else "neither"
            raise InputError(f"--task_name: expected a task, or instead of it {others}, found {found}")


def find_rows(flags: Flags, config: PreTrainedConfig) -> tuple[Task, DatasetDict]:
    """The task that the flags ask for, and its splits."""
    data = flags.data
    if data.is_own:
        name = data.dataset_name or next(iter(own_files(data).values())).name
        return own_task(load_own(flags), config, name)
    task = find_task(data.task_name)
    return task, load_task(task, data.data_dir, **flags.model.hub)


def set_labels(config: PreTrainedConfig, task: Task, name: str) -> None:
    """Give a model's configuration the classes of a task.

    Raises
    ------
    InputError
        If the model knows the same classes in another order: its answers would be read as others.
    """
    if task.labels is None:
        config.id2label, config.label2id = {0: "LABEL_0"}, {"LABEL_0": 0}
        config.problem_type = "regression"
        return
    found = [str(config.id2label[number]).lower() for number in sorted(config.id2label)]
    expected = [label.lower() for label in task.labels]
    if found != expected and sorted(found) == sorted(expected):
        raise InputError(f"{name}: expected classes in {task.name}'s order, {', '.join(expected)}, found {found}")
    config.id2label = dict(enumerate(task.labels))
    config.label2id = {label: number for number, label in enumerate(task.labels)}
    config.problem_type = "single_label_classification"


def tokeniser(
    task: Task, tokenizer: PreTrainedTokenizerBase, data: DataArguments
) -> Callable[[dict[str, list]], dict[str, list]]:
    """What makes the model's inputs of a task's rows."""

    def tokenise(batch: dict[str, list]) -> dict[str, list]:
        texts = [batch[column] for column in task.columns]
        padding = "max_length" if data.pad_to_max_length else False
        return dict(tokenizer(*texts, padding=padding, max_length=data.max_seq_length, truncation=True))

    return tokenise


def predictions_of(task: Task, logits: np.ndarray) -> np.ndarray:
    """A class, or for a task without classes a number, for each row of logits."""
    return logits[:, 0] if task.labels is None else logits.argmax(1)


def evaluate(trainer: TimedTrainer, task: Task, datasets: dict[str, Dataset]) -> dict[str, dict[str, float]]:
    """GLUE's metrics on each evaluation split, and ``glue_score`` under ``validation``; transformers' files too."""
    metrics, merged = {}, {}
    for split in task.evaluation_splits:
        found = trainer.evaluate(datasets[split])
        metrics[split] = {name: found[f"eval_{name}"] for name in (*task.metrics, "loss")} | {
            "seconds": found["eval_runtime"],
            **trainer.times(),
            "sequences": len(datasets[split]),
        }
        suffix = "_mm" if split.endswith("mismatched") else ""  # as transformers' own script names them
        merged |= {name + suffix: value for name, value in found.items()}
    trainer.save_metrics(
        "eval", merged | {"eval_samples": sum(len(datasets[split]) for split in task.evaluation_splits)}
    )
    score = glue_score(task, metrics)
    return metrics | {"validation": {**metrics.get("validation", {}), "glue_score": score}}


def write_predictions(
    folder: Path, data: DataArguments, task: Task, split: str, rows: Dataset, found: np.ndarray
) -> None:
    """Write predictions of a test split, as transformers' own script does and as GLUE's leaderboard takes them.

    The former are ``predict_results_mrpc.txt`` or ``predict_results_mnli-mm.txt`` (``predict_results.txt`` of data of
    one's own), with the names of classes; the latter ``MRPC.tsv`` or ``MNLI-mm.tsv``.
    """
    shown = [f"{value:3.3f}" if task.labels is None else task.labels[value] for value in found]
    if data.is_own:
        _write_table(folder / "predict_results.txt", range(len(shown)), shown)
        return
    part = "-mm" if split.endswith("mismatched") else ""
    _write_table(folder / f"predict_results_{data.task_name.lower()}{part}.txt", range(len(shown)), shown)
    part = {"test_matched": "-m", "test_mismatched": "-mm"}.get(split, "")
    if task.labels is None:
        shown = [f"{value:.3f}" for value in np.clip(found, 0.0, 5.0)]
    else:
        shown = [task.labels[number] if task.named_labels else str(number) for number in found]
    _write_table(folder / f"{task.name}{part}.tsv", rows["idx"], shown)


def _write_table(path: Path, indices: Iterable[int], shown: Iterable[str]) -> None:
    with atomic_path(path) as temporary:
        rows = "".join(f"{index}\t{value}\n" for index, value in zip(indices, shown, strict=True))
        temporary.write_text("index\tprediction\n" + rows, encoding="utf-8")


def build_trainer(
    flags: Flags,
    task: Task,
    model: PreTrainedModel,
    mask: PruneMask | None,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset | None,
    evaluation: Dataset | None,
) -> TimedTrainer:
    """The trainer; evaluations during training are on the first evaluation split."""

    def compute_metrics(output: EvalPrediction) -> dict[str, float]:
        return glue_metrics(task, predictions_of(task, output.predictions), output.label_ids)

    return TimedTrainer(
        model=model,
        args=flags.training,
        train_dataset=train,
        eval_dataset=evaluation,
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
        # None: transformers pads each batch to its longest
        data_collator=default_data_collator if flags.data.pad_to_max_length else None,
        **logging_options(flags, mask),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    flags = parse_flags(__doc__, DataArguments, argv)
    data, training = flags.data, flags.training
    tokenizer = load_tokenizer(flags.model, data.max_seq_length)
    config = load_config(flags.model, data.max_seq_length)
    task, splits = find_rows(flags, config)
    tests = tuple(split.replace("validation", "test") for split in task.evaluation_splits)
    rows = choose_rows(splits, flags, task.evaluation_splits, tests)
    set_labels(config, task, flags.model.model_name_or_path)
    set_seed(training.seed)
    model = load_model(flags.model, AutoModelForSequenceClassification, config)
    mask = apply_pruning(model, flags.pruning, data.max_seq_length, data.pad_to_max_length)
    run = Run("bert/src/run_glue.py", flags, rows, mask, task=task.name, max_seq_length=data.max_seq_length)
    prepared = PreparedRows(flags, tokenizer, columns=task.columns, max_seq_length=data.max_seq_length)
    tokenise = tokeniser(task, tokenizer, data)
    ready = {
        split: prepared.prepare(split, part, run.fingerprints[split], tokenise, keep=("label",))
        for split, part in rows.items()
    }
    run.results["prepared"] = prepared.files
    prepare_outputs(flags)
    trainer = build_trainer(
        flags, task, model, mask, tokenizer, ready.get("train"), ready.get(task.evaluation_splits[0])
    )
    if training.do_train:
        run.train(trainer)
    if flags.pruning.save_attention_patterns:
        run.gather(trainer, ready["train"].remove_columns("label"))
    main_process, folder = trainer.is_world_process_zero(), Path(training.output_dir)
    if training.do_eval:
        metrics = evaluate(trainer, task, ready)
        lengths = np.concatenate([real_lengths(ready[split]) for split in task.evaluation_splits])
        if main_process:
            report_metrics(folder, flags.labels, metrics, mask, lengths)
    for split in tests if training.do_predict else ():
        output = trainer.predict(ready[split].remove_columns("label"), metric_key_prefix="predict")
        if main_process:
            write_predictions(folder, data, task, split, rows[split], predictions_of(task, output.predictions))
    if main_process:
        run.write()


if __name__ == "__main__":
    run_main(main, takes_device=True)

"""Fine-tune and evaluate a transformers model on SQuAD, gather its attention pattern, or prune it by one.

The flags are those of transformers' own run_qa.py and of its TrainingArguments. Four are the published additions:
--save_attention_patterns, --prune, --attn_path and --tau. --do_eval writes the answers too (predictions.json, which the
official script reads, and answers.json with their scores), and says how long the model took and how much memory.

    STEPS="--model_name_or_path minilm --do_train --do_eval"
    python bert/src/run_squad.py $STEPS --output_dir runs/dense --save_attention_patterns --attn_path avg.safetensors
    python bert/src/run_squad.py $STEPS --output_dir runs/pruned --prune --attn_path avg.safetensors --tau 0.9
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import AutoModelForQuestionAnswering, default_data_collator, set_seed

from attention_pruning import InputError
from encoders import load_config, load_model, load_tokenizer
from own_questions import own_questions
from prepared_rows import PreparedRows
from pruning import apply_pruning
from reproduction.data.tasks.squad import load_squad
from reproduction.runs.command import run_main
from reproduction.runs.files import write_json
from reproduction.runs.record import peak_memory_bytes
from reproduction.scores.squad import squad_metrics
from reproduction.scores.squad_answers import RankedAnswers, ranked_answers
from run_files import real_lengths, report_metrics
from run_flags import Flags, LengthArguments, parse_flags
from run_steps import Run, choose_rows, logging_options, prepare_outputs
from squad_features import Windows
from timed_trainer import TimedTrainer

EVALUATION_SPLIT, TEST_SPLIT = "validation", "test"


@dataclass(kw_only=True)
class DataArguments(LengthArguments):
    """How passages are cut, and how answers are chosen."""

    version_2_with_negative: bool = field(
        default=False, metadata={"help": "SQuAD 2.0, where some questions have no answer"}
    )
    max_seq_length: int = field(
        default=384, metadata={"help": "tokens of a window: question, special tokens, and a part of the passage"}
    )
    doc_stride: int = field(
        default=128, metadata={"help": "tokens of the passage that neighbouring windows share, as in run_qa.py"}
    )
    max_query_length: int = field(
        default=64, metadata={"help": "tokens of a question; a longer one loses its last words"}
    )
    n_best_size: int = field(default=20, metadata={"help": "starts and ends of a window that are tried as an answer"})
    max_answer_length: int = field(default=30, metadata={"help": "tokens of an answer"})
    null_score_diff_threshold: float = field(
        default=0.0,
        metadata={"help": "SQuAD 2.0: no answer is given if its score is more than this above the best answer's"},
    )


class AnswerTrainer(TimedTrainer):
    """A trainer whose evaluation is exact match and F1 of the answers.

    Attributes
    ----------
    questions : Dataset or None
        What ``eval_dataset`` is made from.
    answers : dict of str to RankedAnswers
        Of the last evaluation, by the question's id.
    """

    def __init__(self, *args: Any, questions: Dataset | None, flags: Flags, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.questions, self.flags = questions, flags
        self.answers: dict[str, RankedAnswers] = {}

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As Trainer's; the metrics are those of ``squad_metrics``."""
        windows = self.eval_dataset if eval_dataset is None else eval_dataset
        self.answers, metrics = self.answer(windows, self.questions, ignore_keys, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def answer(
        self, windows: Dataset, questions: Dataset, ignore_keys: list[str] | None = None, prefix: str = "predict"
    ) -> tuple[dict[str, RankedAnswers], dict[str, float]]:
        """Answers to questions by their ids, and metrics; a prediction has no scores where no answer is known."""
        data = self.flags.data
        output = self.predict(windows, ignore_keys, prefix)
        answers = ranked_answers(
            questions, windows, *output.predictions, n_best=data.n_best_size, max_answer_length=data.max_answer_length
        )
        scores = {}
        if prefix != "predict" or any(row["text"] for row in questions["answers"]):
            texts = {key: answer["text"] for key, answer in chosen_answers(answers, data).items()}
            scores = squad_metrics(questions, texts, version2=data.version_2_with_negative)
        return answers, output.metrics | {f"{prefix}_{name}": value for name, value in scores.items()}


def evaluate(trainer: AnswerTrainer) -> dict[str, float]:
    """Exact match, F1, seconds and peak memory; transformers' files too."""
    found = trainer.evaluate()
    trainer.save_metrics("eval", found | {"eval_samples": len(trainer.eval_dataset)})
    timing = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "total")
    scores = {name: value for key, value in found.items() if (name := key.removeprefix("eval_")) not in timing}
    scores.pop("epoch", None)
    memory = peak_memory_bytes()
    return scores | {
        "questions": len(trainer.questions),
        "sequences": len(trainer.eval_dataset),
        "seconds": found["eval_runtime"],
        **trainer.times(),
        # of the whole process, hence of the evaluation where nothing was trained before it; an accelerator's is its own
        "peak_memory_bytes": memory["host"],
        **({"peak_cuda_memory_bytes": memory["cuda"]} if "cuda" in memory else {}),
    }


def chosen_answers(answers: Mapping[str, RankedAnswers], data: DataArguments) -> dict[str, dict[str, Any]]:
    """The answer to each question, as the flags choose it."""
    return {
        key: answer.chosen(data.version_2_with_negative, data.null_score_diff_threshold)
        for key, answer in answers.items()
    }


def write_answers(folder: Path, prefix: str, answers: Mapping[str, RankedAnswers], data: DataArguments) -> None:
    """Write answers under the names of transformers' run_qa.py, and for an evaluation under our own ones.

    ``eval_predictions.json`` and ``predictions.json`` are id -> text, as the official script reads it; ``answers.json``
    has scores too; ``eval_nbest_predictions.json`` has the best answers of each question; ``eval_null_odds.json``, of
    SQuAD 2.0, how far the score of no answer is above the best one's. A prediction's names begin with ``predict_``.
    """
    version2, chosen = data.version_2_with_negative, chosen_answers(answers, data)
    texts = {key: answer["text"] for key, answer in chosen.items()}
    write_json(folder / f"{prefix}_predictions.json", texts)
    n_best = {key: answer.n_best(data.n_best_size, version2) for key, answer in answers.items()}
    write_json(folder / f"{prefix}_nbest_predictions.json", n_best)
    if version2:
        odds = {key: _json_number(answer.null_odds) for key, answer in answers.items()}
        write_json(folder / f"{prefix}_null_odds.json", odds)
    if prefix == "eval":
        write_json(folder / "predictions.json", texts)
        finite = {key: {name: _json_number(value) for name, value in answer.items()} for key, answer in chosen.items()}
        write_json(folder / "answers.json", finite)


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def find_questions(flags: Flags) -> DatasetDict:
    """The splits of the questions that the flags ask for."""
    if flags.data.is_own:
        return own_questions(flags)
    return load_squad(flags.data.data_dir, flags.data.version_2_with_negative, **flags.model.hub)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    flags = parse_flags(__doc__, DataArguments, argv)
    data, training = flags.data, flags.training
    if training.do_predict and not data.is_own:
        raise InputError("--do_predict: expected --do_eval, since SQuAD's test set is not public, found it asked for")
    rows = choose_rows(find_questions(flags), flags, (EVALUATION_SPLIT,), (TEST_SPLIT,))
    tokenizer = load_tokenizer(flags.model, data.max_seq_length)
    windows = Windows(tokenizer, data.max_seq_length, data.doc_stride, data.max_query_length, data.pad_to_max_length)
    config = load_config(flags.model, data.max_seq_length)
    set_seed(training.seed)
    model = load_model(flags.model, AutoModelForQuestionAnswering, config)
    mask = apply_pruning(model, flags.pruning, data.max_seq_length, data.pad_to_max_length)
    lengths = {name: getattr(data, name) for name in ("max_seq_length", "doc_stride", "max_query_length")}
    run = Run("bert/src/run_squad.py", flags, rows, mask, task="SQuAD", **lengths)
    prepared = PreparedRows(flags, tokenizer, **lengths)
    ready = {
        split: prepared.prepare(
            split, part, run.fingerprints[split], windows.training if split == "train" else windows.evaluation
        )
        for split, part in rows.items()
    }
    train, evaluation = ready.get("train"), ready.get(EVALUATION_SPLIT)
    run.results["prepared"] = prepared.files
    prepare_outputs(flags)
    trainer = AnswerTrainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        data_collator=default_data_collator if data.pad_to_max_length else None,
        **logging_options(flags, mask),
        questions=rows.get(EVALUATION_SPLIT),
        flags=flags,
    )
    if training.do_train:
        run.train(trainer)
    if flags.pruning.save_attention_patterns:
        run.gather(trainer, train.remove_columns(["start_positions", "end_positions"]))
    folder = Path(training.output_dir)
    if training.do_eval:
        metrics = evaluate(trainer)
        if trainer.is_world_process_zero():
            write_answers(folder, "eval", trainer.answers, data)
            report_metrics(folder, flags.labels, {EVALUATION_SPLIT: metrics}, mask, real_lengths(evaluation))
    if training.do_predict:
        answers, found = trainer.answer(ready[TEST_SPLIT], rows[TEST_SPLIT])
        trainer.save_metrics("predict", found | {"predict_samples": len(ready[TEST_SPLIT])})
        if trainer.is_world_process_zero():
            write_answers(folder, "predict", answers, data)
    if trainer.is_world_process_zero():
        run.write()


if __name__ == "__main__":
    run_main(main, takes_device=True)

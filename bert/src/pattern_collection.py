"""Step two of Attention Pruning for these models: average the attention of a trained one over its training data."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer, default_data_collator

from attention_pruning import AttentionPattern, InputError
from attention_pruning.files.published import write_published
from attention_pruning.files.tensors import MetadataValue, fingerprint
from attention_pruning.huggingface import collect_patterns
from pruning import SITE, single_stack


def gather_pattern(
    trainer: Trainer,
    dataset: Dataset,
    *,
    max_samples: int | None = None,
    seed: int = 0,
    metadata: dict[str, MetadataValue],
) -> AttentionPattern:
    """Average the attention of a trainer's model over tokenised sequences.

    Padding never counts. The model runs in the precision of its weights, whatever --bf16 says of its training, and what
    is averaged is float32. A pruned model is observed under its mask, and the pattern says so. In several processes
    each takes its part, and all get the average over the whole.

    Parameters
    ----------
    trainer : Trainer
        Its model, device and evaluation batch size are used.
    dataset : Dataset
        Columns of the model's inputs, all sequences padded to the same length.
    max_samples : int, optional
        So many sequences, drawn with ``seed``; all of them by default.
    metadata : dict
        What the pattern's file says about the data; the model's fingerprint and the seed of a draw join it.

    Raises
    ------
    InputError
        If the model is not supported, or there are fewer sequences than processes.
    """
    # A trainer that has trained leaves its mixed precision in the model: patterns do not depend on what ran before.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    single_stack(model)
    if max_samples is not None and max_samples < len(dataset):
        generator = torch.Generator().manual_seed(seed)
        dataset = dataset.select(sorted(torch.randperm(len(dataset), generator=generator)[:max_samples].tolist()))
        metadata = metadata | {"sample_seed": seed}
    weights = {name: weight.detach().float().cpu() for name, weight in model.named_parameters()}
    precision = str(next(model.parameters()).dtype).removeprefix("torch.")
    metadata = metadata | {"model_fingerprint": fingerprint(weights), "precision": precision}
    processes, rank = trainer.args.world_size, trainer.args.process_index
    if len(dataset) < processes:
        raise InputError(f"--save_attention_patterns: expected {processes} sequences or more, found {len(dataset)}")
    part = dataset.shard(processes, rank, contiguous=True)
    batches = DataLoader(part, batch_size=trainer.args.eval_batch_size, collate_fn=default_data_collator)
    with torch.autocast(model.device.type, enabled=False):
        return collect_patterns(model, batches, [SITE], metadata=metadata)[SITE]


def save_pattern(pattern: AttentionPattern, path: str | Path) -> None:
    """Write a pattern as its file's ending says: .npy is the published layout, which keeps the averages alone."""
    if Path(path).suffix == ".npy":
        write_published(pattern, path, "bert")
    else:
        pattern.save(path)

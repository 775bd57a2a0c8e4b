"""Whether patterns are long enough for a training, asked before its first update.

Letters in names: T queries, S keys.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from attention_pruning import InputError

from .batches import sentence_limits
from .model import PrunedTransformer, adopt_attention

logger = logging.getLogger(__name__)


def check_lengths(task: Any, model: PrunedTransformer, splits: list[str]) -> None:
    """Hold the loaded splits of a training against the masks of its model.

    Where a sentence is longer than a pattern, the log says how many are, if attention beyond it stays dense. Those that
    are too long for the model do not count: fairseq leaves them out, or refuses them itself.

    Raises
    ------
    InputError
        If it does not stay dense, which the first such sentence would tell, maybe hours later.
    """
    for split in splits:
        dataset = task.dataset(split)
        if getattr(dataset, "src_sizes", None) is None or getattr(dataset, "tgt_sizes", None) is None:
            continue
        source, target = np.asarray(dataset.src_sizes), np.asarray(dataset.tgt_sizes)
        most_source, most_target = sentence_limits(task, model)
        fits = (source <= most_source) & (target <= most_target)
        for site, modules in adopt_attention(model).items():
            if not modules or modules[0].prune_mask is None:
                continue
            queries = (source if site == "enc-self" else target)[fits]
            keys = (target if site == "dec-self" else source)[fits]
            _check_site(site, split, queries, keys, modules[0])


def _check_site(site: str, split: str, queries: np.ndarray, keys: np.ndarray, module: Any) -> None:
    covered_queries, covered_keys = module.prune_mask.shape[1:]
    longer = int(((queries > covered_queries) | (keys > covered_keys)).sum())
    if not longer:
        return
    found = (
        f"{longer} of {len(queries)} sentences of {split} that are longer (up to {queries.max()} queries and "
        f"{keys.max()} keys)"
    )
    lengths = f"{covered_queries} queries and {covered_keys} keys"
    if module.beyond_pattern != "dense":
        raise InputError(
            f"{site} attention: expected at most {lengths}, the lengths of its pattern, found {found}; --beyond dense "
            "prunes nothing beyond it"
        )
    logger.warning("%s attention: its pattern has %s; %s: unpruned beyond", site, lengths, found)

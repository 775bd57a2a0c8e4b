"""A translation of one split by several processes: each takes its share of the batches, the first writes all of it.

``fairseq-generate`` can be told which share to take, and leaves a file and a BLEU for each share.
"""

from __future__ import annotations

import io
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed

from reproduction.runs.files import atomic_path

#: A line of one sentence, ``H-12<tab>...``: source, target, hypothesis and what else was asked for of it.
_OF_SENTENCE = re.compile(r"[A-Z]-(\d+)(?:_\d+)?\t")


class Share(NamedTuple):
    """What one process translated.

    Attributes
    ----------
    text : str
        What fairseq would have written as its file.
    scored : list of (str, tuple)
        The calls of fairseq's scorer that counted something, in order.
    """

    text: str
    scored: list[tuple[str, tuple[Any, ...]]]


class RecordedScorer:
    """fairseq's scorer of a kind, and what it was given, so that the scorer of all shares can be given it too."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make, self.scored = make, []
        self._scorer = make()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._scorer, name)
        if name not in ("add", "add_string"):
            return found

        def recorded(*arguments: Any) -> Any:
            self.scored.append((name, arguments))
            return found(*arguments)

        return recorded


def main(cfg: Namespace | Any) -> None:
    """What ``fairseq_cli.generate.main`` does, in a job of several processes, as ``torchrun`` starts them.

    Parameters
    ----------
    cfg : Namespace or DictConfig
        fairseq's.
    """
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq_cli import generate

    if isinstance(cfg, Namespace):
        cfg = convert_namespace_to_omegaconf(cfg)
    distributed.init_process_group("gloo")  # text is exchanged, no tensors of a GPU
    rank, shares = distributed.get_rank(), distributed.get_world_size()
    if torch.cuda.is_available() and not cfg.common.cpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
    cfg.distributed_training.distributed_rank, cfg.distributed_training.distributed_world_size = rank, shares
    share, scorer = _translate(generate, cfg)
    gathered: list[Share] | None = [None] * shares if rank == 0 else None
    distributed.gather_object(share, gathered)
    if gathered is not None:
        _write(cfg, join([part.text for part in gathered], _result(cfg, gathered, scorer)))
    distributed.destroy_process_group()


def _translate(generate: Any, cfg: Any) -> tuple[Share, RecordedScorer]:
    """This process's share, by fairseq's own loop."""
    build, text, made = generate.scoring.build_scorer, io.StringIO(), []

    def build_recorded(*arguments: Any) -> RecordedScorer:
        made.append(RecordedScorer(lambda: build(*arguments)))
        return made[-1]

    generate.scoring.build_scorer = build_recorded
    try:
        generate._main(cfg, text)
    except ZeroDivisionError:  # fairseq divides by the time that it took, and this share may have no batch
        if any(_OF_SENTENCE.match(line) for line in text.getvalue().splitlines()):
            raise
    finally:
        generate.scoring.build_scorer = build
    return Share(text.getvalue(), made[0].scored), made[0]


def _result(cfg: Any, shares: Sequence[Share], scorer: RecordedScorer) -> str | None:
    """The line that ends fairseq's file, of all sentences; None where there is nothing to compare with."""
    calls = [call for share in shares for call in share.scored]
    if not calls:
        return None
    whole = scorer.make()
    for name, arguments in calls:
        getattr(whole, name)(*arguments)
    return f"Generate {cfg.dataset.gen_subset} with beam={cfg.generation.beam}: {whole.result_string()}"


def join(texts: Sequence[str], result: str | None) -> str:
    """One file of the shares': the first's log up to its sentences, all sentences in their order, all that follows.

    Parameters
    ----------
    texts : sequence of str
        What each process would have written.
    result : str, optional
        The last line, in place of each share's own.
    """
    head: list[str] = []
    tail: list[str] = []
    sentences: dict[int, list[str]] = {}
    for number, text in enumerate(texts):
        begun = False
        for line in text.splitlines():
            found = _OF_SENTENCE.match(line)
            if found:
                begun = True
                sentences.setdefault(int(found[1]), []).append(line)
            elif begun:
                tail.append(line)
            elif number == 0:
                head.append(line)
    ends = tail if result is None else [*(line for line in tail if not line.startswith("Generate ")), result]
    ordered = [line for number in sorted(sentences) for line in sentences[number]]
    return "\n".join([*head, *ordered, *ends]) + "\n"


def _write(cfg: Any, text: str) -> None:
    if cfg.common_eval.results_path is None:
        sys.stdout.write(text)
        return
    path = Path(cfg.common_eval.results_path) / f"generate-{cfg.dataset.gen_subset}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

"""From questions and passages to what a model reads: windows over the passage that fit a fixed length.

A window is the question, then as much of the passage as there is room for; neighbouring windows share ``doc_stride``
tokens of it, so that an answer at a border is whole in one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase

from attention_pruning import InputError

Columns = dict[str, list]


@dataclass(frozen=True)
class Windows:
    """How passages are cut.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        A fast one, which knows where in the text its tokens stand.
    max_seq_length : int
        Tokens of a window, question and special tokens included.
    doc_stride : int
        Tokens of the passage that neighbouring windows share.
    max_query_length : int
        Tokens of a question; a longer one loses its last words.
    pad_to_max_length : bool

    Raises
    ------
    InputError
        If a window beside the longest question would have no room for more than the shared tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int = 384
    doc_stride: int = 128
    max_query_length: int = 64
    pad_to_max_length: bool = True

    def __post_init__(self) -> None:
        room = self.max_seq_length - self.max_query_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        if self.doc_stride < 0 or self.doc_stride >= room:
            raise InputError(
                f"--doc_stride: expected 0 to {room - 1}, less than the room beside a question of "
                f"{self.max_query_length} tokens in {self.max_seq_length}, found {self.doc_stride}"
            )

    def training(self, examples: Columns) -> Columns:
        """Windows with the tokens at which the first answer starts and ends.

        Where a window does not hold the whole answer, or there is none, both are the first token, [CLS].

        Parameters
        ----------
        examples : dict of lists
            ``question``, ``context`` and ``answers`` of some questions.

        Returns
        -------
        dict of lists
            The model's inputs with ``start_positions`` and ``end_positions``, a row a window.
        """
        encoded, origins, spans = self._encode(examples)
        positions = [
            answer_tokens(examples["answers"][origin], *tokens) for origin, tokens in zip(origins, spans, strict=True)
        ]
        starts, ends = zip(*positions, strict=True)
        return {**encoded, "start_positions": list(starts), "end_positions": list(ends)}

    def evaluation(self, examples: Columns) -> Columns:
        """Windows with what leads from their tokens back to the text.

        Returns
        -------
        dict of lists
            The model's inputs with ``example_id``, the question's, and ``offset_mapping``: for each token its start and
            end in characters of the passage, None where a token is not of the passage.
        """
        encoded, origins, spans = self._encode(examples)
        offsets = []
        for row, (first, bounds) in zip(encoded["input_ids"], spans, strict=True):
            after = len(row) - first - len(bounds)
            offsets.append([None] * first + bounds.tolist() + [None] * after)
        return {**encoded, "example_id": [examples["id"][origin] for origin in origins], "offset_mapping": offsets}

    def _encode(self, examples: Columns) -> tuple[Columns, list[int], list[tuple[int, np.ndarray]]]:
        """The model's inputs; for each window its row in ``examples``, where its passage begins, and offsets [N, 2]."""
        encoded: BatchEncoding = self.tokenizer(
            self._cut_questions(examples["question"]),
            examples["context"],
            truncation="only_second",
            max_length=self.max_seq_length,
            stride=self.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding="max_length" if self.pad_to_max_length else False,
        )
        origins = encoded.pop("overflow_to_sample_mapping")
        offsets = encoded.pop("offset_mapping")
        spans = []
        for row, offset in enumerate(offsets):
            inside = [token for token, sequence in enumerate(encoded.sequence_ids(row)) if sequence == 1]
            first = inside[0] if inside else 0
            spans.append((first, np.array([offset[token] for token in inside], dtype=np.int64).reshape(-1, 2)))
        return dict(encoded), origins, spans

    def _cut_questions(self, questions: list[str]) -> list[str]:
        questions = [question.strip() for question in questions]
        encodings = self.tokenizer(questions, add_special_tokens=False).encodings
        return [
            _first_words(question, encoding.word_ids, encoding.offsets, self.max_query_length)
            for question, encoding in zip(questions, encodings, strict=True)
        ]


def _first_words(text: str, words: list[int], offsets: list[tuple[int, int]], limit: int) -> str:
    """As many whole words of a text as have ``limit`` tokens at most; part of the first one if it alone has more."""
    if len(words) <= limit:
        return text
    first_left_out = words.index(words[limit]) or limit
    return text[: offsets[first_left_out - 1][1]]


def answer_tokens(answers: dict[str, Any], first: int, bounds_N2: np.ndarray) -> tuple[int, int]:
    """The first and last token of the first answer within a window, (0, 0) if it is not all there.

    Parameters
    ----------
    answers : dict
        ``text`` and ``answer_start``, the latter in characters of the passage.
    first : int
        The window's first token of the passage.
    bounds_N2 : ndarray
        Start and end of its tokens of the passage, in characters.
    """
    if not answers["text"] or not len(bounds_N2):
        return 0, 0
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    if start < bounds_N2[0, 0] or end > bounds_N2[-1, 1]:
        return 0, 0
    first_token = int(np.searchsorted(bounds_N2[:, 1], start, side="right"))
    last_token = int(np.searchsorted(bounds_N2[:, 0], end, side="left")) - 1
    return first + first_token, first + last_token

"""Windows over passages against a search through every token, and answers found again in them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import InputError
from reproduction.scores.squad import squad_metrics
from reproduction.scores.squad_answers import ranked_answers
from squad_features import Windows
from tiny_bert import LONG_WORDS, WORDS, save_tokenizer

LENGTH, STRIDE, QUERY = 24, 6, 8
words = st.sampled_from([*WORDS, *LONG_WORDS, "da.", "(bi,", "fu!?"])
blanks = st.sampled_from([" ", "  ", "\n", " \t"])


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> Windows:
    tokenizer = save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return Windows(tokenizer, LENGTH, STRIDE, QUERY)


@st.composite
def questions(draw, most: int = 40):
    """A passage, a question, and an answer that is any run of characters with a token at both ends."""
    parts = draw(st.lists(words, min_size=1, max_size=most))
    context = parts[0]
    for part in parts[1:]:
        context += draw(blanks) + part
    solid = [place for place, character in enumerate(context) if not character.isspace()]
    start = draw(st.sampled_from(solid))
    end = 1 + draw(st.sampled_from([place for place in solid if start <= place < start + 25]))
    question = " ".join(draw(st.lists(words, min_size=1, max_size=12)))
    answers = {"text": [context[start:end]], "answer_start": [start]}
    return {"id": "q", "question": question, "context": context, "answers": answers}


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def real(windows, ids):
    return [token for token in ids if token != windows.tokenizer.pad_token_id]


@settings(deadline=None, max_examples=60)
@given(st.lists(questions(), min_size=1, max_size=3))
def test_windows_cover_the_passage_and_overlap_by_the_stride(windows, rows):
    rows = [row | {"id": str(number)} for number, row in enumerate(rows)]
    found = windows.evaluation(columns(rows))
    for row in rows:
        whole = windows.tokenizer(row["context"], add_special_tokens=False, return_offsets_mapping=True)
        tokens = list(zip(whole["input_ids"], map(tuple, whole["offset_mapping"]), strict=True))
        mine = [place for place, key in enumerate(found["example_id"]) if key == row["id"]]
        assert mine
        covered = 0
        for place in mine:
            ids, offsets = found["input_ids"][place], found["offset_mapping"][place]
            assert len(ids) == len(offsets) == LENGTH
            inside = [(token, tuple(offset)) for token, offset in zip(ids, offsets, strict=True) if offset is not None]
            begin = 0 if place == mine[0] else covered - STRIDE
            assert inside == tokens[begin : begin + len(inside)]
            covered = begin + len(inside)
            # [CLS] question [SEP] passage [SEP], nothing else
            assert len(real(windows, ids)) == LENGTH - offsets.count(None) + 3 + _question_tokens(windows, row)
        assert covered == len(tokens)


def _question_tokens(windows, row):
    ids = windows.training(columns([row]))["input_ids"][0]
    return ids.index(windows.tokenizer.sep_token_id) - 1


@settings(deadline=None, max_examples=100)
@given(questions())
def test_training_positions_are_those_that_a_search_finds(windows, row):
    trained, read = windows.training(columns([row])), windows.evaluation(columns([row]))
    start, text = row["answers"]["answer_start"][0], row["answers"]["text"][0]
    end = start + len(text)
    whole = windows.tokenizer(row["context"], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    touched = [tuple(bounds) for bounds in whole if bounds[0] < end and bounds[1] > start]
    complete = 0
    for place, offsets in enumerate(read["offset_mapping"]):
        first, last = trained["start_positions"][place], trained["end_positions"][place]
        assert trained["input_ids"][place] == read["input_ids"][place]
        mine = [token for token, bounds in enumerate(offsets) if bounds is not None and tuple(bounds) in touched]
        if len(mine) < len(touched):
            assert (first, last) == (0, 0)
            continue
        complete += 1
        assert (first, last) == (mine[0], mine[-1])
        # the smallest run of whole tokens around the answer, and exactly it where its ends are ends of tokens
        span = row["context"][offsets[first][0] : offsets[last][1]]
        assert text in span
        if touched[0][0] == start and touched[-1][1] == end:
            assert span == text
    if len(touched) <= STRIDE:
        assert complete


@settings(deadline=None, max_examples=60)
@given(questions())
def test_gold_logits_give_the_answer_back(windows, row):
    trained, read = windows.training(columns([row])), windows.evaluation(columns([row]))
    size = len(trained["input_ids"])
    start, end = np.full((size, LENGTH), -10.0), np.full((size, LENGTH), -10.0)
    for place in range(size):
        if trained["start_positions"][place]:
            start[place, trained["start_positions"][place]] = end[place, trained["end_positions"][place]] = 10.0
    if not (start > 0).any():
        return  # longer than any window
    found = ranked_answers(columns([row]), read, start, end, max_answer_length=LENGTH)
    assert row["answers"]["text"][0] in found["q"].chosen()["text"]
    whole = windows.tokenizer(row["context"], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    first = row["answers"]["answer_start"][0]
    last = first + len(row["answers"]["text"][0])
    if first in {bounds[0] for bounds in whole} and last in {bounds[1] for bounds in whole}:
        texts = {key: answer.chosen()["text"] for key, answer in found.items()}
        assert texts["q"] == row["answers"]["text"][0]
        expected = {"exact_match": 100.0, "f1": 100.0}
        assert expected.items() <= squad_metrics([row], texts, version2=True).items()


def test_a_question_without_answer_points_at_the_first_token(windows):
    row = {"id": "q", "question": "ba", "context": "be bi bo", "answers": {"text": [], "answer_start": []}}
    found = windows.training(columns([row]))
    assert found["start_positions"] == found["end_positions"] == [0]


def test_a_long_question_loses_its_last_words_and_no_part_of_one(windows):
    row = {"id": "q", "question": "  ba be zebra bi", "context": "be", "answers": {"text": [], "answer_start": []}}
    tokenizer = windows.tokenizer
    for limit, expected in ((8, "ba be zebra bi"), (7, "ba be zebra"), (6, "ba be"), (2, "ba be"), (1, "ba")):
        cut = Windows(tokenizer, LENGTH, STRIDE, limit).training(columns([row]))["input_ids"][0]
        question = cut[1 : cut.index(tokenizer.sep_token_id)]
        assert question == tokenizer(expected, add_special_tokens=False)["input_ids"]
    alone = Windows(tokenizer, LENGTH, STRIDE, 3).training(columns([row | {"question": "zebra"}]))["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(alone[1:4]) == ["z", "##e", "##b"]


def test_a_stride_without_room_is_refused(windows):
    for stride in (-1, LENGTH - QUERY - 3):
        with pytest.raises(InputError, match="--doc_stride: expected 0 to 12, .* found"):
            Windows(windows.tokenizer, LENGTH, stride, QUERY)
    Windows(windows.tokenizer, LENGTH, LENGTH - QUERY - 4, QUERY)

"""An InputError is one line that a terminal can show, whatever it quotes."""

from __future__ import annotations

import pickle

import pytest

from attention_pruning import InputError


@pytest.mark.parametrize(
    ("quoted", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\r\tb", r"a\r\tb"),
        ("\u2028", r"\u2028"),
        ("\ud800", r"\ud800"),
        ("\x1b[31m", r"\x1b[31m"),
        ("größer als, ×2", "größer als, ×2"),
    ],
)
def test_what_a_message_quotes_is_no_new_line(quoted, shown):
    error = InputError(f"{quoted}: expected this, found that")
    assert str(error) == f"{shown}: expected this, found that"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_middle_of_a_long_message_is_left_out():
    text = str(InputError("file: expected a word, found " + "x" * 100_000 + " in line 3"))
    assert len(text) < 2100 and text.startswith("file: expected a word, found x") and text.endswith("x in line 3")

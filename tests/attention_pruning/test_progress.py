"""Passes over data show how far they are, where somebody can see it."""

from __future__ import annotations

import sys

import pytest

from attention_pruning.huggingface import collect_patterns
from attention_pruning.progress import count, shown
from tiny_models import batch_for, make


def pretend_to_be_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_the_items_are_what_was_given(monkeypatch):
    pretend_to_be_a_terminal(monkeypatch)
    for progress in (None, True, False):
        for items in ([], [1, 2, 3]):
            assert list(shown(iter(items), None, "title", progress)) == items


def test_nothing_is_shown_where_nobody_looks(capsys):
    assert list(shown([1, 2, 3], 3, "title")) == [1, 2, 3]
    assert list(shown([1, 2, 3], 3, "title", False)) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar(monkeypatch, capsys):
    pretend_to_be_a_terminal(monkeypatch)
    list(shown([1, 2, 3], 3, "title"))
    error = capsys.readouterr().err
    assert "title: 100%" in error and "3/3" in error
    list(shown([1, 2, 3], 3, "title", False))
    assert capsys.readouterr().err == ""


def test_without_tqdm_a_terminal_shows_lines_if_asked(monkeypatch, capsys):
    pretend_to_be_a_terminal(monkeypatch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    list(shown([1, 2, 3], 3, "title"))
    assert capsys.readouterr().err == ""
    list(shown([1, 2, 3], 3, "title", True))
    assert capsys.readouterr().err.splitlines() == [f"title: {done} of 3 batches" for done in (1, 2, 3)]


@pytest.mark.parametrize(
    ("length", "total", "lines"),
    [
        (10, 10, [f"title: {done} of 10 batches" for done in range(1, 11)]),
        (100, 100, [f"title: {done} of 100 batches" for done in range(10, 101, 10)]),
        (25, 25, [f"title: {done} of 25 batches" for done in (3, 5, 8, 10, 13, 15, 18, 20, 23, 25)]),
        (9, None, [f"title: {done} batches" for done in (1, 2, 4, 8)]),
    ],
)
def test_lines_come_at_each_tenth(capsys, length, total, lines):
    list(shown(range(length), total, "title", True))
    assert capsys.readouterr().err.splitlines() == lines


def test_only_what_has_a_length_is_counted():
    assert count([1, 2]) == 2 and count(iter([1, 2])) is None


def test_collect_patterns_shows_its_progress(capsys):
    batches = [batch_for("BERT")] * 2
    collect_patterns(make("BERT"), batches)
    assert capsys.readouterr().err == ""
    collect_patterns(make("BERT"), batches, progress=True)
    assert capsys.readouterr().err.splitlines() == [f"collect_patterns: {done} of 2 batches" for done in (1, 2)]

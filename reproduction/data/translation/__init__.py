"""Sentence pairs, prepared as running text and subwords."""

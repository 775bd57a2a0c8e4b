"""Corpora for language modelling, prepared as splits of token ids."""

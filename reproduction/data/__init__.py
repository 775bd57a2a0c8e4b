"""Preparation of the corpora, one module and one command each: ``python -m reproduction.data.NAME --help``."""

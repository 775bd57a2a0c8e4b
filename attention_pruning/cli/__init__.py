"""The ``attention-pruning`` command."""

from .main import main

__all__ = ["main"]

"""How far a pass over batches has come."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from .processes import is_first_process

T = TypeVar("T")


def count(items: Iterable[object]) -> int | None:
    """How many items there are, where that is known without going through them."""
    try:
        return len(items)
    except TypeError:
        return None


def shown(items: Iterable[T], total: int | None, title: str, progress: bool | None = None) -> Iterator[T]:
    """The items, and on standard error how many of them are done.

    Parameters
    ----------
    total : int, optional
        How many there are, if known.
    progress : bool, optional
        By default a bar where standard error is a terminal and tqdm is installed. True asks for lines where there is no
        bar: one for each tenth, or for 1, 2, 4, 8... items where nobody knows how many there are. False shows nothing.
        Of several processes only the first one shows anything.
    """
    if progress is False or not is_first_process():
        return iter(items)
    if sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
        from tqdm import tqdm

        return iter(tqdm(items, desc=title, total=total, unit="batch"))
    return _lines(items, total, title) if progress else iter(items)


def _lines(items: Iterable[T], total: int | None, title: str) -> Iterator[T]:
    for done, item in enumerate(items, 1):
        yield item
        if total is None:
            if done & (done - 1) == 0:
                print(f"{title}: {done} batches", file=sys.stderr, flush=True)
        elif done == total or 10 * done // total > 10 * (done - 1) // total:
            print(f"{title}: {done} of {total} batches", file=sys.stderr, flush=True)

"""What hypothesis does to files and to the values in them, and what a reader may answer.

A reader gives the right result, or one line of an InputError. It never raises anything else, and never asks for more
memory than the session's limit (conftest.py).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from attention_pruning import InputError

Read = TypeVar("Read")
#: Examples of each test: few in `make test`, 10,000 in `make fuzz`.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 200))


def fuzzed(share: float = 1.0) -> settings:
    """The same examples in every run: all, or a share of them where each takes long."""
    return settings(
        max_examples=max(5, int(EXAMPLES * share)),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def answer(read: Callable[..., Read], *arguments: Any, **options: Any) -> Read | None:
    """What a reader gives; None if it refuses in one line. Whatever else it raises is a fault."""
    try:
        return read(*arguments, **options)
    except InputError as error:
        text = str(error)
        assert text.strip() and len(text.splitlines()) == 1, f"expected one line, found {text!r}"
        text.encode()  # a terminal can show it
        return None


# Bytes

#: Numbers that a header must not be believed.
_NUMBERS = st.sampled_from([0, 1, 127, 255, *((1 << bits) - less for bits in (31, 32, 40, 62, 63) for less in (0, 1))])


@st.composite
def damaged(draw: st.DrawFn, content: bytes, edits: int = 3) -> bytes:
    """A file's bytes after some edits, most of them near its ends, where headers are."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, edits))):
        near = draw(st.sampled_from(["begin", "begin", "end", "anywhere"]))
        last = max(0, len(content) - 1)
        bounds = {"begin": (0, min(400, last)), "end": (max(0, last - 400), last), "anywhere": (0, last)}[near]
        place = draw(st.integers(*bounds))
        kind = draw(st.sampled_from(["flip", "set", "number", "insert", "remove", "repeat", "cut"]))
        if kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and content:
            content[place] = draw(st.integers(0, 255))
        elif kind == "number":
            content[place : place + 8] = draw(_NUMBERS).to_bytes(8, "little")
        elif kind == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "remove":
            del content[place : place + draw(st.integers(1, 40))]
        elif kind == "repeat":
            length = draw(st.integers(1, 200))
            content[place:place] = content[place : place + length]
        else:
            del content[place:]
    return bytes(content)


# Values

#: Text that reads as something else, ends a line or cannot be shown.
_WORDS = ["", " ", "x", "nan", "inf", "-1", "1e999", "9" * 25, "a\nb", "a\tb", "\x00", "\ufeff", "\u2028", "\ud800"]
_INTEGERS = [-1, 0, 1, 3, 1 << 31, 1 << 40, 1 << 62, 10**30, -(10**30)]
_DEEP: Any = []
for _ in range(60):
    _DEEP = [_DEEP]
_NESTED = [[], {}, [None], [0, 1], [[]], ["a"], {"a": 1}, {"": None}, _DEEP, [0] * 2000]
#: Values of every kind.
STRANGE = st.sampled_from(
    [None, True, False, *_INTEGERS, 0.5, 1e300, float("nan"), float("inf"), *_WORDS, *_NESTED]
).map(copy.deepcopy)


@st.composite
def strange(draw: st.DrawFn, value: Any, edits: int = 2) -> Any:
    """A copy of nested lists and dicts in which something was replaced, removed, added or said twice."""
    root = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(1, edits))):
        holder, key = draw(st.sampled_from(list(_places(root))))
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "twice"]))
        found = holder[key]
        if kind == "remove" and holder is not root:
            del holder[key]
        elif kind == "add" and isinstance(found, dict):
            found[draw(st.sampled_from(["x", "", "format", "\ud800"]))] = draw(STRANGE)
        elif kind == "add" and isinstance(found, list):
            found.append(draw(STRANGE))
        elif kind == "twice" and isinstance(holder, list) and holder is not root:
            holder.insert(key, copy.deepcopy(found))
        else:
            holder[key] = draw(STRANGE)
    return root[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(inner):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


def as_json(value: Any) -> bytes:
    """JSON as Python writes it: NaN, Infinity and halves of characters included."""
    return json.dumps(value).encode()


@st.composite
def damaged_json(draw: st.DrawFn, value: Any) -> bytes:
    """A JSON file whose values are strange, or whose bytes are damaged, or which is nested beyond all bounds."""
    kind = draw(st.sampled_from(["values", "values", "values", "bytes", "deep"]))
    if kind == "deep":
        return b"[" * 100_000 if draw(st.booleans()) else b'{"a":' * 100_000
    return as_json(draw(strange(value))) if kind == "values" else draw(damaged(as_json(value)))


@st.composite
def damaged_text(draw: st.DrawFn, text: str) -> bytes:
    """A text file in which bytes are damaged, or lines are other lines, fields others."""
    if draw(st.booleans()):
        return draw(damaged(text.encode()))
    lines = text.split("\n")
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        fields = lines[place].split("\t")
        kind = draw(st.sampled_from(["line", "field", "drop", "swap", "long", "end"]))
        if kind == "line":
            lines[place] = draw(st.sampled_from(_WORDS))
        elif kind == "field":
            fields[draw(st.integers(0, len(fields) - 1))] = draw(st.sampled_from(_WORDS))
            lines[place] = "\t".join(fields)
        elif kind == "drop" and len(lines) > 1:
            del lines[place]
        elif kind == "swap":
            lines[place] = "\t".join(reversed(fields))
        elif kind == "long":
            lines[place] = "w" * 100_000
        else:
            lines[place] += draw(st.sampled_from(["\r", "\t", '"', "\x85", "\x0c"]))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@st.composite
def chosen(draw: st.DrawFn, files: dict[str, st.SearchStrategy[bytes]]) -> tuple[str, bytes]:
    """One of some files, and other content for it."""
    name = draw(st.sampled_from(sorted(files)))
    return name, draw(files[name])


def written(path: Path, content: bytes) -> Path:
    """The path, once it holds the content."""
    path.write_bytes(content)
    return path

"""The page about transformers names the models that the tests run; test_documents_run.py runs its code."""

from __future__ import annotations

from pathlib import Path

from attention_pruning.huggingface import find_stacks
from tiny_models import MODELS, make

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"


def support_rows():
    """The rows of the support table, from the models that the other tests run."""
    for name in MODELS:
        for stack in find_stacks(make(name)).values():
            layers = "one for each group" if name == "ALBERT" else "one for each layer"
            yield f"| {name} | `{stack.site}` | {'yes' if stack.causal else 'no'} | {layers} | `{stack.name}` |"


def test_the_support_table_lists_what_the_tests_run():
    table = PAGE.read_text().split("<!-- begin table supported -->\n")[1].split("<!-- end table -->")[0]
    assert table.splitlines()[2:] == list(support_rows())

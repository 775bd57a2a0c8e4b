"""The page about transformers and the README say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

from attention_pruning.huggingface import find_stacks, model_masks
from tiny_models import MODELS, batch_for, make

README = Path(__file__).parents[2] / "README.md"
PAGE = README.parent / "docs" / "transformers.md"


def support_rows():
    """The rows of the support table, from the models that the other tests run."""
    for name in MODELS:
        for stack in find_stacks(make(name)).values():
            layers = "one for each group" if name == "ALBERT" else "one for each layer"
            yield f"| {name} | `{stack.site}` | {'yes' if stack.causal else 'no'} | {layers} | `{stack.name}` |"


def test_the_support_table_lists_what_the_tests_run():
    table = PAGE.read_text().split("<!-- begin table supported -->\n")[1].split("<!-- end table -->")[0]
    assert table.splitlines()[2:] == list(support_rows())


@pytest.mark.parametrize("page", [PAGE, README], ids=lambda path: path.name)
def test_the_ten_lines_run(page, tmp_path):
    make("BERT").save_pretrained(tmp_path / "dense")
    codes = [part.split("```")[0] for part in page.read_text().split("```python\n")[1:]]
    (code,) = (code for code in codes if "from transformers import" in code)
    assert len(code.replace("\n\n", "\n").strip().splitlines()) <= 10
    batch = batch_for("BERT")
    batch["labels"] = batch["input_ids"]
    for name in ("dense", "pruned"):
        code = code.replace("path/to/model" if name == "dense" else "path/to/pruned", str(tmp_path / name))
    exec(code, {"train_batches": [batch], "test_batch": batch})
    assert model_masks(AutoModelForMaskedLM.from_pretrained(tmp_path / "pruned"))

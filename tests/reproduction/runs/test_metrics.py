"""Laws of metrics.json: labels are read as they are meant, and every file has the same keys."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attention_pruning import InputError
from reproduction.runs.metrics import LABELS, SPARSITIES, parse_labels, write_metrics

values = st.one_of(st.integers(), st.floats(0, 1), st.none(), st.booleans(), st.text(st.characters(categories=["L"])))


@example({"config": "NaN", "variant": "Infinity"})
@given(st.dictionaries(st.sampled_from(LABELS), values))
def test_a_label_is_what_was_written(labels):
    """JSON where it can be, else text."""
    words = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in labels.items()]
    ambiguous = {"true": True, "false": False, "null": None}
    expected = {k: ambiguous.get(v, v) if isinstance(v, str) else v for k, v in labels.items()}
    assert parse_labels(words) == expected


@pytest.mark.parametrize("label, key, value", [("dataset=a=b", "dataset", "a=b"), ("tau=0.80", "tau", 0.8)])
def test_awkward_labels(label, key, value):
    assert parse_labels([label]) == {key: value}


@pytest.mark.parametrize("label", ["colour=red", "tau", "=1", "", "Tau=1", "tau =1"])
def test_an_unknown_label_is_refused(label):
    with pytest.raises(InputError, match="--label: expected KEY=VALUE") as caught:
        parse_labels(["seed=1", label])
    assert str(caught.value).endswith(f"found {label!r}")


def test_every_file_has_every_label(tmp_path):
    write_metrics(tmp_path / "m.json", {"tau": 0.5}, {"valid": {"nll": 1.0}}, effective_sparsity=0.25)
    content = json.loads((tmp_path / "m.json").read_text())
    assert set(content) == {*LABELS, *SPARSITIES, "metrics"}
    given_keys = {"tau": 0.5, "effective_sparsity": 0.25, "metrics": {"valid": {"nll": 1.0}}}
    assert {key: value for key, value in content.items() if value is not None} == given_keys


def test_an_unknown_sparsity_is_a_defect(tmp_path):
    with pytest.raises(ValueError, match="density"):
        write_metrics(tmp_path / "m.json", {}, {}, density=0.5)
    assert not list(tmp_path.iterdir())

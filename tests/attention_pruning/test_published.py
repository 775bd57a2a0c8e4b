"""Laws of the published .npy layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_pruning import AttentionPattern, InputError
from attention_pruning.files.published import read_published, write_published
from strategies import law, patterns


@law
@given(patterns(), st.sampled_from(["transformer-xl", "fairseq", "bert"]))
def test_written_and_read_is_the_same_but_for_the_counts(tmp_path_factory, pattern, layout):
    path = tmp_path_factory.mktemp("published") / "average.npy"
    write_published(pattern, path, layout)
    found = read_published(path, layout, site=pattern.site, causal=pattern.causal)
    assert torch.equal(found.average, pattern.average)
    assert torch.equal(found.count, (pattern.average != 0).any(0).any(0).long())
    assert found.source == str(path)
    assert found.metadata["read_from_layout"] == layout and "no counts" in found.metadata["count"]


def test_layouts_are_those_of_the_published_code(tmp_path):
    path = tmp_path / "average.npy"
    pattern = AttentionPattern(torch.rand(2, 3, 4, 5), torch.ones(4, 5), "enc-dec")
    write_published(pattern, path, "transformer-xl")
    array = np.load(path)
    assert (array.shape, array.dtype) == ((2, 4, 5, 1, 3), np.float32)
    assert array[1, 3, 4, 0, 2] == pattern.average[1, 2, 3, 4]
    for layout in ("fairseq", "bert"):
        write_published(pattern, path, layout)
        array = np.load(path)
        assert array.shape == (2, 1, 3, 4, 5)
        assert array[1, 0, 2, 3, 4] == pattern.average[1, 2, 3, 4]


@pytest.mark.parametrize(("layout", "shape"), [("transformer-xl", (2, 4, 5, 1, 3)), ("fairseq", (2, 1, 3, 4, 5))])
def test_the_layout_is_told_by_the_axis_of_length_one(tmp_path, layout, shape):
    path = tmp_path / "average.npy"
    np.save(path, np.random.default_rng(0).random(shape))  # float64, as numpy averages are
    found = read_published(path, site="enc-dec")
    assert found.metadata["read_from_layout"] == layout
    assert tuple(found.average.shape) == (2, 3, 4, 5)


def test_bad_files_are_refused(tmp_path):
    path = tmp_path / "average.npy"
    good = np.full((2, 1, 3, 4, 5), 0.5)

    def truncate():
        np.save(path, good)
        path.write_bytes(path.read_bytes()[:-8])

    writers = {
        "found: No such file": lambda: None,
        "plain numbers, found: Object arrays cannot be loaded": lambda: np.save(
            path, np.array([{"a": 1}], dtype=object), allow_pickle=True
        ),
        "whole .npy file": truncate,
        "whole .npy file of plain numbers, found: the magic string": lambda: path.write_bytes(
            b"no array, a text of some length"
        ),
        r"floats with five axes, found float64 of shape \[2, 3, 4, 5\]": lambda: np.save(path, good[:, 0]),
        "floats with five axes, found int64": lambda: np.save(path, good.astype(np.int64)),
        r"axis 3 .* or axis 1 .*, found shape \[2, 2, 3, 4, 5\]; name the layout": lambda: np.save(
            path, good.repeat(2, 1)
        ),
        r"found shape \[2, 1, 3, 1, 5\]; name the layout": lambda: np.save(path, good[:, :, :, :1]),
        "finite averages of at least 0": lambda: np.save(path, -good),
    }
    for expected, write in writers.items():
        write()
        with pytest.raises(InputError, match=expected) as caught:
            read_published(path, site="enc-dec")
        assert str(caught.value).startswith(f"{path}: expected ") and "\n" not in str(caught.value)

    np.save(path, good)
    with pytest.raises(InputError, match="expected average 0 where a cell is not visible .site dec-self, causal True"):
        read_published(path, site="dec-self")
    with pytest.raises(
        InputError, match=r"axis 3 of layout transformer-xl to have length 1, found shape \[2, 1, 3, 4, 5\]"
    ):
        read_published(path, "transformer-xl", site="self")
    with pytest.raises(InputError, match="layout: expected one of transformer-xl, fairseq, bert, found 'xl'"):
        read_published(path, "xl", site="self")


def test_a_pooled_pattern_has_no_published_layout(tmp_path):
    pattern = AttentionPattern(torch.rand(1, 1, 4, 4), torch.ones(4, 4), "self").pooled(2)
    with pytest.raises(InputError, match="found one pooled by 2"):
        write_published(pattern, tmp_path / "average.npy", "bert")
    assert not list(tmp_path.iterdir())

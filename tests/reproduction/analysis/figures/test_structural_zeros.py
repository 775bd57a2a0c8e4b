"""Nominal and effective sparsity as a picture: its lines are the table's numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from tiny_sites import write_two_sites

from attention_pruning import InputError
from reproduction.analysis.figures.site_patterns import layer_table, read_sites
from reproduction.analysis.figures.structural_zeros import caption, draw, main


def test_lines_are_the_layers_and_their_mean(tmp_path: Path) -> None:
    table = layer_table(read_sites(write_two_sites(tmp_path)))
    axes = draw(table).axes
    assert [one.get_title() for one in axes] == ["decoder", "cross"]
    for one, (_, part) in zip(axes, table.groupby("site", sort=False), strict=True):
        layers = part["layer"].nunique()
        assert len(one.lines) == 1 + 2 * (layers + 1)
        lines = {line.get_label(): line for line in one.lines}
        means = part.groupby("tau")[["effective_sparsity", "lost_attention"]].mean() * 100
        for label, column in (
            ("effective: share of allowed cells", "effective_sparsity"),
            ("share of probability on them", "lost_attention"),
        ):
            assert list(lines[label].get_ydata()) == pytest.approx([0, *means[column]])
        assert list(lines["nominal (τ)"].get_xdata()) == list(lines["nominal (τ)"].get_ydata()) == [0, 50, 80]


def test_the_command_writes_picture_caption_and_table(tmp_path: Path) -> None:
    words = write_two_sites(tmp_path)
    arguments = [word for site in words for word in ("--site", *site)]
    assert main([*arguments, "--out", str(tmp_path / "zeros.png")]) == 0
    table = layer_table(read_sites(words))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "zeros.csv"), table)
    text = (tmp_path / "zeros.md").read_text()
    assert text == caption(table)
    last = table[(table["site"] == "decoder") & (table["tau"] == 0.8)]
    assert f"decoder, tau 0.8: {last['effective_sparsity'].mean():.0%} of the allowed cells" in text
    assert f"{last['already_zero'].mean():.0%} of what tau counts could not be pruned" in text
    with pytest.raises(InputError, match="expected a .png file"):
        main([*arguments, "--out", str(tmp_path / "zeros.svg")])

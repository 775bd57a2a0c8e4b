"""The gallery: which layers and heads it shows, that pictures are the patterns, and its numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from PIL import Image
from tiny_sites import pattern, write_site, write_two_sites

from attention_pruning import InputError
from reproduction.analysis.figures.patterns import (
    INVISIBLE,
    KEPT,
    PRUNED,
    caption,
    chosen_heads,
    chosen_layers,
    chosen_taus,
    draw,
    head_table,
    main,
    panel_rows,
)
from reproduction.analysis.figures.site_patterns import focus, lost_attention, read_sites


@pytest.mark.parametrize(
    ("layers", "chosen"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (6, [0, 3, 5]), (16, [0, 8, 15])]
)
def test_first_middle_and_last_layer_are_shown(layers: int, chosen: list[int]) -> None:
    assert chosen_layers(layers) == chosen


def test_the_most_and_the_least_focused_head_are_shown() -> None:
    assert chosen_heads(np.array([0.3, 0.9, 0.1, 0.5])) == [1, 2]
    assert chosen_heads(np.array([0.3])) == [0]


def test_every_row_is_a_mean_or_a_head_of_a_layer(tmp_path: Path) -> None:
    decoder, cross = read_sites(write_two_sites(tmp_path))
    assert panel_rows(decoder) == [(0, None), (0, 0), (1, None), (1, 0)]
    rows = panel_rows(cross)
    assert [layer for layer, _ in rows] == [0, 0, 0, 2, 2, 2, 4, 4, 4]
    focus_H = focus(cross.pattern)[2]
    assert rows[3:6] == [(2, None), (2, int(focus_H.argmax())), (2, int(focus_H.argmin()))]


def test_panels_show_the_mask_and_the_structure(tmp_path: Path) -> None:
    sites = read_sites(write_two_sites(tmp_path))
    axes = draw(sites, [0.8, 0.8]).axes
    images = [one.images[0].get_array() for one in axes if one.images]
    assert len(images) >= 2 * (4 + 9)
    labels = [one.get_ylabel() for one in axes if one.get_ylabel()]
    assert labels[:4] == ["layer 0\nmean", "layer 0\nhead 0", "layer 1\nmean", "layer 1\nhead 0"]
    # Decoder, layer 0, head 0: the second row's right panel.
    shown = next(image for image in images[3::2] if image.shape[:2] == (6, 6))
    mask, visible = sites[0].masks[0.8].cells(0)[0].numpy(), sites[0].pattern.visible.numpy()
    assert (shown[~visible] == to_rgba(INVISIBLE)).all()
    assert np.allclose(shown[visible & mask], to_rgba(PRUNED))
    assert np.allclose(shown[visible & ~mask], to_rgba(KEPT))


def test_the_table_has_every_head(tmp_path: Path) -> None:
    sites = read_sites(write_two_sites(tmp_path))
    table = head_table(sites, [0.5, 0.8])
    assert len(table) == 2 * 1 + 5 * 3
    line = table[(table["site"] == "cross") & (table["layer"] == 3) & (table["head"] == 2)].iloc[0]
    mask = sites[1].masks[0.8]
    assert line["tau"] == 0.8
    assert line["pruned"] == pytest.approx(float(mask.pruned[3, 2].double().mean()))
    assert line["focus"] == focus(sites[1].pattern)[3, 2]
    assert line["lost_attention"] == lost_attention(sites[1].pattern, mask)[3, 2]
    means = table[table["site"] == "cross"]
    assert means["pruned"].mean() == pytest.approx(mask.effective_sparsity)


def test_the_highest_tau_in_common_is_shown(tmp_path: Path) -> None:
    words = write_two_sites(tmp_path)
    assert chosen_taus(read_sites(words)) == [0.8, 0.8]
    assert chosen_taus(read_sites(words), 0.5) == [0.5, 0.5]
    words.append(["own", *write_site(tmp_path / "own", pattern("self", 1, 1, 4, 4), taus=(0.3,))])
    assert chosen_taus(read_sites(words)) == [0.8, 0.8, 0.3]
    with pytest.raises(InputError, match=r"--tau: expected one that own has a mask of \(0.3\), found 0.5"):
        chosen_taus(read_sites(words), 0.5)


def test_the_command_writes_picture_caption_and_table(tmp_path: Path) -> None:
    words = write_two_sites(tmp_path)
    out = tmp_path / "gallery.png"
    arguments = [word for site in words for word in ("--site", *site)]
    assert main([*arguments, "--out", str(out)]) == 0
    with Image.open(out) as picture:
        picture.load()
        assert picture.format == "PNG"
    sites = read_sites(words)
    assert out.with_suffix(".md").read_text() == caption(sites, [0.8, 0.8])
    table = pd.read_csv(out.with_suffix(".csv"))
    pd.testing.assert_frame_equal(table, head_table(sites, [0.8, 0.8]))
    lost = table[table["site"] == "cross"]["lost_attention"].mean()
    assert f"which held {lost:.0%} of the attention probability" in caption(sites, [0.8, 0.8])
    with pytest.raises(InputError, match="expected a .png file"):
        main([*arguments, "--out", str(tmp_path / "gallery.pdf")])

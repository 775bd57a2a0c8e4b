"""The explorer in Chromium: what the reader sees and does, at a desk and on a phone, and how soon the page answers."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from attention_pruning.explore import write_page
from attention_pruning.make import by_distance, from_pattern
from explore_pages import random_pattern

playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives Chromium, is not installed")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")


@pytest.fixture(scope="module")
def chromium():
    """A browser of this machine: nothing is downloaded here."""
    with playwright.sync_playwright() as driver:
        own = driver.chromium.executable_path
        path = own if Path(own).exists() else next(filter(None, map(shutil.which, NAMES)), None)
        if path is None:
            pytest.skip("no Chromium was found; `playwright install chromium` or a package of the system brings one")
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """Opens the page of a pattern; a message in its console, an error or a request ends the test."""
    contexts, complaints = [], []

    def open_page(*patterns, view=DESK, theme="light", **kwargs):
        path = tmp_path / f"page{len(contexts)}.html"
        write_page(path, *patterns, **kwargs)
        contexts.append(chromium.new_context(viewport=view, color_scheme=theme, has_touch=view is PHONE))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url == path.as_uri() or complaints.append(request.url[:80]))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def pairs(page, name):
    """The terms of a list and their values."""
    texts = "(all) => all.map((pair) => [...pair.children].map((one) => one.innerText))"
    return dict(page.locator(f"#{name} > div").evaluate_all(texts))


def settle(page):
    """Waits for the frame that draws what was asked."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")


def move_slider(page, thousandths):
    page.locator("#tau").fill(str(thousandths))
    settle(page)


def pixels(page, selector):
    """The colours of canvases as they were drawn, RGBA: [canvas, query, key, 4]."""
    code = """(all) => all.map((canvas) => {
      const { width, height } = canvas;
      const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
      copy.drawImage(canvas, 0, 0);
      return [[height, width, 4], [...copy.getImageData(0, 0, width, height).data]];
    })"""
    return np.stack([np.reshape(data, shape) for shape, data in page.locator(selector).evaluate_all(code)])


def drawn_mask(page, pattern, selector):
    """Which visible cells have the colour of what is pruned: bool [canvas, query, key]."""
    hexadecimal = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--pruned').trim()")
    return torch.from_numpy((pixels(page, selector)[..., :3] == list(bytes.fromhex(hexadecimal[1:]))).all(-1))


def stats(mask):
    """What the page says of a mask."""
    blocks = {f"block sparsity, {size}": f"{100 * mask.block_sparsity(size):.1f} %" for size in (16, 32)}
    return {"effective sparsity": f"{100 * mask.effective_sparsity:.1f} %", **blocks}


def pixel_mask(mask):
    cells = torch.stack([mask.cells(layer) & mask.visible for layer in range(mask.layers)])
    return cells.flatten(0, 1)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_slider_draws_the_librarys_own_masks(opened, theme):
    pattern = random_pattern(2, 3, 20, 30, True, 4, holes=0.1)
    page = opened(pattern, theme=theme)
    for tau in (500, 0, 335, 995, 1000):
        move_slider(page, tau)
        mask = from_pattern(pattern, tau / 1000)
        assert torch.equal(drawn_mask(page, pattern, "#grid-0 canvas"), pixel_mask(mask))
        assert torch.equal(drawn_mask(page, pattern, "#map-0"), pixel_mask(mask)[:1])
        assert page.locator("#tau-value").inner_text() == f"{tau / 1000:.3f}" and pairs(page, "stats-0") == stats(mask)
    assert (pixels(page, "#map-0")[0, ..., 3] == 0).tolist() == (~pattern.visible).tolist()


def test_rule_scope_row_floor_and_crop_are_the_librarys(opened):
    pattern = random_pattern(2, 2, 18, 18, False, 5, holes=0.5)
    page = opened(pattern)
    move_slider(page, 600)
    for rule, scope in itertools.product(("published", "allowed"), ("layer", "head", "row", "model")):
        page.locator("#rule").select_option(rule)
        page.locator("#scope").select_option(scope)
        for box, choice in (("keep-best", {"row_floor": "none"}), ("crop", {"crop": False})):
            if box == "crop" and rule == "allowed":
                assert page.locator("#crop").is_disabled()
                continue
            page.locator(f"#{box}").uncheck()
            settle(page)
            mask = from_pattern(pattern, 0.6, rule=rule, scope=scope, **choice)
            assert torch.equal(drawn_mask(page, pattern, "#grid-0 canvas"), pixel_mask(mask))
            assert pairs(page, "stats-0") == stats(mask)
            page.locator(f"#{box}").check()
    page.locator("#shown").select_option("none")
    settle(page)
    assert not drawn_mask(page, pattern, "#grid-0 canvas").any()
    assert pairs(page, "stats-0")["effective sparsity"] == page.locator("#tau-value").inner_text() == "–"


@pytest.mark.parametrize("view", [DESK, PHONE])
def test_a_cell_is_pointed_at(opened, view):
    pattern = random_pattern(2, 3, 20, 30, True, 4, holes=0.1)
    page = opened(pattern, view=view)
    box = page.locator("#map-0").bounding_box()
    at = {"x": box["width"] * 5.5 / 30, "y": box["height"] * 12.5 / 20}
    page.locator("#map-0").tap(position=at) if view is PHONE else page.locator("#map-0").hover(position=at)
    facts = pairs(page, "cell-0")
    assert facts.pop("mask") == ("pruned" if from_pattern(pattern, 0.5).pruned[0, 0, 12, 5] else "kept")
    assert float(facts.pop("average")) == pytest.approx(float(pattern.average[0, 0, 12, 5]), rel=0.01)
    assert facts == {"query": "12", "key": "5", "distance": "17", "count": str(int(pattern.count[12, 5]))}
    cross, box = page.locator("#cross-0").bounding_box(), page.locator("#map-0").bounding_box()
    middle = [(cross[x] + cross[size] / 2 - box[x]) / box[size] for x, size in (("x", "width"), ("y", "height"))]
    assert middle == pytest.approx([5.5 / 30, 12.5 / 20], abs=0.01)
    said = page.locator("#cell-0").bounding_box()
    assert said["y"] + said["height"] <= box["y"] + 1  # above the map, so that both are seen


def test_the_keyboard_is_enough(opened):
    pattern = random_pattern(3, 2, 9, 9, True, 6)
    page = opened(pattern)
    page.keyboard.press("t")
    page.keyboard.press("ArrowRight")
    assert page.locator("#tau-value").inner_text() == "0.505"
    page.locator("#grid-0 button[aria-pressed=true]").focus()
    for key in ("ArrowUp", "ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert page.locator("#chosen-0").inner_text() == "Layer 1, head 1"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "layer 1, head 1"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "map-0"
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    facts = pairs(page, "cell-0")
    assert (facts["query"], facts["key"], facts["distance"]) == ("2", "0", "2")
    assert float(facts["average"]) == pytest.approx(float(pattern.average[1, 1, 2, 0]), rel=0.01)


def test_the_theme_changes_while_the_page_is_open(opened):
    pattern = random_pattern(1, 2, 8, 8, False, 7)
    page = opened(pattern)
    white, light = page.evaluate("getComputedStyle(document.body).backgroundColor"), pixels(page, "#map-0")
    page.emulate_media(color_scheme="dark")
    settle(page)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != white
    gone = pixel_mask(from_pattern(pattern, 0.5))[:1]
    assert torch.equal(drawn_mask(page, pattern, "#map-0"), gone)
    assert (pixels(page, "#map-0") == light)[~gone.numpy()].all()  # averages keep their colours


def test_a_phone_shows_all_of_it_without_scrolling_sideways(opened):
    pattern = random_pattern(4, 12, 16, 16, False, 8)
    page = opened(pattern, pattern.pooled(2), view=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    last = page.locator("#grid-0 button").last.bounding_box()
    assert last["x"] + last["width"] <= PHONE["width"] and last["width"] >= 18
    page.locator("#map-0").scroll_into_view_if_needed()
    slider = page.locator("#tau").bounding_box()
    assert 0 <= slider["y"] < 100  # the slider stays in sight
    assert page.locator("#rule").is_hidden()
    page.locator("#choices summary").tap()
    assert page.locator("#rule").is_visible()


def test_a_mask_lies_over_the_pattern(opened):
    pattern = random_pattern(1, 2, 24, 24, True, 5)
    mask = from_pattern(pattern, 0.25, rule="allowed", scope="head", row_floor="none")
    by_lags = by_distance(pattern, 0.5)
    for given, there in ((mask, mask), (by_lags, by_lags.at(24))):
        page = opened(pattern, given)
        said = pairs(page, "stats-0")
        assert said["mask"].startswith(f"{there.kind}, tau {there.tau}") and stats(there).items() <= said.items()
        assert torch.equal(drawn_mask(page, pattern, "#grid-0 canvas"), pixel_mask(there))
        assert page.locator("#shown").input_value() == "file"
        if given is mask:
            chosen = [page.locator(f"#{name}").input_value() for name in ("tau", "rule", "scope")]
            assert chosen == ["250", "allowed", "head"]
            assert not page.locator("#keep-best").is_checked()
            page.locator("#shown").select_option("tau")
            settle(page)
            assert torch.equal(drawn_mask(page, pattern, "#grid-0 canvas"), pixel_mask(there))
            page.locator("#shown").select_option("file")
        move_slider(page, 700)  # leaves the file's mask
        rest = {"rule": "allowed", "scope": "head", "row_floor": "none"} if given is mask else {}
        assert torch.equal(drawn_mask(page, pattern, "#grid-0 canvas"), pixel_mask(from_pattern(pattern, 0.7, **rest)))


def test_two_patterns_stand_side_by_side(opened):
    patterns = [random_pattern(1, 2, queries, 24, True, 6) for queries in (24, 16)]
    for pattern, folder in zip(patterns, ("dense", "sparse"), strict=True):
        pattern.source = f"/runs/{folder}/pattern.safetensors"
    page = opened(*patterns)
    assert page.locator("h2").all_inner_texts() == ["dense/pattern.safetensors", "sparse/pattern.safetensors"]
    left, right = (page.locator(f"#map-{n}").bounding_box() for n in (0, 1))
    assert left["x"] + left["width"] <= right["x"]
    for n, pattern in enumerate(patterns):
        assert pairs(page, f"stats-{n}") == stats(from_pattern(pattern, 0.5))
    page.locator("#grid-1 button").last.click()
    assert [page.locator(f"#chosen-{n}").inner_text() for n in (0, 1)] == ["Layer 0, head 1"] * 2
    assert page.locator("#chart-0 path:not(.zero)").count() == 2
    page.locator("#map-0").hover(position={"x": left["width"] * 0.1, "y": left["height"] * 0.9})
    assert pairs(page, "cell-0")["query"] == "21" and pairs(page, "cell-1") == {}  # the second has 16 queries


def test_a_large_pattern_is_drawn_in_blocks(opened):
    pattern = random_pattern(2, 2, 64, 96, True, 9)
    page = opened(pattern, room=8_000)
    assert "the means of blocks of 4 x 4 cells" in page.locator(".precision").inner_text()
    assert pixels(page, "#map-0").shape == (1, 16, 24, 4)
    page.locator("#map-0").hover(position={"x": 1, "y": 1})
    assert pairs(page, "cell-0")["query"] == "0 to 3"

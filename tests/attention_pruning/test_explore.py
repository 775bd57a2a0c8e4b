"""The explorer: what its page holds, and that its masks are the library's, whatever the pattern and the recipe.

The rule runs in Node where it is installed; test_explore_browser.py opens the page.
"""

from __future__ import annotations

import base64
import fnmatch
import json
import re
import shutil
import subprocess
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from attention_pruning import AttentionPattern, InputError
from attention_pruning import explore as explore_package
from attention_pruning.explore import write_page
from attention_pruning.explore.page import ROOM
from attention_pruning.explore.shown import PRECISION, Shown
from attention_pruning.make import from_pattern
from explore_pages import random_pattern

FOLDER = Path(explore_package.__file__).parent
needs_node = pytest.mark.skipif(
    shutil.which("node") is None, reason="node, which runs the page's scripts, was not found"
)


def page_parts(path):
    """Header and packed numbers of each pattern of a page, as its scripts find them."""
    text = path.read_text(encoding="utf-8")
    headers = re.findall(r'<script type="application/json" id="header-\d">(.*?)</script>', text)
    data = re.findall(r'<script type="text/plain" id="data-\d">(.*?)</script>', text)
    return [(json.loads(header), one) for header, one in zip(headers, data, strict=True)]


# What the page holds


@pytest.mark.parametrize(
    "room, pool, exact", [(47_000, 1, True), (32_000, 1, False), (8_000, 2, False), (1, 64, False)]
)
def test_what_does_not_fit_is_rounded_and_then_averaged(room, pool, exact):
    pattern = random_pattern(2, 2, 40, 48, True, 0, holes=0.2)
    shown = Shown.within(pattern, room)
    assert (shown.pool, shown.exact) == (pool, exact)
    assert len(shown.packed()) <= room or pool == 64
    expected = pattern.pooled(pool).average
    assert torch.equal(shown.average, expected) if exact else not torch.equal(shown.average, expected)
    assert ((shown.average - expected).abs() <= PRECISION * expected).all()


def test_a_pattern_of_blocks_is_averaged_over_its_allowed_cells():
    pattern = random_pattern(2, 2, 40, 48, True, 0, holes=0.2)
    shown = Shown.within(pattern.pooled(4), 300)
    assert (shown.pool, shown.exact) == (16, False)
    torch.testing.assert_close(shown.average, pattern.pooled(16).average, rtol=2 * PRECISION, atol=0)


def test_the_page_decodes_to_the_pattern(tmp_path):
    pattern = random_pattern(2, 3, 9, 12, True, 1, holes=0.3)
    write_page(tmp_path / "page.html", pattern)
    [(header, data)] = page_parts(tmp_path / "page.html")
    assert header["exact"] and header["pool"] == 1 and header["blockSizes"] == [16, 32]
    content, area = base64.b64decode(data), 9 * 12
    seen, cells = np.frombuffer(content, "<u4", 2 * area).reshape(2, 9, 12)
    assert (seen == (pattern.count * pattern.allowed).numpy()).all() and (cells == pattern.allowed.numpy()).all()
    average = np.frombuffer(content, "<f4", 6 * area, 8 * area).reshape(2, 3, 9, 12)
    assert (average == pattern.average.numpy()).all()
    useful = np.unpackbits(np.frombuffer(content, "u1", offset=32 * area).reshape(9, 2), axis=1, bitorder="little")
    assert (useful[:, :12] == pattern.allowed.numpy()).all()


def test_counts_of_blocks_leave_out_what_no_query_sees():
    pattern = AttentionPattern(np.zeros((1, 1, 5, 5)), np.full((5, 5), 3), "self", True)
    assert pattern.block_counts(2).tolist() == [[9, 0, 0], [12, 9, 0], [6, 6, 3]]
    assert torch.equal(pattern.block_counts(1), pattern.count.tril())


class Tags(HTMLParser):
    """Refuses what is not closed in order; collects ids."""

    EMPTY = {"meta", "link", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("other", [None, "mask", "pattern"])
def test_the_page_is_whole_and_refers_to_nothing_outside(tmp_path, other):
    pattern = random_pattern(2, 2, 8, 8, False, 2)
    others = {"mask": from_pattern(pattern, 0.5), "pattern": random_pattern(2, 2, 6, 7, False, 3)}
    write_page(tmp_path / "page.html", pattern, others.get(other))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and len(tags.ids) == len(set(tags.ids))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bsrc=", re.sub(r"data-\d\">[^<]*", "", text))
    assert "model a &lt;b&gt;" in text
    assert len(page_parts(tmp_path / "page.html")) == (2 if other == "pattern" else 1)


def test_a_page_stays_under_8_megabytes():
    fixed = sum(file.stat().st_size for file in FOLDER.iterdir() if file.suffix in (".html", ".css", ".js"))
    assert ROOM * 4 / 3 + fixed + 200_000 < 8_000_000


def test_scripts_and_styles_are_installed_with_the_library():
    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    globs = project["tool"]["setuptools"]["package-data"]["attention_pruning.explore"]
    rest = [file.name for file in FOLDER.iterdir() if file.is_file() and file.suffix != ".py"]
    assert len(rest) == 5 and all(any(fnmatch.fnmatch(name, glob) for glob in globs) for name in rest)


def test_what_does_not_go_together_is_refused(tmp_path):
    pattern = random_pattern(2, 2, 8, 8, True, 2)
    pattern.source = "a.safetensors"
    empty = AttentionPattern(np.zeros((2, 2, 8, 8)), np.zeros((8, 8)), "self", True)
    for first, other, message in (
        (pattern, random_pattern(3, 2, 8, 8, True, 2), "pattern: expected layers 2, that of a.safetensors, found 3"),
        (pattern, from_pattern(random_pattern(2, 2, 8, 9, True, 2), 0.5), "mask: expected key_length 8, that of"),
        (pattern, pattern.average, "mask: expected a PruneMask, found Tensor"),
        (empty, None, "pattern: expected at least one observed cell, found none"),
    ):
        with pytest.raises(InputError, match=message):
            write_page(tmp_path / "page.html", first, other)
    assert list(tmp_path.iterdir()) == []


# What its scripts compute

MASKS_IN_NODE = r"""
const fs = require("fs");
require("vm").runInThisContext(fs.readFileSync(process.argv[1], "utf8"));
const cases = JSON.parse(fs.readFileSync(0, "utf8"));
const answer = ({ header, data, asked }) => {
  const p = decode(header, data);
  return asked.map((choice) => {
    const { goes, layers, all, blocks } = prepare(p, choice), at = (shares) => shares[choice.tau];
    const pruned = Array.from(goes, (first) => Number(first <= choice.tau)).join("");
    return { pruned, sparsity: { layers: layers.map(at), all: at(all) }, blocks: blocks.map(at) };
  });
};
process.stdout.write(JSON.stringify(cases.map(answer)));
"""


def drawn_case(rng, path):
    """A page of a random pattern, and what is asked of it; with the masks that the library makes of what is shown."""
    causal, (queries, keys) = bool(rng.integers(2)), rng.integers(1, 40, 2)
    queries, keys = (min(queries, keys), max(queries, keys)) if causal else (queries, keys)
    sizes = (*rng.integers(1, 4, 2), queries, keys)
    levels, holes = int(rng.choice([2, 5, 1000])), float(rng.choice([0, 0.3, 0.8]))
    pattern = random_pattern(*sizes, causal, int(rng.integers(1000)), levels, holes).pooled(int(rng.choice([1, 1, 3])))
    room = int(rng.choice([1, 300, 10_000, ROOM]))
    write_page(path, pattern, room=room)
    [(header, data)] = page_parts(path)
    shown = Shown.within(pattern, room)
    average = AttentionPattern(shown.average, pattern.count, "self", causal, pool=shown.pool)
    asked, masks = [], []
    for _ in range(6):
        rule, scope = str(rng.choice(["published", "allowed"])), str(rng.choice(["layer", "head", "row", "model"]))
        tau, crop, best = int(rng.integers(0, 1001)), bool(rng.integers(2)), bool(rng.integers(2))
        asked.append({"rule": rule, "scope": scope, "crop": crop, "tau": tau, "keepBest": best})
        how = {"rule": rule, "scope": scope, "crop": crop, "row_floor": "keep-best" if best else "none"}
        masks.append(from_pattern(average, tau / 1000, block_size=shown.pool, **how))
    return {"header": header, "data": data, "asked": asked}, masks


@needs_node
def test_masks_and_sparsities_in_the_page_are_those_of_the_library(tmp_path):
    rng = np.random.default_rng(0)
    cases, masks = zip(*(drawn_case(rng, tmp_path / "page.html") for _ in range(60)), strict=True)
    assert {1, 3} < {case["header"]["pool"] for case in cases}
    command = ["node", "-e", MASKS_IN_NODE, "--", str(FOLDER / "rule.js")]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for case, answers, expected in zip(cases, json.loads(done.stdout), masks, strict=True):
        for asked, answer, mask in zip(case["asked"], answers, expected, strict=True):
            assert answer["pruned"] == "".join(map(str, mask.pruned.int().flatten().tolist())), (case["header"], asked)
            assert answer["sparsity"] == {"layers": mask.layer_sparsity, "all": mask.effective_sparsity}
            assert answer["blocks"] == [mask.block_sparsity(size) for size in case["header"]["blockSizes"]]

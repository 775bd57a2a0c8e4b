"""Links between documents lead somewhere, and the documentation site shows every page as the repository does."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
import yaml

from reproduction.documents.blocks import REPOSITORY, documents

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`|^    .*$", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as repository hosts and the documentation site both make them."""
    titles = re.findall(r"^#{1,6} (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    found = set()
    for title in titles:
        plain = unicodedata.normalize("NFKD", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-"))
    return found


def dead_links(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    dead = []
    for link in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        # The site has files and no folders.
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_no_link_is_dead(page):
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b.py`, c\n[1](#a-bpy-c) [2](#other) [3](page.md) [4](no.md) [5](.) `[6](no.md)` [7](https://no)\n"
    )
    assert dead_links(page) == ["#other", "no.md", "."]


def test_every_page_can_be_reached_from_the_readme():
    linked, open_ends = set(), [REPOSITORY / "README.md"]
    while open_ends:
        page = open_ends.pop()
        if page in linked or page.suffix != ".md":
            continue
        linked.add(page)
        links = [link.partition("#")[0] for link in _LINK.findall(page.read_text(encoding="utf-8"))]
        open_ends += [(page.parent / link).resolve() for link in links if link and not link.startswith("http")]
    assert set(documents()) <= linked


def names(nav: list) -> list[str]:
    """The pages of a navigation of mkdocs.yml."""
    found = []
    for entry in nav:
        for page in entry.values():
            found += [page] if isinstance(page, str) else names(page)
    return found


def test_the_site_has_every_page_once():
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(names(site["nav"])) == sorted(page.relative_to(REPOSITORY).as_posix() for page in documents())


@pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_a_list_follows_an_empty_line(page):
    """The site's Markdown takes it for a part of the paragraph otherwise."""
    before = ""
    for line in _CODE.sub("", page.read_text(encoding="utf-8")).splitlines():
        begins = re.match(r"(- |\d+\. )", line)
        assert not begins or re.match(r"$|- |\d+\. |  |#", before), line
        before = line

"""A hook of mkdocs (mkdocs.yml): the files of the site, in the places that they have in the repository.

Links between README.md, docs/, benchmarks/ and committed results then need no change. Files that pages link to,
figures and configurations among them, are copied beside them.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

REPOSITORY = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\]\(([^)\s#]+)")


def pages() -> list[Path]:
    """Every page of the site."""
    return [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/*.md")), REPOSITORY / "benchmarks" / "README.md"]


def linked(page: Path) -> list[Path]:
    """The files of this repository that a page links to."""
    links = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if ":" not in link]
    targets = [(page.parent / link).resolve() for link in links]
    return [target for target in targets if target.is_file() and target.is_relative_to(REPOSITORY)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put pages, and what they link to, in place of the files that mkdocs found in docs/."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    found = dict.fromkeys([*pages(), *(target for page in pages() for target in linked(page))])
    for path in found:
        name = path.relative_to(REPOSITORY).as_posix()
        # A table that a page links to is read from there, not from the navigation.
        level = InclusionLevel.UNDEFINED if path in pages() else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, name, abs_src_path=str(path), inclusion=level))
    return files

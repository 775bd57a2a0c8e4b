"""One page that shows a pattern, with a mask or a second pattern: everything is in it, nothing is loaded."""

from __future__ import annotations

import base64
import html
import json
import os
from importlib.resources import files
from pathlib import Path
from string import Template

from ..distance_mask import DistanceMask
from ..errors import InputError
from ..files.whole import written_whole
from ..mask import PruneMask, require_mask
from ..pattern import AttentionPattern, require_pattern
from .shown import KERNEL_BLOCKS, PRECISION, Shown

#: Bytes of all patterns of a page before base64, which makes 4 of 3: with all else a page stays under 8 MB.
ROOM = 5_800_000
_MASK_FACTS = ("kind", "tau", "rule", "scope", "row_floor", "block_size")


def write_page(
    path: str | Path,
    pattern: AttentionPattern,
    other: AttentionPattern | PruneMask | DistanceMask | None = None,
    room: int = ROOM,
) -> None:
    """Write a page (.html), whole or not at all.

    Parameters
    ----------
    path : str or Path
    pattern : AttentionPattern
    other : AttentionPattern, PruneMask or DistanceMask, optional
        A second pattern with as many layers and heads, to stand beside the first, or a mask of the same attention, to
        lie over it.
    room : int
        Bytes for the patterns, before base64. What does not fit is rounded to 16 bits, then averaged over blocks.

    Raises
    ------
    InputError
        For what is no pattern, a second file that does not go with it, or a path that cannot be written.
    """
    require_pattern(pattern)
    if not pattern.allowed.any():
        raise InputError(f"{pattern.source}: expected at least one observed cell, found none")
    patterns, mask = [pattern], None
    if isinstance(other, AttentionPattern):
        _require_same(pattern, other, ("layers", "heads"))
        patterns.append(other)
    elif other is not None:
        mask = _over(pattern, other)
    shown = [Shown.within(one, room // len(patterns), 0 if mask is None else 1) for one in patterns]
    content = _page(shown, mask)
    with written_whole(path, ".html") as temporary:
        temporary.write_text(content, encoding="utf-8")


def _over(pattern: AttentionPattern, mask: PruneMask | DistanceMask) -> PruneMask:
    """A mask of the pattern's lengths, refused if it is of other attention."""
    if isinstance(mask, DistanceMask):
        _require_same(pattern, mask, ("site", "causal"))
        mask = mask.at(pattern.query_length, pattern.key_length - pattern.query_length)
    require_mask(mask)
    _require_same(pattern, mask, ("site", "causal", "layers", "heads", "query_length", "key_length"))
    return mask


def _require_same(
    pattern: AttentionPattern, other: AttentionPattern | PruneMask | DistanceMask, names: tuple[str, ...]
) -> None:
    for name in names:
        if (expected := getattr(pattern, name)) != (found := getattr(other, name)):
            raise InputError(f"{other.source}: expected {name} {expected}, that of {pattern.source}, found {found}")


def _page(shown: list[Shown], mask: PruneMask | None) -> str:
    names = _names([one.pattern for one in shown])
    panels = [
        _template("panel.html").substitute(
            n=number,
            name=html.escape(name),
            size=html.escape(_size(one.pattern)),
            facts=html.escape(_facts(one.pattern)),
            precision=html.escape(_said(one)),
        )
        for number, (one, name) in enumerate(zip(shown, names, strict=True))
    ]
    data = [
        f'<script type="application/json" id="header-{number}">{_json(_header(one, mask))}</script>\n'
        f'<script type="text/plain" id="data-{number}">{base64.b64encode(one.packed(mask)).decode()}</script>'
        for number, one in enumerate(shown)
    ]
    return _template("page.html").substitute(
        title=html.escape(" and ".join(names)),
        file_option="" if mask is None else f'<option value="file">of {html.escape(Path(mask.source).name)}</option>',
        style=_text("style.css"),
        panels="\n".join(panels),
        data="\n".join(data),
        rule=_text("rule.js"),
        view=_text("view.js"),
    )


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _template(name: str) -> Template:
    return Template(_text(name))


def _json(value: object) -> str:
    """JSON that may stand in a script of a page: no tag begins or ends in it."""
    return json.dumps(value).replace("<", "\\u003c")


def _names(patterns: list[AttentionPattern]) -> list[str]:
    """The names of their files, with the folders that tell files of one name apart."""
    paths = [Path(pattern.source) for pattern in patterns]
    names = [path.name for path in paths]
    if len(set(names)) == len(names) or len(set(paths)) == 1:
        return names
    folders = [path.absolute().parent for path in paths]
    return [
        str(folder.relative_to(os.path.commonpath(folders)) / name) for folder, name in zip(folders, names, strict=True)
    ]


def _size(pattern: AttentionPattern) -> str:
    return (
        f"{pattern.site}{', causal' if pattern.causal else ''}: {pattern.layers} layers of {pattern.heads} heads, "
        f"{pattern.query_length} queries, {pattern.key_length} keys"
    )


def _facts(pattern: AttentionPattern) -> str:
    known = [f"{name} {value}" for name, value in pattern.metadata.items() if value is not None]
    return "; ".join(known) or "The file says nothing of its data."


def _said(shown: Shown) -> str:
    """What is shown of a pattern, and of what the mask therefore is."""
    own, pool = shown.pattern.pool, shown.pool
    blocks = "every cell" if pool == 1 else f"the means of blocks of {pool} x {pool} cells"
    if shown.exact:
        same = "" if pool == 1 else ", as in the file: whole blocks are pruned"
        return f"Shown: {blocks}, exactly{same}. A mask by tau is the one the library makes."
    pooled = "" if pool == own else f"; the file has {'cells' if own == 1 else f'blocks of {own} x {own}'}"
    return (
        f"Shown: {blocks}, in 16 bits (to {PRECISION:.1%} of each average){pooled}. A mask by tau is made of what is "
        "shown, by the library's rule: that of the file may differ."
    )


def _header(shown: Shown, mask: PruneMask | None) -> dict[str, object]:
    """What rule.js and view.js need to know beside the packed numbers."""
    pattern = shown.pattern
    names = {"causal": "causal", "layers": "layers", "heads": "heads", "queries": "query_length", "keys": "key_length"}
    sizes = [size for size in KERNEL_BLOCKS if size % shown.pool == 0] or [shown.pool]
    header = {name: getattr(pattern, attribute) for name, attribute in names.items()}
    header |= {"pool": shown.pool, "exact": shown.exact, "blockSizes": sizes, "mask": None}
    if mask is not None:
        header["mask"] = {name: getattr(mask, name) for name in _MASK_FACTS} | {
            "crop": mask.recipe.crop is not False,
            "layers": mask.layer_sparsity,
            "effective": mask.effective_sparsity,
            "blocks": [mask.block_sparsity(size) for size in sizes],
        }
    return header

"""The ``attention-pruning`` command: inspect, overlap, mask, convert, plot, explore, calibrate."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

from torch import Tensor

from ..distance_mask import DistanceMask
from ..errors import InputError
from ..files.load import load_any, load_pattern
from ..files.published import LAYOUTS, write_published
from ..make import by_distance, distance_like, from_pattern, random_like, shuffled_heads_like, window_like
from ..mask import PruneMask
from ..recipe import ROW_FLOORS, RULES, SCOPES, UNOBSERVED, MaskRecipe
from ..structure import SITES
from . import calibrate, explore
from .describe import as_text, describe, describe_overlap

#: The flags of ``mask`` that a MaskRecipe has by the same names.
#: Flags that ask for a control, each with the mask that it is like.
_LIKE = ("--random-like", "--shuffled-heads-like", "--window-like", "--distance-like")
_RECIPE_FLAGS = ("tau", "rule", "scope", "block_size", "row_floor", "unobserved", "crop")


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 for bad input, which is named in one line on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="attention-pruning",
        description="Look at average attention patterns and prune masks, and make them. Files are .safetensors; a "
        "pattern may also be a .npy file in a layout of the published code.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_inspect(commands)
    _add_overlap(commands)
    _add_mask(commands)
    _add_convert(commands)
    _add_plot(commands)
    _add_npy_flags(explore.add_command(commands))
    calibrate.add_command(commands)
    return parser


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "inspect",
        help="describe a file: what it is, how sparse, and its origin",
        description="Say what a pattern or mask file is, how sparse it is, and what it was made from.",
    )
    command.add_argument("file", metavar="FILE", help="a pattern or a mask")
    command.add_argument("--json", action="store_true", help="print JSON (default: text)")
    _add_npy_flags(command)
    command.set_defaults(run=_inspect)


def _add_overlap(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "overlap",
        help="compare what two masks prune",
        description="Say how much of what two masks prune is the same, by layer and head: the cells that both prune "
        "over the cells that either prunes.",
    )
    command.add_argument("file", metavar="MASK", help="a mask")
    command.add_argument("other", metavar="OTHER", help="a mask of the same attention")
    command.add_argument("--json", action="store_true", help="print JSON (default: text)")
    command.set_defaults(run=_overlap)


def _add_mask(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "mask",
        help="make a prune mask from a pattern, or a control that prunes as much as another mask",
        description="Make a prune mask: from PATTERN and --tau, by cells or by distance for sequences of any length "
        "(--by-distance), or of as many cells as another mask prunes, at random (--random-like), outside a diagonal "
        "band (--window-like), at the distances that PATTERN attends to least (--distance-like), or on other heads "
        "(--shuffled-heads-like).",
    )
    command.add_argument("pattern", metavar="PATTERN", nargs="?", help="the pattern to prune by (default: none)")
    command.add_argument(
        "--by-distance",
        action="store_true",
        default=None,
        help="prune the distances (query minus key) that each head attends to least, for any length (default: cells)",
    )
    command.add_argument(
        "--sinks",
        type=int,
        help="first positions that all queries keep (default: 4 with --by-distance, none with --window-like and "
        "--distance-like)",
    )
    command.add_argument("--random-like", metavar="MASK", help="prune as MASK does, at random (default: none)")
    command.add_argument(
        "--shuffled-heads-like", metavar="MASK", help="prune as MASK does, on other heads of its layer (default: none)"
    )
    command.add_argument("--window-like", metavar="MASK", help="prune as MASK does, far cells first (default: none)")
    command.add_argument(
        "--distance-like", metavar="MASK", help="prune as MASK does, by distance alone; needs PATTERN (default: none)"
    )
    command.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="the .safetensors file to write (required)"
    )
    command.add_argument("--tau", help="share to prune, a fraction such as 0.9 (required with PATTERN alone)")
    command.add_argument("--rule", choices=RULES, help="how tau becomes a mask (default: published)")
    command.add_argument(
        "--scope",
        choices=SCOPES,
        help="cells that are ranked together (default: those of a layer)",
    )
    command.add_argument("--block-size", type=int, help="prune whole blocks of this side (default: the pattern's pool)")
    command.add_argument("--row-floor", choices=ROW_FLOORS, help="whether a row keeps a cell (default: keep-best)")
    command.add_argument("--unobserved", choices=UNOBSERVED, help="treatment of unobserved cells (default: keep)")
    command.add_argument(
        "--crop",
        action=argparse.BooleanOptionalAction,
        help="rule published: take the percentile within what was observed, or, as published for Transformer-XL, of "
        "the whole array (default: --crop)",
    )
    command.add_argument(
        "--seed", type=int, help="seed of the draw (required with --random-like and --shuffled-heads-like)"
    )
    command.add_argument(
        "--equal-use",
        metavar="PATTERN",
        help="with a mask that others are made like: prune as much of the attention that PATTERN observed as MASK does "
        "(default: as many cells)",
    )
    _add_npy_flags(command)
    command.set_defaults(run=_mask)


def _add_convert(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "convert",
        help="turn a published .npy pattern into .safetensors, or back",
        description="Turn a published .npy pattern into a .safetensors pattern, or back. A .npy holds no "
        "observation counts, site or history.",
    )
    command.add_argument("input", metavar="IN", help="the pattern to read, .npy or .safetensors")
    command.add_argument("output", metavar="OUT", help="the pattern to write, .safetensors or .npy")
    _add_npy_flags(command)
    command.set_defaults(run=_convert)


def _add_plot(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "plot",
        help="draw heat maps, layers by heads",
        description="Draw a pattern or a mask: one panel for each layer (down) and head (across); in it queries "
        "down, keys across.",
    )
    command.add_argument("file", metavar="FILE", help="a pattern or a mask")
    command.add_argument("-o", "--output", metavar="PNG", required=True, help="the picture to write (required)")
    command.add_argument(
        "--log",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw a pattern on a logarithmic colour scale (default: --log)",
    )
    _add_npy_flags(command)
    command.set_defaults(run=_plot)


def _add_npy_flags(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what a .npy file does not say (other files: checked)")
    group.add_argument("--site", choices=SITES, help="where the attention happens (default: what the file says)")
    group.add_argument(
        "--causal",
        action=argparse.BooleanOptionalAction,
        help="whether queries see no later keys (default: what the file says; for .npy only dec-self)",
    )
    group.add_argument("--layout", choices=tuple(LAYOUTS), help="axes of the .npy (default: inferred from its shape)")


def _file_flags(arguments: argparse.Namespace) -> dict[str, object]:
    return {"site": arguments.site, "causal": arguments.causal, "layout": arguments.layout}


def _inspect(arguments: argparse.Namespace) -> None:
    facts = describe(load_any(arguments.file, **_file_flags(arguments)))
    print(json.dumps(facts, indent=2) if arguments.json else as_text(facts))


def _overlap(arguments: argparse.Namespace) -> None:
    facts = describe_overlap(PruneMask.load(arguments.file), PruneMask.load(arguments.other))
    print(json.dumps(facts, indent=2) if arguments.json else as_text(facts))


def _mask(arguments: argparse.Namespace) -> None:
    like = {flag: getattr(arguments, flag.removeprefix("--").replace("-", "_")) for flag in _LIKE}
    sources = {"PATTERN": arguments.pattern, **like}
    given = [name for name, value in sources.items() if value is not None]
    if given != ["PATTERN", "--distance-like"] and len(given) != 1:
        raise InputError(f"mask: expected one of {', '.join(sources)}, found {' and '.join(given) or 'none'}")
    output = Path(arguments.output)
    if output.exists() and any(output.samefile(sources[name]) for name in given if Path(sources[name]).exists()):
        raise InputError(f"{output}: expected another file to write than the one to read, found the same")
    if given == ["PATTERN"]:
        mask = _by_distance(arguments) if arguments.by_distance else _mask_of_pattern(arguments)
    else:
        mask = _mask_like(arguments, given[-1], like[given[-1]])
    mask.save(arguments.output)
    what = f"{mask.empty_rows} empty rows" if isinstance(mask, PruneMask) else f"span {mask.span}, sinks {mask.sinks}"
    print(
        f"{arguments.output}: {mask.kind} mask, tau {mask.tau:g}, effective sparsity {mask.effective_sparsity:.4f}, "
        f"{what}"
    )


def _mask_like(arguments: argparse.Namespace, kind: str, path: str) -> PruneMask:
    """A control; ``kind`` is the flag that asks for it, with the ``path`` of the mask that it is like."""
    drawn = kind in ("--random-like", "--shuffled-heads-like")
    refused = [*_RECIPE_FLAGS, "by_distance", "sinks" if drawn else "seed"]
    refused += [] if kind == "--distance-like" else ["site", "causal", "layout"]
    refused += ["equal_use"] if kind == "--shuffled-heads-like" else []
    _refuse_flags(arguments, tuple(refused), kind)
    if drawn and arguments.seed is None:
        raise InputError(f"mask: expected --seed with {kind}, found none")
    if kind == "--distance-like" and arguments.pattern is None:
        raise InputError("mask: expected PATTERN with --distance-like, found none")
    mask, use = PruneMask.load(path), _use(arguments)
    if kind == "--shuffled-heads-like":
        return shuffled_heads_like(mask, arguments.seed)
    if kind == "--random-like":
        return random_like(mask, arguments.seed, use)
    sinks = arguments.sinks or 0
    if kind == "--window-like":
        return window_like(mask, use, sinks=sinks)
    return distance_like(mask, load_pattern(arguments.pattern, **_file_flags(arguments)), use, sinks=sinks)


def _refuse_flags(arguments: argparse.Namespace, names: tuple[str, ...], source: str) -> None:
    found = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is not None]
    if found:
        raise InputError(f"mask: expected no {', '.join(found)} with {source}, found it")


def _use(arguments: argparse.Namespace) -> Tensor | None:
    return None if arguments.equal_use is None else load_pattern(arguments.equal_use).count


def _mask_of_pattern(arguments: argparse.Namespace) -> PruneMask:
    _refuse_flags(arguments, ("seed", "equal_use", "sinks"), "PATTERN")
    if arguments.tau is None:
        raise InputError("mask: expected --tau with PATTERN, found none")
    pattern = load_pattern(arguments.pattern, **_file_flags(arguments))
    return from_pattern(pattern, _recipe(arguments).closed(block_size=pattern.pool))


def _by_distance(arguments: argparse.Namespace) -> DistanceMask:
    refused = ("seed", "equal_use", "rule", "row_floor", "unobserved", "crop")
    _refuse_flags(arguments, refused, "--by-distance")
    if arguments.tau is None:
        raise InputError("mask: expected --tau with PATTERN, found none")
    asked = {name: getattr(arguments, name) for name in ("sinks", "scope", "block_size")}
    pattern = load_pattern(arguments.pattern, **_file_flags(arguments))
    return by_distance(pattern, arguments.tau, **{name: value for name, value in asked.items() if value is not None})


def _recipe(arguments: argparse.Namespace) -> MaskRecipe:
    return MaskRecipe(**{name: getattr(arguments, name) for name in _RECIPE_FLAGS})


def _convert(arguments: argparse.Namespace) -> None:
    endings = (Path(arguments.input).suffix, Path(arguments.output).suffix)
    if endings == (".npy", ".safetensors"):
        load_pattern(arguments.input, **_file_flags(arguments)).save(arguments.output)
    elif endings == (".safetensors", ".npy"):
        if arguments.layout is None:
            raise InputError(f"{arguments.output}: expected --layout, one of {', '.join(LAYOUTS)}, found none")
        pattern = load_pattern(arguments.input, site=arguments.site, causal=arguments.causal)
        write_published(pattern, arguments.output, arguments.layout)
    else:
        raise InputError(f"convert: expected .npy to .safetensors or back, found {' to '.join(map(repr, endings))}")


def _plot(arguments: argparse.Namespace) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plot: expected matplotlib, pip install 'attention-pruning[plot]', found it is not installed")
    from .plot import plot  # matplotlib is slow to import and needed only here

    thing = load_any(arguments.file, **_file_flags(arguments))
    if isinstance(thing, DistanceMask):  # of any length: as long as what it was learned from, or a span and a half
        thing = thing.at(thing.observed or thing.sinks + thing.span + thing.span // 2)
    plot(thing, arguments.output, log=arguments.log)

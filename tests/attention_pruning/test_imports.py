"""Who imports whom within the library, read from its sources; imports inside functions and for types count, too."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import attention_pruning

LIBRARY = Path(attention_pruning.__file__).parent
ROOT = LIBRARY.parent
#: The one module that may import anything, and that nothing but the package itself imports.
DEPRECATED = "attention_pruning.deprecated"


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(LIBRARY.rglob("*.py"))}


def imported(module: str, files: dict[str, Path]) -> Iterator[str]:
    """Every module that one imports, by its full name: those of the library, and what else it names."""
    package = module if files[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(files[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, node.module] if node.module else parents)
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in files else base for name in submodules)


def graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the library's modules that it imports."""
    return {module: {name for name in imported(module, files) if name in files} for module in files}


GRAPH = graph(FILES)


def reached(module: str) -> set[str]:
    """A module with all of the library that comes along when it is imported, but for the packages around it."""
    found, open_ends = set(), [module]
    while open_ends:
        name = open_ends.pop()
        if name not in found:
            found.add(name)
            open_ends += GRAPH[name]
    return found


def within(module: str, *packages: str) -> bool:
    return any(
        module == f"attention_pruning.{name}" or module.startswith(f"attention_pruning.{name}.") for name in packages
    )


def circle(links: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(links).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_the_graph_is_that_of_the_sources():
    assert len(FILES) > 20 and sum(map(len, GRAPH.values())) > 50
    assert "attention_pruning.files.tensors" in GRAPH["attention_pruning.mask"]
    assert "attention_pruning.make" in GRAPH["attention_pruning"]  # from . import make
    assert "attention_pruning.ops" in GRAPH["attention_pruning"]  # from .ops import BlockLayout
    assert "attention_pruning.huggingface" in GRAPH[DEPRECATED]  # within a function


def test_imports_run_in_no_circle():
    assert circle(GRAPH) == []


def test_a_circle_would_be_seen(tmp_path):
    sources = {
        "p": "from . import a\n",
        "p.a": "from .q.b import thing\n",
        "p.q": "",
        "p.q.b": "def f():\n    from ..a import other\n",
    }
    files = {}
    for name, text in sources.items():
        folder = tmp_path.joinpath(*name.split("."))
        files[name] = folder / "__init__.py" if name in ("p", "p.q") else folder.with_suffix(".py")
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].write_text(text)
    assert graph(files) == {"p": {"p.a"}, "p.a": {"p.q.b"}, "p.q": set(), "p.q.b": {"p.a"}}
    assert set(circle(graph(files))) == {"p.a", "p.q.b"}


@pytest.mark.parametrize("module", sorted(FILES))
def test_only_huggingface_knows_transformers_and_nothing_knows_the_experiments(module):
    others = {name.partition(".")[0] for name in imported(module, FILES) if name not in FILES}
    others -= sys.stdlib_module_names
    allowed = {"torch", "numpy", "safetensors", "entmax", "matplotlib", "tqdm", "triton"}
    assert others <= allowed | ({"transformers"} if within(module, "huggingface") else set())


@pytest.mark.parametrize("module", sorted(set(FILES) - {"attention_pruning", DEPRECATED}))
def test_no_module_needs_the_package_or_old_names(module):
    assert not {"attention_pruning", DEPRECATED} & GRAPH[module]
    if not (within(module, "huggingface") or within(module, "cli")):
        assert not [name for name in GRAPH[module] if within(name, "huggingface")]


def test_a_mask_knows_neither_how_it_was_made_nor_what_transformers_is():
    for module in ("mask", "pattern", "recipe", "sparsity", "accumulate", "files.tensors"):
        found = reached(f"attention_pruning.{module}")
        assert not [name for name in found if within(name, "make", "files.load", "huggingface", "cli")], module


@pytest.mark.parametrize("module", [module for module in sorted(FILES) if within(module, "ops")])
def test_operators_know_no_masks(module):
    rooms = ("pattern", "accumulate", "mask", "recipe", "sparsity", "make", "files", "huggingface", "cli")
    assert not [name for name in reached(module) if within(name, *rooms)]


@pytest.mark.parametrize("module", [module for module in sorted(FILES) if within(module, "make", "files")])
def test_the_library_does_not_know_its_command(module):
    assert not [name for name in reached(module) if within(name, "cli")]

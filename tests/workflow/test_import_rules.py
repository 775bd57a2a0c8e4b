"""Who may import whom: the library knows nothing of the experiments, and the experiments nothing of the subprojects."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY, EXPERIMENTS = "attention_pruning", "reproduction"
#: Folders of scripts that import one another by their bare names. Others join as they come.
SUBPROJECTS = [name for name in ("transformer-xl", "fairseq", "bert/src") if (ROOT / name).is_dir()]
#: The rooms of the experiments, and the others that each may import.
ROOMS = {
    "runs": set(),
    "data": {"runs"},
    "scores": {"runs", "data"},
    "analysis": {"runs"},
    "documents": {"runs", "analysis"},
}
#: What the library may import whenever it is imported; tests/attention_pruning/test_imports.py has all of its imports.
ALWAYS = {"torch", "numpy", "safetensors"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """First parts of the names of imported modules, with the line; relative imports stay within and are left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name.partition(".")[0], node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0], node.lineno


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def modules(folder: str) -> set[str]:
    return {file.relative_to(ROOT / folder).with_suffix("").parts[0] for file in sources(folder)}


def reached_from(file: Path) -> set[Path]:
    """Modules of the library that importing one of them imports too."""
    reached, open_ends = set(), [file]
    while open_ends:
        module = open_ends.pop()
        if module in reached:
            continue
        reached.add(module)
        for node in parsed(module).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                place = module.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                files = [place.with_suffix(".py"), *(place / f"{name.name}.py" for name in node.names)]
                files += [place / "__init__.py", *(place / name.name / "__init__.py" for name in node.names)]
                open_ends += [file for file in files if file.exists()]
    return reached


def test_importing_the_library_needs_only_torch_numpy_and_safetensors() -> None:
    reached = reached_from(ROOT / LIBRARY / "__init__.py")
    assert ROOT / LIBRARY / "files" / "tensors.py" in reached and ROOT / LIBRARY / "make" / "rules.py" in reached
    for file in reached:
        at_once = ast.Module([node for node in parsed(file).body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        strange = {name for name, _ in imports(at_once)} - ALWAYS - {LIBRARY} - sys.stdlib_module_names
        assert strange == set(), file


def test_the_experiments_import_no_subproject() -> None:
    assert sources(EXPERIMENTS)
    scripts = set().union(*map(modules, SUBPROJECTS)) - modules(EXPERIMENTS)
    for file in sources(EXPERIMENTS):
        assert {name for name, _ in imports(parsed(file))} & scripts == set(), file


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_the_experiments_imports_no_later_one(room: str) -> None:
    assert sources(f"{EXPERIMENTS}/{room}")
    for file in sources(f"{EXPERIMENTS}/{room}"):
        nodes = [node for node in ast.walk(parsed(file)) if isinstance(node, ast.ImportFrom)]
        assert not [node for node in nodes if node.level or node.module == EXPERIMENTS], file
        rooms = {node.module.split(".")[1] for node in nodes if node.module.startswith(f"{EXPERIMENTS}.")}
        assert rooms <= {room} | ROOMS[room], file


@pytest.mark.parametrize("subproject", SUBPROJECTS)
def test_subprojects_do_not_import_one_another(subproject: str) -> None:
    own = modules(subproject)
    others = set().union(*(modules(name) for name in SUBPROJECTS if name != subproject)) - own
    # PyPI's fairseq is a package of its own, whatever the folder here is called.
    assert not (ROOT / subproject / "__init__.py").exists()
    for file in sources(subproject):
        assert {name for name, _ in imports(parsed(file))} & others == set(), file


def test_rules_call_scripts_and_import_nothing_of_this_repository() -> None:
    files = [ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))]
    assert len(files) > 3
    allowed = sys.stdlib_module_names | {"snakemake", "jsonschema", "yaml"}
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            words = line.split()
            if words and words[0] in ("import", "from"):
                package = words[1].partition(".")[0]
                assert package in allowed, f"{file.name}:{number}: {line.strip()}"


@pytest.mark.parametrize("folder", [LIBRARY, EXPERIMENTS, *SUBPROJECTS, "rules"])
def test_every_module_says_what_it_is_about(folder: str) -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert vague & {file.stem for file in (ROOT / folder).rglob("*")} == set()

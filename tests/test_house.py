"""The house itself: how modules of the package and of the tests hang together, and how long they are."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers import ROOT

LINES = 400
LINES_OF_CONTRACT = 250

LOWEST = frozenset({"streams", "backbones", "data", "models", "contract"})
MAY_IMPORT: dict[str, frozenset[str]] = {
    "data": frozenset(),
    "streams": frozenset({"data"}),
    "backbones": frozenset(),
    "models": frozenset(),
    "contract": frozenset({"models", "data"}),
    "store": frozenset(),
    "training": LOWEST,
    # A table of a paper names the suite whose runs would fill its empty cells.
    "reporting": LOWEST | {"store", "running"},
    "running": LOWEST | {"training", "store"},
    "studies": LOWEST | {"training", "store", "running"},
    "cli": LOWEST | {"training", "store", "running", "studies", "reporting"},
    # The Python API; the package itself shows its names, and those that method files need.
    "api": LOWEST | {"store", "running", "reporting"},
    "__init__": LOWEST | {"api", "running"},
    "__main__": frozenset({"cli"}),
}
"""Rooms that a room may import, besides itself and the modules beside the rooms."""

METHODS_MAY_IMPORT = frozenset({"contract", "models", "data", "experiment", "errors"})
"""The whole world of a method, and of a user's own method file: errors are its sentences about options."""

BESIDE = frozenset(path.stem for path in (ROOT / "cl_bench").glob("*.py")) - {"__main__", "__init__", "api"} | {
    "options"
}
"""Modules beside the rooms: all rooms may import them, and they import no room."""


def allowed(name: str) -> frozenset[str]:
    """What a room, or a module beside the rooms, may import."""
    return METHODS_MAY_IMPORT if name == "methods" else MAY_IMPORT.get(name, frozenset()) | BESIDE


def name_of(path: Path) -> str:
    """A module's name; of a package's face, the package's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """What a file imports, wherever in it; `from a import b` is `a.b`, a module or a name in `a`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                folders = path.relative_to(ROOT).with_suffix("").parts
                package = ".".join((*folders[: -node.level], *filter(None, [node.module])))
            names.update(f"{package}.{alias.name}" for alias in node.names)
    return names


@cache
def house() -> dict[str, Path]:
    """All modules of the package by name; methods have theirs from their folder in the repository."""
    # cl_bench/methods is a link to it, which git may have made a file.
    paths = [path for path in (ROOT / "cl_bench").rglob("*.py") if "methods" not in path.relative_to(ROOT).parts]
    return {name_of(path): path for path in sorted([*paths, *(ROOT / "methods").glob("*.py")])}


@cache
def imports() -> dict[str, set[str]]:
    """Which modules of the house every module imports."""

    def module(name: str) -> str | None:
        if name.startswith("cl_bench.methods"):
            name = name.removeprefix("cl_bench.")
        # The version is no part of the API, which nothing in the house uses.
        if name == "cl_bench.__version__":
            return None
        return name if name in house() else module(name.rpartition(".")[0]) if "." in name else None

    return {
        name: {target for found in imported(path) if (target := module(found))} - {name}
        for name, path in house().items()
    }


def room(name: str) -> str:
    """The folder in which a module lies; of one beside the rooms, its own name."""
    first, _, rest = name.partition(".")
    return first if first == "methods" else rest.partition(".")[0] or "__init__"


def test_every_room_has_a_place() -> None:
    """A new room needs a line in the table above."""
    assert {room(name) for name in house()} == {*MAY_IMPORT, *BESIDE, "methods"}
    assert "cl_bench.models.lora" in imports()["methods.sdlora"]


def test_no_module_is_too_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in house().items()}
    assert {name: length for name, length in lengths.items() if length > LINES} == {}


def test_the_contract_is_read_in_parts() -> None:
    """Whoever writes a method reads these files."""
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines())
        for name, path in house().items()
        if room(name) == "contract"
    }
    assert len(lengths) > 5 and {name: length for name, length in lengths.items() if length >= LINES_OF_CONTRACT} == {}


def test_no_import_goes_in_a_circle() -> None:
    """Also not inside functions or under TYPE_CHECKING: modules that need each other are one module or three."""
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as circle:
        pytest.fail(" -> ".join(reversed(circle.args[1])))


def test_imports_run_one_way() -> None:
    assert [
        f"{name} -> {target}"
        for name, targets in imports().items()
        for target in sorted(targets)
        if room(target) not in {room(name), *allowed(room(name))}
    ] == []


def test_no_test_module_imports_another() -> None:
    """What several tests need is in tests/helpers: a test can then be moved, split or deleted alone."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    tests = {name_of(path) for path in paths if path.name.startswith("test_")} | {"tests.conftest"}
    assert len(tests) > 40
    wrong = [
        f"{name_of(path)} -> {name}"
        for path in paths
        for name in sorted(imported(path))
        if not tests.isdisjoint({name, name.rpartition(".")[0]})
    ]
    assert wrong == []

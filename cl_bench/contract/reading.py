"""Facts about methods, read from source: importing all methods, with torch and timm, takes seconds."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import cl_bench.methods
from cl_bench._aliases import MOVED
from cl_bench.contract.facts import FACTS, MethodFacts
from cl_bench.contract.sources import check_entry_point

_BASE = ("cl_bench.contract.method", "Method")


_DEFAULTS = "defaults"


def of_file(path: Path) -> MethodFacts | None:
    """Facts of a user's method file; None if its source does not show them."""
    # A file may have been changed since it was read for an earlier command of this process.
    _parsed.cache_clear()
    return _only_method(path, None, path.stem) if path.stem.isidentifier() else None


def of_installed(name: str, points: EntryPoints) -> MethodFacts | None:
    """Facts of one installed method; None if its source does not show them.

    Args:
        points: entry points of the group `sources.ENTRY_POINTS`.

    Raises:
        UserError: an entry point has the name of a shipped method.
    """
    found = {point.name: point for point in points}
    return _of_entry_point(found[name]) if name in found else _of_shipped(name)


def _of_shipped(name: str) -> MethodFacts | None:
    module = f"cl_bench.methods.{name.replace('-', '_')}"
    path = _path(module)
    return _only_method(path, module, name) if path else None


def _of_entry_point(point: EntryPoint) -> MethodFacts | None:
    check_entry_point(point)
    path = _path(point.module)
    return _facts_of(path, point.module, point.attr, point.name) if path else None


def _only_method(path: Path, module: str | None, name: str) -> MethodFacts | None:
    tree = _parsed(path)
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)] if tree else []
    found = [facts for each in classes if (facts := _facts_of(path, module, each, name))]
    return found[0] if len(found) == 1 else None


def _facts_of(path: Path, module: str | None, cls: str, name: str) -> MethodFacts | None:
    """Facts of a class; None if it is not a method, or if only an import can show its facts."""
    tree = _parsed(path)
    values = _values(path, module, cls) if tree and _imports_exist(tree) else None
    if values is None or not set(FACTS) <= set(values):
        return None
    return MethodFacts(name, *(values[fact] for fact in (*FACTS, _DEFAULTS)))  # type: ignore[arg-type]


def _values(path: Path, module: str | None, name: str) -> dict[str, object] | None:
    """Literals that a class and its bases assign to `FACTS`; None if the class does not descend from `Method`."""
    tree = _parsed(path)
    for node in _statements(tree) if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            inherited: dict[str, object] | None = {}
            if (module, name) != _BASE:
                inherited = _inherited(path, module, node.bases)
            own = _literals(node)
            return None if inherited is None or own is None else joined(inherited, own)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    found = (
                        _values(where, source, alias.name)
                        for source in _sources(node, module)
                        if (where := _path(source))
                    )
                    return next((values for values in found if values is not None), None)
    return None


def _inherited(path: Path, module: str | None, bases: Sequence[ast.expr]) -> dict[str, object] | None:
    """Literals of several bases, of which the first wins; None if a base does not descend from `Method`."""
    found: dict[str, object] = {}
    for base in reversed(bases):
        values = _values(path, module, base.id) if isinstance(base, ast.Name) else None
        if values is None:
            return None
        found = joined(found, values)
    return found or None


def joined(inherited: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A class's values over those of its base; what is a mapping is completed, not replaced."""
    mappings = {name: {**inherited.get(name, {}), **value} for name, value in own.items() if isinstance(value, dict)}
    return inherited | own | mappings


def _sources(node: ast.ImportFrom, module: str | None) -> list[str]:
    """Modules that an import statement may refer to, restricted to those that can define a method's base class.

    An import path of version 0.1.0 refers to several modules.
    """
    if node.level:
        if module is None:
            return []
        return [".".join([*module.split(".")[: -node.level], *([node.module] if node.module else [])])]
    source = node.module or ""
    if module is not None and source.partition(".")[0] == module.partition(".")[0] != "cl_bench":
        return [source]
    moved = MOVED.get(source.removeprefix("cl_bench.")) if source.startswith("cl_bench.") else None
    sources = [f"cl_bench.{path}" for path in moved] if moved else [source]
    known = ("cl_bench.contract.", "cl_bench.methods.")
    return [source for source in sources if source == "cl_bench" or source.startswith(known)]


def _statements(tree: ast.Module) -> list[ast.stmt]:
    """Statements of a module, with those under `if`: `cl_bench` imports its names under `if TYPE_CHECKING`."""
    return [inner for node in tree.body for inner in (node.body if isinstance(node, ast.If) else [node])]


def _literals(node: ast.ClassDef) -> dict[str, object] | None:
    """Facts and field defaults that a class body assigns as literals; None if one of the facts is computed."""
    defaults: dict[str, object] = {}
    found: dict[str, object] = {_DEFAULTS: defaults}
    for line in node.body:
        if not isinstance(line, (ast.Assign, ast.AnnAssign)) or line.value is None:
            continue
        for target in line.targets if isinstance(line, ast.Assign) else [line.target]:
            if isinstance(target, ast.Name) and target.id in FACTS:
                try:
                    found[target.id] = ast.literal_eval(line.value)
                except (ValueError, TypeError):
                    return None
            elif isinstance(target, ast.Name) and _is_field(line):
                with suppress(ValueError, TypeError):
                    defaults[target.id] = None
                    defaults[target.id] = ast.literal_eval(line.value)
    return found


def _is_field(line: ast.Assign | ast.AnnAssign) -> bool:
    """Whether a line of a class body defines a hyper-parameter."""
    return isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation)


def _imports_exist(tree: ast.Module) -> bool:
    """Whether the packages that a file imports at its top are installed."""
    tops = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    tops |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level}
    return all(_exists(name.partition(".")[0]) for name in tops)


@cache
def _exists(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


@cache
def _path(module: str) -> Path | None:
    """File of a module, found without executing any package but `cl_bench.methods`, which is empty."""
    where: list[str] | None = None
    parts = module.split(".")
    for number in range(1, len(parts) + 1):
        name = ".".join(parts[:number])
        if name == cl_bench.methods.__name__:
            where = list(cl_bench.methods.__path__)
            continue
        spec = PathFinder.find_spec(name, where)
        if spec is None:
            return None
        where = list(spec.submodule_search_locations or ())
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None

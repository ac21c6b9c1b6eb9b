"""The house itself: how modules of the package and of the tests hang together."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.helpers import ROOT


def imported(path: Path) -> set[str]:
    """Names of all modules that a file imports, wherever in it; `from a import b` counts as both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                folders = path.relative_to(ROOT).with_suffix("").parts
                package = ".".join((*folders[: -node.level], *filter(None, [node.module])))
            names.add(package)
            names.update(f"{package}.{alias.name}" for alias in node.names)
    return names


def test_no_test_module_imports_another() -> None:
    """What several tests need is in tests/helpers: a test can then be moved, split or deleted alone."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    tests = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.name.startswith("test_")}
    assert len(tests) > 40
    found = {str(path.relative_to(ROOT)): sorted(imported(path) & (tests | {"tests.conftest"})) for path in paths}
    assert {path: names for path, names in found.items() if names} == {}

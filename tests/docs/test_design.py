"""docs/design.md: its map of packages is the tree, and its rows import as the page says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.helpers import ROOT

TEXT = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "cl_bench"
SHOWN_ELSEWHERE = {"__init__", "__main__", "methods"}
"""Modules beside the packages that the map leaves out: the public names, `python -m`, the link to methods/."""


def rows() -> list[list[str]]:
    """The names in the first cells of the map, in order."""
    table = TEXT.split("\n## Package map\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    return [re.findall(r"`([\w/]+)`", cell) for cell in cells]


def names() -> list[str]:
    return [name for row in rows() for name in row]


def test_every_package_and_module_is_on_the_map() -> None:
    packages = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")} | {"assets/", "methods/"}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - SHOWN_ELSEWHERE
    assert sorted(names()) == sorted(packages | modules)


def imported(path: Path) -> set[str]:
    """The packages and modules directly below `cl_bench` that a file imports, under their names on the map."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        else:
            continue
        parts = [name.split(".") for name in full]
        found |= {name[1] for name in parts if name[0] == "cl_bench" and len(name) > 1}
    return {name if (PACKAGE / f"{name}.py").exists() else f"{name}/" for name in found} & set(names())


def test_a_row_imports_only_from_rows_above_it() -> None:
    level = {name: number for number, row in enumerate(rows()) for name in row}
    wrong, seen = [], 0
    for name, own in level.items():
        folder = ROOT / name if name == "methods/" else PACKAGE / name
        for path in sorted(folder.rglob("*.py")) if name.endswith("/") else [PACKAGE / f"{name}.py"]:
            for target in imported(path) - {name}:
                seen += 1
                wrong += [f"{path.relative_to(ROOT)} -> {target}"] if level[target] > own else []
    assert seen > 300 and wrong == []

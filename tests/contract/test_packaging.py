"""Wheel and source distribution: methods lie beside the package in a checkout, and inside it in a wheel."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.helpers import ROOT

pytest.importorskip("hatchling", reason="needs `pip install '.[test]'`")

FILES = {path.name for path in (ROOT / "methods").glob("*.py")}


def built(target: str, folder: Path) -> Path:
    """The distribution of this checkout, in a folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (archive,) = folder.iterdir()
    return archive


def test_the_wheel_runs_from_an_empty_folder(tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(built("wheel", tmp_path / "wheel")) as wheel:
        wheel.extractall(site)
    assert {path.name for path in (site / "cl_bench" / "methods").glob("*.py")} == FILES
    assert not (site / "cl_bench" / "methods.py").exists() and not (site / "methods").exists()

    env = os.environ | {"PYTHONPATH": str(site), "COLUMNS": "200"}
    listed = subprocess.run(
        [sys.executable, "-m", "cl_bench", "ls", "methods"], cwd=empty, env=env, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    names = {line.split()[0] for line in listed.stdout.splitlines() if line.strip()}
    assert names >= {Path(name).stem.replace("_", "-") for name in FILES - {"__init__.py"}}

    where = "import cl_bench.methods.slca as slca; print(slca.__file__, slca.Finetune.__module__)"
    imported = subprocess.run([sys.executable, "-c", where], cwd=empty, env=env, capture_output=True, text=True)
    assert imported.stdout.split() == [str(site / "cl_bench/methods/slca.py"), "cl_bench.methods.finetune"]


def test_the_source_distribution_holds_the_methods_and_the_module_that_finds_them(tmp_path: Path) -> None:
    with tarfile.open(built("sdist", tmp_path)) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert names >= {"cl_bench/methods.py", *(f"methods/{name}" for name in FILES)}
    assert not any(name.startswith("cl_bench/methods/") for name in names)


def test_the_code_holds_no_symbolic_link() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-s", "cl_bench", "methods"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [line for line in tracked.splitlines() if line.startswith("120000")] == []


def normal(name: str) -> str:
    """A distribution's name as all spellings of it compare (PyPA's specification of names)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extras: set[str]) -> set[str]:
    """Distributions that pyproject.toml asks for, with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    listed = [*project["dependencies"], *(requirement for extra in extras for requirement in optional[extra])]
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in listed}  # type: ignore[index]


def imported(*folders: str) -> dict[str, set[str]]:
    """Modules outside the standard library and the package, by the file that imports them, wherever in it."""
    found: dict[str, set[str]] = {}
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for module in {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "cl_bench"}:
                found.setdefault(module, set()).add(str(path.relative_to(ROOT)))
    return found


OF_THE_HOST = {"IPython"}
"""What only code that a notebook runs imports, where it is always there."""


def test_every_import_is_declared() -> None:
    """A library that only comes with another one goes when that one lets it go."""
    known, distributions = declared({"ray", "icons"}), packages_distributions()
    found = imported("cl_bench", "methods")
    assert {"torch", "yaml", "PIL", "ray"} <= found.keys()
    undeclared = {
        module: files
        for module, files in found.items()
        if module not in OF_THE_HOST and known.isdisjoint(map(normal, distributions.get(module, [module])))
    }
    assert undeclared == {}


def test_every_dependency_has_a_version_that_tests_ran_with() -> None:
    pinned = {normal(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert declared({"test", "ray"}) <= pinned

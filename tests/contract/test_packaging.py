"""Wheel and source distribution: methods lie beside the package in a checkout, and inside it in a wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
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

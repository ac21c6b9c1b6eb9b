"""Suites: YAML files with the options of many runs, shipped with the package or written by the user."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from cl_bench.errors import UserError, clipped, naming, unknown_name
from cl_bench.files import parse_yaml, read_text
from cl_bench.options import RunOptions


@dataclass(frozen=True)
class Suite:
    """A named set of runs.

    Attributes:
        title: its purpose, in one line.
        runs: grids of runs; each stands for all combinations of its options.
    """

    title: str
    runs: tuple[RunOptions, ...]


def names() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in _shipped().iterdir() if file.name.endswith(".yaml"))


def find(name: str) -> Suite:
    """The suite of this name in the package, or the suite in this file.

    Raises:
        UserError: no such suite or file, or the file is not a valid suite.
    """
    if name in names():
        return _parse((_shipped() / f"{name}.yaml").read_text(encoding="utf-8"), name)
    path = Path(name)
    if not name.endswith((".yaml", ".yml")) and not _is_there(path):
        raise unknown_name("suite", name, names(), "Or name a YAML file.")
    return _parse(read_text(path, f"--suite file '{path}'"), str(path))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        # Too long for a path, or with characters that no path may have.
        return False


def _shipped() -> Traversable:
    return files("cl_bench") / "assets" / "suites"


def _parse(text: str, where: str) -> Suite:
    document = parse_yaml(text, f"suite '{where}'")
    if not isinstance(document, dict) or not isinstance(document.get("runs"), list) or not document["runs"]:
        raise UserError(f"suite '{where}' has no list 'runs'; expected 'title: ...' and 'runs:' with '- methods: ...'")
    known = ("title", "defaults", "runs")
    for name in document:
        if name not in known:
            raise unknown_name(f"field of suite '{where}'", clipped(name), known)
    title, shared, runs = document.get("title"), document.get("defaults", {}), document["runs"]
    if not isinstance(title, str) or not title.strip():
        raise UserError(f"suite '{where}' has no title; write in a line what it is for, 'title: ...'")
    if not isinstance(shared, dict) or not all(isinstance(run, dict) for run in runs):
        raise UserError(f"suite '{where}': 'defaults' and each of 'runs' must be fields, e.g. 'methods: sdlora'")
    read = []
    for number, run in enumerate(runs, start=1):
        with naming(f"suite '{where}', run {number}"):
            read.append(RunOptions.of(shared | run))
    return Suite(title, tuple(read))

"""Suites: options of many runs in a YAML file, shipped by name or the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from cl_bench.errors import UserError, unknown_name
from cl_bench.options import RunOptions


@dataclass(frozen=True)
class Suite:
    """A named set of runs.

    Attributes:
        title: what it is for, in a line.
        runs: each asks for all combinations of its options.
    """

    title: str
    runs: tuple[RunOptions, ...]


def names() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in _shipped().iterdir() if file.name.endswith(".yaml"))


def find(name: str) -> Suite:
    """A suite that comes with the package, or a file.

    Raises:
        UserError: there is none, or the file is no suite.
    """
    if name in names():
        return _parse((_shipped() / f"{name}.yaml").read_text(encoding="utf-8"), name)
    path = Path(name)
    if not name.endswith((".yaml", ".yml")) and not path.exists():
        raise unknown_name("suite", name, names(), "Or name a YAML file.")
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"--suite file '{path}' cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--suite file '{path}' is no text ({error.reason})") from error


def _shipped() -> Traversable:
    return files("cl_bench") / "assets" / "suites"


def _parse(text: str, where: str) -> Suite:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"suite '{where}' is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not isinstance(document.get("runs"), list) or not document["runs"]:
        raise UserError(f"suite '{where}' has no list 'runs'; expected 'title: ...' and 'runs:' with '- methods: ...'")
    if unknown := next((name for name in document if name not in ("title", "defaults", "runs")), None):
        raise unknown_name(f"field of suite '{where}'", str(unknown), ("title", "defaults", "runs"))
    if not isinstance(document.get("title"), str):
        raise UserError(f"suite '{where}' has no title; write in a line what it is for, 'title: ...'")
    shared, runs = document.get("defaults", {}), document["runs"]
    if not isinstance(shared, dict) or not all(isinstance(run, dict) for run in runs):
        raise UserError(f"suite '{where}': 'defaults' and each of 'runs' must be fields, e.g. 'methods: sdlora'")
    read = []
    for number, run in enumerate(runs, start=1):
        try:
            read.append(RunOptions.of(shared | run))
        except UserError as error:
            raise UserError(f"suite '{where}', run {number}: {error}") from error
    return Suite(document["title"], tuple(read))

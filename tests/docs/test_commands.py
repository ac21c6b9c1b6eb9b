"""Every `cl-bench` command in the pages of the repository is one that the command line takes, with existing names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from cl_bench import backbones, streams
from cl_bench.cli.app import app
from cl_bench.contract import registry
from cl_bench.errors import UserError
from cl_bench.grammar import parse_methods, split_names
from cl_bench.options import ExecutionOptions, RunOptions, options_of
from cl_bench.reporting import plots
from cl_bench.reporting.cells import TABLES
from cl_bench.reporting.confusions import views
from cl_bench.reporting.paper.layouts import figure_layouts, table_names
from cl_bench.reporting.selection import matching
from cl_bench.running import plan, suites
from tests.helpers import pages
from tests.helpers.pages import Command

PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*\d?|.*\.\.\.")
"""What a reader replaces: NAME, KEY, FILE, `sdlora[directions=...]`."""
KEY = re.compile(r"[0-9a-f]{4,16}")
MARK = re.compile(r",(?:fp32|bf16)(?=\])|\[(?:fp32|bf16)\]")
"""A mark of precision in the label of a row, which no option of a method is."""
FIGURES = [*figure_layouts(), *plots.NAMES, *views.NAMES, "ranks"]
METHODS, STREAMS = registry.names(), streams.names()
ICONS = streams.find("icons-100")
ROOT_COMMAND: Any = typer.main.get_command(app)


def fault(command: Command, own: Collection[str] = ()) -> str:
    """Why the command line would refuse a command; empty if it would not.

    Args:
        own: methods of the reader's own, which earlier commands of the page have run.
    """
    try:
        path, given = parsed(command)
        check_names(path, given, own)
    except UserError as error:
        return str(error)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return str(error.format_message())
    return ""


def parsed(command: Command) -> tuple[str, Mapping[str, Any]]:
    """The command's name and the values of its parameters, read by the program's own parser."""
    context = typer.Context(ROOT_COMMAND, info_name="cl-bench")
    words = [word.split("|")[0] if not command.whole and "[" not in word else word for word in command.arguments]
    node, path = ROOT_COMMAND, []
    while hasattr(node, "commands") and words and not words[0].startswith("-"):
        _, node, words = node.resolve_command(context, words)
        path.append(node.name)
        context = typer.Context(node, info_name=node.name, parent=context)
    names_only = not command.whole and not words
    if hasattr(node, "commands") or names_only or "--help" in words:
        return " ".join(path), known_flags(node, words)
    if not command.whole and words[-1].startswith("--") and words[-1] in flags(node):
        # A line of text may name an option without its value.
        words = words[:-1]
    made = node.make_context(node.name, words, parent=context.parent, resilient_parsing=not command.whole and not words)
    return " ".join(path), made.params


def flags(node: Any) -> list[str]:
    return [flag for one in node.params for flag in (*one.opts, *one.secondary_opts)] + ["--help"]


def known_flags(node: Any, words: Iterable[str]) -> Mapping[str, Any]:
    for word in words:
        if word.startswith("-") and word not in flags(node):
            raise UserError(f"no such option: {word}")
    return {}


def check_names(path: str, given: Mapping[str, Any], earlier: Collection[str]) -> None:
    """Values and names in a command, as far as no reader replaces them.

    Raises:
        UserError: an unknown name, or a value that cannot be read.
    """
    values = {
        name: value
        for name, value in given.items()
        if value not in (None, [], (), False) and not any(PLACEHOLDER.fullmatch(str(one)) for one in listed(value))
    }
    own = {*earlier, *(Path(str(file)).stem for file in listed(values.get("method_file")))}
    for cls in (RunOptions, ExecutionOptions):
        cls.read({name: value for name, value in values.items() if name in options_of(cls)})
    for name in ("rows", "highlight"):
        check_patterns(split_names(str(values.get(name, ""))), [*METHODS, *own])
    rows = [*listed(values.get("methods")), *listed(values.get("named")), *listed(values.get("label"))]
    rows += listed(values.get("names")) if path == "audit" else listed(values.get("baseline"))
    for row in rows:
        for spec in parse_methods(MARK.sub("", str(row))):
            if spec.name not in own:
                check_row(str(spec))
    for benchmark in listed(values.get("benchmark")):
        if not str(benchmark).startswith("folder:") and benchmark not in STREAMS:
            raise UserError(f"unknown benchmark '{benchmark}'")
    for backbone in listed(values.get("backbone")):
        backbones.find(str(backbone))
    for suite in listed(values.get("suite")):
        if not str(suite).endswith(".yaml"):
            suites.find(str(suite))
    known = {
        "table": [*TABLES, *table_names()],
        "figure": FIGURES,
        "show": [*METHODS, *STREAMS, *backbones.names(), *own],
        "cite": [*METHODS, *STREAMS, *backbones.names(), "cl-bench", *own],
        "data verify": STREAMS,
        "data prepare": STREAMS,
    }.get(path)
    for name in [*listed(values.get("name")), *listed(values.get("names"))] if known else []:
        if name not in known and not KEY.fullmatch(str(name)) and ":" not in str(name):
            raise UserError(f"unknown name '{name}'")


def check_patterns(patterns: Iterable[str], methods: Collection[str]) -> None:
    """Raise `UserError` for a pattern of rows that matches no method; its options, if any, are not checked."""
    for pattern in patterns:
        if not matching([pattern.partition("[")[0]], methods):
            raise UserError(f"no method matches '{pattern}'")


@cache
def check_row(row: str) -> None:
    """Raise `UserError` for an unknown method or option."""
    (spec,) = parse_methods(row)
    plan.resolve(registry.find(spec.name), ICONS, spec.options)


def listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_commands_are_those_of_the_program(page: Path) -> None:
    own = {Path(word).stem for command in pages.commands(page) for word in command.arguments if word.endswith(".py")}
    found = {str(command): fault(command, own) for command in pages.commands(page)}
    assert {command: why for command, why in found.items() if why} == {}


def test_commands_are_found_in_blocks_and_in_text() -> None:
    found = [command for page in pages.PAGES for command in pages.commands(page)]
    assert sum(command.whole for command in found) > 30 and sum(not command.whole for command in found) > 20
    assert {"README.md", "docs/sweeps.md", "CONTRIBUTING.md"} <= {command.page for command in found}


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("```\ncl-bench rum --methods sdlora\n```", "rum"),
        ("```\ncl-bench run --methods sdlora --sedes 0\n```", "--sedes"),
        ("```\ncl-bench run --methods sdlroa\n```", "sdlroa"),
        ("```\ncl-bench run --methods 'sdlora[ranks=4]'\n```", "ranks"),
        ("```\ncl-bench run --methods sdlora --precision fp64\n```", "fp64"),
        ("```\ncl-bench run --methods sdlora \\\n    --benchmark cifar10\n```", "cifar10"),
        ("```\ncl-bench ls methods && cl-bench table\n```", "name"),
        ("```\ncl-bench figure sdlora-fig99   # a comment\n```", "sdlora-fig99"),
        ("    cl-bench results mrege\n", "mrege"),
        ("Say `cl-bench audti` now.", "audti"),
        ("Say `cl-bench run --sede` now.", "--sede"),
        ("Say `cl-bench run --suite sdlora-table9` now.", "sdlora-table9"),
        ("Say `cl-bench data verify imagenet-q` now.", "imagenet-q"),
    ],
)
def test_wrong_commands_are_named(text: str, fragment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{text}\n")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    faults = [why for command in pages.commands(page) if (why := fault(command))]
    assert len(faults) == 1 and fragment in faults[0]

"""docs/reliability.md: every test that it names is there, and it counts what it lists."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict

import pytest

from tests.helpers import ROOT

TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def functions() -> dict[str, set[str]]:
    """The test functions by the name of their file."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "tests").rglob("test_*.py"):
        found[path.name].update(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.M))
    return found


def named() -> list[tuple[str, str]]:
    """File and test of each mention; `::test` alone means the file named before it in the row."""
    found = []
    for row in re.findall(r"^\|.*$", TEXT, re.M):
        file = ""
        for name, test in re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", row):
            file = name or file
            if test:
                found.append((file, test))
    return found


def test_every_test_that_is_named_is_there(functions: dict[str, set[str]]) -> None:
    mentions = named()
    assert len(mentions) > 150
    assert [f"{file}::{test}" for file, test in mentions if test not in functions[file]] == []


def test_the_kinds_of_faults_are_counted() -> None:
    rows = re.findall(r"^\| (\d+) \| ", TEXT, re.M)
    kinds = sorted(set(map(int, rows)))
    assert kinds == list(range(1, len(kinds) + 1))
    assert f"{len(kinds)} kinds of faults, what holds now in {len(rows)} sentences" in TEXT


def test_the_mistakes_in_the_maths_are_counted() -> None:
    mutants = tomllib.loads((ROOT / "tools" / "mutants" / "mutants.toml").read_text(encoding="utf-8"))["mutant"]
    assert f"{len(mutants)} one-line mistakes (`make mutants`)" in TEXT

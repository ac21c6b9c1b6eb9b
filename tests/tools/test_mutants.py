"""The list of mutants fits the code, and the run tells what survives; the run itself is `make mutants`."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tools.mutants.trials import LIST, Inapplicable, Mutant, main, read

MUTANTS = read(ROOT / LIST)
CODE = "def double(x):\n    return 2 * x\n"
TEST = """
from maths import double

def test_double():
    assert double(3) == 6

def test_nothing():
    double(1)
"""


def fault(mutant: Mutant) -> str:
    """What is wrong with a mutant, in words."""
    try:
        ast.parse(mutant.applied((ROOT / mutant.file).read_text(encoding="utf-8")))
    except (OSError, SyntaxError, Inapplicable) as problem:
        return str(problem)
    for test in mutant.tests:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else ""
        if not text or (name and f"\ndef {name.partition('[')[0]}(" not in text):
            return f"there is no {test}"
    return "" if mutant.tests else "it lists no test"


def test_every_mutant_can_be_made_and_its_tests_are_there() -> None:
    """Whoever changes such a line changes its mutant."""
    assert {mutant.name: problem for mutant in MUTANTS if (problem := fault(mutant))} == {}


def test_no_mutant_comes_twice() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)


def listed(folder: Path, *mutants: tuple[str, str, str, str]) -> Path:
    """A repository with some code, its tests and these mutants: name, old and new text, test."""
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    (folder / "maths.py").write_text(CODE)
    (folder / "test_maths.py").write_text(TEST)
    (folder / LIST).parent.mkdir(parents=True)
    entries = [
        f"[[mutant]]\nname = '{name}'\nfile = 'maths.py'\nold = '{old}'\nnew = '{new}'\n"
        f"tests = ['test_maths.py{test}']\n"
        for name, old, new, test in mutants
    ]
    (folder / LIST).write_text("".join(entries))
    return folder


@pytest.fixture
def no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs none need not wait for them, nor for pytest's plugins."""
    monkeypatch.setattr("tools.mutants.trials.LIBRARIES", ("pytest",))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.mark.usefixtures("no_libraries")
def test_survivors_are_named_and_the_tree_stays_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = listed(
        tmp_path,
        ("triple", "2 * x", "3 * x", ""),
        ("a test that cannot fail", "2 * x", "4 * x", "::test_nothing"),
    )
    assert main(["--jobs", "1"], root) == 1
    out = capfd.readouterr().out
    assert re.search(r"^killed .* triple  \(test_double\)$", out, re.MULTILINE)
    assert "2 mutants: 1 survive, 0 errors\nsurvives: a test that cannot fail\n  maths.py: '4 * x' for '2 * x'" in out
    assert (root / "maths.py").read_text() == CODE
    assert main(["--only", "triple"], root) == 0
    assert capfd.readouterr().out.endswith("1 mutants, all killed\n")


@pytest.mark.usefixtures("no_libraries")
def test_what_cannot_be_tried_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = listed(
        tmp_path,
        ("gone", "2 * y", "3 * y", ""),
        ("often", "x", "y", ""),
        ("no test", "2 * x", "3 * x", "::test_triple"),
        ("no module", "def double", "raise SystemExit(5)\\ndef double", ""),
    )
    assert main(["--jobs", "2"], root) == 2
    errors = [line for line in capfd.readouterr().out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    for name, said in (
        ("gone", "maths.py: the text to be replaced is no longer there: '2 * y'"),
        ("often", "there 2 times"),
        ("no test", "its tests do not run (ERROR: not found: "),
        ("no module", "its tests do not run ("),
    ):
        assert any(line.startswith(f"error: {name}: ") and said in line for line in errors), errors
    assert all(str(LIST) in line for line in errors if "gone" in line or "often" in line)
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "nothing like it"], root)


def test_a_text_that_is_there_twice_is_not_guessed() -> None:
    with pytest.raises(Inapplicable, match="there 2 times"):
        Mutant("", "a.py", "x", "y", ()).applied("x = x")

"""Suites: grids of runs in a file or by name, and what they would do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cl_bench.running import suites
from tests.helpers.command import RUNS, TRIAL, Cli, assert_refused

SUITE = """\
title: two methods, one of them twice
defaults: {benchmark: icons-tune, seeds: [0, 1]}
runs:
  - methods: [simplecil, 'linear[lr=0.1|0.2]']
    set: linear.epochs=1
  - methods: linear
    seeds: 3
    tasks: [4, '20,10,10']
    set: [epochs=1, lr=0.3]
"""


@pytest.mark.parametrize("name", suites.names())
def test_shipped_suites_are_whole(name: str) -> None:
    suite = suites.find(name)
    assert suite.title
    for grid in suite.runs:
        assert grid.seeds == ((0,) if name == "quickstart" else (0, 1, 2, 3, 4))


def test_the_papers_tables_are_there() -> None:
    assert {f"sdlora-table{number}" for number in (2, 3, 4, 5, 6)} <= set(suites.names())
    cells = [cell for grid in suites.find("sdlora-table2").runs for cell in grid.cells()]
    assert {cell.benchmark for cell in cells} == {("imagenet-r",)}
    assert {cell.tasks for cell in cells} == {(5,), (10,), (20,)}
    assert {cell.backbone for cell in cells} == {("vit_base_patch16_224.augreg2_in21k_ft_in1k",)}
    methods = {spec.name for cell in cells for spec in cell.methods}
    assert methods == {"finetune", "l2p", "dualprompt", "coda", "hide", "inflora", "sdlora", "sdlora-rr", "sdlora-kd"}


def test_a_suite_runs_all_its_combinations_once(cl_bench: Cli) -> None:
    Path("mine.yaml").write_text(SUITE)
    for _ in range(2):
        outcome = cl_bench("run", "--suite", "mine.yaml", *TRIAL)
        assert outcome.code == 0, outcome
    assert "0 run(s) computed" in outcome.err and "8 already there" in outcome.err
    found = [json.loads(path.read_text())["experiment"] for path in RUNS.glob("*.json")]
    rows = sorted((run["method"], run["hyperparameters"].get("lr", 0), run["seed"], str(run["tasks"])) for run in found)
    assert rows == sorted(
        [("simplecil", 0, seed, "10") for seed in (0, 1)]
        + [("linear", lr, seed, "10") for lr in (0.1, 0.2) for seed in (0, 1)]
        + [("linear", 0.3, 3, "4"), ("linear", 0.3, 3, "[20, 10, 10]")]
    )


def test_the_command_line_wins_over_the_file(cl_bench: Cli) -> None:
    Path("mine.yaml").write_text(SUITE)
    changes = ["--benchmark", "icons-100", "--seeds", "7", "--tasks", "5"]
    assert cl_bench("run", "--suite", "mine.yaml", *changes, *TRIAL).code == 0
    found = [json.loads(path.read_text())["experiment"] for path in RUNS.glob("*.json")]
    assert {(run["benchmark"], run["seed"], run["tasks"]) for run in found} == {("icons-100", 7, 5)}
    assert len(found) == 4


def test_a_papers_suite_on_the_embedded_stream(cl_bench: Cli) -> None:
    """Recipes, weights and tasks of the paper's benchmark do not go along, the numbers of tasks do."""
    outcome = cl_bench("run", "--suite", "sdlora-table4", "--benchmark", "icons-100", "--seeds", "0", "--dry-run")
    assert outcome.code == 0, outcome
    lines = [line for line in outcome.out.splitlines() if "icons-100" in line]
    assert len(lines) == 8 and all("vit_tiny_patch8_32.icons" in line and "missing" in line for line in lines)
    assert not RUNS.exists()


def test_a_dry_run_tells_what_is_there_and_how_long_the_rest_takes(cl_bench: Cli) -> None:
    command = ["run", "--methods", "sdlora[epochs=1],coda[epochs=1]", *TRIAL]
    assert cl_bench(*command, "--seeds", "0").code == 0
    outcome = cl_bench(*command, "--seeds", "0-1", "--dry-run")
    assert outcome.code == 0, outcome
    states = [line.split()[-2:] for line in outcome.out.splitlines() if line.strip().startswith(("sdlora", "coda"))]
    assert [state for state, _ in states if state == "missing"] == ["missing"] * 2
    assert len([line for line in outcome.out.splitlines() if line.rstrip().endswith("stored")]) == 2
    # Another seed of a stored run: its time is known.
    assert all(float(minutes) >= 0 for state, minutes in states if state == "missing")
    assert "4 run(s): 2 stored, 2 to do" in outcome.out
    unknown = cl_bench("run", "--methods", "linear", "--dry-run")
    assert "no times" in " ".join(unknown.out.split())


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("title: x\nruns: []", ["mine.yaml", "no list 'runs'"]),
        (
            "title: x\nruns:\n  - methods: sdlora\n    seed: 3",
            ["mine.yaml", "run 1", "unknown option 'seed'", "Did you mean 'seeds'"],
        ),
        ("title: x\nruns:\n  - benchmark: icons-100", ["mine.yaml", "run 1", "option 'methods' is missing"]),
        ("title: x\nruns: sdlora", ["no list 'runs'"]),
        ("title: x\nruns: [sdlora]", ["must be fields"]),
        ("{", ["is no YAML"]),
        ("title: x\nruns:\n  - methods: sdlroa", ["unknown method 'sdlroa'", "Did you mean 'sdlora'"]),
        ("title: x\nruns:\n  - methods: sdlora\n    tasks: many", ["--tasks 'many' cannot be read"]),
        ("title: x\nruns:\n  - methods: sdlora\n    size: -1", ["mine.yaml", "--size '-1' is not valid", "at least 1"]),
    ],
)
def test_files_that_are_no_suites(cl_bench: Cli, content: str, parts: list[str]) -> None:
    Path("mine.yaml").write_text(content)
    assert_refused(cl_bench("run", "--suite", "mine.yaml"), *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--suite", "sdlora-table7"], ["unknown suite 'sdlora-table7'", "sdlora-table"]),
        (["--suite", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
        (["--suite", "quickstart", "--methods", "sdlora"], ["--suite", "not both"]),
        ([], ["--methods"]),
    ],
)
def test_commands_that_name_no_suite(cl_bench: Cli, arguments: list[str], parts: list[str]) -> None:
    assert_refused(cl_bench("run", *arguments), *parts)


FAILING = """
from cl_bench.methods.simplecil import SimpleCIL
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, eq=False)
class Failing(SimpleCIL):
    fails: bool = True

    def after_task(self, task, images):
        if self.fails:
            raise RuntimeError("this method cannot learn")
        super().after_task(task, images)
"""


@pytest.mark.parametrize("fast", [False, True])
def test_a_run_that_fails_stops_the_others_only_if_wanted(cl_bench: Cli, fast: bool) -> None:
    Path("failing.py").write_text(FAILING)
    methods = "failing[fails=true|false],simplecil"
    command = ["run", "--method-file", "failing.py", "--methods", methods, *TRIAL]
    outcome = cl_bench(*command, *(["--fail-fast"] if fast else []))
    assert outcome.code == 1
    assert "failed: RuntimeError: this method cannot learn" in outcome.err
    assert len(list(RUNS.glob("*.json"))) == (0 if fast else 2)
    assert ("2 not begun (--fail-fast)" in outcome.err) == fast

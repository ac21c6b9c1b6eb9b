"""What docs/add-a-method.md says of the contract is what the contract is."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

import cl_bench
from cl_bench import Method, Phase, StepBatch
from cl_bench.contract.task import Scratch, Task
from tests.helpers import ROOT

TEXT = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
SIGNATURE = re.compile(r"`(\w+)\(([^)`]*)\)")


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(title: str) -> list[str]:
    """The first cell of every row of a section's tables, without heads and rules."""
    rows = re.findall(r"^\| (.+?) \|", section(title), re.MULTILINE)
    return [row for row in rows if row.startswith("`")]


def signatures(cells: list[str]) -> list[tuple[str, list[str]]]:
    found = [match for cell in cells for match in SIGNATURE.findall(cell)]
    return [
        (name, [part.partition("=")[0].strip() for part in inside.split(",") if part.strip()]) for name, inside in found
    ]


@pytest.mark.parametrize(("name", "parameters"), signatures(first_cells("What you write")))
def test_a_function_to_write_is_one_of_the_contract(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(Method, name)).parameters)[1:] == parameters


def test_every_function_of_the_contract_is_described() -> None:
    public = {name for name, value in vars(Method).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert public - {"values"} == {name for name, _ in signatures(first_cells("What you write"))}


@pytest.mark.parametrize(("name", "parameters"), signatures(first_cells("Building blocks")))
def test_a_building_block_is_there_for_the_asking(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(cl_bench, name)).parameters)[: len(parameters)] == parameters


def test_attributes_are_described_under_their_names() -> None:
    cells = " ".join(first_cells("Phases"))
    described = set(re.findall(r"`(\w+)", cells))
    assert described <= {field.name for field in dataclasses.fields(Phase)}
    assert {
        "loss",
        "forward",
        "step",
        "before_step",
        "after_step",
        "others",
        "batches",
        "epochs",
        "batch_size",
    } <= described
    for name in ("inputs", "labels", "step", "steps", "generator", "update"):
        assert hasattr(StepBatch, name) or name in {field.name for field in dataclasses.fields(StepBatch)}
        assert f"`{name}" in section("Phases")
    for field in dataclasses.fields(Task):
        assert field.name == "key" or f"`{field.name}`" in section("What you write")
    for name in re.findall(r"`task\.scratch\.(\w+)", section("What lasts for one task")):
        assert callable(getattr(Scratch, name))

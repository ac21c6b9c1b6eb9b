"""The reference results of the package beside the user's own, from a folder outside the checkout."""

from __future__ import annotations

import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cl_bench.reporting import result_table
from cl_bench.reporting.reference import ORIGIN, ReferenceResults
from cl_bench.reporting.runs import collect, sections
from cl_bench.store import RunRecord, compact
from tests.helpers.command import Cli, assert_refused
from tests.helpers.factories import record, write

ICONS = ["--benchmark", "icons-100", "--backbone", "vit_tiny_patch8_32.icons"]


@pytest.fixture(scope="module")
def reference() -> list[RunRecord]:
    """The reference runs of SD-LoRA and CODA-Prompt on icons-100 in ten tasks."""

    def wanted(key: str, experiment: Mapping[str, Any]) -> bool:
        return (experiment["benchmark"], experiment["tasks"]) == ("icons-100", 10)

    found = compact.unpack(compact.PACKAGED, pytest.fail, wanted)
    return [one for one in found if one.label in ("sdlora", "coda") and one.experiment.limits.tasks is None]


def mine(run: RunRecord, **changes: object) -> RunRecord:
    """A run of the user's own method `mine`, with the counts of a reference run and other conditions if wanted."""
    experiment = run.experiment.model_copy(update={"method": "mine", "revision": "ab" * 32} | changes)
    return run.model_copy(update={"experiment": experiment, "key": experiment.key, "label": "mine"})


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: list[RunRecord]) -> Path:
    """A working folder with five runs of a method of the user's own, in fp32, on the seeds of the reference."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "results" / "runs", *(mine(run) for run in reference if run.label == "sdlora"))
    return tmp_path


def test_compare_pairs_my_runs_with_the_reference(cl_bench: Cli, own: Path) -> None:
    outcome = cl_bench("compare", "mine", "sdlora", "coda", "--samples", "--format", "md")
    assert outcome.code == 0, outcome.err
    lines = {line.split("|")[1].strip(): line for line in outcome.out.splitlines() if line.startswith("|")}
    # The counts are those of SD-LoRA, so every pair of seeds is a tie.
    assert "0/5/0" in lines["sdlora"] and "/0/" in lines["coda"]
    assert "10 of 10 pairs of runs; the reference results that come with cl-bench hold counts alone" in outcome.out
    alone = cl_bench("compare", "mine", "sdlora", "--no-reference")
    assert_refused(alone, "'sdlora'")


def test_figures_are_of_my_protocol_and_of_no_part_of_it(cl_bench: Cli, own: Path) -> None:
    """Joint training on the first tasks, from which intransigence is computed, has no figure of its own."""
    assert cl_bench("figure", "accuracy", "--format", "csv").code == 0
    (drawn,) = Path("reports/figures").iterdir()
    text = drawn.read_text()
    assert "mine" in text and "ranpac" in text and "tasks1" not in drawn.name


def test_a_table_of_mine_has_the_rows_of_its_protocol_alone(own: Path) -> None:
    everything = collect([(own / "results" / "runs", "runs")], pytest.fail, ReferenceResults(compact.PACKAGED))
    (section,) = [one for one in sections(everything) if not one.protocol.limits_text()]
    rows = {row.label: row for row in result_table.build(section).rows}
    assert rows["mine"].origins == ("runs",) and rows["sdlora"].origins == (ORIGIN,) and len(rows) > 25
    assert {run.protocol.num_tasks for run in everything} == {10}


def test_runs_of_another_protocol_stand_alone_unless_asked(
    cl_bench: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "results" / "runs", record("mine", 0), record("other", 0))
    assert_refused(cl_bench("compare", "mine", "sdlora"), "'sdlora'")
    found = cl_bench("compare", "sdlora", "coda", *ICONS)
    assert found.code == 0 and all(f"icons-100, {tasks} tasks" in found.out for tasks in (5, 10, 20))


def test_without_runs_the_reference_serves_tables_but_is_no_report(
    cl_bench: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = cl_bench("table", "sdlora-table2", "--benchmark", "cifar100", "--format", "md")
    assert table.code == 0 and "Hyper-parameters" in table.out
    without = cl_bench("table", "sdlora-table2", "--benchmark", "cifar100", "--no-reference", "--format", "md")
    assert "Hyper-parameters" not in without.out
    report = cl_bench("report")
    assert (
        report.code == 0 and "no results in" in report.err and "No runs yet" in Path("reports/index.html").read_text()
    )
    # A folder that the user names has to hold runs.
    Path("empty").mkdir()
    assert_refused(cl_bench("compare", "sdlora", "coda", "--results", "empty"), "no results in 'empty'")


def test_the_reference_is_never_there_twice(own: Path, reference: list[RunRecord]) -> None:
    folder = own / "copies"
    write(folder, *reference)
    runs = collect([(folder, "copies")], pytest.fail, ReferenceResults(compact.PACKAGED))
    keys = [run.record.key for run in runs]
    assert len(keys) == len(set(keys)) and {run.record.key for run in runs if run.origin == "copies"} == {
        one.key for one in reference
    }


def test_a_reference_of_another_version_is_one_sentence(
    cl_bench: Cli, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = own / "reference.jsonl.xz"
    other.write_bytes(lzma.compress(b'{"content":"cl-bench results","format":9,"records":0}\n'))
    monkeypatch.setattr(compact, "PACKAGED", other)
    for command in (["report"], ["compare", "mine", "sdlora"], ["table", "sdlora-table2"], ["figure", "accuracy"]):
        assert_refused(cl_bench(*command), "of another version of cl-bench (format 9, expected 1)", "--no-reference")
    assert cl_bench("figure", "accuracy", "--format", "csv", "--no-reference").code == 0

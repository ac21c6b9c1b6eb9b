"""Runs that were resumed in another environment are marked wherever their numbers are shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cl_bench.experiment import Session
from cl_bench.store import Store
from cl_bench.store.record import RunRecord, parse
from tests.helpers import reports
from tests.helpers.command import RUNS, Cli
from tests.helpers.factories import edit, record, write

ENVIRONMENT = {"python": "3.11.2", "torch": "2.9.0", "device": "cpu", "threads": 2}


def interrupted(method: str = "alpha", seed: int = 0, **changes: object) -> RunRecord:
    """A run of three sessions; the first two had other environments."""
    first = Session(environment={**ENVIRONMENT, **changes}, processes=2, stages=3, phase=0, epoch=7)
    return record(method, seed).model_copy(update={"earlier_sessions": [first], "sessions": 3})


@pytest.fixture
def runs(cl_bench: Cli) -> Cli:
    """Three rows: one changed its environment, one was interrupted without change, one ran through."""
    write(RUNS, interrupted(threads=4, torch="2.8.0"), record("alpha", 1), interrupted("beta"), record("gamma"))
    return cl_bench


def test_show_prints_where_sessions_differ(runs: Cli) -> None:
    outputs = {}
    for run in (interrupted(), record("gamma"), interrupted("beta")):
        done = runs("results", "show", run.key)
        assert done.code == 0
        outputs[run.label] = done.out
    assert (
        "sessions 1 to 2, left after 3 stages, phase 0 and epoch 7 of the next: threads 4, torch 2.8.0\n"
        "session 3, to the end: threads 2, torch 2.9.0\n"
    ) in outputs["alpha"]
    assert outputs["beta"].count("the same environment") == 2 and "session" not in outputs["gamma"]


def test_tables_and_the_page_mark_the_row(runs: Cli) -> None:
    done = runs("report", "--out", "out")
    assert done.code == 0, done.err
    note = "‡: a run was interrupted and resumed in another environment, so its numbers belong to neither of the two."
    for text in (done.out, *(path.read_text() for path in Path("out/tables").glob("icons*.md"))):
        text = " ".join(text.split())
        assert "alpha ‡" in text and text.count("beta ‡") == text.count("gamma ‡") == 0
        assert note in text and "seed 0: threads 4, then 2; torch 2.8.0, then 2.9.0" in text
    (latex,) = Path("out/tables").glob("icons*.tex")
    assert r"alpha \textdaggerdbl{}" in latex.read_text()
    page = Path("out/index.html").read_text()
    (row,) = re.findall(r'<tr title="([^"]*)">', page)
    assert row == "A run was resumed in another environment: seed 0: threads 4, then 2; torch 2.8.0, then 2.9.0"
    (protocol,) = reports.at_once(page)["protocols"]
    assert [bool(row["mixed"]) for row in protocol["rows"]].count(True) == 1
    (part,) = reports.parts(page, "runs").values()
    assert [run["mixed"] for run in part["runs"].values() if run["mixed"]] == [
        "threads 4, then 2; torch 2.8.0, then 2.9.0"
    ]


def test_a_run_on_two_devices_was_made_on_both(runs: Cli) -> None:
    write(RUNS, interrupted("delta", device="cuda", device_name="NVIDIA H200"))
    assert "NVIDIA H200 and CPU" in " ".join(runs("report", "--out", "out").out.split())


def test_records_without_these_sessions_stay_valid(tmp_path: Path) -> None:
    """Schema 1 had only the number of sessions; fields that an older version did not record are no difference."""
    (path,) = write(tmp_path, interrupted(cpus=None, threads=2))

    def older(data: dict[str, object]) -> None:
        data["schema_version"] = 1
        del data["earlier_sessions"]

    edit(path, older, sealed=True)
    before = path.read_bytes()
    found = Store(tmp_path).load(path)
    assert (found.sessions, found.earlier_sessions, found.mixed, found.key) == (3, [], {}, record().key)
    assert path.read_bytes() == before
    assert interrupted(cudnn=91002).mixed == {}


def test_sessions_that_cannot_be_those_of_the_run_are_damage(tmp_path: Path) -> None:
    (path,) = write(tmp_path, interrupted(threads=4))
    edit(path, lambda data: data.update(sessions=2), sealed=True)
    with pytest.raises(ValueError, match="'earlier_sessions' does not hold all 1 before the last"):
        parse(path.read_bytes())

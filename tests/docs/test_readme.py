"""Tables and links of README.md and docs/ are up to date, and the Python that they show runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cl_bench.reporting import result_table
from cl_bench.reporting.runs import Section
from tests.helpers import ROOT
from tests.helpers.factories import record, write
from tools import update_tables

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def sections() -> list[Section]:
    return update_tables.load(update_tables.REFERENCE)


@pytest.mark.parametrize(
    ("path", "end"),
    list(zip(update_tables.FILES, ("table", "table", "parity", "options"), strict=True)),
    ids=lambda part: Path(part).name,
)
def test_tables_are_recomputed_from_the_stored_counts(path: Path, end: str, sections: list[Section]) -> None:
    text = path.read_text(encoding="utf-8")
    assert f"<!-- /{end} -->" in text
    assert update_tables.filled(text, sections) == text, "run python -m tools.update_tables"


def test_a_marker_selects_rows_and_the_table_says_of_how_many(sections: list[Section]) -> None:
    marker = "<!-- table: reference-cifar100, 20 tasks, rows {} -->\n<!-- /table -->"
    text = update_tables.filled(marker.format("sdlora;ranpac"), sections)
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert rows == ["| method", "| ---", "| ranpac", "| sdlora"]
    assert "- 2 of 8 rows.\n" in text and "joint" not in text
    with pytest.raises(ValueError, match="no run of sdlora2 is stored; there are .*sdlora"):
        update_tables.filled(marker.format("sdlora2"), sections)


def test_a_marker_names_metric_trace_and_benchmark(sections: list[Section]) -> None:
    where = "reference-icons-100 on icons-100, 10 tasks, against sdlora"
    rows = "rows sdlora[magnitudes=current];coda"
    text = update_tables.filled(f"<!-- traces: {where}, of magnitudes, {rows} -->\n<!-- /traces -->", sections)
    assert "| sdlora\\[magnitudes=current\\] | value | 5 |" in text and "- Without such a trace: coda." in text
    text = update_tables.filled(f"<!-- compare: {where}, of forgetting, {rows} -->\n<!-- /compare -->", sections)
    lines = [line for line in text.splitlines() if line.startswith(("| coda", "| sdlora"))]
    assert len(lines) == 2 and "forgetting minus that of sdlora" in text
    with pytest.raises(ValueError, match="suite 'which-lora' has no stream in 10 tasks, or several"):
        update_tables.section(sections, "which-lora", 10)
    with pytest.raises(ValueError, match="'reference-icons-100' has no stream in 10 tasks"):
        update_tables.section(sections, "reference-icons-100", 10, "cifar100")


@pytest.mark.parametrize(
    ("suite", "tasks", "count"),
    [
        ("reference-icons-100", 10, 33),
        ("reference-icons-100", 20, 8),
        ("reference-cifar100", 10, 33),
        ("reference-cifar100", 20, 8),
        ("reference-cifar100-seed1", 10, 5),
    ],
)
def test_reference_suites_have_no_missing_cell(suite: str, tasks: int, count: int, sections: list[Section]) -> None:
    found, missing = update_tables.section(sections, suite, tasks)
    assert not missing and len(found.rows) == count
    assert all([run.record.experiment.seed for run in runs] == [0, 1, 2, 3, 4] for runs in found.rows.values())


@pytest.fixture(scope="module")
def section(sections: list[Section]) -> Section:
    return update_tables.section(sections, "reference-icons-100", 10)[0]


def test_floor_and_ceiling_hold(section: Section) -> None:
    rows = {row.label: row for row in result_table.build(section).rows}
    joint = rows.pop("joint")
    # In closed form, on features that do not depend on the order, ridge regression is joint training itself.
    assert [label for label, row in rows.items() if row.acc.mean > joint.acc.mean] == ["ranpac"]
    forgetting = {label: value.mean for label, row in rows.items() if (value := row.metrics["forgetting"])}
    assert forgetting["finetune"] == max(forgetting.values())


def test_the_order_of_methods_on_photographs_holds(sections: list[Section]) -> None:
    found, _ = update_tables.section(sections, "reference-cifar100", 10)
    rows = {row.label: row for row in result_table.build(found).rows}
    acc = {label: row.acc.mean for label, row in rows.items()}
    assert min(acc[label] for label in ("ranpac", "hide", "slca")) > acc["sdlora[align=true]"]
    ceiling = min(acc["joint"], acc["joint[train=lora]"])
    assert all(ceiling > value for label, value in acc.items() if not label.startswith("joint"))
    # What trains one task's classes at a time and keeps no statistics of the others.
    others = ("ranpac", "hide", "slca", "simplecil", "joint", "joint[train=lora]")
    assert all(acc[label] < acc["simplecil"] for label in acc if "align" not in label and label not in others)


@pytest.mark.parametrize(
    ("suite", "tasks", "lower"),
    [
        ("reference-cifar100", 10, ("l2p", "l2p[prompts=prefix]", "dualprompt", "coda", "inflora")),
        ("reference-cifar100", 20, ("coda", "inflora")),
        ("reference-cifar100-seed1", 10, ("coda", "inflora")),
    ],
)
def test_sdlora_is_above_prompts_and_inflora_in_every_order(
    suite: str, tasks: int, lower: tuple[str, ...], sections: list[Section]
) -> None:
    rows = update_tables.section(sections, suite, tasks)[0].rows
    hits = {label: [sum(run.record.correct[-1]) for run in rows[label]] for label in rows}
    for label in lower:
        assert all(ours > theirs for ours, theirs in zip(hits["sdlora"], hits[label], strict=True))


def test_the_python_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """On a trial of the stream, with fewer seeds."""
    (script,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/usage.md").read_text(encoding="utf-8"), re.M | re.S)
    asked = "seeds=range(3))"
    assert asked in script
    monkeypatch.chdir(tmp_path)
    write(Path("results/reference"), record())
    trial = "seeds=range(2), epochs=1, limit_tasks=2, limit_train=3, limit_test=2)"
    names: dict[str, Any] = {}
    exec(script.replace(asked, trial), names)
    assert list(names["results"].table()["seeds"]) == [2, 2]
    assert len(names["curves"]) == 2 * 2 * 2
    assert set(names["stored"]["origin"]) == {"runs", "reference"}
    assert names["page"].is_file()

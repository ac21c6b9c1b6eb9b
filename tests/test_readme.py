"""What the README claims is what the stored reference results say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cl_bench import report
from cl_bench.report import sheets, tables
from cl_bench.report.frame import Section

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def section() -> Section:
    sections, damaged = report.load([(ROOT / "results" / "reference", "reference")])
    assert damaged == []
    (found,) = (section for section in sections if section.protocol.benchmark == "icons-100")
    return found


def test_table_is_recomputed_from_the_stored_counts(section: Section) -> None:
    shown = README.partition("<!-- results -->\n")[2].partition("<!-- /results -->")[0]
    assert sheets.markdown(tables.sheet(tables.build(section))) == shown, "run tools/update_readme.py"


def test_reference_results_are_those_of_the_command_in_the_readme(section: Section) -> None:
    (command,) = re.findall(r"cl-bench run --methods '([^']+)' --seeds 0-4 --results results/reference", README)
    assert set(re.findall(r"[a-z][a-z0-9-]*(?:\[[^]]*\])?", command)) == {run.record.label for run in section.runs}
    assert all({run.record.experiment.seed for run in runs} == {0, 1, 2, 3, 4} for runs in section.rows.values())


def test_floor_and_ceiling_hold(section: Section) -> None:
    rows = {row.label: row for row in tables.build(section).rows}
    joint, plain = rows.pop("joint"), rows["finetune"]
    # In closed form, on features that do not depend on the order, ridge regression is joint training itself.
    assert [label for label, row in rows.items() if row.acc.mean > joint.acc.mean] == ["ranpac"]
    forgetting = {label: row.forgetting.mean for label, row in rows.items() if row.forgetting is not None}
    assert plain.forgetting is not None and plain.forgetting.mean == max(forgetting.values())


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()

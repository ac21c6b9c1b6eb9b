"""What the README claims is what the stored reference results say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cl_bench.report import tables
from cl_bench.report.frame import Section
from tools import update_readme

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


REFERENCE = ROOT / "results" / "reference"


@pytest.fixture(scope="module")
def section() -> Section:
    return update_readme.section(README, REFERENCE)


def test_table_is_recomputed_from_the_stored_counts() -> None:
    shown = README.partition(update_readme.BEGIN)[2].partition(update_readme.END)[0]
    assert update_readme.readme_table(README, REFERENCE) == shown, "run tools/update_readme.py"


def test_every_row_has_the_seeds_of_the_command_in_the_readme(section: Section) -> None:
    assert len(section.rows) > 30
    assert all([run.record.experiment.seed for run in runs] == [0, 1, 2, 3, 4] for runs in section.rows.values())


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

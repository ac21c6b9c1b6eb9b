"""`reports/reference/`, rendered copies of the reference results, are what `make reports` would write today.

The page is not tracked: it holds the same tables and numbers once more.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cl_bench.reporting.report import render
from tests.helpers import ROOT

COPIES = ROOT / "reports" / "reference"
PAGE = "index.html"
COMMAND = "cl-bench report --results results/reference --out reports/reference --pictures png"
"""That of `make reports`, which LaTeX tables name."""


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reports")
    made = render([(ROOT / "results" / "reference", "reference")], out, COMMAND)
    assert made.damaged == []
    return out


def test_every_file_is_there_and_none_is_left_over(rendered: Path) -> None:
    names = {str(path.relative_to(rendered)) for path in rendered.rglob("*") if path.is_file()}
    copies = {str(path.relative_to(COPIES)) for path in COPIES.rglob("*") if path.is_file()}
    names.remove(PAGE)
    copies.discard(PAGE)
    pictures = {name for name in copies if name.endswith(".png")}
    assert copies - pictures == names, "run `make reports`"
    assert {name.replace(".png", ".csv") for name in pictures} == {name for name in names if "figures/" in name}


@pytest.mark.parametrize("form", ["md", "tex", "html"])
def test_the_texts_of_tables_agree(rendered: Path, form: str) -> None:
    tables = sorted((rendered / "tables").glob(f"*.{form}"))
    assert len(tables) >= 9
    for path in tables:
        assert path.read_text() == (COPIES / "tables" / path.name).read_text(), f"{path.name}: run `make reports`"


@pytest.mark.parametrize("folder", ["tables", "figures"])
def test_the_numbers_behind_tables_and_figures_agree(rendered: Path, folder: str) -> None:
    files = sorted((rendered / folder).glob("*.csv"))
    assert len(files) >= 9
    for path in files:
        with path.open() as new, (COPIES / folder / path.name).open() as old:
            for fresh, stored in zip(csv.reader(new), csv.reader(old), strict=True):
                for one, other in zip(fresh, stored, strict=True):
                    same = one == other or float(one) == pytest.approx(float(other), rel=1e-8, abs=1e-12)
                    assert same, f"{path.name}: {one} is {other} in the copy; run `make reports`"

"""The paper's tables: our cells beside the published ones, and what would fill the empty ones."""

from __future__ import annotations

import csv
import math
import shlex
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from cl_bench import suites
from cl_bench.experiment import Limits, Transforms
from cl_bench.report import paper_figures, paper_tables, sheets
from cl_bench.report.frame import Run, collect
from cl_bench.store import RunRecord
from tests.conftest import Outcome
from tests.factories import record, write

Cli = Callable[..., Outcome]
ROOT = Path(__file__).resolve().parent.parent
VIT = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
PAPER = Transforms(size=224, crop_scale=(0.05, 1.0), resize=256 / 224, mean=(0.0,) * 3, std=(1.0,) * 3)


def imagenet_r(method: str, seed: int, **changes: Any) -> RunRecord:
    fields: dict[str, Any] = {"benchmark": "imagenet-r", "tasks": 5, "classes_per_task": 40, "backbone": VIT}
    fields |= {"transforms": PAPER, "hyperparameters": {"epochs": 20}} | changes
    return record(method, seed, **fields)


@pytest.fixture(scope="module")
def reference() -> list[Run]:
    return collect([(ROOT / "results" / "reference", "reference")], pytest.fail)


def runs_of(folder: Path, *records: RunRecord) -> list[Run]:
    write(folder, *records)
    return collect([(folder, "runs")], pytest.fail)


def cells(table: paper_tables.PaperTable) -> dict[tuple[str, int, str], list[dict[str, str]]]:
    """Rows of the CSV by row, tasks and metric."""
    found: dict[tuple[str, int, str], list[dict[str, str]]] = {}
    for row in csv.DictReader(StringIO(sheets.csv(table.sheet))):
        found.setdefault((row["row"], int(row["tasks"]), row["metric"]), []).append(row)
    return found


def test_ours_beside_the_paper_with_the_difference_in_standard_errors(tmp_path: Path) -> None:
    made = [imagenet_r("sdlora", seed) for seed in range(5)]
    table = paper_tables.build("sdlora-table2", runs_of(tmp_path, *made))
    (cell,) = cells(table)["sdlora", 5, "acc"]
    accuracies = [100 * sum(c or 0 for c in run.correct[-1]) / sum(run.total) for run in made]
    mean = sum(accuracies) / 5
    error = math.sqrt(sum((value - mean) ** 2 for value in accuracies) / 4 / 5)
    assert float(cell["mean"]) == pytest.approx(mean) and float(cell["stderr"]) == pytest.approx(error)
    assert (float(cell["paper_mean"]), float(cell["paper_stderr"])) == (79.15, 0.20)
    assert float(cell["z"]) == pytest.approx((mean - 79.15) / math.hypot(error, 0.20))
    assert (cell["n"], cell["seeds"], cell["differs"]) == ("5", "0 1 2 3 4", "")
    text = next(row for row in table.sheet.rows if row[0] == "SD-LoRA")
    assert text[1] == f"{mean:.2f} ({error:.2f})" and text[2] == "79.15 (0.20)"


def test_empty_cells_come_with_the_command_that_fills_them(cl_bench: Cli) -> None:
    outcome = cl_bench("table", "sdlora-table2", "--format", "md")
    assert outcome.code == 0 and "| SD-LoRA |  | 79.15 \\(0.20\\)" in outcome.out.replace("(", "\\(").replace(
        ")", "\\)"
    )
    assert "27 of 27 cells have no run" in outcome.err
    command = outcome.err.strip().splitlines()[-1]
    assert command == "cl-bench run --suite sdlora-table2"
    assert "sdlora-table2" in suites.names()


def test_the_command_fills_the_cells(cl_bench: Cli) -> None:
    """On the embedded stream, cut to what a test can run: the suite that the command names has every row."""
    outcome = cl_bench("table", "sdlora-table4", "--benchmark", "icons-100")
    command = shlex.split(outcome.err.strip().splitlines()[-1])[1:]
    listed = cl_bench(*command, "--dry-run")
    assert listed.code == 0 and "40 run(s): 0 stored, 40 to do" in listed.out


@pytest.mark.parametrize("name", list(paper_tables.names()))
def test_every_row_of_a_table_is_in_its_suite(name: str) -> None:
    grids = suites.find(name).runs
    asked = {(m, b, t) for g in grids for m in g.methods for b in g.benchmark for t in g.tasks or ()}
    layout = next(found for found in paper_tables._layouts() if name in found.tables)
    for benchmark, tasks in layout.tables[name].streams:
        for row in layout.tables[name].rows:
            assert (row, benchmark, str(tasks)) in asked


def test_published_cells_are_those_of_the_paper() -> None:
    rows = list(csv.DictReader((ROOT / "results" / "published" / "sdlora.csv").open()))
    shown = 0
    for name in paper_tables.names():
        for line in csv.DictReader(StringIO(sheets.csv(paper_tables.build(name, []).sheet))):
            shown += line["paper_mean"] != ""
    assert shown == len(rows) == 159


def test_another_stream_has_no_published_cells(reference: list[Run]) -> None:
    table = paper_tables.build("sdlora-table2", reference, "icons-100")
    assert (table.filled, table.cells, table.command) == (27, 27, "")
    assert {column.title for column in table.sheet.columns} == {"method", "acc, %", "aaa, %"}
    assert not any(line["paper_mean"] for lines in cells(table).values() for line in lines)
    assert "No published values" in table.sheet.caption


@pytest.mark.parametrize("name", list(paper_tables.names()))
def test_every_table_is_whole_on_the_embedded_stream(name: str, reference: list[Run]) -> None:
    table = paper_tables.build(name, reference, "icons-100")
    assert table.filled == table.cells and not table.command
    assert all(all(row) for row in table.sheet.rows)
    for form in sheets.FORMATS:
        assert sheets.write(table.sheet, form)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hyperparameters": {"epochs": 4}}, "4 epochs (paper: 20 or 30)"),
        ({"transforms": PAPER.model_copy(update={"mean": (0.5,) * 3})}, "mean (0.5, 0.5, 0.5) (paper: (0, 0, 0))"),
        ({"transforms": PAPER.model_copy(update={"size": 32})}, "size 32 (paper: 224)"),
    ],
    ids=["epochs", "normalisation", "size"],
)
def test_what_differs_from_the_paper_is_marked_and_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    table = paper_tables.build("sdlora-table2", runs_of(tmp_path, imagenet_r("sdlora", 0, **changes)))
    (cell,) = cells(table)["sdlora", 5, "acc"]
    assert said in cell["differs"]
    row = next(row for row in table.sheet.rows if row[0] == "SD-LoRA")
    assert row[1].endswith(" [a]")
    assert any(note.startswith("[a] ") and said in note for note in table.sheet.notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": "11" * 32}, "weights 111111111111 instead of c4c4c4c4c4c4"),
        ({"split": "22" * 32}, "split 222222222222 instead of 5b5b5b5b5b5b"),
        ({"hyperparameters": {"epochs": 30}}, "epochs 30 instead of 20"),
        ({"transforms": PAPER.model_copy(update={"flip": 0.0})}, "flip 0 instead of 0.5"),
        ({"revision": 2}, "revision 2 instead of 1"),
    ],
    ids=["weights", "split", "epochs", "flip", "revision"],
)
def test_runs_of_two_kinds_are_never_averaged(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    usual = [imagenet_r("sdlora", seed) for seed in range(3)]
    found = runs_of(tmp_path, *usual, *(imagenet_r("sdlora", seed, **changes) for seed in range(2)))
    lines = cells(paper_tables.build("sdlora-table2", found))["sdlora", 5, "acc"]
    assert [line["n"] for line in lines] == ["3", "2"]
    assert lines[0]["differs"] == "" and said in lines[1]["differs"]


def test_trials_and_other_backbones_fill_no_cell(tmp_path: Path) -> None:
    found = runs_of(
        tmp_path, imagenet_r("sdlora", 0, limits=Limits(test_per_class=2)), imagenet_r("sdlora", 1, backbone="vit_tiny")
    )
    assert paper_tables.build("sdlora-table2", found).filled == 0
    assert paper_tables.build("sdlora-table2", found, backbone="vit_tiny").filled == 1


def test_one_seed_has_no_standard_error_and_no_z(tmp_path: Path) -> None:
    table = paper_tables.build("sdlora-table2", runs_of(tmp_path, imagenet_r("sdlora", 0)))
    (cell,) = cells(table)["sdlora", 5, "acc"]
    assert (cell["stderr"], cell["z"]) == ("", "")
    assert "One run has no standard error." in table.sheet.notes


def test_files_and_formats(cl_bench: Cli, tmp_path: Path) -> None:
    write(tmp_path / "results" / "runs", imagenet_r("sdlora", 0))
    assert cl_bench("table", "sdlora-table2", "--out", "out/t.tex").code == 0
    assert "\\begin{tabular}" in Path("out/t.tex").read_text()
    assert cl_bench("table", "sdlora-table2", "--format", "html").out.startswith("<table>")
    refused = cl_bench("table", "sdlora-table2", "--format", "latx")
    assert refused.code == 2 and "--format" in refused.err
    refused = cl_bench("table", "sdlora-table7")
    assert refused.code == 2 and "Did you mean 'sdlora-table" in refused.err
    assert "sdlora-table6" in cl_bench("ls", "tables").out


# --- figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(paper_figures.layouts()))
def test_every_figure_is_whole_on_the_embedded_stream(name: str, reference: list[Run]) -> None:
    figure = paper_figures.build(name, reference, "icons-100")
    assert figure.chart is not None and (figure.command, figure.notes) == ("", ())
    assert figure.filled == len(figure.chart.panels)


@pytest.mark.parametrize("name", list(paper_figures.layouts()))
def test_every_row_of_a_figure_is_in_its_suite(name: str) -> None:
    grids = suites.find(name).runs
    asked = {
        (m, b, t, g.limit_tasks, (g.backbone or ("",))[0])
        for g in grids
        for m in g.methods
        for b in g.benchmark
        for t in g.tasks or ()
    }
    layout = paper_figures.layouts()[name]
    for panel in layout.panels:
        for row in panel.rows:
            vit = panel.backbone or layout.backbone
            assert (row, panel.benchmark, str(panel.tasks), panel.limit_tasks, vit) in asked


def test_published_magnitudes_stand_beside_ours(tmp_path: Path) -> None:
    figure = paper_figures.build("sdlora-fig3", [])
    assert figure.chart is not None and figure.filled == 0
    assert figure.command == "cl-bench run --suite sdlora-fig3"
    panel = figure.chart.panels[0]
    assert isinstance(panel, paper_figures.Lines) and "released log" in panel.title
    last = panel.lines[-1]
    assert (last.label, [value.mean for value in last.y]) == ("after task 5", [1.8031, 1.3319, 1.1808, 1.0808, 1.4702])


def test_distances_are_relative_to_the_way_from_the_pre_trained_weights(tmp_path: Path) -> None:
    rows = [
        {"stage": 0, "task": 0, "distance": 0.0, "norm": 2.0, "pretrained": 9.0},
        {"stage": 1, "task": 0, "distance": 3.0, "norm": 2.0, "pretrained": 9.0},
        {"stage": 1, "task": 1, "distance": 0.0, "norm": 4.0, "pretrained": 9.0},
    ]
    made = imagenet_r("optima", 0).model_copy(update={"traces": {"optima": rows}})
    figure = paper_figures.build("sdlora-fig2", runs_of(tmp_path, made))
    assert figure.chart is not None
    panel = figure.chart.panels[0]
    assert isinstance(panel, paper_figures.Heat) and panel.values == ((0.0, 1.5), (0.75, 0.0))


def test_a_figure_without_any_run_says_what_to_do(cl_bench: Cli) -> None:
    outcome = cl_bench("figure", "sdlora-fig5")
    assert outcome.code == 2 and "no stored run can fill a panel of 'sdlora-fig5'" in outcome.err
    assert "cl-bench run --suite sdlora-fig5" in outcome.err
    assert cl_bench("figure", "acuracy").code == 2
    assert "matrix" in cl_bench("ls", "figures").out


def test_a_figure_of_every_protocol(cl_bench: Cli, tmp_path: Path) -> None:
    write(tmp_path / "results" / "runs", *(record("alpha", seed) for seed in range(2)))
    outcome = cl_bench("figure", "retention", "--format", "svg,png", "--out", "pictures")
    assert outcome.code == 0
    assert sorted(path.suffix for path in Path("pictures").iterdir()) == [".csv", ".png", ".svg"]
    refused = cl_bench("figure", "retention", "--benchmark", "icon-100")
    assert refused.code == 2 and "Did you mean 'icons-100'" in refused.err
    assert cl_bench("figure", "loss").code == 2
    assert cl_bench("figure", "matrix", "--format", "gif").code == 2

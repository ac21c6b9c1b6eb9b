"""The paper's figures: complete on the embedded stream, with published values, and with commands for missing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cl_bench.experiment import ImageTransforms
from cl_bench.reporting.charts import Heat, Lines
from cl_bench.reporting.paper import figures as paper_figures
from cl_bench.reporting.paper.layouts import figure_layouts
from cl_bench.reporting.runs import Run, collect
from cl_bench.running import suites
from cl_bench.store import RunRecord
from tests.helpers import ROOT
from tests.helpers.command import Cli
from tests.helpers.factories import record, write

VIT = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
PAPER = ImageTransforms(size=224, crop_scale=(0.05, 1.0), resize=256 / 224, mean=(0.0,) * 3, std=(1.0,) * 3)


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


@pytest.mark.parametrize("name", list(figure_layouts()))
def test_every_figure_is_complete_on_the_embedded_stream(name: str, reference: list[Run]) -> None:
    figure = paper_figures.build(name, reference, "icons-100")
    assert figure.chart is not None and (figure.command, figure.notes) == ("", ())
    assert figure.filled == len(figure.chart.panels)


@pytest.mark.parametrize("name", list(figure_layouts()))
def test_every_row_of_a_figure_is_in_its_suite(name: str) -> None:
    grids = suites.find(name).runs
    in_suite = {
        (str(m), b, t, g.limit_tasks, (g.backbone or ("",))[0])
        for g in grids
        for m in g.methods
        for b in g.benchmark
        for t in g.tasks or ()
    }
    layout = figure_layouts()[name]
    for panel in layout.panels:
        for row in panel.rows:
            vit = panel.backbone or layout.backbone
            assert (row, panel.benchmark, panel.tasks, panel.limit_tasks, vit) in in_suite


def test_another_stream_is_shown_on_one_backbone(tmp_path: Path) -> None:
    vits = [("vit_a", 1), ("vit_b", 3)]
    found = [record("sdlora", seed, backbone=vit) for vit, count in vits for seed in range(count)]
    figure = paper_figures.build("sdlora-fig5", runs_of(tmp_path, *found), "icons-100")
    assert figure.chart is not None
    panel = figure.chart.panels[0]
    assert isinstance(panel, Lines) and {value.n for line in panel.lines for value in line.y} == {3}
    left = "Backbone: vit_b. Left out: 1 run on icons-100 with another backbone (vit_a); --backbone shows them."
    assert left in figure.notes and figure.command.endswith("--backbone vit_b")


def test_published_magnitudes_are_shown_with_ours(tmp_path: Path) -> None:
    figure = paper_figures.build("sdlora-fig3", [])
    assert figure.chart is not None and figure.filled == 0
    assert figure.command == "cl-bench run --suite sdlora-fig3"
    panel = figure.chart.panels[0]
    assert isinstance(panel, Lines) and "released log" in panel.title
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
    assert isinstance(panel, Heat) and panel.values == ((0.0, 1.5), (0.75, 0.0))


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

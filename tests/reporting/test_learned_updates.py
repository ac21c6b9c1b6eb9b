"""The chart of which rows forget least: its numbers, its order, and rows that it leaves out."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cl_bench.reporting import charts
from cl_bench.reporting.charts import Chart, Dots
from cl_bench.reporting.plots import standard
from cl_bench.reporting.render import drawing, venues
from cl_bench.reporting.runs import collect, sections
from cl_bench.reporting.selection import Selection
from cl_bench.store import RunRecord
from tests.helpers.command import Cli
from tests.helpers.factories import record, write
from tests.helpers.pictures import boxes, outside, overlapping, texts

DROPS = {"steep": 0.07, "flat": 0.01, "middle": 0.03, "slow": 0.05, "even": 0.02}


def learned(method: str, seed: int, overlap: float, **changes: Any) -> RunRecord:
    """A run that traces `updates`; the overlap of the first task is undefined."""
    tasks = changes.get("tasks", 10)
    rows = [
        {"stage": stage, "target": target, "norm": 1.0 + stage, "change": 2.0 + seed, "change_rank": 3.0}
        | ({"input_overlap": overlap} if stage else {})
        for stage in range(tasks)
        for target in ("q", "v")
    ]
    return record(method, seed, drop=DROPS[method], **changes).model_copy(update={"traces": {"updates": rows}})


def made(folder: Path, *runs: RunRecord, selection: Selection | None = None) -> Chart | None:
    write(folder, *runs)
    [section] = (selection or Selection()).of(sections(collect([(folder, "runs")], pytest.fail)))
    return standard(section).get("updates")


def panels(chart: Chart) -> dict[str, Dots]:
    return {panel.title: panel for panel in chart.panels if isinstance(panel, Dots)}


RUNS = [learned(method, seed, 5 * drop) for method, drop in DROPS.items() for seed in range(3)]


def test_rows_are_sorted_by_forgetting_beside_what_their_tasks_changed(tmp_path: Path) -> None:
    chart = made(tmp_path, *RUNS, record("untraced", 0))
    assert chart is not None
    found = panels(chart)
    assert {panel.labels for panel in found.values()} == {("flat", "even", "middle", "slow", "steep")}
    run = [one for one in RUNS if one.label == "slow"]
    for title, counts in (
        ("forgetting", [one.correct for one in run]),
        ("forgetting, task known", [one.correct_task_aware for one in run]),
    ):
        expected = []
        for one, hits in zip(run, counts, strict=True):
            # Before a task is learned it has no accuracy, also where a task-aware one was measured.
            best = [max(hits[t][j] or 0 for t in range(j, 10)) for j in range(9)]
            expected.append(100 * np.mean([(best[j] - (hits[9][j] or 0)) / one.total[j] for j in range(9)]))
        value = dict(found[title].values)["slow"]
        assert value is not None and value.mean == pytest.approx(np.mean(expected)) and value.n == 3
    for title, expected_mean in (("overlap of changes", 0.25), ("size of a change", 3.0), ("rank of a change", 3.0)):
        value = dict(found[title].values)["slow"]
        assert value is not None and value.mean == pytest.approx(expected_mean)
    assert "Over the 5 rows with an overlap, its rank correlation with forgetting (Spearman) is 1.00." in chart.caption
    table = list(csv.DictReader(StringIO(charts.to_csv(chart))))
    assert [row["label"] for row in table if row["title"] == "forgetting"] == list(found["forgetting"].labels)
    assert {row["kind"] for row in table} == {"dot"}


def test_chosen_rows_keep_their_order(tmp_path: Path) -> None:
    chart = made(tmp_path, *RUNS, selection=Selection.parse("steep,flat,middle", "middle"))
    assert chart is not None and chart.highlight == ("middle",)
    assert panels(chart)["forgetting"].labels == ("steep", "flat", "middle")
    assert "least forgetting first" not in chart.caption and "rank correlation" not in chart.caption
    assert "In colour: the rows that were asked for. In grey: steep, flat." in chart.caption


def test_a_value_that_no_run_defines_has_no_marker(tmp_path: Path) -> None:
    bare = record("bare", 0).model_copy(update={"traces": {"updates": [{"stage": 0, "target": "q", "norm": 0.0}]}})
    chart = made(tmp_path, bare, *RUNS)
    assert chart is not None
    assert dict(panels(chart)["overlap of changes"].values)["bare"] is None
    (row,) = (
        line for line in csv.DictReader(StringIO(charts.to_csv(chart)))
        if (line["label"], line["title"]) == ("bare", "size of a change")
    )  # fmt: skip
    assert row["y"] == row["n"] == ""
    drawing.draw(chart)


def test_sizes_of_several_magnitudes_have_a_logarithmic_axis_unless_one_is_0(tmp_path: Path) -> None:
    def sized(folder: Path, *sizes: float) -> str:
        runs = [
            record(f"m{number}", 0).model_copy(
                update={"traces": {"updates": [{"stage": 0, "target": "q", "change": size}]}}
            )
            for number, size in enumerate(sizes)
        ]
        chart = made(folder, *runs)
        assert chart is not None
        figure = drawing.draw(chart)
        assert {axes.get_xscale() for axes in figure.axes[:4]} == {"linear"}
        return str(figure.axes[4].get_xscale())

    assert sized(tmp_path / "a", 0.01, 0.2, 3.0) == "log"
    assert sized(tmp_path / "b", 0.0, 0.2, 3.0) == "linear"


def test_there_is_no_chart_without_the_trace_or_with_one_task(tmp_path: Path) -> None:
    assert made(tmp_path / "a", record("alpha", 0), record("joint", 0, joint=True)) is None
    assert made(tmp_path / "b", learned("flat", 0, 0.1, tasks=1)) is None


@pytest.mark.parametrize("width", [None, "neurips", "acl:column"])
def test_all_names_are_written_once_per_line_of_panels(tmp_path: Path, width: str | None) -> None:
    long = [
        one.model_copy(update={"label": f"{one.label}[boundary=stack,rank=16,share_a=3,unshared=4]"}) for one in RUNS
    ]
    chart = made(tmp_path, *long)
    assert chart is not None
    figure = drawing.draw(chart, page=venues.parse_width(width) if width else drawing.SCREEN)
    found = list(boxes(figure))
    assert outside(figure, found) == [] and overlapping(found) == []
    whole = [text.replace("\n", "").replace(" ", "") for text in texts(figure)]
    lines = len({axes.get_subplotspec().rowspan.start for axes in figure.axes if axes.get_subplotspec()})
    for label in {run.label for run in long}:
        assert whole.count(label) == lines


def test_the_command_draws_it(cl_bench: Cli, tmp_path: Path) -> None:
    write(tmp_path / "runs", *RUNS)
    outcome = cl_bench("figure", "updates", "--results", str(tmp_path / "runs"), "--out", "out", "--format", "svg")
    assert outcome.code == 0 and "-updates.svg" in outcome.out and "caption: Rows that trace" in outcome.err

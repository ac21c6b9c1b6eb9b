"""The standard charts: numbers recomputed independently, one style per row, and no lost text in pictures."""

from __future__ import annotations

import csv
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from cl_bench.reporting import charts, plots
from cl_bench.reporting.charts import Chart, Dots, Heat, Line, Lines, Point, Ranks, Scatter
from cl_bench.reporting.render import drawing, styles, text_layout
from cl_bench.reporting.report import load_runs, render
from cl_bench.reporting.runs import sections
from cl_bench.stats import summarise
from cl_bench.store import RunRecord
from tests.helpers import ROOT
from tests.helpers.factories import record, write
from tests.helpers.pictures import boxes, contrast, outside, overlapping, texts

METHODS = sorted(
    path.stem.replace("_", "-") for path in (ROOT / "methods").glob("*.py") if path.stem not in ("__init__", "joint")
)
OPTIONS = ("rank=8", "align=true", "loss=masked,epochs=5", "backbone_lr_scale=0.1,loss=masked,align=true")


def standard(folder: Path, *runs: RunRecord) -> dict[str, Chart]:
    """The charts of runs of one protocol."""
    write(folder, *runs)
    found, damaged = load_runs([(folder, "runs")])
    assert damaged == []
    [section] = sections(found)
    return plots.standard(section)


def lines(chart: Chart) -> dict[str, Line]:
    return {line.label: line for panel in chart.panels if isinstance(panel, Lines) for line in panel.lines}


def scatters(chart: Chart) -> list[Scatter]:
    return [panel for panel in chart.panels if isinstance(panel, Scatter)]


def accuracies(run: RunRecord) -> dict[tuple[int, int], float]:
    """Accuracies in percent, by stage and task."""
    return {
        (t, j): 100 * count / run.total[j]
        for t, row in enumerate(run.correct)
        for j, count in enumerate(row)
        if count is not None
    }


# --- styles ------------------------------------------------------------------------------------------------------


names = st.one_of(
    st.sampled_from(METHODS), st.text(min_size=1, max_size=8), st.sampled_from(("joint", "joint[train=lora]", "mine"))
)
rows = st.builds(lambda name, option: f"{name}[{option}]" if option else name, names, st.sampled_from(("", *OPTIONS)))


@given(st.lists(rows, max_size=40), st.sampled_from(METHODS))
def test_a_listed_method_looks_the_same_whatever_else_is_drawn(others: list[str], method: str) -> None:
    assert styles.by_label([*others, method], ["joint"])[method] == styles.by_label([method])[method]


@given(st.lists(rows, min_size=1, max_size=40, unique=True))
def test_a_style_depends_on_the_rows_and_not_on_their_order(labels: list[str]) -> None:
    look = styles.by_label(labels)
    assert look == styles.by_label(labels[::-1]) and set(look) == set(labels)
    for label in labels:
        method = label.partition("[")[0] or label
        assert look[label].colour == styles.by_label([method])[method].colour


@given(st.lists(rows, min_size=1, max_size=12, unique=True))
def test_the_rows_that_a_chart_draws_differ_in_grey(labels: list[str]) -> None:
    look = styles.by_label(labels)
    assert len({(style.marker, style.dash) for style in look.values()}) == len(labels)


def test_all_methods_differ_in_colour_and_in_grey() -> None:
    look = styles.by_label(METHODS)
    assert len({(style.colour, style.marker) for style in look.values()}) == len(METHODS) >= 16
    assert len({(style.marker, style.dash) for style in look.values()}) == len(METHODS)
    # WCAG requires a contrast of 3:1 for graphics; the two lightest colours have markers and direct names as well.
    assert min(contrast(style.colour) for style in look.values()) > 2.2


def test_rows_of_one_method_have_markers_of_their_own() -> None:
    look = styles.by_label([f"sdlora[rank={rank}]" for rank in range(8)] + ["sdlora"])
    assert len({style.marker for style in look.values()}) == 9


def test_rows_trained_on_all_tasks_at_once_are_grey_and_dashed_without_marker() -> None:
    ceilings = ["joint", "joint[train=lora]", "joint[epochs=20]"]
    look = styles.by_label([*ceilings, *METHODS], ceilings)
    assert len({look[label] for label in ceilings}) == 3
    for label in ceilings:
        red, green, blue = to_rgb(look[label].colour)
        assert red == green == blue and look[label].marker == "" and look[label].dash
    assert all(style.marker for label, style in look.items() if label not in ceilings)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_a_sequence_goes_from_dark_to_light(orders: list[float]) -> None:
    contrasts = [contrast(styles.sequential(order).colour) for order in sorted(orders)]
    # Colours are rounded to 8 bits per channel, which may slightly swap the contrasts of close neighbours.
    assert all(one >= other - 0.1 for one, other in zip(contrasts, contrasts[1:], strict=False))


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds() -> list[RunRecord]:
    return [record("alpha", seed, drop=0.03) for seed in range(4)]


@pytest.fixture(scope="module")
def made(seeds: list[RunRecord], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chart]:
    others = [record("beta", seed, drop=0.01) for seed in range(4)]
    joint = [record("joint", seed, joint=True) for seed in range(4)]
    return standard(tmp_path_factory.mktemp("runs"), *seeds, *others, *joint)


def test_retention_is_the_accuracy_change_some_tasks_later(made: dict[str, Chart], seeds: list[RunRecord]) -> None:
    line = lines(made["retention"])["alpha"]
    assert line.x == tuple(range(10))
    for age, value in zip(line.x, line.y, strict=True):
        changes = []
        for run in seeds:
            accuracy = accuracies(run)
            changes.append(np.mean([accuracy[j + int(age), j] - accuracy[j, j] for j in range(10 - int(age))]))
        expected = summarise(changes)
        assert (value.mean, value.n) == (pytest.approx(expected.mean), 4)
        assert value.low == pytest.approx(expected.low)


def test_every_task_is_followed_from_when_it_was_learned(made: dict[str, Chart], seeds: list[RunRecord]) -> None:
    panels = {panel.title: panel for panel in made["tasks"].panels if isinstance(panel, Lines)}
    assert set(panels) == {"alpha", "beta"}
    for j, line in enumerate(panels["alpha"].lines):
        assert line.label == f"task {j + 1}" and line.x == tuple(range(j + 1, 11))
        for t, value in zip(line.x, line.y, strict=True):
            assert value.mean == pytest.approx(np.mean([accuracies(run)[int(t) - 1, j] for run in seeds]))


def test_stability_and_plasticity_are_as_the_caption_defines_them(
    made: dict[str, Chart], seeds: list[RunRecord]
) -> None:
    [panel] = scatters(made["stability"])
    point = next(point for point in panel.points if point.label == "alpha")
    plasticity, stability = [], []
    for run in seeds:
        accuracy = accuracies(run)
        plasticity.append(np.mean([accuracy[j, j] for j in range(10)]))
        stability.append(100 - np.mean([max(accuracy[t, j] for t in range(j, 10)) - accuracy[9, j] for j in range(9)]))
    assert (point.x.mean, point.y.mean) == pytest.approx((np.mean(plasticity), np.mean(stability)))
    assert point.x.low == pytest.approx(summarise(plasticity).low)
    assert {point.label for point in panel.points} == {"alpha", "beta"}, "joint training has neither"


def test_nothing_on_the_pareto_front_is_beaten_at_less_cost(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    runs = [record("joint", 0, joint=True, first=0.99), record("leaks", 0, first=0.98, drop=0, hyperparameters=LEAKY)]
    for name in "abcdefghij":
        run = record(name, 0, first=float(rng.uniform(0.6, 0.9)))
        cost = {
            "flops_per_image": int(rng.integers(1, 99)) * 10**6,
            "stored": [int(rng.integers(1, 99)) * 10**6] * 10,
            "exemplar_mb": float(rng.integers(0, 9)),
        }
        runs.append(run.model_copy(update=cost))
    chart = standard(tmp_path, *runs)["cost"]
    assert "joint, leaks" in chart.caption
    panels = {panel.x: panel for panel in scatters(chart)}
    assert len(panels) == 3 and not any(word in axis for axis in panels for word in ("second", "memory"))
    for panel in panels.values():
        honest = {p.label: (p.x.mean, p.y.mean) for p in panel.points if p.label not in ("joint", "leaks")}
        best = {
            label
            for label, (x, y) in honest.items()
            if not any((u <= x and v >= y and (u, v) != (x, y)) for u, v in honest.values())
        }
        assert set(panel.front) == best
        assert [honest[label] for label in panel.front] == sorted(honest[label] for label in best)
    flops = {point.label: point.x.mean for point in panels["GFLOPs per prediction"].points}
    assert flops == pytest.approx({run.label: run.flops_per_image / 1e9 for run in runs})
    size = {point.label: point.x.mean for point in panels["stored after the last task, MB"].points}
    assert size == pytest.approx({run.label: 4 * run.stored[-1] / 10**6 + run.exemplar_mb for run in runs})


def test_a_row_without_a_place_on_the_axis_is_named(tmp_path: Path) -> None:
    free = record("free", 0).model_copy(update={"trainable": [0] * 10})
    chart = standard(tmp_path, free, record("alpha", 0))["cost"]
    panels = {panel.x: {point.label for point in panel.points} for panel in scatters(chart)}
    assert panels["parameters trained"] == {"alpha"} and panels["GFLOPs per prediction"] == {"alpha", "free"}
    assert "because it is 0: parameters trained of free." in chart.caption


LEAKY = {"as_published_leaky": True}


def traced(label: str, seed: int, rows: list[dict[str, Any]]) -> RunRecord:
    return record(label, seed, tasks=3).model_copy(update={"traces": {"loss": rows}})


def losses(*values: float | None, epochs: int = 2) -> list[dict[str, Any]]:
    places = [(stage, epoch) for stage in range(3) for epoch in range(epochs)]
    return [
        {"stage": stage, "phase": 0, "epoch": epoch, "loss": value}
        for (stage, epoch), value in zip(places, values, strict=True)
    ]


def test_losses_lie_within_the_task_that_they_are_of(tmp_path: Path) -> None:
    runs = [traced("alpha", 0, losses(3, 1, 4, 2, 5, 3)), traced("alpha", 1, losses(5, 1, 4, 2, 5, 3))]
    [panel] = standard(tmp_path, *runs)["loss"].panels
    assert isinstance(panel, Lines) and panel.title == "alpha"
    [line] = panel.lines
    assert line.x == (0.5, 1, 1.5, 2, 2.5, 3)
    assert [value.mean for value in line.y] == [4, 1, 4, 2, 5, 3]
    assert line.y[0].half_width == pytest.approx(summarise([3, 5]).half_width)


def test_phases_of_a_task_have_lines_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"stage": stage, "phase": phase, "epoch": epoch, "loss": 10.0 * phase + epoch + stage}
        for stage in range(3)
        for phase, epochs in ((0, 2), (2, 1))
        for epoch in range(epochs)
    ]
    [panel] = standard(tmp_path, traced("alpha", 0, rows), traced("alpha", 1, rows))["loss"].panels
    assert isinstance(panel, Lines)
    one, two = panel.lines
    assert (one.label, two.label) == ("phase 1", "phase 2")
    assert [value.mean for value in one.y] == [0, 1, 1, 2, 2, 3] and [value.mean for value in two.y] == [20, 21, 22]
    assert one.x == pytest.approx((1 / 3, 2 / 3, 4 / 3, 5 / 3, 7 / 3, 8 / 3)) and two.x == (1, 2, 3)
    # A stroke for each task: the loss at the start of a task does not continue that of the task before it.
    assert (one.breaks, two.breaks) == ((2, 4), (1, 2))
    drawn = drawing.draw(Chart("loss", "", "", (panel,))).axes[0].lines[0]
    assert np.isnan(np.asarray(drawn.get_xdata(), dtype=float)).sum() == 2


@pytest.mark.parametrize(
    "rows",
    [
        losses(3, 1, None, 2, 5, 3),
        [{"norm": 1.0}],
        [{"stage": "first", "loss": 1.0}],
        [{"stage": 0, "loss": "high"}],
        [{"stage": None, "loss": 1.0}],
        [],
    ],
    ids=["not finite", "no loss", "a name for a stage", "a word for a loss", "no stage", "no rows"],
)
def test_an_invalid_table_of_losses_is_left_out(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    made = standard(tmp_path, traced("odd", 0, rows), traced("alpha", 0, losses(3, 1, 4, 2, 5, 3)))
    assert [panel.title for panel in made["loss"].panels if isinstance(panel, Lines)] == ["alpha"]
    assert "loss" not in standard(tmp_path / "alone", traced("odd", 0, rows))


def test_runs_of_other_lengths_have_no_mean_loss(tmp_path: Path) -> None:
    runs = [traced("alpha", 0, losses(3, 1, 4, 2, 5, 3)), traced("alpha", 1, losses(3, 1, 4, epochs=1))]
    assert "loss" not in standard(tmp_path, *runs)
    # The rows in colour are chosen among those with a mean loss: here those six have none.
    values = {0: losses(3, 1, 4, epochs=1), 1: losses(3, 1, 4, 2, 5, 3)}
    best = [
        record(f"best{i}", seed, tasks=3, first=0.95).model_copy(update={"traces": {"loss": values[seed]}})
        for i in range(6)
        for seed in values
    ]
    low = traced("low", 0, losses(3, 1, 4, 2, 5, 3))
    chart = standard(tmp_path / "more", *best, low)["loss"]
    assert chart.highlight == ("low",) and len(drawing.draw(chart).axes) == 1


def test_many_rows_are_all_in_the_numbers_and_the_best_in_colour(tmp_path: Path) -> None:
    labels = [f"m{number:02}" for number in range(15)]
    made = standard(tmp_path, *(record(m, 0, drop=0.005 * i) for i, m in enumerate(labels)))
    finals = {label: line.y[-1].mean for label, line in lines(made["accuracy"]).items()}
    best = sorted(finals, key=lambda label: -finals[label])[:6]
    for name in ("accuracy", "forgetting", "retention", "tasks", "matrix", "stability", "cost"):
        chart = made[name]
        assert list(chart.highlight) == best, name
        assert "the six rows with the best final accuracy" in chart.caption and "9 other rows" in chart.caption
        table = list(csv.DictReader(StringIO(charts.to_csv(chart))))
        assert {row["title"] or row["label"] for row in table} == set(labels)
        shown = {text for text in texts(drawing.draw(chart)) if re.fullmatch(r"m\d\d", text)}
        assert shown == set(best), name


def test_the_csv_holds_what_is_drawn(made: dict[str, Chart]) -> None:
    chart = made["accuracy"]
    table = list(csv.DictReader(StringIO(charts.to_csv(chart))))
    figure = drawing.draw(chart, ["joint"])
    for label, line in lines(chart).items():
        written = [(float(row["x"]), float(row["y"])) for row in table if row["label"] == label]
        assert any(
            np.allclose(np.column_stack(curve.get_data()), written)
            for curve in figure.axes[0].lines
            if len(curve.get_xdata()) == len(line.x)
        )


# --- pictures ----------------------------------------------------------------------------------------------------


LONG = ("finetune[backbone_lr_scale=0.1,loss=masked,align=true]", "alpha", "a[b=1]", "joint[train=lora,epochs=20]")


@pytest.mark.parametrize(("tasks", "count"), [(1, 1), (2, 4), (10, 3), (10, 31), (25, 14)])
def test_no_text_is_cut_or_covers_another(tmp_path: Path, tasks: int, count: int) -> None:
    labels = [*LONG[:3], *(f"method-{number}[rank={number}]" for number in range(28))][:count]
    runs = [record("joint", 0, tasks=tasks, joint=tasks > 1, label=LONG[3])]
    for number, label in enumerate(labels):
        run = record(label.partition("[")[0], 0, tasks=tasks, label=label, drop=0.01 + 0.002 * number)
        rows = [{"stage": t, "phase": 0, "epoch": e, "loss": 1 / (e + 1)} for t in range(tasks) for e in range(3)]
        # Names of rows at the same place would touch inevitably.
        updates = [{"stage": t, "target": "q", "change": 1 + number} for t in range(tasks)]
        update = {"traces": {"loss": rows, "updates": updates}, "trainable": [1000 * 2**number] * tasks,
                  "flops_per_image": 10**6 * 2**number, "peak_memory_bytes": 10**6 * 2**number,
                  "train_seconds": [1.5**number] * tasks}  # fmt: skip
        runs.append(run.model_copy(update=update))
    made = standard(tmp_path, *runs)
    assert set(made) >= set(plots.NAMES) - (
        {"retention", "forgetting", "stability", "updates"} if tasks == 1 else set()
    )
    for name, chart in made.items():
        figure = drawing.draw(chart, [LONG[3]])
        found = list(boxes(figure))
        assert outside(figure, found) == [], name
        assert overlapping(found) == [], name
        assert figure.get_figwidth() in (text_layout.SCREEN.column, text_layout.SCREEN.text)


def test_every_point_is_named_next_to_it_or_in_the_legend() -> None:
    rng = np.random.default_rng(1)
    for count in (3, 14, 28, 60):
        # Half of the points are almost at the same place.
        points = [
            Point(
                f"row-{i}", summarise([50 + (i % 2) * rng.uniform(-20, 20)]), summarise([80 + (i % 2) * rng.normal()])
            )
            for i in range(count)
        ]
        panel = Scatter("", "plasticity, %", "stability, %", tuple(points))
        figure = drawing.draw(Chart("stability", "", "", (panel,)))
        written = texts(figure)
        for point in points:
            assert written.count(point.label) == 1


finite = st.floats(1e-6, 1e12)
point = st.tuples(st.lists(finite, min_size=1, max_size=3), st.lists(st.floats(0, 100), min_size=1, max_size=3))


@settings(max_examples=25, deadline=None)
@given(st.lists(point, min_size=1, max_size=20), st.booleans())
def test_any_points_can_be_drawn(values: list[tuple[list[float], list[float]]], log: bool) -> None:
    points = tuple(Point(f"p{i}", summarise(x), summarise(y)) for i, (x, y) in enumerate(values))
    panel = Scatter("", "seconds", "final accuracy, %", points, log=log, front=(points[0].label,))
    figure = drawing.draw(Chart("cost", "", "", (panel,)))
    ticks = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert len(ticks) >= 2, "an axis without numbers says nothing"


@pytest.mark.parametrize("label", ["$x_1$", r"$\frac{", r"\alpha^2_<b>&#%{}~", "f\u00fcr \u4e2d"])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_text_of_result_files_is_not_parsed_as_mathematics(tmp_path: Path, label: str) -> None:
    value = (summarise([1.0, 2.0]),) * 2
    panels = (
        Lines(label, label, label, (Line(label, (1, 2), value), Line(f"{label}2", (1, 2), value))),
        Scatter(label, label, label, (Point(label, value[0], value[1]),)),
        Heat(label, label, label, (label,), (label,), ((1.0,),), label, 0, 2),
        Dots(label, label, ((label, value[0]),)),
    )
    for panel in (*panels, Ranks("", ((label, 1.0), ("b", 2.0)), ((label, "b"),), label)):
        chart = Chart("chart", label, label, (panel,))
        assert label in " ".join(texts(drawing.draw(chart)))
        assert len(drawing.save(chart, tmp_path / "chart")) == 4


@pytest.mark.parametrize("count", [2, 7, 24])
def test_ranks_are_written_next_to_their_names(count: int) -> None:
    labels = [f"{LONG[0]}-{i}" if i % 5 == 0 else f"m{i}" for i in range(count)]
    ranks = tuple((label, 1.0 + 0.9 * i) for i, label in enumerate(labels))
    chart = Chart("ranks", "", "", (Ranks("", ranks, (tuple(labels[:2]), tuple(labels[-2:])), "Friedman's test"),))
    figure = drawing.draw(chart)
    found = list(boxes(figure))
    assert outside(figure, found) == [] and overlapping(found) == []
    for label, rank in ranks:
        assert any({label, f"{rank:.2f}"} == set(text.split()) for text, _ in found)
    bars = [line for line in figure.axes[0].lines if line.get_linewidth() > 2]
    assert sorted(tuple(bar.get_xdata()) for bar in bars) == [(1.0, 1.9), (ranks[-2][1], ranks[-1][1])][: len(bars)]


def test_numbers_in_cells_can_be_read() -> None:
    values = tuple(tuple(float(10 * i + j) for j in range(10)) for i in range(10))
    names = tuple(map(str, range(10)))
    figure = drawing.draw(Chart("matrix", "", "", (Heat("a", "x", "y", names, names, values, "%", 0, 99),)))
    axes = figure.axes[0]
    mesh = axes.collections[0]
    cells = mesh.to_rgba(mesh.get_array())[..., :3]
    for text in axes.texts:
        column, row = (int(place) for place in text.get_position())
        # The contrast that WCAG recommends for small text ("enhanced"): the least, 4.5, is hard to read on medium blue.
        assert contrast(text.get_color(), cells[row, column]) >= 7, text.get_text()


def test_a_picture_is_the_same_alone_and_with_others(tmp_path: Path, made: dict[str, Chart]) -> None:
    for name in ("accuracy", "stability"):
        drawing.save(made[name], tmp_path / "all")
        for kind in drawing.FORMATS:
            paths = drawing.save(made[name], tmp_path / "one", [kind])
            assert [path.suffix for path in paths] == [".csv", f".{kind}"]
            assert paths[1].read_bytes() == (tmp_path / f"all.{kind}").read_bytes(), f"{name}.{kind}"


def test_processes_draw_the_same_pictures(tmp_path: Path) -> None:
    """There are enough charts here that several processes draw them."""
    write(tmp_path / "runs", *(record(m, s, tasks=tasks) for m in "ab" for s in range(2) for tasks in (3, 5)))
    made = render([(tmp_path / "runs", "runs")], tmp_path / "out", "cl-bench report", ["svg"])
    drawn = [path for path in made.paths if path.suffix == ".svg"]
    assert len(drawn) > 10
    found, _ = load_runs([(tmp_path / "runs", "runs")])
    for section in sections(found):
        for name, chart in plots.standard(section).items():
            [_, path] = drawing.save(chart, tmp_path / "own", ["svg"])
            assert path.read_bytes() == (tmp_path / "out" / "figures" / f"{section.slug}-{name}.svg").read_bytes()

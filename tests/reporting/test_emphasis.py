"""Which rows a chart shows in colour, and that it says what is grey, left out or not drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from cl_bench.reporting import charts, emphasis, plots
from cl_bench.reporting.charts import Chart, Line, Lines, Point, Scatter
from cl_bench.reporting.render import drawing, styles
from cl_bench.reporting.render.direct_labels import spread
from cl_bench.reporting.report import load_runs
from cl_bench.reporting.runs import sections
from cl_bench.reporting.selection import Selection
from cl_bench.stats import Summary, summarise
from cl_bench.store import RunRecord
from tests.helpers.factories import record, write
from tests.helpers.pictures import boxes, contrast, outside, overlapping, texts

LABELS = [f"m{number:02}" for number in range(12)]
RUNS = [record(label, seed, drop=0.01 * (i + 1)) for i, label in enumerate(LABELS) for seed in range(2)]


def made(folder: Path, reference: list[RunRecord], own: list[RunRecord], selection: Selection) -> dict[str, Chart]:
    """The charts of one protocol with runs of two folders."""
    write(folder / "reference", *reference)
    write(folder / "runs", *own)
    runs, damaged = load_runs([(folder / "runs", "runs"), (folder / "reference", "reference")])
    assert damaged == []
    [section] = selection.of(sections(runs))
    return plots.standard(section)


def colours(figure: Figure) -> int:
    """Number of curves that are not grey."""
    curves = [line for axes in figure.axes for line in axes.lines if len(line.get_xdata()) > 2]
    return sum(not same_color(line.get_color(), styles.CONTEXT) for line in curves)


def test_six_curves_are_in_colour_and_the_caption_counts_the_others(tmp_path: Path) -> None:
    chart = made(tmp_path, RUNS, [], Selection())["accuracy"]
    figure = drawing.draw(chart)
    assert chart.highlight == tuple(LABELS[:6]) and colours(figure) == 6
    assert {text for text in texts(figure) if text in LABELS} == set(LABELS[:6])
    said = "In colour: the six rows with the best final accuracy. In grey: "
    assert said in chart.caption and sorted(chart.caption.partition(said)[2].rstrip(".").split(", ")) == LABELS[6:]


def test_own_rows_come_before_better_rows_of_the_reference(tmp_path: Path) -> None:
    chart = made(tmp_path, RUNS, [record("mine", 0, drop=0.1)], Selection())["accuracy"]
    assert chart.highlight == ("mine", *LABELS[:5])
    assert "the own row and the five reference rows with the best final accuracy" in chart.caption
    panel = chart.panels[0]
    assert isinstance(panel, Lines) and [line.label for line in panel.lines][:2] == ["mine", "m00"]


def test_chosen_rows_keep_their_order_and_highlighted_ones_are_in_colour(tmp_path: Path) -> None:
    chart = made(tmp_path, RUNS, [], Selection.parse(rows="m1?,m00", highlight="m11"))["retention"]
    panel = chart.panels[0]
    assert isinstance(panel, Lines) and {line.label for line in panel.lines} == {"m10", "m11", "m00"}
    assert chart.highlight == ("m11",) and colours(drawing.draw(chart)) == 1
    assert "In colour: the rows that were asked for. In grey: m10, m00." in chart.caption
    chosen = made(tmp_path, RUNS, [], Selection.parse(rows="m09,m01"))["tasks"]
    assert [panel.title for panel in chosen.panels if isinstance(panel, Lines)] == ["m09", "m01"]
    assert "Drawn:" not in chosen.caption and "In grey" not in chosen.caption


def test_a_row_far_from_all_others_is_left_out_of_pictures_and_named(tmp_path: Path) -> None:
    close = [record(label, seed, drop=0.01) for label in LABELS for seed in range(2)]
    runs = [*close, *(record("lost", seed, first=0.3, drop=0.03) for seed in range(2))]
    charts_made = made(tmp_path, runs, [], Selection())
    for name in ("accuracy", "cost"):
        chart = charts_made[name]
        assert chart.omitted == ("lost",) and "Left out, far from all others: lost (" in chart.caption
        assert "lost" in charts.to_csv(chart)
        drawn = charts.drawn_part(chart)
        assert not any("lost" in str(panel) for panel in drawn.panels)
    asked = made(tmp_path, runs, [], Selection.parse(highlight="lost"))["accuracy"]
    assert asked.omitted == () and colours(drawing.draw(asked)) == 1


def test_of_a_long_sequence_six_lines_from_first_to_last_are_in_colour(tmp_path: Path) -> None:
    chart = made(tmp_path, [record("alpha", 0, tasks=20)], [], Selection())["tasks"]
    [panel] = chart.panels
    assert isinstance(panel, Lines) and len(panel.lines) == 20
    chosen = charts.coloured(chart, panel)
    assert len(chosen) == 6 and {"task 1", "task 20"} <= chosen
    assert "all but 6 of the 20 tasks are grey" in chart.caption
    figure = drawing.draw(chart)
    assert {text for text in texts(figure) if text.startswith("task ")} == chosen
    greys = [line for line in figure.axes[0].lines if same_color(line.get_color(), styles.CONTEXT)]
    assert len(greys) == 14, "all tasks are drawn"


def test_the_numbers_of_outlying_rows_are_far_from_the_nearer_quartile() -> None:
    values = {"a": 80.0, "b": 81.0, "c": 82.0, "d": 83.0, "e": 84.0, "f": 10.0, "g": 99.0}
    assert emphasis.outlying(values, ()) == ("f",)
    assert emphasis.outlying(values, (), high=True) == ("g",)
    assert emphasis.outlying(values, ("f",)) == ()
    assert emphasis.outlying({label: values[label] for label in "abcf"}, ()) == ()
    # With almost equal values, a difference of a point is not far.
    assert emphasis.outlying(dict.fromkeys("abcdef", 80.0) | {"g": 79.0}, ()) == ()


heights = st.lists(st.tuples(st.floats(-50, 350), st.floats(5, 30)), min_size=1, max_size=9)


@given(heights)
def test_names_at_the_ends_never_overlap_and_stay_inside(boxes_wanted: list[tuple[float, float]]) -> None:
    wanted, sizes = (np.array(part) for part in zip(*sorted(boxes_wanted, reverse=True), strict=True))
    centres = spread(wanted, sizes, 0, 300)
    assert np.all(-np.diff(centres) >= (sizes[:-1] + sizes[1:]) / 2 - 1e-6)
    assert centres[0] + sizes[0] / 2 <= 300 + 1e-6
    if sizes.sum() <= 300:
        assert centres[-1] - sizes[-1] / 2 >= -1e-6
    free = len(wanted) == 1 or np.all(-np.diff(wanted) >= (sizes[:-1] + sizes[1:]) / 2)
    if free and wanted[0] + sizes[0] / 2 <= 300 and wanted[-1] - sizes[-1] / 2 >= 0:
        assert centres == pytest.approx(wanted), "a name with room stays where its line ends"


@pytest.mark.parametrize("gap", [0.0, 0.3, 5.0])
def test_names_of_lines_are_apart_even_where_lines_end_together(gap: float) -> None:
    x = (1.0, 2.0, 3.0)
    lines = tuple(
        Line(f"row-{i}[rank=8]", x, tuple(Summary(3, 50 + gap * i + step, 1.0) for step in x)) for i in range(6)
    )
    figure = drawing.draw(Chart("accuracy", "", "", (Lines("", "tasks", "top-1 accuracy, %", lines),)))
    found = list(boxes(figure))
    assert {f"row-{i}[rank=8]" for i in range(6)} <= {text for text, _ in found}
    assert figure.legends == []
    assert outside(figure, found) == [] and overlapping(found) == []
    names = sorted((box for text, box in found if text.startswith("row-")), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in zip(names, names[1:], strict=False))


def test_names_on_paper_can_be_read() -> None:
    for colour in [style.colour for style in styles.by_label(["linear", "l2p", "inflora", "sdlora"]).values()]:
        assert contrast(styles.readable(colour)) >= 4.5


def test_grey_points_have_no_name_and_no_interval() -> None:
    points = tuple(Point(f"p{i}", summarise([i, i + 1.0]), summarise([50.0 + i, 51.0 + i])) for i in range(8))
    figure = drawing.draw(Chart("stability", "", "", (Scatter("", "x, %", "y, %", points),), highlight=("p1", "p2")))
    assert {text for text in texts(figure) if text.startswith("p")} == {"p1", "p2"}
    assert len(figure.axes[0].collections) == 4, "two intervals for each point in colour"

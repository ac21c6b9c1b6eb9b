"""Charts of the page as data for plotly.js: axes, colours and legend; and the sentences on what is seen on them."""

from __future__ import annotations

from typing import Any

import pytest

from cl_bench.reporting.charts import Chart, Dots, Heat, Line, Lines, Panel, Point, Ranks, Scatter
from cl_bench.reporting.descriptions import describe
from cl_bench.reporting.render.interactive import figure, outline
from cl_bench.stats import Summary


def one(value: float, half: float | None = None) -> Summary:
    return Summary(1 if half is None else 3, value, half)


def curve(label: str, *values: float, half: float | None = None) -> Line:
    return Line(label, tuple(range(1, len(values) + 1)), tuple(one(value, half) for value in values))


def chart(*panels: Panel, **options: Any) -> Chart:
    return Chart("name", "Title", "Caption.", panels, **options)


def lines(*curves: Line, title: str = "", levels: tuple[tuple[str, Summary], ...] = ()) -> Lines:
    return Lines(title, "tasks learned", "accuracy, %", curves, levels)


def scatter(*costs: float) -> Scatter:
    points = tuple(Point(f"row-{number}", one(cost), one(90 - number)) for number, cost in enumerate(costs))
    return Scatter("", "seconds, one run", "final accuracy, %", points, log=True)


def test_an_axis_reaches_below_zero_only_with_a_value() -> None:
    loss = figure(chart(lines(curve("alpha", 1.2, 0.1, half=1.8))))
    assert loss["layout"]["yaxis"]["rangemode"] == "nonnegative"
    change = figure(chart(lines(curve("alpha", 0.0, -3.0, half=1.8))))
    assert "rangemode" not in change["layout"]["yaxis"]


@pytest.mark.parametrize(
    ("costs", "ticks"),
    [
        ((3, 40, 900), ["10", "100"]),
        ((20, 90), ["20", "50", "100"]),
        ((900, 2.2e6, 4e9), ["1k", "10k", "100k", "1M", "10M", "100M", "1G"]),
        ((0.02, 0.4), ["0.03", "0.1", "0.3"]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_few_and_have_their_magnitude(costs: Any, ticks: list[str]) -> None:
    axis = figure(chart(scatter(*costs)))["layout"]["xaxis"]
    assert axis["type"] == "log" and len(axis["ticktext"]) == len(axis["tickvals"])
    assert set(ticks) <= set(axis["ticktext"]) and len(axis["ticktext"]) <= 8
    assert axis["tickvals"] == sorted(axis["tickvals"])


def test_costs_that_hardly_differ_have_a_linear_axis() -> None:
    axis = figure(chart(scatter(36.0, 41.0)))["layout"]["xaxis"]
    assert axis.get("type", "linear") == "linear" and "tickvals" not in axis


@pytest.mark.parametrize("highlight", [(), ("row-5",)])
def test_curves_beyond_the_limit_are_grey_and_have_no_place_in_the_legend(highlight: tuple[str, ...]) -> None:
    rows = [curve(f"row-{number}", 90 - number, 80 - number) for number in range(8)]
    data = figure(chart(lines(*rows), max_drawn=3, highlight=highlight))["data"]
    coloured = [trace["name"] for trace in data if trace["line"]["color"] != "muted"]
    assert coloured == (list(highlight) or ["row-0", "row-1", "row-2"])
    assert [trace["name"] for trace in data if trace["showlegend"]] == coloured
    assert len(data) == 8 and data[-1]["name"] in coloured, "drawn last, above the grey ones"


def test_points_without_a_colour_of_their_own_are_small_and_grey() -> None:
    data = figure(chart(scatter(2, 30, 500, 7000), max_drawn=2))["data"]
    muted = [trace["name"] for trace in data if trace["marker"]["color"] == "muted"]
    assert muted == ["row-2", "row-3"] and not any(trace["error_x"]["visible"] for trace in data[:2])
    assert [trace["name"] for trace in data if trace["showlegend"]] == ["row-0", "row-1"]


def test_curves_are_described_from_the_highest_to_the_lowest() -> None:
    panel = lines(curve("a", 95, 80), curve("b", 90, 91.26), curve("c", 88, 60.04), levels=(("joint", one(97)),))
    assert describe(chart(panel)) == (
        "Highest at the end: b, which rises from 90.0 to 91.3, then a at 80.0; lowest: c, which falls from 88.0 to "
        "60.0; joint at 97.0 (accuracy over tasks learned)."
    )


def test_rows_that_pictures_leave_out_are_not_said_to_be_seen() -> None:
    panel = lines(curve("a", 95, 80), curve("b", 90, 70), curve("far", 90, 5))
    assert "far" not in describe(chart(panel, omitted=("far",))) and "far" in describe(chart(panel))


def test_small_panels_are_described_by_their_changes() -> None:
    panels = [lines(curve("t1", 90, 90 - drop), curve("t2", 80, 80 - drop), title=f"-{drop}") for drop in (5, 30, 9)]
    assert describe(chart(*panels)) == (
        "Change from the first to the last value of a curve, on average: lowest -30 (−30.0), highest -5 (−5.0), of 3 "
        "panels."
    )


def test_matrices_are_described_by_their_last_rows() -> None:
    def heat(title: str, *last: float) -> Heat:
        values = ((99.0, None), tuple(last))
        return Heat(title, "tested on", "after learning", ("1", "2"), ("1", "2"), values, "accuracy, %", 0, 100)

    assert describe(chart(heat("a", 20, 60), heat("b", 70, 90))) == (
        "In the last row (after learning 2), highest and lowest mean: b 80.0 on average, at least 70.0; a 40.0, at "
        "least 20.0 (accuracy, %)."
    )


def test_rows_below_each_other_share_their_names_and_have_no_legend() -> None:
    rows = (("a<b", one(3.0, 0.5)), ("b", None), ("c", one(1.0)))
    made = figure(chart(Dots("forgetting, task known", "points", rows), Dots("size", "norm", rows), highlight=("c",)))
    axes = [made["layout"][name] for name in ("yaxis", "yaxis2")]
    assert axes[0]["ticktext"] == ["a&lt;b", "b", "c"] and axes[0]["range"] == [2.5, -0.5]
    assert axes[1]["matches"] == "y" and not axes[1]["showticklabels"]
    drawn = [(trace["name"], trace["x"], trace["y"], trace["marker"]["color"] == "muted") for trace in made["data"]]
    assert drawn == [("a&lt;b", [3.0], [0], True), ("c", [1.0], [2], False)] * 2
    assert made["layout"]["annotations"][0]["text"] == "forgetting,<br>task known"
    assert not any(trace["showlegend"] for trace in made["data"]) and outline(made)["legend"] == []


def test_an_axis_of_rows_is_logarithmic_on_request_unless_a_value_is_0() -> None:
    def axis(*values: float) -> Any:
        rows = tuple((f"m{number}", one(value)) for number, value in enumerate(values))
        return figure(chart(Dots("size", "norm", rows, log=True)))["layout"]["xaxis"].get("type", "linear")

    assert axis(0.01, 3.0) == "log" and axis(0.0, 3.0) == "linear"


def test_values_by_row_are_described_by_their_ends() -> None:
    rows = Dots("forgetting", "points", (("a", one(12.0)), ("b", None), ("c", one(3.0))))
    sizes = Dots("size", "norm", (("a", one(0.5)),))
    assert (
        describe(chart(rows, sizes)) == "forgetting: lowest c with 3.0, highest a with 12.0. size: lowest a with 0.5."
    )
    assert describe(chart(Dots("size", "norm", (("a", None),)))) == ""


def test_points_and_ranks_are_described() -> None:
    text = describe(chart(scatter(2500, 40)))
    assert text == "Against seconds, row-0 is highest with 90.0 at 2,500, row-1 is farthest left with 89.0 at 40.0."
    ranks = Ranks("", (("a", 1.25), ("b", 2.0), ("c", 2.75)), (("b", "c"),), "note")
    assert (
        describe(chart(ranks))
        == "Best average rank: a with 1.2; last: c with 2.8. Not significantly different: b to c."
    )

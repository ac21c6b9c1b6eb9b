"""Charts as data: `render.drawing` draws them for paper, `render.interactive` for the page, and `to_csv` writes them.

A chart is a row or grid of panels. Values are `Summary`s over runs, in the unit named on the axis; the `Summary` of a
single value has no interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cl_bench.reporting import emphasis, spreadsheets
from cl_bench.stats import Summary


@dataclass(frozen=True)
class Line:
    """A curve with a pointwise interval where there are several runs.

    Attributes:
        label: name in the legend. For a row of a table it is the row's label, which fixes the style (`render.styles`).
        x: shape [n].
        y: shape [n], a summary per x.
        order: position in a sequence of lines, from 0 to 1, which decides the colour; None: the label decides.
        breaks: indices of points that are not joined to the point before them.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[Summary, ...]
    order: float | None = None
    breaks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot, with intervals in both directions where there are several runs."""

    label: str
    x: Summary
    y: Summary


@dataclass(frozen=True)
class Lines:
    """A panel of curves.

    Attributes:
        levels: horizontal reference lines as pairs of label and value, e.g. joint training as a ceiling.
        whole: whether x is a count, with ticks at whole numbers only.
    """

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    levels: tuple[tuple[str, Summary], ...] = ()
    whole: bool = True


@dataclass(frozen=True)
class Heat:
    """A panel of coloured cells, shape [rows, columns]; None where there is no value.

    Attributes:
        x, y: titles of the axes.
        columns, rows: names of the columns and rows.
        unit: unit of the values, at the colour bar.
        low, high: ends of the colour scale, the same for all panels of a chart.
        decimals: decimals of the number printed in each cell.
    """

    title: str
    x: str
    y: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    unit: str
    low: float
    high: float
    decimals: int = 0


@dataclass(frozen=True)
class Scatter:
    """A panel of points.

    Attributes:
        log: whether the x axis is logarithmic.
        front: labels of the points on the Pareto front (highest y for each x), from left to right; empty: not drawn.
    """

    title: str
    x: str
    y: str
    points: tuple[Point, ...]
    log: bool = False
    front: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranks:
    """A critical-difference diagram (Demsar, JMLR 2006): average ranks, 1 is best.

    Attributes:
        ranks: pairs of label and average rank, best first.
        groups: sets of labels without a significant difference, each joined by a bar.
        note: test, significance level and number of blocks, in words.
    """

    title: str
    ranks: tuple[tuple[str, float], ...]
    groups: tuple[tuple[str, ...], ...]
    note: str


@dataclass(frozen=True)
class Dots:
    """A panel with a value per row and its interval, one row below the other, e.g. sorted by value (a forest plot).

    Attributes:
        x: title of the axis of values.
        values: pairs of label and value, from top to bottom; None: undefined. Panels that stand side by side have the
            same labels, which are written once.
        log: whether the axis is logarithmic, unless a value is 0 or below.
    """

    title: str
    x: str
    values: tuple[tuple[str, Summary | None], ...]
    log: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels from top to bottom."""
        return tuple(label for label, _ in self.values)

    @property
    def logarithmic(self) -> bool:
        """Whether the axis is logarithmic."""
        found = [value.mean for _, value in self.values if value is not None]
        return self.log and bool(found) and min(found) > 0


Panel = Lines | Heat | Scatter | Ranks | Dots


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
        name: short name, unique in a report and part of file names: `accuracy`, `sdlora-fig2`.
        title: headline.
        caption: sentences on what is shown, the meaning of bands and bars, and the number of runs.
        panels: drawn from left to right, then down.
        max_drawn: limit of the panels, and of the rows in colour. Rows and panels are sorted by what a reader wants to
            see first. The CSV always has the numbers of all.
        highlight: labels of the rows in colour and with names, while all others are grey; empty: the first `max_drawn`.
        seen: what is seen, in a sentence, for readers who do not see it; empty: computed from the numbers.
        same_scale: whether panels of curves share the range of their axes, because they are compared with each other.
        omitted: labels of rows that pictures leave out, because they would compress the scale for all others.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    max_drawn: int = 100
    highlight: tuple[str, ...] = ()
    seen: str = ""
    same_scale: bool = False
    omitted: tuple[str, ...] = ()


def coloured(chart: Chart, panel: Panel) -> frozenset[str]:
    """Labels of the lines or points of a panel that have colours and names; the others are context, in grey.

    Of rows, these are the ones in `Chart.highlight`, or the first `Chart.max_drawn` if it is empty. Of a sequence of
    lines, at most six are in colour, at equal steps from the first to the last.
    """
    if isinstance(panel, Lines):
        rows = [line.label for line in panel.lines if line.order is None]
        steps = [line.label for line in panel.lines if line.order is not None]
        count = min(len(steps), emphasis.MAX_COLOURED)
        chosen = {steps[round(i * (len(steps) - 1) / max(1, count - 1))] for i in range(count)}
        levels = {label for label, _ in panel.levels}
        return frozenset(chosen | levels | _standing_out(chart, rows))
    if isinstance(panel, Scatter):
        return frozenset(_standing_out(chart, [point.label for point in panel.points]))
    if isinstance(panel, Dots):
        return frozenset(_standing_out(chart, panel.labels))
    return frozenset()


def _standing_out(chart: Chart, rows: Sequence[str]) -> set[str]:
    return {label for label in rows if label in chart.highlight} if chart.highlight else set(rows[: chart.max_drawn])


def drawn_part(chart: Chart) -> Chart:
    """The chart without the panels and rows that pictures leave out."""
    return replace(chart, panels=tuple(_drawn(panel, chart) for panel in chart.panels[: chart.max_drawn]))


def _drawn(panel: Panel, chart: Chart) -> Panel:
    if isinstance(panel, Lines):
        return replace(panel, lines=tuple(line for line in panel.lines if line.label not in chart.omitted))
    if isinstance(panel, Scatter):
        points = tuple(point for point in panel.points if point.label not in chart.omitted)
        return replace(panel, points=points, front=tuple(label for label in panel.front if label not in chart.omitted))
    if isinstance(panel, Dots):
        return replace(panel, values=tuple(pair for pair in panel.values if pair[0] not in chart.omitted))
    return panel


_COLUMNS = ("panel", "title", "kind", "label", "x", "x_low", "x_high", "y", "y_low", "y_high", "n")


def to_csv(chart: Chart) -> str:
    """The numbers of a chart as CSV, one line per value, in drawing order; floats with 10 significant digits.

    Columns: `panel` (from 1), `title`, `kind` (`line`, `level`, `cell`, `point`, `rank`, `dot`), `label`, `x`, `y` with
    its interval `y_low`, `y_high` and number of runs `n`, and `x_low`, `x_high` of points; empty where undefined. For a
    heat map, `label` is the name of the row and `x` the name of the column.
    """
    lines = (
        ([number, panel.title, *first], numbers)
        for number, panel in enumerate(chart.panels, start=1)
        for first, numbers in _values(panel)
    )
    # A data frame of all these values would take several times as long.
    return spreadsheets.lines_to_csv(_COLUMNS, lines, "%.10g")


def _values(panel: Panel) -> Iterator[tuple[list[str], Sequence[float | None]]]:
    """The values of a panel, each as the last columns of its line: texts, of which `kind` is the first, and numbers."""
    if isinstance(panel, Lines):
        for line in panel.lines:
            texts = ["line", line.label]
            for x, y in zip(line.x, line.y, strict=True):
                yield texts, (x, None, None, y.mean, y.low, y.high, y.n)
        for label, y in panel.levels:
            yield ["level", label], (None, None, None, y.mean, y.low, y.high, y.n)
    elif isinstance(panel, Heat):
        for name, row in zip(panel.rows, panel.values, strict=True):
            for column, value in zip(panel.columns, row, strict=True):
                yield ["cell", name, column], (None, None, value, None, None, None)
    elif isinstance(panel, Scatter):
        for point in panel.points:
            across, up = point.x, point.y
            numbers = (across.mean, across.low, across.high, up.mean, up.low, up.high, up.n)
            yield ["point", point.label], numbers
    elif isinstance(panel, Dots):
        for label, shown in panel.values:
            of_dot = (shown.mean, shown.low, shown.high, shown.n) if shown else (None,) * 4
            yield ["dot", label], (None, None, None, *of_dot)
    else:
        for label, rank in panel.ranks:
            yield ["rank", label], (None, None, None, rank, None, None, None)

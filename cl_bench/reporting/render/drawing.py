"""Charts drawn with matplotlib for papers, as wide as a column or the text, without pyplot's global state.

The same chart always gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cl_bench.reporting import charts
from cl_bench.reporting.charts import Chart, Heat, Lines, Ranks, Scatter
from cl_bench.reporting.render import scatter, styles
from cl_bench.reporting.render.panels import DRAW, dash, in_legend, place_lines
from cl_bench.reporting.render.styles import Style
from cl_bench.reporting.render.text_layout import COLUMN, TEXT, text_width, wrapped

FORMATS = ("png", "pdf", "svg")
DPI = 200
_SMALL = 4
"""From this number of panels on they are small multiples, which share the titles of axes and the ticks."""
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.25,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    # A fixed salt instead of a random one for the ids in SVG files.
    "svg.hashsalt": "cl-bench",
    "text.parse_math": False,
}
_NO_DATES: Mapping[str, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def save(chart: Chart, stem: Path, formats: Sequence[str] = FORMATS, ceilings: Iterable[str] = ()) -> list[Path]:
    """Write the numbers of a chart to `stem`.csv, and its picture in each of the formats; returns the paths.

    Args:
        ceilings: labels of rows trained on all tasks at once.
    """
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("csv", *formats)]
    paths[0].write_text(charts.to_csv(chart), encoding="utf-8")
    if formats:
        figure = draw(chart, ceilings)
        with mpl.rc_context(_STYLE):
            for kind, path in zip(formats, paths[1:], strict=True):
                figure.savefig(path, dpi=DPI, metadata=_NO_DATES[kind])
    return paths


def draw(chart: Chart, ceilings: Iterable[str] = ()) -> Figure:
    """Draw a chart: its panels, and below them one legend for the rows of all panels."""
    # Styles are assigned to all rows, drawn or not, so that a row looks the same in every chart of a protocol.
    look = styles.by_label(_labels(chart), set(ceilings) | _levels(chart))
    chart = _part_on_paper(chart)
    panels = chart.panels
    heat = isinstance(panels[0], Heat)
    columns = _columns(len(panels))
    lines = math.ceil(len(panels) / columns)
    width = TEXT if len(panels) > 1 or _is_wide(panels[0]) else COLUMN
    shared = len(panels) >= _SMALL and len({_axes_of(panel) for panel in panels}) == 1
    height = lines * (max(_height(p, width / columns) for p in panels) - (0.3 if heat and shared else 0))
    keys = _legend_entries(chart, look, width / columns)
    per_row = _entries_per_row([str(key.get_label()) for key in keys], width)
    legend = 0.155 * math.ceil(len(keys) / per_row) + 0.12 if keys else 0.0
    with mpl.rc_context(_STYLE | {"axes.grid": not heat}):
        figure = Figure(figsize=(width, height + legend), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes in grid[len(panels) :]:
            axes.remove()
        drawn = list(zip(grid, panels, strict=False))
        for axes, panel in drawn:
            # Set here, so that it does not depend on the settings in effect when the picture is written.
            axes.tick_params(labelsize=7)
            DRAW[type(panel)](axes, panel, look)
            if isinstance(panel, Scatter):
                scatter.list_far_points(axes, panel, width / columns)
            if getattr(panel, "title", ""):
                axes.set_title(wrapped(panel.title, 0.85 * width / columns, 8), pad=4)
        for group in [drawn] if shared or chart.same_scale else [[one] for one in drawn]:
            place_lines([(axes, panel) for axes, panel in group if isinstance(panel, Lines)])
        if shared:
            _share_axes(figure, drawn, columns)
        if heat:
            _colour_bar(figure, drawn, lines)
        if keys:
            figure.legend(
                handles=keys, loc="outside lower center", ncols=per_row, frameon=False, handlelength=2.6,
                columnspacing=1.2, labelspacing=0.35, borderaxespad=0.1, borderpad=0,
            )  # fmt: skip
        # The layout is computed once for all formats; the names of points below depend on it.
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        figure.set_layout_engine(None)
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                # Make the ticks now: a tick takes its style from the settings in effect when it is made.
                axis.get_major_ticks()
        for axes, panel in drawn:
            if isinstance(panel, Scatter):
                scatter.name_points(axes, panel, scatter.named(panel, width / columns), figure.dpi / 72)
    return figure


def _part_on_paper(chart: Chart) -> Chart:
    """The chart with at most `max_drawn` panels, and curves per panel."""
    panels = (
        replace(panel, lines=panel.lines[: chart.max_drawn]) if isinstance(panel, Lines) else panel
        for panel in chart.panels[: chart.max_drawn]
    )
    return replace(chart, panels=tuple(panels))


def _labels(chart: Chart) -> list[str]:
    """Labels whose style depends on their name."""
    found = []
    for panel in chart.panels:
        if isinstance(panel, Lines):
            found += [line.label for line in panel.lines if line.order is None]
        elif isinstance(panel, Scatter):
            found += [point.label for point in panel.points]
    return found + sorted(_levels(chart))


def _levels(chart: Chart) -> set[str]:
    return {label for panel in chart.panels if isinstance(panel, Lines) for label, _ in panel.levels}


def _axes_of(panel: charts.Panel) -> tuple[type, str, str]:
    """Kind and axis titles of a panel; panels share titles of axes if these are equal."""
    return type(panel), getattr(panel, "x", ""), getattr(panel, "y", "")


def _columns(count: int) -> int:
    """Number of panels side by side."""
    if count <= 3:
        return count
    return 2 if count == 4 else 3 if count <= 9 else 4


def _is_wide(panel: charts.Panel) -> bool:
    """Whether a single panel needs the width of the text."""
    if isinstance(panel, Heat):
        return len(panel.columns) > 40
    return isinstance(panel, Ranks) or (isinstance(panel, Scatter) and len(scatter.drawn(panel)) > scatter.NAMED)


def _height(panel: charts.Panel, width: float) -> float:
    """Height in inches of a panel of this width, axes included."""
    if isinstance(panel, Heat):
        return (width - 0.35) * len(panel.rows) / len(panel.columns) + 0.55
    if isinstance(panel, Ranks):
        return 0.75 + 0.17 * math.ceil(len(panel.ranks) / 2) + 0.1 * len(panel.groups)
    if isinstance(panel, Scatter):
        return 3.4 if width > COLUMN else 2.9
    return 2.35 if width > 2.6 else 1.9 if width > 2 else 1.6


def _legend_entries(chart: Chart, look: Mapping[str, Style], width: float) -> list[Line2D]:
    """Entries of the legend for panels of this width.

    Rows are sorted by last value, highest first, like the ends of the curves. Lines of a sequence follow in order.
    """
    ends: dict[str, float] = {}
    sequence: dict[str, float] = {}
    for panel in chart.panels:
        if isinstance(panel, Lines):
            for line in panel.lines:
                if line.order is not None:
                    if in_legend(panel):
                        sequence.setdefault(line.label, line.order)
                elif line.label != panel.title:
                    ends.setdefault(line.label, line.y[-1].mean)
            for label, level in panel.levels:
                ends.setdefault(label, level.mean)
        elif isinstance(panel, Scatter) and len(scatter.named(panel, width)) < len(scatter.drawn(panel)):
            ends |= {point.label: point.y.mean for point in scatter.drawn(panel)}
    points = isinstance(chart.panels[0], Scatter)
    rows = [
        Line2D(
            [], [], color=look[label].colour, linestyle="none" if points else dash(look[label]),
            marker=look[label].marker or ("*" if points else None), markeredgecolor="white", markeredgewidth=0.5,
            label=wrapped(label),
        )
        for label in sorted(ends, key=lambda label: (-ends[label], label))
    ]  # fmt: skip
    steps = [
        Line2D([], [], color=styles.sequential(order).colour, marker="o", markersize=2.8, linewidth=1, label=label)
        for label, order in sequence.items()
    ]
    return rows + steps


def _entries_per_row(labels: Sequence[str], width: float) -> int:
    """Number of legend entries side by side: as many as fit, with columns as wide as their longest entry."""
    widths = [max((text_width(line, 7) for line in label.split("\n")), default=0) for label in labels]
    for columns in range(len(labels), 1, -1):
        # The columns of matplotlib's legends: filled downwards, the first ones longer.
        if sum(0.5 + max(column) for column in np.array_split(widths, columns)) <= width:
            # The smallest number of columns with the same number of rows fills the rows more evenly.
            return math.ceil(len(labels) / math.ceil(len(labels) / columns))
    return 1


def _share_axes(figure: Figure, drawn: Sequence[tuple[Axes, charts.Panel]], columns: int) -> None:
    """Show titles of axes once for all small multiples, and equal ticks only at the outer edges."""
    first = drawn[0][1]
    _, x, y = _axes_of(first)
    figure.supylabel(y, fontsize=8)
    same = isinstance(first, Lines) or len({_cells_of(panel) for _, panel in drawn}) == 1
    for number, (axes, _) in enumerate(drawn):
        lowest = number + columns >= len(drawn)
        axes.set(xlabel=x if lowest else "", ylabel="")
        if same:
            axes.tick_params(labelleft=number % columns == 0, labelbottom=lowest)


def _cells_of(panel: charts.Panel) -> object:
    """A key that is equal for panels with the same ticks; unique for a panel that is no heat map."""
    return (panel.rows, panel.columns) if isinstance(panel, Heat) else id(panel)


def _colour_bar(figure: Figure, drawn: Sequence[tuple[Axes, charts.Panel]], lines: int) -> None:
    """Add one colour bar for all heat maps, which share their scale."""
    heats = [axes for axes, panel in drawn if isinstance(panel, Heat)]
    first = drawn[0][1]
    assert isinstance(first, Heat)
    only = len(heats) == len(drawn)
    bar = figure.colorbar(
        heats[0].collections[0], ax=heats if only else heats[0], shrink=min(1.0, 1.6 / lines) if only else 0.8,
        aspect=25, pad=0.015 if only else 0.03, location="right" if only else "bottom",
    )  # fmt: skip
    bar.set_label(first.unit, size=7)
    bar.ax.tick_params(labelsize=6)
    bar.outline.set_visible(False)

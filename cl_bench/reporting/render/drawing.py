"""Charts on paper: at the width of a column or of the text, without pyplot's global state, the same bytes each time."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cl_bench.reporting import charts
from cl_bench.reporting.charts import Chart, Heat, Lines, Ranks, Scatter
from cl_bench.reporting.render import scatter, styles
from cl_bench.reporting.render.styles import Style
from cl_bench.reporting.render.text_layout import COLUMN, FAINT, TEXT, text_width, wrapped
from cl_bench.stats import Summary

FORMATS = ("png", "pdf", "svg")
DPI = 200
_BANDS = 4
"""More curves than this have bars at their end instead of bands."""
_SMALL = 4
"""From so many panels on they are small multiples: names of axes and ticks stand once for all."""
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
    # Names inside SVG files come from this instead of from chance.
    "svg.hashsalt": "cl-bench",
    "text.parse_math": False,
}
_NO_DATES: Mapping[str, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def save(chart: Chart, stem: Path, formats: Sequence[str] = FORMATS, ceilings: Iterable[str] = ()) -> list[Path]:
    """Write the numbers of a chart as `stem`.csv, and its picture in each of the formats; returns the paths.

    Args:
        ceilings: labels of rows that do not learn in turn.
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
    """The picture of a chart: its panels, and below them one legend for the rows in all of them."""
    # Rows that are not drawn count too, so that a row looks the same in every chart of a protocol.
    look = styles.of(_labels(chart), set(ceilings) | _levels(chart))
    chart = _cut(chart)
    panels = chart.panels
    heat = isinstance(panels[0], Heat)
    columns = _columns(len(panels))
    lines = math.ceil(len(panels) / columns)
    width = TEXT if len(panels) > 1 or _is_wide(panels[0]) else COLUMN
    shared = len(panels) >= _SMALL and len({_axes_of(panel) for panel in panels}) == 1
    height = lines * (max(_height(p, width / columns) for p in panels) - (0.3 if heat and shared else 0))
    keys = _keys(chart, look, width / columns)
    per_row = _keys_per_row([str(key.get_label()) for key in keys], width)
    legend = 0.155 * math.ceil(len(keys) / per_row) + 0.12 if keys else 0.0
    with mpl.rc_context(_STYLE | {"axes.grid": not heat}):
        figure = Figure(figsize=(width, height + legend), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes in grid[len(panels) :]:
            axes.remove()
        drawn = list(zip(grid, panels, strict=False))
        for axes, panel in drawn:
            # Said here, it does not depend on the settings at the time when the picture is written.
            axes.tick_params(labelsize=7)
            _DRAW[type(panel)](axes, panel, look)
            if isinstance(panel, Scatter):
                scatter.name_far(axes, panel, width / columns)
            if getattr(panel, "title", ""):
                axes.set_title(wrapped(panel.title, 0.85 * width / columns, 8), pad=4)
        for group in [drawn] if shared else [[one] for one in drawn]:
            _place_lines([(axes, panel) for axes, panel in group if isinstance(panel, Lines)])
        if shared:
            _share(figure, drawn, columns)
        if heat:
            _colour_bar(figure, drawn, lines)
        if keys:
            figure.legend(
                handles=keys, loc="outside lower center", ncols=per_row, frameon=False, handlelength=2.6,
                columnspacing=1.2, labelspacing=0.35, borderaxespad=0.1, borderpad=0,
            )  # fmt: skip
        # Laid out once, for all formats; names of points need to know where these are.
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        figure.set_layout_engine(None)
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                # A tick takes its style when it is made, which would otherwise be after this.
                axis.get_major_ticks()
        for axes, panel in drawn:
            if isinstance(panel, Scatter):
                scatter.name_points(axes, panel, scatter.named(panel, width / columns), figure.dpi / 72)
    return figure


def _cut(chart: Chart) -> Chart:
    """What of a chart is drawn on paper."""
    panels = (
        replace(panel, lines=panel.lines[: chart.shown]) if isinstance(panel, Lines) else panel
        for panel in chart.panels[: chart.shown]
    )
    return replace(chart, panels=tuple(panels))


def _labels(chart: Chart) -> list[str]:
    """Labels whose style their name decides."""
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
    """What must agree for panels to share the names of their axes."""
    return type(panel), getattr(panel, "x", ""), getattr(panel, "y", "")


def _columns(count: int) -> int:
    """So many of the panels stand side by side."""
    if count <= 3:
        return count
    return 2 if count == 4 else 3 if count <= 9 else 4


def _is_wide(panel: charts.Panel) -> bool:
    """Whether a panel alone needs the width of the text."""
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


def _keys(chart: Chart, look: Mapping[str, Style], width: float) -> list[Line2D]:
    """Entries of the legend for panels of this width.

    Rows of curves come best last value first, as the curves end; what stands in a sequence follows in its order.
    """
    ends: dict[str, float] = {}
    sequence: dict[str, float] = {}
    for panel in chart.panels:
        if isinstance(panel, Lines):
            for line in panel.lines:
                if line.order is not None:
                    if _in_legend(panel):
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
            [], [], color=look[label].colour, linestyle="none" if points else _dash(look[label]),
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


def _keys_per_row(labels: Sequence[str], width: float) -> int:
    """Entries of the legend side by side: as many as fit, in columns as wide as their longest entry."""
    widths = [max((text_width(line, 7) for line in label.split("\n")), default=0) for label in labels]
    for columns in range(len(labels), 1, -1):
        # The columns of matplotlib's legends: filled downwards, the first ones longer.
        if sum(0.5 + max(column) for column in np.array_split(widths, columns)) <= width:
            # As many rows with fewer columns are more even.
            return math.ceil(len(labels) / math.ceil(len(labels) / columns))
    return 1


def _numbered(panel: Lines) -> bool:
    """Whether the lines are a sequence too long to spell out beside each of them."""
    return sum(line.order is not None for line in panel.lines) > 3


def _in_legend(panel: Lines) -> bool:
    """Whether the lines are a sequence whose names would cover each other where they end."""
    return _numbered(panel) and len({line.x[-1] for line in panel.lines}) == 1


def _dash(style: Style) -> Any:
    return (0, style.dash) if style.dash else "-"


def _share(figure: Figure, drawn: Sequence[tuple[Axes, charts.Panel]], columns: int) -> None:
    """Names of axes once for all panels of small multiples, and ticks at the edge where they are the same."""
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
    """What must agree for panels to share their ticks; nothing else is like a panel that is no heat map."""
    return (panel.rows, panel.columns) if isinstance(panel, Heat) else id(panel)


# --- kinds of panels -------------------------------------------------------------------------------------------


def _draw_lines(axes: Axes, panel: Lines, look: Mapping[str, Style]) -> None:
    for label, level in panel.levels:
        axes.axhline(level.mean, color=look[label].colour, linestyle=_dash(look[label]))
    for number, line in enumerate(panel.lines):
        style = look[line.label] if line.order is None else styles.sequential(line.order)
        if line.label == panel.title:
            # Nothing to be told apart from.
            style = Style(style.colour, "", ())
        means = [value.mean for value in line.y]
        axes.plot(
            line.x, means, color=style.colour, linestyle=_dash(style), clip_on=False, zorder=3,
            marker=style.marker, markevery=math.ceil(len(line.x) / 30), markeredgecolor="white", markeredgewidth=0.4,
            markersize=4 if line.order is None else 2.8, linewidth=1.25 if line.order is None else 1.0,
        )  # fmt: skip
        low, high = _interval(line.y)
        if np.isfinite(low).any() and len(panel.lines) <= _BANDS:
            axes.fill_between(line.x, low, high, color=style.colour, alpha=0.13, linewidth=0)
        elif np.isfinite(low[-1]) and line.order is None:
            # Bands of many rows would cover each other: bars at the end, side by side.
            place = line.x[-1] + (line.x[-1] - line.x[0]) * (0.02 + 0.007 * number)
            axes.plot([place, place], [low[-1], high[-1]], color=style.colour, linewidth=1.4, clip_on=False)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    axes.margins(x=0.04)
    axes.ticklabel_format(useOffset=False)


def _place_lines(drawn: Sequence[tuple[Axes, Lines]]) -> None:
    """Give panels of curves one range, ticks where there are values, and names to sequences that have no legend."""
    if not drawn:
        return
    limits = [(*axes.get_xlim(), *axes.get_ylim()) for axes, _ in drawn]
    left, right, bottom, top = (f(one[i] for one in limits) for i, f in enumerate((min, max, min, max)))
    places = [place for _, panel in drawn for line in panel.lines for place in line.x]
    for axes, panel in drawn:
        axes.set_xlim(left, right)
        axes.set_ylim(*((max(bottom, 0), min(top, 100)) if "%" in panel.y else (bottom, top)))
        if panel.whole and places:
            # Fewer where numbers are long: three panels may share the width.
            ticks = MaxNLocator(nbins=8 if max(places) < 100 else 5, integer=True).tick_values(min(places), max(places))
            axes.set_xticks([tick for tick in ticks if min(places) <= tick <= max(places)])
        if _in_legend(panel):
            continue
        for line in panel.lines:
            if line.order is not None and line.x:
                axes.annotate(
                    line.label.rpartition(" ")[2] if _numbered(panel) else line.label,
                    (line.x[-1], line.y[-1].mean), xytext=(3, 0), textcoords="offset points", va="center",
                    fontsize=5.5 if _numbered(panel) else 7, color=styles.sequential(line.order).colour,
                    annotation_clip=False,
                )  # fmt: skip


def _interval(values: Sequence[Summary]) -> tuple[Any, Any]:
    """Ends of the intervals, NaN where there is none."""
    low, high = (np.array([getattr(value, end) for value in values], dtype=np.float64) for end in ("low", "high"))
    return low, high


def _draw_heat(axes: Axes, panel: Heat, look: Mapping[str, Style]) -> None:
    values = np.array([[np.nan if value is None else value for value in row] for row in panel.values])
    # Lines between so many cells would cover them, and so many shapes take a viewer long.
    fine = max(values.shape) > 40
    axes.pcolormesh(
        values, cmap=_COLOURS, vmin=panel.low, vmax=panel.high, edgecolor="none" if fine else "white", linewidth=0.4,
        rasterized=fine,
    )  # fmt: skip
    axes.invert_yaxis()
    axes.set_aspect("equal")
    size = 7.0 if len(panel.columns) <= 6 else 5.0
    if max(values.shape) <= 12:
        shade = _COLOURS((values - panel.low) / ((panel.high - panel.low) or 1))[..., :3]
        dark = _luminance(shade) < _MIDDLE
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                axes.text(
                    column + 0.5, row + 0.5, f"{value:.{panel.decimals}f}", ha="center", va="center",
                    fontsize=size - 0.7 * (panel.decimals > 0), color="white" if dark[row, column] else "black",
                )  # fmt: skip
    for ticks, names, axis in ((values.shape[1], panel.columns, axes.xaxis), (values.shape[0], panel.rows, axes.yaxis)):
        step = 1 if ticks <= 12 else math.ceil(ticks / 10)
        axis.set_ticks(np.arange(0, ticks, step) + 0.5, names[::step])
    axes.tick_params(length=0, pad=1, labelsize=size)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    for spine in axes.spines.values():
        spine.set_visible(False)


_MIDDLE = 0.179
"""Luminance from which on black is the clearer on it, below it white."""


def _luminance(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Relative luminance (WCAG 2) of sRGB colours in [0, 1], shape [..., 3]."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ (0.2126, 0.7152, 0.0722))


_COLOURS = sns.color_palette("YlGnBu", as_cmap=True)


def _colour_bar(figure: Figure, drawn: Sequence[tuple[Axes, charts.Panel]], lines: int) -> None:
    """One bar for all heat maps, which share their scale."""
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


def _draw_ranks(axes: Axes, panel: Ranks, look: Mapping[str, Style]) -> None:
    """Names left and right of a rank axis, each joined to its rank; bars join what cannot be told apart."""
    ranks = dict(panel.ranks)
    low, high = 1, max(2, math.ceil(max(ranks.values())))
    half = math.ceil(len(ranks) / 2)
    names = list(ranks)
    depth = 1.2 + 0.55 * len(panel.groups)
    axes.set_xlim(low - 0.02, high + 0.02)
    axes.set_ylim(-(depth + half) - 0.4, 0.7)
    axes.axhline(0, color="#333333", linewidth=0.9)
    # The names stand outside the axes, for which the layout engine would leave no room.
    texts = [
        f"{label}  {ranks[label]:.2f}" if i < half else f"{ranks[label]:.2f}  {label}" for i, label in enumerate(names)
    ]
    sides = [max(text_width(text, 7) for text in side) / TEXT for side in (texts[:half], texts[half:])]
    size = 7 * min(1, 0.38 / max(sides))
    left, right = (0.02 + min(side, 0.38) for side in sides)
    most = (1 - left - right) * TEXT / (1.5 * text_width("00", 7))
    step = next(step for step in (1, 2, 5, 10, high) if (high - low) / step <= most)
    for tick in (low, *range(max(step, 2), high + 1, step)):
        axes.plot([tick, tick], [0, 0.22], color="#333333", linewidth=0.8)
        axes.text(tick, 0.32, str(tick), ha="center", va="bottom", fontsize=7)
    for number, group in enumerate(panel.groups):
        ends = [ranks[label] for label in group]
        axes.plot(
            [min(ends), max(ends)], [-0.55 * (number + 1)] * 2, color="#555555", linewidth=2.6, solid_capstyle="butt"
        )
    for position, (label, text) in enumerate(zip(names, texts, strict=True)):
        first = position < half
        y = -(depth + (position if first else len(names) - 1 - position))
        edge = low - 0.02 if first else high + 0.02
        axes.plot([ranks[label], ranks[label], edge], [0, y, y], color="#333333", linewidth=0.6, clip_on=False)
        axes.annotate(
            text, (edge, y), xytext=(-3 if first else 3, 0), textcoords="offset points", fontsize=size, va="center",
            ha="right" if first else "left", annotation_clip=False,
        )  # fmt: skip
    axes.set_axis_off()
    axes.figure.set_layout_engine(None)  # type: ignore[union-attr]
    axes.set_position((left, 0.14, 1 - left - right, 0.84))
    axes.text(
        (0.5 - left) / (1 - left - right), -0.03, textwrap.fill(panel.note, 100), transform=axes.transAxes, ha="center",
        va="top", fontsize=6.5, color=FAINT,
    )  # fmt: skip


_DRAW: Mapping[type, Callable[[Axes, Any, Mapping[str, Style]], None]] = {
    Lines: _draw_lines,
    Heat: _draw_heat,
    Scatter: scatter.draw,
    Ranks: _draw_ranks,
}

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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from cl_bench.report import charts, styles
from cl_bench.report.charts import Chart, Heat, Lines, Ranks, Scatter
from cl_bench.report.styles import Style
from cl_bench.stats import Summary

COLUMN, TEXT = 3.5, 7.2
"""Width of a paper's column and of its text, in inches."""
FORMATS = ("png", "pdf", "svg")
DPI = 200
_BANDS = 4
"""More curves than this have bars at their end instead of bands."""
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
            # Laid out once, for all formats.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            for kind, path in zip(formats, paths[1:], strict=True):
                figure.savefig(path, dpi=DPI, metadata=_NO_DATES[kind])
    return paths


def draw(chart: Chart, ceilings: Iterable[str] = ()) -> Figure:
    """The picture of a chart: its panels, and below them one legend for the rows in all of them."""
    chart = _cut(chart)
    look = styles.of(_labels(chart), set(ceilings) | _levels(chart))
    heat = isinstance(chart.panels[0], Heat)
    columns = _columns(chart)
    lines = math.ceil(len(chart.panels) / columns)
    wide = len(chart.panels) > 1 or _crowded(chart.panels[0]) or isinstance(chart.panels[0], Ranks)
    width = TEXT if wide else COLUMN
    panel = width / columns
    shared = len(chart.panels) > 3 and len({_axes_of(panel) for panel in chart.panels}) == 1
    height = lines * (max(_height(p, panel) for p in chart.panels) - (0.3 if heat and shared else 0))
    keys = _keys(chart, look)
    per_row = max(1, min(len(keys), int(width / _key_width(keys)))) if keys else 1
    legend = 0.155 * math.ceil(len(keys) / per_row) + 0.12 if keys else 0.0
    with mpl.rc_context(_STYLE | {"axes.grid": not heat}):
        figure = Figure(figsize=(width, height + legend), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(lines, columns, squeeze=False)
        for number, axes in enumerate(grid.flat):
            if number >= len(chart.panels):
                axes.remove()
                continue
            one = chart.panels[number]
            _DRAW[type(one)](axes, one, look)
            if getattr(one, "title", ""):
                axes.set_title(_wrapped(one.title, max(18, round(17 * panel))), pad=4)
            if shared:
                # One label for all panels of a grid of small multiples.
                axes.set(xlabel="", ylabel="")
        if shared:
            _, x, y = _axes_of(chart.panels[0])
            figure.supxlabel(x, fontsize=8)
            figure.supylabel(y, fontsize=8)
            if isinstance(chart.panels[0], Lines):
                _same_range([axes for axes in grid.flat if axes.figure is not None])
        if heat:
            _colour_bar(figure, grid, chart, lines)
        if keys:
            figure.legend(
                handles=keys, loc="outside lower center", ncols=per_row, frameon=False, handlelength=2.6,
                columnspacing=1.2, labelspacing=0.35, borderaxespad=0.1, borderpad=0,
            )  # fmt: skip
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


def _columns(chart: Chart) -> int:
    """Panels side by side."""
    count = len(chart.panels)
    if count <= 3:
        return count
    return 2 if count == 4 else 3 if count <= 9 else 4


def _height(panel: charts.Panel, width: float) -> float:
    """Height in inches of a panel of this width, axes included."""
    if isinstance(panel, Heat):
        return (width - 0.35) * len(panel.rows) / len(panel.columns) + 0.55
    if isinstance(panel, Ranks):
        return 0.75 + 0.17 * math.ceil(len(panel.ranks) / 2) + 0.1 * len(panel.groups)
    if isinstance(panel, Scatter):
        return 2.9
    return 2.35 if width > 2.6 else 1.9 if width > 2 else 1.6


def _keys(chart: Chart, look: Mapping[str, Style]) -> list[Line2D]:
    """Entries of the legend: rows of curves, best last value first, as the curves end."""
    ends: dict[str, float] = {}
    for panel in chart.panels:
        if isinstance(panel, Lines):
            for line in panel.lines:
                if line.order is None:
                    ends.setdefault(line.label, line.y[-1].mean)
            for label, level in panel.levels:
                ends.setdefault(label, level.mean)
        elif isinstance(panel, Scatter) and _crowded(panel):
            ends |= {point.label: point.y.mean for point in panel.points}
    order = sorted(ends, key=lambda label: (-ends[label], label))
    points = isinstance(chart.panels[0], Scatter)
    return [
        Line2D(
            [], [], color=look[label].colour, linestyle="none" if points else _dash(look[label]),
            marker=look[label].marker or ("*" if points else None), markeredgecolor="white", markeredgewidth=0.5,
            label=_wrapped(label),
        )
        for label in order
    ]  # fmt: skip


def _crowded(panel: charts.Panel) -> bool:
    """Whether there are too many points to write their names beside them."""
    return isinstance(panel, Scatter) and len(panel.points) > 14


def _key_width(keys: Sequence[Line2D]) -> float:
    """Width in inches that the longest entry of the legend takes."""
    longest = max(max(map(len, str(key.get_label()).split("\n"))) for key in keys)
    return 0.46 + 0.062 * longest


def _dash(style: Style) -> Any:
    return (0, style.dash) if style.dash else "-"


def _wrapped(label: str, width: int = 48) -> str:
    """A long label on several lines of at most `width` characters, broken between options where possible."""
    if len(label) <= width:
        return label
    return textwrap.fill(label.replace(",", ", "), width)


def _same_range(axes: Sequence[Axes]) -> None:
    limits = [one.get_ylim() for one in axes]
    for one in axes:
        one.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


# --- kinds of panels -------------------------------------------------------------------------------------------


def _draw_lines(axes: Axes, panel: Lines, look: Mapping[str, Style]) -> None:
    for label, level in panel.levels:
        axes.axhline(level.mean, color=look[label].colour, linestyle=_dash(look[label]))
    numbered = len([line for line in panel.lines if line.order is not None]) > 3
    for number, line in enumerate(panel.lines):
        style = look[line.label] if line.order is None else styles.sequential(line.order)
        means = [value.mean for value in line.y]
        axes.plot(
            line.x, means, color=style.colour, linestyle=_dash(style), clip_on=False, zorder=3,
            marker=style.marker if len(line.x) <= 30 else "", markeredgecolor="white", markeredgewidth=0.4,
            markersize=4 if line.order is None else 2.8, linewidth=1.25 if line.order is None else 1.0,
        )  # fmt: skip
        low, high = _interval(line.y)
        if np.isfinite(low).any() and len(panel.lines) <= _BANDS:
            axes.fill_between(line.x, low, high, color=style.colour, alpha=0.13, linewidth=0)
        elif np.isfinite(low[-1]) and line.order is None:
            # Bands of many rows would cover each other: bars at the end, side by side.
            place = line.x[-1] + (line.x[-1] - line.x[0]) * (0.02 + 0.007 * number)
            axes.plot([place, place], [low[-1], high[-1]], color=style.colour, linewidth=1.4, clip_on=False)
        if line.order is not None and len(line.x) > 0:
            # What stands in a sequence is labelled where it ends: a legend would repeat the sequence.
            text = line.label.rpartition(" ")[2] if numbered else line.label
            axes.annotate(
                text, (line.x[-1], means[-1]), xytext=(3, 0), textcoords="offset points", va="center",
                fontsize=5.5 if numbered else 7, color=style.colour, annotation_clip=False,
            )  # fmt: skip
    axes.set(xlabel=panel.x, ylabel=panel.y)
    axes.margins(x=0.04)
    axes.ticklabel_format(useOffset=False)
    if panel.whole:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    if "%" in panel.y:
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, 0), min(top, 100))


def _interval(values: Sequence[Summary]) -> tuple[Any, Any]:
    """Ends of the intervals, NaN where there is none."""
    low, high = (np.array([getattr(value, end) for value in values], dtype=np.float64) for end in ("low", "high"))
    return low, high


def _draw_heat(axes: Axes, panel: Heat, look: Mapping[str, Style]) -> None:
    values = np.array([[np.nan if value is None else value for value in row] for row in panel.values])
    axes.pcolormesh(
        values, cmap=_COLOURS, vmin=panel.low, vmax=panel.high, edgecolor="white", linewidth=0.4, rasterized=True
    )
    axes.invert_yaxis()
    axes.set_aspect("equal")
    size = {True: 7.0, False: 5.0}[len(panel.columns) <= 6]
    if max(values.shape) <= 12:
        middle = (panel.low + panel.high) / 2
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value > middle else "#222222"
                axes.text(
                    column + 0.5, row + 0.5, f"{value:.{panel.decimals}f}", ha="center", va="center",
                    fontsize=size - 0.7 * (panel.decimals > 0), color=colour,
                )  # fmt: skip
    for ticks, names, axis in ((values.shape[1], panel.columns, axes.xaxis), (values.shape[0], panel.rows, axes.yaxis)):
        step = 1 if ticks <= 12 else math.ceil(ticks / 10)
        axis.set_ticks(np.arange(0, ticks, step) + 0.5, names[::step])
    axes.tick_params(length=0, pad=1, labelsize=size)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    for spine in axes.spines.values():
        spine.set_visible(False)


_COLOURS = sns.color_palette("YlGnBu", as_cmap=True)


def _colour_bar(figure: Figure, grid: Any, chart: Chart, lines: int) -> None:
    """One bar for all panels, which share their scale."""
    shown = [axes for axes in grid.flat if axes.figure is not None and axes.collections]
    heats = [axes for axes, panel in zip(shown, chart.panels, strict=False) if isinstance(panel, Heat)]
    first = chart.panels[0]
    assert isinstance(first, Heat)
    only = len(heats) == len(shown)
    bar = figure.colorbar(
        heats[0].collections[0], ax=heats if only else heats[0], shrink=min(1.0, 1.6 / lines) if only else 0.8,
        aspect=25, pad=0.015 if only else 0.03, location="right" if only else "bottom",
    )  # fmt: skip
    bar.set_label(first.unit, size=7)
    bar.ax.tick_params(labelsize=6)
    bar.outline.set_visible(False)


def _draw_scatter(axes: Axes, panel: Scatter, look: Mapping[str, Style]) -> None:
    if panel.log:
        axes.set_xscale("log")
        means = [point.x.mean for point in panel.points]
        if max(means) < 1.5 * min(means):
            # Too narrow for a logarithmic axis to place a tick.
            axes.set_xlim(min(means) / 2, 2 * max(means))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    floor = _floor([point.y.mean for point in panel.points])
    below = [point for point in panel.points if point.y.mean < floor]
    for point in panel.points:
        if point in below:
            continue
        style = look[point.label]
        axes.errorbar(
            point.x.mean, point.y.mean, xerr=point.x.half_width, yerr=point.y.half_width, color=style.colour,
            marker=style.marker or "*", markersize=5, markeredgecolor="white", markeredgewidth=0.5, elinewidth=0.6,
            zorder=3,
        )  # fmt: skip
    if panel.front:
        by_label = {point.label: point for point in panel.points}
        front = [by_label[label] for label in panel.front if by_label[label] not in below]
        x, y = zip(*((point.x.mean, point.y.mean) for point in front), strict=True)
        axes.step(x, y, where="post", color="#555555", linewidth=0.8, linestyle=(0, (4, 2)), zorder=2)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    axes.margins(0.1)
    if below:
        names = ", ".join(f"{point.label} {point.y.mean:.1f}" for point in below)
        text = textwrap.fill(f"below: {names}", 60)
        axes.text(0.01, 0.01, text, transform=axes.transAxes, fontsize=6, color="#555555", va="bottom")
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom - 0.05 * (1 + text.count("\n")) * (top - bottom), top)
    if not _crowded(panel):
        _label_points(axes, [point for point in panel.points if point not in below])


def _floor(values: Sequence[float]) -> float:
    """Points far below all others would press these together: they are named instead of drawn."""
    low, high = np.percentile(values, [25, 75])
    return float(low - 3 * max(high - low, 1.0)) if len(values) > 4 else -math.inf


def _short(value: float) -> str:
    """A tick of a logarithmic axis: 200, 20 k, 5 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def _label_points(axes: Axes, points: Sequence[charts.Point]) -> None:
    """Write each point's name beside it where it covers nothing; far from its point it gets a thin line."""
    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    places = {p.label: axes.transData.transform((p.x.mean, p.y.mean)) for p in points}
    scale = figure.dpi / 72
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in places.values()]
    left, bottom, right, top = axes.bbox.extents
    height, size = 6.5 * scale, 5.2
    for label, (x, y) in sorted(places.items(), key=lambda item: -item[1][1]):
        width = 0.6 * size * len(label) * scale
        best: tuple[float, float, int] | None = None
        for radius in (6, 11, 18, 27, 38, 52, 70, 90):
            for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False):
                dx, dy = radius * scale * math.cos(angle), radius * scale * math.sin(angle)
                x0 = x + dx - (width if math.cos(angle) < -0.3 else 0 if math.cos(angle) > 0.3 else width / 2)
                y0 = y + dy - height / 2
                box = (x0, y0, x0 + width, y0 + height)
                inside = left <= box[0] and box[2] <= right and bottom <= box[1] and box[3] <= top
                if inside and not any(_overlap(box, other) for other in taken):
                    best = (x0, y0, radius)
                    break
            if best:
                break
        if best is None:
            continue
        x0, y0, radius = best
        taken.append((x0, y0, x0 + width, y0 + height))
        to_data = axes.transData.inverted().transform
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": "#999999", "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            label, tuple(to_data(places[label])), xytext=tuple(to_data((x0, y0 + height / 2))), textcoords="data",
            fontsize=size, color="#333333", va="center", annotation_clip=False, in_layout=False,
            arrowprops=line if radius > 11 else None,
        )  # fmt: skip


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


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
    for tick in range(low, high + 1):
        axes.plot([tick, tick], [0, 0.22], color="#333333", linewidth=0.8)
        axes.text(tick, 0.32, str(tick), ha="center", va="bottom", fontsize=7)
    for number, group in enumerate(panel.groups):
        ends = [ranks[label] for label in group]
        axes.plot(
            [min(ends), max(ends)], [-0.55 * (number + 1)] * 2, color="#555555", linewidth=2.6, solid_capstyle="butt"
        )
    for position, label in enumerate(names):
        left = position < half
        y = -(depth + (position if left else len(names) - 1 - position))
        edge = low - 0.02 if left else high + 0.02
        axes.plot([ranks[label], ranks[label], edge], [0, y, y], color="#333333", linewidth=0.6, clip_on=False)
        text = f"{label}  {ranks[label]:.2f}" if left else f"{ranks[label]:.2f}  {label}"
        axes.annotate(
            text, (edge, y), xytext=(-3 if left else 3, 0), textcoords="offset points", fontsize=7, va="center",
            ha="right" if left else "left", annotation_clip=False,
        )  # fmt: skip
    axes.set_axis_off()
    # The names stand outside the axes, for which the layout engine would leave no room.
    axes.figure.set_layout_engine("none")  # type: ignore[union-attr]
    axes.set_position((0.3, 0.14, 0.4, 0.84))
    axes.text(
        0.5, -0.03, textwrap.fill(panel.note, 100), transform=axes.transAxes, ha="center", va="top", fontsize=6.5,
        color="#555555",
    )  # fmt: skip


_DRAW: Mapping[type, Callable[[Axes, Any, Mapping[str, Style]], None]] = {
    Lines: _draw_lines,
    Heat: _draw_heat,
    Scatter: _draw_scatter,
    Ranks: _draw_ranks,
}

"""Scatter plots in which points are labelled, with names placed where they cover least."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from cl_bench.reporting.charts import Point, Scatter
from cl_bench.reporting.render import styles
from cl_bench.reporting.render.look import Look
from cl_bench.reporting.render.text_layout import FAINT, Page

_MOST_NAMES = 14
"""Limit of the points with names next to them, in a panel as wide as a column."""
_NARROWEST = 2.6
"""Width in inches of a panel below which points are named in the legend."""


def draw(axes: Axes, panel: Scatter, look: Look) -> None:
    """Draw points with intervals, and the Pareto front; names are added once the axes have their final position."""
    chosen = look.coloured(panel)
    for point in panel.points:
        style = look.rows[point.label]
        if point.label in chosen:
            axes.errorbar(
                point.x.mean, point.y.mean, xerr=point.x.half_width, yerr=point.y.half_width, color=style.colour,
                ecolor=to_rgba(style.colour, 0.5), marker=style.marker or "*", markersize=5, markeredgecolor="white",
                markeredgewidth=0.5, elinewidth=0.6, zorder=3,
            )  # fmt: skip
        else:
            axes.plot(
                point.x.mean, point.y.mean, color=styles.CONTEXT, marker="o", markersize=3, markeredgewidth=0,
                zorder=2.5,
            )  # fmt: skip
    if front := _front(panel):
        axes.step(
            [point.x.mean for point in front], [point.y.mean for point in front], where="post", color=FAINT,
            linewidth=0.8, linestyle=(0, (4, 2)), zorder=2,
        )  # fmt: skip
    axes.set(xlabel=panel.x, ylabel=panel.y)
    axes.margins(0.1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    if panel.log:
        log_axis(axes, [point.x.mean for point in panel.points], look.page)
    elif panel.points and min(point.x.mean for point in panel.points) >= 0 and "%" not in panel.x:
        axes.set_xlim(left=0)


def log_axis(axes: Axes, means: Sequence[float], page: Page) -> None:
    """Make the x axis logarithmic, with ticks at round numbers even where it spans less than a decade."""
    axes.set_xscale("log")
    if max(means) < 1.5 * min(means):
        # Without this, points with almost equal x would spread over the whole axis.
        axes.set_xlim(min(means) / 1.5, 1.5 * max(means))
    low, high = axes.get_xlim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    room = max(2, int(axes.get_window_extent().width / axes.figure.dpi / (1.25 * page.width_of("300 k", page.small))))
    grids = [
        [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        for steps in ((1,), (1, 3), (1, 2, 5))
    ]
    fitting = [grid for grid in grids if len(grid) <= room] or [grids[0][:: math.ceil(len(grids[0]) / room)]]
    ticks = next((grid for grid in fitting if len(grid) >= 4), fitting[-1])
    if len(ticks) < 2:
        ticks = [tick for tick in MaxNLocator(nbins=min(5, room)).tick_values(low, high) if low <= tick <= high]
    axes.set_xticks(ticks, [_short(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _front(panel: Scatter) -> list[Point]:
    """The points on the Pareto front."""
    by_label = {point.label: point for point in panel.points}
    return [by_label[label] for label in panel.front]


def named(panel: Scatter, look: Look, width: float) -> list[Point]:
    """The points with names next to them: those in colour; if these are too many, those of them on the front."""
    if width < _NARROWEST:
        return []
    chosen = look.coloured(panel)
    shown = [point for point in panel.points if point.label in chosen]
    if len(shown) <= _MOST_NAMES * max(1, round(width / look.page.column)):
        return shown
    return [point for point in _front(panel) if point.label in chosen]


def _short(value: float) -> str:
    """Text of a tick on a logarithmic axis: 200, 20 k, 5 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


_LEADER = {"arrowstyle": "-", "linewidth": 0.4, "color": "#888888", "shrinkA": 0, "shrinkB": 3}


def name_points(axes: Axes, panel: Scatter, points: Sequence[Point], look: Look) -> None:
    """Write names next to points where they cover least; a name far from its point gets a thin line to it."""
    scale = axes.figure.dpi / 72
    place, size = axes.transData.transform, look.page.small - 0.5
    covered, cost = _obstacles(axes, panel, look.coloured(panel), scale)
    left, bottom, right, top = axes.bbox.extents
    turns = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    radius, angle = (grid.ravel() for grid in np.meshgrid((6, 9, 13, 18, 25, 34, 45, 60, 80), turns, indexing="ij"))
    dx, dy = radius * scale * np.cos(angle), radius * scale * np.sin(angle)
    for point in sorted(points, key=lambda point: (-point.y.mean, point.label)):
        x, y = place((point.x.mean, point.y.mean))
        name = look.page.wrapped(point.label, 0.6 * (right - left) / scale / 72, size)
        # At few pixels per inch letters are rounded to whole pixels, and wider by some per cent.
        width = 1.08 * max(look.page.width_of(line, size) for line in name.split("\n")) * 72 * scale
        height = 1.1 * size * scale * (name.count("\n") + 1)
        # A name on the left of its point ends there, one on the right begins there, others are centred.
        x0 = x + dx - width * np.where(np.cos(angle) < -0.3, 1, np.where(np.cos(angle) > 0.3, 0, 0.5))
        y0 = y + dy - height / 2
        x0, y0 = np.clip(x0, left, right - width), np.clip(y0, bottom, top - height)
        boxes = np.stack([x0, y0, x0 + width, y0 + height], axis=1)
        leader = np.stack([x + 0.6 * dx, y + 0.6 * dy] * 2, axis=1)
        worth = radius + _overlap(boxes, covered) @ cost + _overlap(leader, covered) @ cost / 3
        best = int(np.argmin(worth))
        # Names should not cover the lines between other names and points either.
        line = np.linspace((x, y), (x + dx[best], y + dy[best]), 6)[1:]
        covered = np.vstack([covered, boxes[best], np.hstack([line - scale, line + scale])])
        cost = np.append(cost, [60.0] + [8.0] * len(line))
        middle = axes.transData.inverted().transform((x0[best], y0[best] + height / 2))
        axes.annotate(
            name, (point.x.mean, point.y.mean), xytext=tuple(middle), textcoords="data", fontsize=size,
            color=styles.readable(look.rows[point.label].colour), va="center", linespacing=1.1, annotation_clip=False,
            zorder=4, arrowprops=_LEADER if radius[best] > 9 else None,
        )  # fmt: skip


def _obstacles(
    axes: Axes, panel: Scatter, chosen: Collection[str], scale: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes that names should not cover, [n, 4] in pixels (left, bottom, right, top), and the cost of each, [n]."""
    place = axes.transData.transform
    low = axes.get_xlim()[0]
    boxes, cost = [], []
    for point in panel.points:
        x, y = point.x, point.y
        ends = [((x.mean, y.mean), (x.mean, y.mean))]
        if point.label in chosen:
            ends.append(((max(x.low or x.mean, low), y.mean), (x.high or x.mean, y.mean)))
            ends.append(((x.mean, y.low or y.mean), (x.mean, y.high or y.mean)))
        for number, corners in enumerate(ends):
            reach, price = (0.5, 25.0) if number else (3.5, 40.0)
            boxes.append(np.add(np.ravel(place(corners)), np.multiply(reach * scale, (-1, -1, 1, 1))))
            cost.append(price)
    front = _front(panel)
    for one, other in zip(front, front[1:], strict=False):
        corner = (other.x.mean, one.y.mean)
        for step in (((one.x.mean, one.y.mean), corner), (corner, (other.x.mean, other.y.mean))):
            boxes.append(np.add(np.ravel(place(step)), np.multiply(0.5 * scale, (-1, -1, 1, 1))))
            cost.append(6.0)
    return np.array(boxes), np.array(cost)


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether boxes [n, 4] overlap other boxes [m, 4], shape [n, m]."""
    one, other = one[:, None], other[None]
    return np.all((one[..., :2] < other[..., 2:]) & (other[..., :2] < one[..., 2:]), axis=-1)

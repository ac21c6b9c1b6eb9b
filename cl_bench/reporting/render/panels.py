"""Drawing of each kind of panel on its axes: curves, heat maps, points, ranks and values by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cl_bench.reporting.charts import Dots, Heat, Line, Lines, Ranks, Scatter
from cl_bench.reporting.render import dots, scatter, styles
from cl_bench.reporting.render.look import Look, dash
from cl_bench.reporting.render.text_layout import FAINT
from cl_bench.stats import Summary

_BANDS = 2
"""Limit of the curves in colour with bands, which would cover each other; more curves have bars at their ends."""


_SMALLEST = 4.5
"""Size in points below which numbers in cells are not written, however narrow the cells are."""


def _draw_lines(axes: Axes, panel: Lines, look: Look) -> None:
    for label, level in panel.levels:
        axes.axhline(level.mean, color=look.rows[label].colour, linestyle=dash(look.rows[label]))
    chosen = look.coloured(panel)
    for line in panel.lines:
        if line.label not in chosen:
            x, y = _strokes(line, [value.mean for value in line.y])
            axes.plot(x, y, color=styles.CONTEXT, linewidth=0.6, clip_on=False, zorder=2)
    shown = [line for line in panel.lines if line.label in chosen]
    ends = {line.label: number for number, line in enumerate(sorted(shown, key=lambda line: -line.y[-1].mean))}
    for line in shown:
        style = look.line(panel, line)
        x, means = _strokes(line, [value.mean for value in line.y])
        axes.plot(
            x, means, color=style.colour, linestyle=dash(style), clip_on=False, zorder=3,
            marker="" if line.breaks else style.marker, markevery=math.ceil(len(line.x) / 30),
            markeredgecolor="white", markeredgewidth=0.4, markersize=4 if line.order is None else 2.8,
            linewidth=1.25 if line.order is None else 1.0,
        )  # fmt: skip
        low, high = _interval(line.y)
        if np.isfinite(low).any() and len(shown) <= _BANDS and len(line.x) > 1:
            (x, lows), (_, highs) = _strokes(line, low), _strokes(line, high)
            axes.fill_between(x, lows, highs, color=style.colour, alpha=0.13, linewidth=0)
        elif np.isfinite(low[-1]) and line.order is None:
            # Draw the last interval as a bar, side by side with the others and in the order of their names.
            place = line.x[-1] + (line.x[-1] - line.x[0] or 1) * (0.025 + 0.016 * ends[line.label])
            axes.plot([place, place], [low[-1], high[-1]], color=style.colour, linewidth=1.2, clip_on=False)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    axes.margins(x=0.04)
    places = {place for line in panel.lines for place in line.x}
    if len(places) == 1:
        axes.set_xlim(min(places) - 0.5, min(places) + 0.5)
    axes.ticklabel_format(useOffset=False)


def _strokes(line: Line, values: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions and values of a line, with NaN where a new stroke begins."""
    x, y = np.asarray(line.x, dtype=np.float64), np.asarray(values, dtype=np.float64)
    return np.insert(x, line.breaks, np.nan), np.insert(y, line.breaks, np.nan)


def _at_one_place(panel: Lines) -> bool:
    """Whether the lines of a sequence end at the same x, so that their names would overlap there."""
    return len({line.x[-1] for line in panel.lines}) == 1


def in_legend(panel: Lines) -> bool:
    """Whether a sequence is named in the legend: its names would overlap at the ends, or its lines have breaks."""
    return any(line.breaks for line in panel.lines) or (_numbered(panel) and _at_one_place(panel))


def _numbered(panel: Lines) -> bool:
    """Whether the lines are a sequence too long for full names at their ends."""
    return sum(line.order is not None for line in panel.lines) > 3


def place_lines(drawn: Sequence[tuple[Axes, Lines]], look: Look) -> None:
    """Give panels of curves a common range and ticks at values, and name the lines of sequences without a legend."""
    if not drawn:
        return
    limits = [(*axes.get_xlim(), *axes.get_ylim()) for axes, _ in drawn]
    left, right, bottom, top = (f(one[i] for one in limits) for i, f in enumerate((min, max, min, max)))
    places = [place for _, panel in drawn for line in panel.lines for place in line.x]
    for axes, panel in drawn:
        axes.set_xlim(left, right)
        axes.set_ylim(*((max(bottom, 0), min(top, 100)) if "%" in panel.y else (bottom, top)))
        if panel.whole and places:
            # Fewer ticks where numbers are long, since up to three panels share the width.
            ticks = MaxNLocator(nbins=8 if max(places) < 100 else 5, integer=True).tick_values(min(places), max(places))
            axes.set_xticks([tick for tick in ticks if min(places) <= tick <= max(places)])
        if in_legend(panel):
            continue
        halo = [withStroke(linewidth=1.5, foreground="white")]
        for line in panel.lines:
            if line.order is not None and line.label in look.coloured(panel):
                short = _numbered(panel)
                axes.annotate(
                    line.label.rpartition(" ")[2] if short else line.label, (line.x[-1], line.y[-1].mean),
                    xytext=(3, 0), textcoords="offset points", va="center",
                    fontsize=look.page.small - 1 if short else look.page.small,
                    color=styles.readable(styles.sequential(line.order).colour), annotation_clip=False,
                    path_effects=halo, zorder=4,
                )  # fmt: skip


def _interval(values: Sequence[Summary]) -> tuple[Any, Any]:
    """Ends of the intervals, NaN where a value has none."""
    low, high = (np.array([getattr(value, end) for value in values], dtype=np.float64) for end in ("low", "high"))
    return low, high


def _draw_heat(axes: Axes, panel: Heat, look: Look) -> None:
    values = np.array([[np.nan if value is None else value for value in row] for row in panel.values])
    # Lines between many small cells would cover them, and vector shapes for each cell make viewers slow.
    fine = max(values.shape) > 40
    printed = max(values.shape) <= 12
    colours = _PALE if printed else _COLOURS
    axes.pcolormesh(
        values, cmap=colours, vmin=panel.low, vmax=panel.high, edgecolor="none" if fine else "white", linewidth=0.4,
        rasterized=fine,
    )  # fmt: skip
    axes.invert_yaxis()
    axes.set_aspect("equal")
    size = look.page.small if len(panel.columns) <= 6 else look.page.small - 1.5
    if printed:
        longest = max((len(f"{value:.{panel.decimals}f}") for value in values.flat if np.isfinite(value)), default=1)
        cell = axes.get_window_extent().width / axes.figure.dpi * 72 / len(panel.columns)
        # A digit is about half as wide as its size.
        digits = max(_SMALLEST, min(size, 0.62 * cell / (0.5 * longest)))
        # All colours of the paler map are light enough for black numbers; a test measures the contrast.
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                axes.text(
                    column + 0.5, row + 0.5, f"{value:.{panel.decimals}f}", ha="center", va="center",
                    fontsize=digits, color="black",
                )  # fmt: skip
    # Names are read one by one, unlike numbers, and stand upright below the columns: as many as there is room for.
    named = max(map(len, panel.columns)) > 3
    room = axes.get_window_extent().width / axes.figure.dpi * 72 / (1.15 * size)
    for ticks, names, axis in ((values.shape[1], panel.columns, axes.xaxis), (values.shape[0], panel.rows, axes.yaxis)):
        most = max(int(room), 2) if named else 10
        step = 1 if ticks <= 12 else math.ceil(ticks / most)
        axis.set_ticks(np.arange(0, ticks, step) + 0.5, names[::step])
    axes.tick_params(length=0, pad=1, labelsize=size)
    axes.tick_params(axis="x", rotation=90 if named else 0)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    for spine in axes.spines.values():
        spine.set_visible(False)


_COLOURS = sns.color_palette("YlGnBu", as_cmap=True)
_PALE = ListedColormap(_COLOURS(np.linspace(0, 0.55, 256)))
"""The lighter part of the colours, for cells with numbers: on medium blue neither black nor white is easy to read."""


def _draw_ranks(axes: Axes, panel: Ranks, look: Look) -> None:
    """Names left and right of a rank axis, each joined to its rank; bars join rows without significant difference."""
    page, letters = look.page, look.page.small
    ranks = dict(panel.ranks)
    low, high = 1, max(2, math.ceil(max(ranks.values())))
    half = math.ceil(len(ranks) / 2)
    names = list(ranks)
    depth = 1.2 + 0.55 * len(panel.groups)
    axes.set_xlim(low - 0.02, high + 0.02)
    axes.set_ylim(-(depth + half) - 0.4, 0.7)
    axes.axhline(0, color="#333333", linewidth=0.9)
    # The names are outside the axes, where the layout engine would leave no room for them.
    texts = [
        f"{label}  {ranks[label]:.2f}" if i < half else f"{ranks[label]:.2f}  {label}" for i, label in enumerate(names)
    ]
    sides = [max(page.width_of(text, letters) for text in side) / page.text for side in (texts[:half], texts[half:])]
    size = letters * min(1, 0.38 / max(sides))
    left, right = (0.02 + min(side, 0.38) for side in sides)
    most = (1 - left - right) * page.text / (1.5 * page.width_of("00", letters))
    step = next(step for step in (1, 2, 5, 10, high) if (high - low) / step <= most)
    for tick in (low, *range(max(step, 2), high + 1, step)):
        axes.plot([tick, tick], [0, 0.22], color="#333333", linewidth=0.8)
        axes.text(tick, 0.32, str(tick), ha="center", va="bottom", fontsize=letters)
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
    note = page.wrapped(panel.note, 0.96 * page.text, 0.93 * letters)
    axes.text(
        (0.5 - left) / (1 - left - right), -0.03, note, transform=axes.transAxes, ha="center",
        va="top", fontsize=0.93 * letters, color=FAINT,
    )  # fmt: skip


DRAW: Mapping[type, Callable[[Axes, Any, Look], None]] = {
    Lines: _draw_lines,
    Heat: _draw_heat,
    Scatter: scatter.draw,
    Ranks: _draw_ranks,
    Dots: dots.draw,
}

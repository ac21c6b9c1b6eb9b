"""What is seen on a chart, in a sentence or two, computed from its numbers: for readers who do not see the picture."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from cl_bench.reporting.charts import Chart, Dots, Heat, Line, Lines, Panel, Ranks, Scatter, drawn_part

MINUS = "\N{MINUS SIGN}"


def describe(chart: Chart) -> str:
    """Say which rows are at the top and at the bottom, their values, and how they change from left to right."""
    if chart.seen:
        return chart.seen
    panels = drawn_part(chart).panels
    if len(panels) == 1 or isinstance(panels[0], Scatter | Dots):
        return " ".join(text for panel in panels if (text := _panel(panel)))
    lines = [panel for panel in panels if isinstance(panel, Lines)]
    heats = [panel for panel in panels if isinstance(panel, Heat)]
    return " ".join(filter(None, [_changes(lines), _last_rows(heats)]))


def _panel(panel: Panel) -> str:
    if isinstance(panel, Lines):
        return _curves(panel)
    if isinstance(panel, Scatter):
        return _points(panel)
    if isinstance(panel, Heat):
        return _last_rows([panel])
    if isinstance(panel, Dots):
        return _dots(panel)
    return _ranks(panel) if isinstance(panel, Ranks) else ""


def _curves(panel: Lines) -> str:
    """The curves that end highest and lowest, with their first and last values."""
    ends = sorted((line for line in panel.lines if line.y), key=lambda line: -line.y[-1].mean)
    if not ends:
        return ""
    first = f"Highest at the end: {_course(ends[0])}"
    middle = f", then {ends[1].label} at {_number(ends[1].y[-1].mean)}" if len(ends) > 2 else ""
    last = f"; lowest: {_course(ends[-1])}" if len(ends) > 1 else ""
    levels = "".join(f"; {label} at {_number(level.mean)}" for label, level in panel.levels[:2])
    axis = f" ({panel.y.partition(',')[0]} over {panel.x})"
    return f"{first}{middle}{last}{levels}{axis}."


def _course(line: Line) -> str:
    first, last = line.y[0].mean, line.y[-1].mean
    if len(line.y) == 1:
        return f"{line.label} at {_number(last)}"
    verb = "falls" if last < first else "rises" if last > first else "stays"
    return f"{line.label}, which {verb} from {_number(first)} to {_number(last)}"


def _changes(panels: Sequence[Lines]) -> str:
    """The panels whose curves change most and least, on average, from their first to their last values."""
    changes = [
        (fmean(line.y[-1].mean - line.y[0].mean for line in lines), panel.title)
        for panel in panels
        if (lines := [line for line in panel.lines if len(line.y) > 1])
    ]
    if not changes:
        return ""
    low, high = min(changes), max(changes)
    return (
        f"Change from the first to the last value of a curve, on average: lowest {low[1]} ({_number(low[0])}), highest "
        f"{high[1]} ({_number(high[0])}), of {len(changes)} panels."
    )


def _last_rows(panels: Sequence[Heat]) -> str:
    """The panels with the highest and the lowest mean of their last row, and the lowest cell of these rows."""
    found = [
        (fmean(values), panel.title, min(values), panel)
        for panel in panels
        if panel.values and (values := [value for value in panel.values[-1] if value is not None])
    ]
    if not found:
        return ""
    ordered = sorted(found, key=lambda item: (-item[0], item[1]))
    best, worst = ordered[0], ordered[-1]
    panel = best[3]
    texts = [f"{_of(best[1])}{_number(best[0])} on average, at least {_number(best[2])}"]
    if len(found) > 1:
        texts.append(f"{_of(worst[1])}{_number(worst[0])}, at least {_number(worst[2])}")
    kind = "highest and lowest mean" if len(found) > 1 else "mean"
    return f"In the last row ({panel.y} {panel.rows[-1]}), {kind}: {'; '.join(texts)} ({panel.unit})."


def _of(title: str) -> str:
    return f"{title} " if title else ""


def _points(panel: Scatter) -> str:
    """The highest point, and the one farthest to the left."""
    if not panel.points:
        return ""
    highest = max(panel.points, key=lambda point: point.y.mean)
    left = min(panel.points, key=lambda point: point.x.mean)
    text = f"{highest.label} is highest with {_number(highest.y.mean)} at {_number(highest.x.mean)}"
    if left is not highest:
        text += f", {left.label} is farthest left with {_number(left.y.mean)} at {_number(left.x.mean)}"
    return f"Against {panel.x.partition(',')[0]}, {text}."


def _dots(panel: Dots) -> str:
    """The rows with the lowest and the highest value."""
    found = [(value.mean, label) for label, value in panel.values if value is not None]
    if not found:
        return ""
    (low, first), (high, last) = min(found), max(found)
    text = f"{panel.title or panel.x}: lowest {first} with {_number(low)}"
    return f"{text}, highest {last} with {_number(high)}." if len(found) > 1 else f"{text}."


def _ranks(panel: Ranks) -> str:
    (best, rank), (worst, last) = panel.ranks[0], panel.ranks[-1]
    joined = ", ".join(f"{group[0]} to {group[-1]}" for group in panel.groups)
    without = f" Not significantly different: {joined}." if joined else ""
    return f"Best average rank: {best} with {_number(rank)}; last: {worst} with {_number(last)}.{without}"


def _number(value: float) -> str:
    """A value with the digits that a reader can hear: `77.1`, `0.042`, `36,900`."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"
    return text.replace("-", MINUS) if value < 0 else text

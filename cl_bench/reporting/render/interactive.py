"""Charts for the page, as plain dicts for plotly.js; plotly's Python objects are slow.

The script of the page fills in the colours of text, axes and background, light or dark.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cl_bench.reporting import charts
from cl_bench.reporting.charts import Chart, Dots, Heat, Line, Lines, Panel, Ranks, Scatter
from cl_bench.reporting.render import interactive_rows, styles
from cl_bench.reporting.render.plotly_values import (
    SYMBOLS,
    error_bar,
    escaped,
    interval_text,
    log_axis,
    rounded,
    rounded_all,
)
from cl_bench.reporting.render.styles import Style

_BANDS = 4
"""Limit of the curves with bands; for more curves, hover texts show the intervals."""
_NARROW = 14
"""Letters in a line of the title of one of many narrow panels."""
_DARK = 0.67
"""Position on the colour scale (luminance 0.18) above which white text has the higher contrast, below it black."""
_COLOURS = [[0, "#ffffd9"], [0.25, "#c7e9b4"], [0.5, "#41b6c4"], [0.75, "#225ea8"], [1, "#081d58"]]


def figure(chart: Chart, ceilings: Iterable[str] = ()) -> dict[str, Any]:
    """`data` and `layout` for plotly.js, the `height` in pixels, `wide` for several columns of panels, and `square`.

    `square` is a map of cells alone, which needs about as much width as height.

    Rows without a colour of their own (see `charts.coloured`) are thin curves and small points of the colour "muted",
    which the page replaces by a grey; they have no place in the legend, and their names show when pointed at.

    Args:
        ceilings: labels of rows trained on all tasks at once.
    """
    panels = charts.drawn_part(chart).panels
    # Styles are assigned to the rows of all panels, drawn or not, so that a row looks the same in every chart.
    look = styles.by_label(_labels(chart.panels), set(ceilings) | {label for p in panels for label in _levels(p)})
    by_row = isinstance(panels[0], Dots)
    columns = len(panels) if by_row else 1 if len(panels) == 1 else 2 if len(panels) in (2, 4) else 3
    lines = math.ceil(len(panels) / columns)
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"annotations": [], "hovermode": "closest"}
    named: set[str] = set()
    small = len(panels) > 4 and not by_row
    for number, panel in enumerate(panels):
        column, line = number % columns, number // columns
        ref = "" if number == 0 else str(number + 1)
        gap_x = 0.02 if by_row else 0.09 if columns > 1 else 0.0
        gap_y = (0.2 if small else 0.34) / lines if lines > 1 else 0.0
        width, height = (1 - gap_x * (columns - 1)) / columns, (1 - gap_y * (lines - 1)) / lines
        left, top = column * (width + gap_x), 1 - line * (height + gap_y)
        x: dict[str, Any] = {
            "domain": rounded_all([left, left + width]),
            "anchor": f"y{ref}",
            "title": {"text": getattr(panel, "x", "")},
        }
        y: dict[str, Any] = {
            "domain": rounded_all([top - height, top]),
            "anchor": f"x{ref}",
            "title": {"text": getattr(panel, "y", "")},
        }
        if small:
            # Small multiples have the titles of axes only at the left and lower edges.
            x["title"] = {"text": panel.x if line == lines - 1 and not isinstance(panel, Ranks) else ""}
            y["title"] = {"text": panel.y if column == 0 and not isinstance(panel, Ranks | Dots) else ""}
        if (small or chart.same_scale) and number and isinstance(panel, Lines):
            # All panels share the range of the first one, as on paper.
            x["matches"], y["matches"] = "x", "y"
        layout[f"xaxis{ref}"], layout[f"yaxis{ref}"] = x, y
        if by_row and number:
            # The names are those of the first panel.
            y |= {"matches": "y", "showticklabels": False}
        for trace in _traces(panel, look, charts.coloured(chart, panel), x, y, named, small):
            data.append(trace | {"xaxis": f"x{ref}", "yaxis": f"y{ref}"})
        if title := getattr(panel, "title", ""):
            wrapped = textwrap.wrap(title, _NARROW) if by_row else [title]
            layout["annotations"].append(
                {"text": "<br>".join(map(escaped, wrapped)), "x": round(left + width / 2, 4), "y": round(top, 4),
                 "xref": "paper", "yref": "paper", "showarrow": False, "xanchor": "center", "yanchor": "bottom",
                 "font": {"size": 12}}
            )  # fmt: skip
    height = {Heat: 300, Ranks: 90 + 26 * _rows(panels[0])}.get(type(panels[0]), 340) if small or columns > 1 else 420
    if by_row:
        height = 70 + 19 * _rows(panels[0])
    if isinstance(panels[0], Ranks):
        height = 110 + 26 * _rows(panels[0])
    if isinstance(panels[0], Heat) and columns > 1:
        height = 330
    # A map of square cells alone needs no more width, or its colour bar would be far from it.
    square = columns == 1 and isinstance(panels[0], Heat)
    return {"data": data, "layout": layout, "height": lines * height + 40, "wide": columns > 1, "square": square}


def outline(figure: Mapping[str, Any]) -> dict[str, Any]:
    """What lays out the place of a `figure` before it is drawn: its `height`, and the traces in its `legend`.

    A legend of one trace is left out.
    """
    shown = [trace for trace in figure["data"] if trace.get("showlegend") is not False and trace.get("legendgroup")]
    parts = ("legendgroup", "name", "mode", "line", "marker")
    legend = [{name: trace[name] for name in parts if name in trace} for trace in shown]
    return {"height": figure["height"], "legend": legend if len(legend) > 1 else []}


def _rows(panel: Panel) -> int:
    return len(panel.ranks) if isinstance(panel, Ranks) else len(panel.values) if isinstance(panel, Dots) else 0


def _labels(panels: Sequence[Panel]) -> list[str]:
    found: list[str] = []
    for panel in panels:
        if isinstance(panel, Lines):
            found += [line.label for line in panel.lines if line.order is None]
        elif isinstance(panel, Scatter):
            found += [point.label for point in panel.points]
        elif isinstance(panel, Dots):
            found += panel.labels
        found += _levels(panel)
    return found


def _levels(panel: Panel) -> list[str]:
    return [label for label, _ in panel.levels] if isinstance(panel, Lines) else []


def _traces(
    panel: Panel,
    look: Mapping[str, Style],
    coloured: frozenset[str],
    x: dict[str, Any],
    y: dict[str, Any],
    named: set[str],
    small: bool,
) -> list[dict[str, Any]]:
    """The plotly traces of a panel; also completes the axes `x` and `y`, and adds labels in the legend to `named`."""
    if isinstance(panel, Lines):
        return _lines(panel, look, coloured, x, y, named, small)
    if isinstance(panel, Heat):
        x |= {"constrain": "domain", "showgrid": False, "ticks": "", "type": "category"}
        y |= {"autorange": "reversed", "scaleanchor": x["anchor"].replace("y", "x"), "constrain": "domain",
              "showgrid": False, "type": "category"}  # fmt: skip
        bar = not named
        named.add(panel.unit)
        numbers: dict[str, Any] = {}
        if len(panel.columns) <= 12:
            # Each number gets black or white explicitly: plotly's choice is grey in the middle of the scale.
            numbers["texttemplate"] = f'<span style="color:%{{text}}">%{{z:.{panel.decimals}f}}</span>'
            numbers["text"] = [[_legible(value, panel) for value in row] for row in panel.values]
        return [
            {
                "type": "heatmap", "x": list(panel.columns), "y": list(panel.rows),
                "z": [[None if v is None else rounded(v) for v in row] for row in panel.values],
                "zmin": panel.low, "zmax": panel.high, "colorscale": _COLOURS, "xgap": 1, "ygap": 1,
                "textfont": {"size": 10}, "showscale": bar, "showlegend": False, "hoverongaps": False,
                "colorbar": {"title": {"text": panel.unit, "side": "right"}, "thickness": 12, "outlinewidth": 0},
                "hovertemplate": f"{panel.y} %{{y}}, {panel.x} %{{x}}: %{{z:.2f}}<extra></extra>",
            }
            | numbers
        ]  # fmt: skip
    if isinstance(panel, Scatter):
        if panel.log:
            x |= log_axis([end for point in panel.points for end in (point.x.low, point.x.mean, point.x.high)])
        return _scatter(panel, look, coloured, named)
    if isinstance(panel, Dots):
        return interactive_rows.dots(panel, look, coloured, x, y)
    return interactive_rows.ranks(panel, x, y)


def _legible(value: float | None, panel: Heat) -> str:
    """Black or white, whichever has the higher contrast on the colour of a cell."""
    share = 0.0 if value is None else (value - panel.low) / ((panel.high - panel.low) or 1)
    return "#fff" if share > _DARK else "#000"


def _lines(
    panel: Lines,
    look: Mapping[str, Style],
    coloured: frozenset[str],
    x: dict[str, Any],
    y: dict[str, Any],
    named: set[str],
    small: bool,
) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    if all(value.mean >= 0 for line in panel.lines for value in line.y):
        # Intervals of a loss or an accuracy may reach below 0, the axis must not.
        y["rangemode"] = "nonnegative"
    steps = panel.lines[0].x if panel.lines else ()
    if panel.whole and len(steps) <= 12 and all(step % 1 == 0 for step in steps):
        x["dtick"] = 1 if len(steps) <= 10 else 2
    # Grey curves first, so that those with a colour are drawn above them.
    for line in sorted(panel.lines, key=lambda line: line.label in coloured):
        style = look[line.label] if line.order is None else styles.sequential(line.order)
        group = {"legendgroup": line.label, "name": escaped(line.label)}
        named_here = line.label != panel.title and not (small and line.order is not None)
        if line.label not in coloured:
            traces.append(group | _muted(line))
            continue
        if len(panel.lines) <= _BANDS and not line.breaks and all(value.half_width is not None for value in line.y):
            low, high = [rounded(v.low) for v in line.y], [rounded(v.high) for v in line.y]
            traces.append(
                group
                | {"type": "scatter", "mode": "lines", "x": [*rounded_all(line.x), *rounded_all(line.x[::-1])],
                   "y": [*high, *low[::-1]], "fill": "toself", "fillcolor": _faint(style.colour), "line": {"width": 0},
                   "hoverinfo": "skip", "showlegend": False}
            )  # fmt: skip
        traces.append(
            group
            | {
                "type": "scatter", "mode": "lines+markers" if len(line.x) <= 30 else "lines",
                "x": _strokes(line, rounded_all(line.x)),
                "y": _strokes(line, [rounded(value.mean) for value in line.y]),
                "line": {"color": style.colour, "width": 2, "dash": _dash(style)},
                "marker": {"color": style.colour, "symbol": SYMBOLS.get(style.marker, "circle"),
                           "size": 7 if style.marker and not small else 4},
                "customdata": _strokes(line, [interval_text(value) for value in line.y]),
                "hovertemplate": "%{x}: %{y:.2f}%{customdata}<extra>%{fullData.name}</extra>",
                "showlegend": named_here and _first(line.label, named),
            }
        )  # fmt: skip
    places = [place for line in panel.lines for place in line.x] or [0.0, 1.0]
    for label, level in panel.levels:
        style = look[label]
        traces.append(
            {
                "type": "scatter", "mode": "lines", "x": [min(places), max(places)], "y": [rounded(level.mean)] * 2,
                "line": {"color": style.colour, "width": 2, "dash": _dash(style)}, "name": escaped(label),
                "legendgroup": label, "customdata": [interval_text(level)] * 2, "showlegend": _first(label, named),
                "hovertemplate": "%{y:.2f}%{customdata}<extra>%{fullData.name}</extra>",
            }
        )  # fmt: skip
    return traces


def _strokes(line: Line, values: Sequence[Any]) -> list[Any]:
    """The values with None where a new stroke of the line begins."""
    found = list(values)
    for place in sorted(line.breaks, reverse=True):
        found.insert(place, None)
    return found


def _muted(line: Line) -> dict[str, Any]:
    """A thin grey curve without a place in the legend."""
    return {
        "type": "scatter", "mode": "lines", "x": rounded_all(line.x), "y": [rounded(value.mean) for value in line.y],
        "line": {"color": "muted", "width": 1.2}, "customdata": [interval_text(value) for value in line.y],
        "hovertemplate": "%{x}: %{y:.2f}%{customdata}<extra>%{fullData.name}</extra>", "showlegend": False,
    }  # fmt: skip


def _scatter(
    panel: Scatter, look: Mapping[str, Style], coloured: frozenset[str], named: set[str]
) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    if panel.front:
        by_label = {point.label: point for point in panel.points}
        front = [by_label[label] for label in panel.front]
        traces.append(
            {
                "type": "scatter", "mode": "lines", "x": [rounded(p.x.mean) for p in front],
                "y": [rounded(p.y.mean) for p in front], "line": {"shape": "hv", "dash": "4px,3px", "width": 1.5},
                "name": "Pareto front", "legendgroup": "front", "hoverinfo": "skip",
                "showlegend": _first("Pareto front", named),
            }
        )  # fmt: skip
    # Grey points first, so that those with a colour are drawn above them.
    for point in sorted(panel.points, key=lambda point: point.label in coloured):
        style, own = look[point.label], point.label in coloured
        mark = {"color": style.colour, "size": 10} if own else {"color": "muted", "size": 7}
        traces.append(
            {
                "type": "scatter", "mode": "markers", "x": [rounded(point.x.mean)], "y": [rounded(point.y.mean)],
                "error_x": error_bar(point.x) if own else {"visible": False},
                "error_y": error_bar(point.y) if own else {"visible": False}, "name": escaped(point.label),
                "legendgroup": point.label, "customdata": [[interval_text(point.x), interval_text(point.y)]],
                "marker": mark | {"symbol": SYMBOLS.get(style.marker, "star") if own else "circle"},
                "hovertemplate": f"{panel.x}: %{{x:.4~g}}%{{customdata[0]}}<br>{panel.y}: %{{y:.2f}}%{{customdata[1]}}"
                "<extra>%{fullData.name}</extra>",
                "showlegend": own and _first(point.label, named),
            }
        )  # fmt: skip
    return traces


def _first(label: str, named: set[str]) -> bool:
    """Whether this trace puts a label into the legend, which happens once per chart."""
    if label in named:
        return False
    named.add(label)
    return True


def _dash(style: Style) -> str:
    """The dash for plotly: lengths on and off in pixels, or `solid`."""
    return ",".join(f"{2 * length:g}px" for length in style.dash) or "solid"


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"

"""Plotly traces of panels with one row below the other: ranks, and values with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_bench.reporting.charts import Dots, Ranks
from cl_bench.reporting.render.plotly_values import SYMBOLS, error_bar, escaped, interval_text, log_axis, rounded
from cl_bench.reporting.render.styles import Style


def ranks(panel: Ranks, x: dict[str, Any], y: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows from best to worst; bars to the right of the ranks join rows without significant difference."""
    labels = [label for label, _ in panel.ranks]
    place = {label: number for number, label in enumerate(labels)}
    last = max(rank for _, rank in panel.ranks)
    x |= {"title": {"text": "average rank"}, "range": [0.5, last + 0.8 + 0.35 * len(panel.groups)]}
    y |= {"autorange": "reversed", "tickvals": list(range(len(labels))), "ticktext": list(map(escaped, labels))}
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "markers", "x": [rounded(rank) for _, rank in panel.ranks],
            "y": list(range(len(labels))), "text": list(map(escaped, labels)),
            "marker": {"size": 10, "color": "#0173b2"},
            "hovertemplate": "%{text}: %{x:.2f}<extra></extra>", "showlegend": False,
        }
    ]  # fmt: skip
    for number, group in enumerate(panel.groups):
        traces.append(
            {
                "type": "scatter", "mode": "lines", "x": [last + 0.5 + 0.35 * number] * 2,
                "y": [place[group[0]] - 0.25, place[group[-1]] + 0.25], "line": {"width": 5, "color": "#8a8a8a"},
                "hoverinfo": "skip", "showlegend": False,
            }
        )  # fmt: skip
    return traces


def dots(
    panel: Dots, look: Mapping[str, Style], coloured: frozenset[str], x: dict[str, Any], y: dict[str, Any]
) -> list[dict[str, Any]]:
    """A marker per row, from top to bottom; the names of all rows are at the axis, so that none needs the legend."""
    names = list(map(escaped, panel.labels))
    y |= {"range": [len(names) - 0.5, -0.5], "tickvals": list(range(len(names))), "ticktext": names}
    if panel.logarithmic:
        x |= log_axis([value.mean for _, value in panel.values if value is not None])
    traces: list[dict[str, Any]] = []
    for place, (label, value) in enumerate(panel.values):
        if value is None:
            continue
        own, style = label in coloured, look[label]
        mark = {"color": style.colour, "size": 10} if own else {"color": "muted", "size": 7}
        traces.append(
            {
                "type": "scatter", "mode": "markers", "x": [rounded(value.mean)], "y": [place],
                "error_x": error_bar(value), "name": names[place], "customdata": [interval_text(value)],
                "marker": mark | {"symbol": SYMBOLS.get(style.marker, "star") if own else "circle"},
                "hovertemplate": "%{x:.4~g}%{customdata}<extra>%{fullData.name}</extra>", "showlegend": False,
            }
        )  # fmt: skip
    return traces

"""The legend below a chart: rows that have no name next to their line or point, and lines of sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.lines import Line2D

from cl_bench.reporting.charts import Chart, Lines, Scatter
from cl_bench.reporting.render import scatter, styles
from cl_bench.reporting.render.look import Look, dash, named_by_title
from cl_bench.reporting.render.panels import in_legend
from cl_bench.reporting.render.text_layout import Page

_OTHERS = "other rows"


def entries(chart: Chart, look: Look, direct: bool, width: float) -> list[Line2D]:
    """Entries of the legend for panels of this width in inches.

    Rows are sorted by last value, highest first, like the ends of the curves. Lines of a sequence follow in order.

    Args:
        direct: whether rows are named at the ends of their lines, so that they need no legend.
    """
    ends: dict[str, float] = {}
    sequence: dict[str, float] = {}
    grey = False
    points = isinstance(chart.panels[0], Scatter)
    for panel in chart.panels:
        chosen = look.coloured(panel)
        if isinstance(panel, Lines):
            for line in panel.lines:
                if line.order is not None:
                    if in_legend(panel) and line.label in chosen:
                        sequence.setdefault(line.label, line.order)
                elif line.label in chosen and not named_by_title(panel) and not direct:
                    ends.setdefault(line.label, line.y[-1].mean)
                elif line.label not in chosen and not direct:
                    grey = True
            for label, level in () if direct else panel.levels:
                ends.setdefault(label, level.mean)
        elif isinstance(panel, Scatter):
            beside = {point.label for point in scatter.named(panel, look, width)}
            if chosen - beside:
                ends |= {point.label: point.y.mean for point in panel.points if point.label in chosen}
                grey |= any(point.label not in chosen for point in panel.points)
    rows = [_row(label, look, points) for label in sorted(ends, key=lambda label: (-ends[label], label))]
    strokes = any(line.breaks for panel in chart.panels if isinstance(panel, Lines) for line in panel.lines)
    steps = [
        Line2D([], [], color=styles.sequential(order).colour, marker="" if strokes else "o", markersize=2.8,
               linewidth=1, label=label)
        for label, order in sorted(sequence.items(), key=lambda item: item[1])
    ]  # fmt: skip
    others = Line2D(
        [], [], color=styles.CONTEXT, linestyle="none" if points else "-", linewidth=0.6,
        marker="o" if points else None, markersize=3.5, markeredgewidth=0, label=_OTHERS,
    )  # fmt: skip
    return rows + steps + ([others] if grey and rows else [])


def _row(label: str, look: Look, points: bool) -> Line2D:
    style = look.rows[label]
    return Line2D(
        [], [], color=style.colour, linestyle="none" if points else dash(style),
        marker=style.marker or ("*" if points else None), markeredgecolor="white", markeredgewidth=0.5,
        label=look.page.wrapped(label, 3.0, look.page.small),
    )  # fmt: skip


def entries_per_row(labels: Sequence[str], width: float, page: Page) -> int:
    """Number of legend entries side by side: as many as fit, with columns as wide as their longest entry."""
    widths = [max((page.width_of(line, page.small) for line in label.split("\n")), default=0) for label in labels]
    for columns in range(len(labels), 1, -1):
        # The columns of matplotlib's legends: filled downwards, the first ones longer.
        if sum(0.5 * page.scale + max(column) for column in np.array_split(widths, columns)) <= width:
            # The smallest number of columns with the same number of rows fills the rows more evenly.
            return math.ceil(len(labels) / math.ceil(len(labels) / columns))
    return 1
